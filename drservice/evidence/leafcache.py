"""What this host has seen of the ledger: leaf hashes by entry number, in a file that may be lost at the price of time.

Fixed rows are appended, each with its CRC; a torn or damaged row ends the reading, and what lay behind it is read from
the store again. Processes of one host take turns by the ledger's lock.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.processes import create_private, make_folder, open_private

_ROW = struct.Struct(">BQQQ32s32sI")
_SEEN, _DOUBTFUL = 1, 2
_NO_LEAF = bytes(32)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One entry: its leaf hash, the identity of its statement, and what a listing said of the object that was read."""

    leaf: bytes
    identity: bytes
    stored_bytes: int
    modified_us: int = 0
    """Microseconds since 1970 by the store's clock; 0 for an entry that was written here and not read back yet."""


class LeafCache:
    """Leaves by number, and identities whose append may or may not have happened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._leaves: dict[int, Leaf] = {}
        self._numbers: dict[bytes, int] = {}
        self._doubtful: dict[bytes, int] = {}
        self._read_bytes = 0

    def refresh(self) -> None:
        """Take in what other processes of this host have added."""
        try:
            descriptor = open_private(self._path)
        except FileNotFoundError:
            return  # not even its folder: nothing was ever seen here
        except OSError as error:
            telemetry.warning("the ledger's cache cannot be read", path=str(self._path), problem=str(error))
            return
        with os.fdopen(descriptor, "rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._read_bytes:
                self._forget()
            stream.seek(self._read_bytes)
            data = stream.read()
        usable = len(data) - len(data) % _ROW.size
        for position in range(0, usable, _ROW.size):
            row = data[position : position + _ROW.size]
            kind, number, stored_bytes, modified_us, leaf, identity, checksum = _ROW.unpack(row)
            if zlib.crc32(row[:-4]) != checksum:
                usable = position
                break
            self._take(kind, number, Leaf(leaf, identity, stored_bytes, modified_us))
        self._read_bytes += usable
        if usable != len(data):
            self._rewrite()

    def __contains__(self, number: int) -> bool:
        return number in self._leaves

    def get(self, number: int) -> Leaf | None:
        """Return what is known of an entry."""
        return self._leaves.get(number)

    def leaf(self, number: int) -> bytes:
        """Return the leaf hash of an entry that was seen."""
        return self._leaves[number].leaf

    @property
    def highest(self) -> int:
        """The highest number seen, -1 for none."""
        return max(self._leaves, default=-1)

    def number_of(self, identity: bytes) -> int | None:
        """Return the number under which a statement was seen."""
        return self._numbers.get(identity)

    def doubtful_from(self, identity: bytes) -> int | None:
        """Return from which number on a statement may stand whose append had no clear end."""
        return self._doubtful.get(identity)

    def add(self, number: int, leaf: Leaf) -> None:
        """Remember an entry."""
        self._take(_SEEN, number, leaf)
        self._append(_SEEN, number, leaf)

    def doubt(self, identity: bytes, number: int) -> None:
        """Remember that a statement may have been appended at ``number`` or later."""
        if identity not in self._doubtful:
            leaf = Leaf(_NO_LEAF, identity, 0)
            self._take(_DOUBTFUL, number, leaf)
            self._append(_DOUBTFUL, number, leaf)

    def _take(self, kind: int, number: int, leaf: Leaf) -> None:
        if kind == _DOUBTFUL:
            self._doubtful.setdefault(leaf.identity, number)
        else:
            self._leaves[number] = leaf
            self._numbers.setdefault(leaf.identity, number)

    def _forget(self) -> None:
        self._leaves.clear()
        self._numbers.clear()
        self._doubtful.clear()
        self._read_bytes = 0

    def _append(self, kind: int, number: int, leaf: Leaf) -> None:
        row = _row(kind, number, leaf)
        try:
            make_folder(self._path.parent)
            descriptor = open_private(self._path)
            try:
                if os.lseek(descriptor, 0, os.SEEK_END) != self._read_bytes:
                    return  # another process wrote, or a row is torn: the next refresh sees to it
                if os.write(descriptor, row) == len(row):
                    self._read_bytes += len(row)
            finally:
                os.close(descriptor)
        except OSError as error:
            telemetry.warning("the ledger's cache cannot be written", path=str(self._path), problem=str(error))

    def _rewrite(self) -> None:
        """Write the file anew, without what was torn."""
        rows = [_row(_SEEN, number, leaf) for number, leaf in self._leaves.items()]
        rows += [_row(_DOUBTFUL, number, Leaf(_NO_LEAF, name, 0)) for name, number in self._doubtful.items()]
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            with os.fdopen(create_private(temporary), "wb") as stream:
                stream.write(b"".join(rows))
            temporary.replace(self._path)
            self._read_bytes = len(rows) * _ROW.size
        except OSError as error:
            telemetry.warning("the ledger's cache cannot be written", path=str(self._path), problem=str(error))


def _row(kind: int, number: int, leaf: Leaf) -> bytes:
    row = _ROW.pack(kind, number, leaf.stored_bytes, leaf.modified_us, leaf.leaf, leaf.identity, 0)[:-4]
    return row + struct.pack(">I", zlib.crc32(row))
