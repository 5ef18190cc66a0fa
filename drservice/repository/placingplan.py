"""Planning what placing fetches: file by file, and handed out by pack, in rounds that bound the memory of the plan."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from drservice.repository.chunktable import ROW, ChunkRow
from drservice.repository.nodes import Entry
from drservice.repository.reader import SnapshotReader
from drservice.repository.records import CODEC_ZERO
from drservice.repository.skeleton import Shaping, Survey

_PLACE = struct.Struct(">IQ")
_ITEM = _PLACE.size + ROW.size
_FIRST_ROWS = 1 << 12
_ROUND_ROWS = 1 << 17
"""Chunks planned at once (8 GiB of data at 64 KiB): bounds memory at any size. The first round is small, so that
workers begin soon, and each is four times the one before: the more is planned together, the fewer packs are asked for
twice.
"""
_PIECE_BYTES = 24 << 20
"""Plain bytes a worker takes on at once; as much again is fetched meanwhile."""
_BATCH_PIECES = 3
"""Pieces per batch: all but the first are fetched, and compared, while the one before is written."""
MERGE_GAP_BYTES = 256 << 10
_NO_PACK = b""
"""Where the plan keeps zero chunks of files that may hold something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFetch:
    """What to take from one pack and where it goes: items are (file number, file offset) + chunk row."""

    pack: bytes
    files: Sequence[bytes]
    compared: frozenset[int]
    """Numbers of files that may hold some of it already."""
    items: bytes


Item = tuple[int, int, ChunkRow]
"""Number of the file, place in it, and the chunk."""


@dataclass(slots=True)
class _Share:
    """What a round takes from one pack."""

    paths: dict[bytes, int] = field(default_factory=dict)
    """The files it goes to, and their numbers."""
    items: bytearray = field(default_factory=bytearray)
    cuts: list[int] = field(default_factory=list)
    """Where pieces end that are small enough that no worker is left with a long one at the end."""
    plain_bytes: int = 0
    """Since the last cut."""
    last_offset: int = 0
    is_ordered: bool = True
    """Whether the items are in order of their place in the pack, as they are unless chunks were used again."""

    def add(self, path: bytes, place: int, row: bytes, *, offset: int, plain_length: int) -> None:
        """Note a chunk, ``row`` in its encoded form, that goes to ``place`` of a file."""
        self.items += _PLACE.pack(self.paths.setdefault(path, len(self.paths)), place)
        self.items += row
        self.is_ordered = self.is_ordered and offset >= self.last_offset
        self.last_offset = offset
        self.plain_bytes += plain_length
        if self.plain_bytes >= _PIECE_BYTES:
            self.cuts.append(len(self.items))
            self.plain_bytes = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield the items in order of their place in the pack, piece by piece."""
        if not self.is_ordered:
            yield from self._in_order().pieces()
            return
        begin = 0
        for end in (*self.cuts, len(self.items)):
            if end > begin:
                yield bytes(memoryview(self.items)[begin:end])
            begin = end

    def _in_order(self) -> _Share:
        ordered = _Share(paths=self.paths)
        paths = tuple(self.paths)
        for number, place, row in sorted(unpacked(bytes(self.items)), key=lambda item: item[2].offset):
            ordered.add(paths[number], place, ROW.pack(*row), offset=row.offset, plain_length=row.plain_length)
        return ordered


Groups = dict[bytes, _Share]


def _rounds(
    reader: SnapshotReader, files: Sequence[Entry], found: Survey, shaping: Shaping, advance: Callable[[int], None]
) -> Iterator[Groups]:
    """Plan file by file and hand out shares of packs whenever a round is full.

    What is handed out goes to files that were made; what does not need any content is made at the end.
    """
    groups: Groups = {}
    rows = 0
    limit = min(_FIRST_ROWS, _ROUND_ROWS)
    for entry in files:
        is_kept = entry.path in found.kept
        place = 0
        for table in reader.tables(entry):
            for begin, row in enumerate(ROW.iter_unpack(table.rows)):
                _, pack_index, _, offset, _, plain_length, codec = row
                if codec == CODEC_ZERO and not is_kept:
                    advance(plain_length)  # the file was made at its size: a hole reads as zeros
                else:
                    pack = _NO_PACK if codec == CODEC_ZERO else table.packs[pack_index]
                    share = groups.get(pack)
                    if share is None:
                        share = groups[pack] = _Share()
                    raw = table.rows[begin * ROW.size : (begin + 1) * ROW.size]
                    share.add(entry.path, place, raw, offset=offset, plain_length=plain_length)
                    rows += 1
                place += plain_length
        if rows >= limit:
            shaping.until(entry.path)
            yield groups
            groups, rows = {}, 0
            limit = min(4 * limit, _ROUND_ROWS)
    shaping.until(None)
    yield groups


def batches(
    reader: SnapshotReader, files: Sequence[Entry], found: Survey, shaping: Shaping, advance: Callable[[int], None]
) -> Iterator[Sequence[PackFetch]]:
    """Yield what is to be fetched for files, pieces of one pack after the other; they are made before they are needed.

    Args:
        reader: the snapshot.
        files: whose content is wanted, in order of their paths.
        found: what the folder holds already.
        shaping: makes the files.
        advance: hears of bytes that need not be fetched.

    Raises:
        DamagedObjectError, MissingObjectError: a file's chunks cannot be read or are none of the snapshot's.
        RecoveryError: a file cannot be made.
    """
    for groups in _rounds(reader, files, found, shaping, advance):
        batch: list[PackFetch] = []
        for pack, share in groups.items():
            if pack != _NO_PACK:
                reader.pack_bytes(pack)  # which refuses one that the snapshot does not list
            paths = tuple(share.paths)
            compared = frozenset(number for number, path in enumerate(paths) if path in found.kept)
            for piece in share.pieces():
                batch.append(PackFetch(pack=pack, files=paths, compared=compared, items=piece))
                if len(batch) == _BATCH_PIECES:
                    yield batch
                    batch = []
        if batch:
            yield batch


def unpacked(items: bytes) -> Iterator[Item]:
    """Yield the items of a piece."""
    for position in range(0, len(items), _ITEM):
        number, offset = _PLACE.unpack_from(items, position)
        yield number, offset, ChunkRow(*ROW.unpack_from(items, position + _PLACE.size))


def merged(items: Sequence[Item], *, most: int | None = None) -> Iterator[list[Item]]:
    """Group items, in order of their place in the pack, that are read at once; ``most``: no longer than about that."""
    group: list[Item] = []
    end = 0
    for item in items:
        row = item[2]
        is_long = most is not None and group and row.offset - group[0][2].offset >= most
        if group and (is_long or row.offset > end + MERGE_GAP_BYTES):
            yield group
            group = []
        group.append(item)
        end = max(end, row.offset + row.stored_length)
    if group:
        yield group
