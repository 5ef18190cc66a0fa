"""PostgreSQL as a component: capture, WAL, and the way back.

``connection`` and ``replication`` talk to a server, ``capture`` and ``basebackup`` read one, ``placing`` and
``recovery`` bring one back; the rest are pure parsers of what PostgreSQL writes.
"""
