"""What is stored in every repository so that it can be read without drservice: ``restore.py`` and ``RESTORE.md``.

``restore.py`` is written from ``docs/format.md`` alone and imports nothing of drservice.
"""
