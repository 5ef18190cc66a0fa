"""What PostgreSQL starts for every segment: standard library only, and as little of it as will do.

``push.py`` asks the helper of a service (:mod:`drservice.operations.walhelper`) whether a WAL file is durable and
leaves with 0 if it is; ``fetch.py`` takes what was fetched ahead out of the spool. Whatever is not answered with
certainty is left to ``drservice wal push`` and ``drservice wal fetch``, which need nobody: the verdict PostgreSQL hears
is always theirs or as good as theirs.

The protocol (version 1), one connection for each question, over a Unix socket::

    message  = length (4 bytes, big-endian, at most 8,192) || text (UTF-8)
    text     = word, then lines ``name=value``; neither holds a line feed, a name no ``=``

    push     version config service name identity head     the client's question
    wait     version                                       at least once a second while the helper works on it
    durable  version config service name identity head repository system_id
    other    version reason                                the client is to go the slow way
    state    version                                       what ``drservice check`` and the node ask, and the answer:
    state    version config repository pid ready problem

``config`` is which file the other side read (device, inode, size and time of change of its configuration): two sides
with different settings do not talk. ``identity`` is which file is meant (device, inode, size, time of writing and of
change), ``head`` its first 40 bytes in hexadecimal: they hold the cluster and the position, so an answer about a
recycled file or an earlier cluster is never taken for one about this file (trap T18). A helper opens ``name`` below its
own cluster's ``pg_wal``; no path crosses the socket.

Both sides look who the other one is (SO_PEERCRED): the client believes root, itself and the owner of ``state_dir``, the
helper answers root, itself and the owner of the data directory.
"""
