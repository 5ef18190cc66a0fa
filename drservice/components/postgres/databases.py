"""Which databases a copied cluster holds, read from its files without a server.

A copy that was made while the server ran is not consistent before replay, so what is read here never decides anything
by itself: it says which files *may* belong to a database, all names included that one ever had in the file. What is
true at the recovered instant is asked of the recovered server.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from drservice.components.postgres.controlfile import crc32c
from drservice.errors import FormatError

FILENODE_MAP = b"global/pg_filenode.map"

_MAP_MAGIC = 0x592717
_MAP_CRC_OFFSETS = {512: 504, 524: 520}
"""By the size of the file: up to version 15, and since (``relmapper.c``)."""
_PG_DATABASE = 1262
_FIRST_NORMAL_OID = 16384
"""What initdb makes is below (``transam.h``): template0, template1, postgres."""
_PAGE_HEADER_BYTES = 24
_TUPLE_HEADER_BYTES = 23
_LP_NORMAL = 1
_XMAX_INVALID = 0x0800
_XMAX_LOCK_ONLY = 0x0080
_NAME_BYTES = 64
_TEMPLATE_FLAG = {13: 204, 14: 204}
"""Where ``datistemplate`` stands in a row (``pg_database.h``), by major version."""
_TEMPLATE_FLAG_SINCE_15 = 77
_FOLDER = re.compile(rb"(?:base/(\d+)|pg_tblspc/\d+/PG_[^/]+/(\d+))/")
_RELATION = re.compile(r"(?:base/(\d+)|pg_tblspc/\d+/PG_[^/]+/(\d+))/\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRow:
    """A version of a row of ``pg_database``; whether it is, was, or never came to be visible is not known."""

    oid: int
    name: str
    is_template: bool
    is_newest: bool
    """Nothing has replaced or deleted it, as far as the row itself says."""

    @property
    def is_built_in(self) -> bool:
        """Whether every restore needs it: made by initdb, a source of new ones, or the one all tools connect to."""
        return self.oid < _FIRST_NORMAL_OID or self.is_template or self.name == "postgres"


def database_of(path: bytes) -> int | None:
    """Return the OID of the database that a file below the data directory belongs to; ``None``: to none or to all."""
    match = _FOLDER.match(path)
    return int(match[1] or match[2]) if match else None


def database_of_relation(path: str) -> int | None:
    """Return the OID of the database of a relation as PostgreSQL's messages name it; ``None`` for a shared one."""
    match = _RELATION.match(path)
    return int(match[1] or match[2]) if match else None


def database_file(filenode_map: bytes) -> bytes:
    """Return the path of ``pg_database``'s own file, from the bytes of ``global/pg_filenode.map``.

    Raises:
        FormatError: these are no such bytes (read in the middle of a write, or of an unknown version).
    """
    crc_offset = _MAP_CRC_OFFSETS.get(len(filenode_map))
    if crc_offset is None or struct.unpack_from("<I", filenode_map, crc_offset)[0] != crc32c(filenode_map[:crc_offset]):
        raise FormatError("global/pg_filenode.map is not whole")
    magic, count = struct.unpack_from("<II", filenode_map, 0)
    if magic != _MAP_MAGIC or 8 + 8 * count > crc_offset:
        raise FormatError("global/pg_filenode.map cannot be read")
    for number in range(count):
        relation, file_node = struct.unpack_from("<II", filenode_map, 8 + 8 * number)
        if relation == _PG_DATABASE:
            return b"global/%d" % file_node
    raise FormatError("global/pg_filenode.map does not name the file of pg_database")


def database_rows(content: bytes, *, block_bytes: int, major: int) -> list[DatabaseRow]:
    """Return every version of a row in the file of ``pg_database``; what cannot be one is passed over.

    Args:
        content: of the whole file.
        block_bytes: the cluster's block size.
        major: version of the server that wrote it.
    """
    flag = _TEMPLATE_FLAG.get(major, _TEMPLATE_FLAG_SINCE_15)
    return [
        row
        for at in range(0, len(content) - block_bytes + 1, block_bytes)
        for item in _items(content[at : at + block_bytes])
        if (row := _row(item, flag)) is not None
    ]


def _items(page: bytes) -> Iterator[bytes]:
    """Yield the items of a heap page that hold something (``bufpage.h``)."""
    lower, upper = struct.unpack_from("<HH", page, 12)
    if not _PAGE_HEADER_BYTES <= lower <= upper <= len(page):
        return
    for at in range(_PAGE_HEADER_BYTES, lower - 3, 4):
        (pointer,) = struct.unpack_from("<I", page, at)
        offset, state, length = pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17
        if state == _LP_NORMAL and upper <= offset and offset + length <= len(page):
            yield page[offset : offset + length]


def _row(item: bytes, flag: int) -> DatabaseRow | None:
    if len(item) < _TUPLE_HEADER_BYTES:
        return None
    (xmax,) = struct.unpack_from("<I", item, 4)
    infomask, header = struct.unpack_from("<HB", item, 20)
    if not _TUPLE_HEADER_BYTES <= header <= len(item) - flag - 1:
        return None
    (oid,) = struct.unpack_from("<I", item, header)
    name = item[header + 4 : header + 4 + _NAME_BYTES].partition(b"\0")[0]
    if oid == 0 or not name:
        return None
    return DatabaseRow(
        oid=oid,
        name=name.decode("utf-8", "surrogateescape"),
        is_template=item[header + flag] != 0,
        is_newest=xmax == 0 or bool(infomask & (_XMAX_INVALID | _XMAX_LOCK_ONLY)),
    )


# --- choosing one -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The files that a side restore of one database needs."""

    name: str
    """As it was asked for."""
    kept: frozenset[int]
    """OIDs of the databases whose files are placed: the one that is meant, and the built-in ones."""
    candidates: frozenset[int]
    """Which of them may be the one: several if a name moved from one database to another."""
    holders: frozenset[int]
    """Which of them have the name in the copy, as far as the copy itself says."""
    left_out: tuple[str, ...]
    """Names of the others, as the copy has them."""

    def wants(self, path: bytes) -> bool:
        """Tell whether the content of a file is needed."""
        database = database_of(path)
        return database is None or database in self.kept


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownDatabase:
    """No row of the copy has the name."""

    known: tuple[str, ...]
    """The names there are, sorted."""


def select_database(rows: Iterable[DatabaseRow], name: str, *, present: frozenset[int]) -> Selection | UnknownDatabase:
    """Choose whose files are needed for the database ``name``.

    A version of a row that was replaced counts, too: its transaction may have been rolled back. More files than needed
    cost time, one too few would be a hole.

    Args:
        rows: of ``pg_database``, in any order.
        name: the database that is wanted.
        present: OIDs that have files in the copy.
    """
    there = [row for row in rows if row.oid in present]
    candidates = frozenset(row.oid for row in there if row.name == name)
    if not candidates:
        return UnknownDatabase(known=tuple(sorted({row.name for row in there if row.is_newest})))
    kept = candidates | {row.oid for row in there if row.is_built_in}
    left_out = {row.name for row in there if row.oid not in kept and row.is_newest}
    nameless = present - kept - {row.oid for row in there}
    return Selection(
        name=name,
        kept=kept,
        candidates=candidates,
        holders=frozenset(row.oid for row in there if row.name == name and row.is_newest),
        left_out=(*sorted(left_out), *(f"OID {oid}" for oid in sorted(nameless))),
    )
