"""Marks: what the writing host remembers of a file so that it need not look into it again.

A mark is 50 bytes beside a cached entry: how the file looked when it was read, whether that can be relied on, and on
which day of the month it is read whatever it looks like (``changes.py``). It is compared as bytes, because a backup
in which nothing changed does little else. Marks never leave the host.
"""

from __future__ import annotations

import os
import struct

from drservice.repository.changes import DAY_NS, REREAD_DAYS, SETTLED_NS, reading_slot
from drservice.repository.nodes import FileIdentity

_LOOK = struct.Struct(">QQQqq")
_REST = struct.Struct(">qBB")
LOOK_BYTES = _LOOK.size
NO_LOOK = bytes(LOOK_BYTES)
"""The look of a file that is to be read whatever it looks like."""
_SIZE_AND_TIME = slice(16, 32)
_SETTLED = 1
_NOT_ITS_NAME = 2


def look_of(status: os.stat_result) -> bytes:
    """Return device, inode, size and both times of a listed file as bytes."""
    return _LOOK.pack(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def make_mark(path: bytes, size: int, identity: FileIdentity, *, not_its_name: bool) -> bytes:
    """Return the mark of a file that was read.

    Args:
        path: in the snapshot.
        size: bytes that were read.
        identity: how the file looked before it was read.
        not_its_name: its content is not what its name says.
    """
    look = _LOOK.pack(identity.device, identity.inode, size, identity.modified_ns, identity.changed_ns)
    settled = max(identity.modified_ns, identity.changed_ns) + SETTLED_NS <= identity.read_began_ns
    flags = _SETTLED * settled | _NOT_ITS_NAME * not_its_name
    return look + _REST.pack(identity.read_began_ns, reading_slot(path), flags)


def is_not_its_name(mark: bytes) -> bool:
    """Tell whether the content was not what the file's name says."""
    return bool(mark[-1] & _NOT_ITS_NAME)


class MarkJudge:
    """Judges many files against their marks at one instant."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._due: dict[int, frozenset[int]] = {}

    def by_identity(self, look: bytes, mark: bytes | None) -> bool:
        """Tell whether a file is unchanged by device, inode, size and both times (the rule of ``changes.py``)."""
        return mark is not None and mark[:LOOK_BYTES] == look and bool(mark[-1] & _SETTLED) and self._is_fresh(mark)

    def by_name(self, look: bytes, mark: bytes | None) -> bool:
        """Tell whether a document whose name is its hash need not be read: it has the size and time it had.

        Only for documents that were what their name says: then what is stored is right whatever became of the file.
        Inode and change time do not count, because a network file system may give others on every mount.
        """
        return (
            mark is not None
            and mark[_SIZE_AND_TIME] == look[_SIZE_AND_TIME]
            and not mark[-1] & _NOT_ITS_NAME
            and self._is_fresh(mark)
        )

    def _is_fresh(self, mark: bytes) -> bool:
        """Tell whether the clock went forward since the reading, and the file's day did not come in between."""
        began, slot, _ = _REST.unpack_from(mark, LOOK_BYTES)
        day = began // DAY_NS
        due = self._due.get(day)
        if due is None:
            due = self._due[day] = self._due_slots(day)
        return began <= self._now_ns and slot not in due

    def _due_slots(self, last_day: int) -> frozenset[int]:
        end = min(self._now_ns // DAY_NS, last_day + REREAD_DAYS)
        return frozenset(day % REREAD_DAYS for day in range(last_day + 1, end + 1))
