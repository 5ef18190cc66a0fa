"""Chunk tables: where the pieces of a file are (docs/format.md, section 6).

A table is a run of 53-byte rows beside a list of pack names. While a snapshot is written the list may hold *tokens*
(integers) for packs that are still open; the writer replaces them once the packs have names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from drservice.errors import FormatError
from drservice.repository.records import CODEC_RAW, CODEC_ZERO, CODEC_ZSTD, NO_CHUNK, TAG_BYTES

ROW = struct.Struct(">32sIIIIIB")
_STORED = frozenset({CODEC_RAW, CODEC_ZSTD})
INLINE_CHUNKS = 64
LEAF_CHUNKS = 1024
PackToken: TypeAlias = "int | bytes"
"""A pack's 32-byte name, or a number for one that is still open."""


class ChunkRow(NamedTuple):
    """One chunk of a file."""

    chunk_id: bytes
    pack_index: int
    ordinal: int
    offset: int
    stored_length: int
    plain_length: int
    codec: int


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Pack names and the rows that count into them."""

    packs: Sequence[bytes]
    rows: bytes

    def __len__(self) -> int:
        return len(self.rows) // ROW.size

    def __iter__(self) -> Iterator[ChunkRow]:
        return (ChunkRow(*fields) for fields in ROW.iter_unpack(self.rows))

    def row(self, index: int) -> ChunkRow:
        """Return row ``index``."""
        return ChunkRow(*ROW.unpack_from(self.rows, index * ROW.size))

    def plain_bytes(self) -> int:
        """Return how long the file part is."""
        return sum(row.plain_length for row in self)

    def validate(self, *, chunk_bytes: int, what: str) -> int:
        """Refuse rows that no writer makes; return how long the file part is.

        Raises:
            FormatError: naming ``what``.
        """
        if len(self.rows) % ROW.size:
            raise FormatError(f"{what}: the chunk table is cut off")
        last = len(self) - 1
        total = 0
        for index, row in enumerate(ROW.iter_unpack(self.rows)):
            _, pack_index, _, _, stored_length, plain_length, codec = row
            if not 0 < plain_length <= chunk_bytes or (index < last and plain_length != chunk_bytes):
                raise FormatError(f"{what}: chunk {index} has an impossible length")
            total += plain_length
            if codec == CODEC_ZERO:
                if row != (NO_CHUNK, 0, 0, 0, 0, plain_length, CODEC_ZERO):
                    raise FormatError(f"{what}: chunk {index} is all zero and yet refers to something")
                continue
            if codec not in _STORED or pack_index >= len(self.packs):
                raise FormatError(f"{what}: chunk {index} refers to nothing")
            if stored_length < TAG_BYTES:
                raise FormatError(f"{what}: chunk {index} is shorter than its tag")
        return total


class TableBuilder:
    """Collects rows while a file part is read."""

    def __init__(self) -> None:
        self.packs: list[PackToken] = []
        self._index: dict[PackToken, int] = {}
        self._rows = bytearray()

    def add(self, chunk_id: bytes, token: PackToken, ordinal: int, place: tuple[int, int, int, int]) -> None:
        """Append a stored chunk; ``place`` is (offset, stored length, plain length, codec)."""
        index = self._index.get(token)
        if index is None:
            index = self._index[token] = len(self.packs)
            self.packs.append(token)
        self._rows += ROW.pack(chunk_id, index, ordinal, *place)

    def add_zero(self, plain_length: int) -> None:
        """Append an all-zero chunk."""
        self._rows += ROW.pack(NO_CHUNK, 0, 0, 0, 0, plain_length, CODEC_ZERO)

    def rows(self) -> bytes:
        """Return the rows so far."""
        return bytes(self._rows)


def live_bytes(table: ChunkTable) -> dict[bytes, int]:
    """Return the stored bytes that a table uses of each pack."""
    totals = [0] * len(table.packs)
    for _, pack_index, _, _, stored_length, _, codec in ROW.iter_unpack(table.rows):
        if codec != CODEC_ZERO:
            totals[pack_index] += stored_length
    return {name: total for name, total in zip(table.packs, totals, strict=True) if total}
