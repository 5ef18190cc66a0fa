"""Marks: what the writing host remembers of a file so that it need not look into it again.

A mark is 50 bytes beside a cached entry: how the file looked when it was read, whether that can be relied on, and on
which day of the month it is read whatever it looks like (``changes.py``). It is compared as bytes, because a backup
in which nothing changed does little else. A folder has a mark as well: it says of all its files together what theirs
say one by one, or there is none. Marks never leave the host.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from blake3 import blake3

from drservice.repository.changes import DAY_NS, REREAD_DAYS, SETTLED_NS, reading_slot
from drservice.repository.nodes import FileIdentity

_LOOK = struct.Struct(">QQQqq")
_REST = struct.Struct(">qBB")
LOOK_BYTES = _LOOK.size
NO_LOOK = bytes(LOOK_BYTES)
"""The look of a file that is to be read whatever it looks like."""
_SIZE = slice(16, 24)
_SIZE_AND_TIME = slice(16, 32)
_SETTLED = 1
_NOT_ITS_NAME = 2
_FOLDER = struct.Struct(">32sQQq")
"""Hash of all names and looks, number of files, their bytes, when the last of them was read."""
_READ_ON = struct.Struct(">qI")
"""A day on which files were read, and a bit for each slot that these have."""


def look_of(status: os.stat_result) -> bytes:
    """Return device, inode, size and both times of a listed file as bytes."""
    return _LOOK.pack(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def size_of(look: bytes) -> int:
    """Return how long a file is by its look."""
    return int.from_bytes(look[_SIZE], "big")


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


def sum_looks(looks: Mapping[bytes, bytes]) -> bytes:
    """Return a hash of the names and looks of a folder's files, in whatever order they were listed."""
    return blake3(b"".join(sorted([name + b"\0" + look for name, look in looks.items()]))).digest()


def make_folder_mark(marks: Mapping[bytes, bytes | None]) -> bytes | None:
    """Return the mark of a folder from the marks of all that lies below it, by name.

    ``None`` where they must be asked one by one: a file without a mark, just written when it was read, or with other
    content than its name says; or something deeper.
    """
    looks: dict[bytes, bytes] = {}
    slots: dict[int, int] = {}
    size = latest_ns = 0
    for name, mark in marks.items():
        if mark is None or mark[-1] != _SETTLED or b"/" in name:
            return None
        look = looks[name] = mark[:LOOK_BYTES]
        size += size_of(look)
        began_ns, slot, _ = _REST.unpack_from(mark, LOOK_BYTES)
        latest_ns = max(latest_ns, began_ns)
        day = began_ns // DAY_NS
        slots[day] = slots.get(day, 0) | 1 << slot
    head = _FOLDER.pack(sum_looks(looks), len(looks), size, latest_ns)
    return head + b"".join(_READ_ON.pack(day, bits) for day, bits in sorted(slots.items()))


class MarkJudge:
    """Judges many files against their marks at one instant."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._due: dict[int, int] = {}

    def whole_folder(self, looks: Mapping[bytes, bytes], mark: bytes) -> tuple[int, int] | None:
        """Return number and bytes of a folder's files if :meth:`by_identity` would say of each that it is unchanged.

        The folder's own times are not asked: they say nothing about a file that was overwritten.
        """
        known, files, size, latest_ns = _FOLDER.unpack_from(mark)
        if len(looks) != files or latest_ns > self._now_ns or sum_looks(looks) != known:
            return None
        if any(bits & self._due_slots(day) for day, bits in _READ_ON.iter_unpack(mark[_FOLDER.size :])):
            return None
        return files, size

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
        return began <= self._now_ns and not self._due_slots(began // DAY_NS) >> slot & 1

    def _due_slots(self, last_day: int) -> int:
        """Return a bit for each slot whose day came since a day on which files were read."""
        due = self._due.get(last_day)
        if due is None:
            end = min(self._now_ns // DAY_NS, last_day + REREAD_DAYS)
            due = sum(1 << day % REREAD_DAYS for day in range(last_day + 1, end + 1))  # each slot once at most
            self._due[last_day] = due
        return due
