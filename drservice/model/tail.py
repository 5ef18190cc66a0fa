"""Pieces of WAL segments that are not whole yet, how a segment is put together from them, and the server's clock.

Pieces of several writers, and of one that was killed and came back, overlap. Where they do they must agree: two
different bytes at one position are two histories, and nobody here can tell which one is true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from drservice.model.ids import is_ulid
from drservice.model.wal import Lsn, Timeline

_NAME = re.compile(r"([0-9A-F]{16})-([0-9A-F]{16})-([0-9A-Z]{26})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TailPiece:
    """The bytes ``[start, end)`` of one segment, as one writer received them."""

    timeline: Timeline
    start: Lsn
    end: Lsn
    writer: str
    """ULID of the writer's run: what it wrote before it was killed is another writer's."""

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"a piece of WAL from {self.start} to {self.end} holds nothing")
        if not is_ulid(self.writer):
            raise ValueError(f"{self.writer!r} is no ULID")

    @property
    def name(self) -> str:
        """The last part of its key: pieces sort by where they begin."""
        return f"{self.start.value:016X}-{self.end.value:016X}-{self.writer}"

    @classmethod
    def parse(cls, name: str, timeline: Timeline) -> TailPiece:
        """Read the last part of a key.

        Raises:
            ValueError: it is none of a piece.
        """
        match = _NAME.match(name)
        if match is None:
            raise ValueError(f"{name!r} is no name of a piece of WAL")
        return cls(timeline=timeline, start=Lsn(int(match[1], 16)), end=Lsn(int(match[2], 16)), writer=match[3])

    def segment(self, segment_bytes: int) -> int:
        """Return the number of the segment it belongs to.

        Raises:
            ValueError: it crosses the boundary of a segment of this size.
        """
        number = self.start.segment_number(segment_bytes)
        if Lsn(self.end.value - 1).segment_number(segment_bytes) != number:
            raise ValueError(f"the piece from {self.start} to {self.end} crosses a boundary of {segment_bytes} bytes")
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPiece:
    """A piece as a listing shows it."""

    piece: TailPiece
    key: str
    stored_bytes: int
    modified_at: datetime
    """By the store's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPair:
    """What the server's clock said when its WAL ended at a position; nothing about commits: it narrows a search."""

    server_time: datetime
    lsn: Lsn


class TailEnd(Enum):
    """Why a segment that was put together from pieces ends where it does."""

    NOTHING_BEHIND = "nothing behind"
    """Nothing that lies further on was ever stored."""
    MISSING = "missing"
    """A piece is missing, and one behind it is there."""
    UNUSABLE = "unusable"
    """The piece that goes on is there, and cut off, changed or not to be believed."""
    CONFLICT = "conflict"
    """Two pieces say different things about the next byte."""


@dataclass(slots=True, kw_only=True)
class Assembly:
    """A segment that grows from pieces, which are added by where they begin."""

    begin: Lsn
    data: bytearray
    """Its full length; zero behind :attr:`end`."""
    end: Lsn
    why: TailEnd | None = None
    """Set once nothing that comes can make it longer; what contradicts still makes it shorter."""
    used: list[TailPiece] = field(default_factory=list)
    culprit: TailPiece | None = None
    """The piece that is unusable, contradicts, or lies behind what is missing."""
    _spoilt: list[TailPiece] = field(default_factory=list)
    _last_offset: int = 0

    @classmethod
    def of(cls, begin: Lsn, segment_bytes: int) -> Assembly:
        """Begin with an empty segment."""
        return cls(begin=begin, data=bytearray(segment_bytes), end=begin)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is there and nothing contradicts."""
        return self.end.value - self.begin.value == len(self.data)

    def add(self, piece: TailPiece, plain: bytes | memoryview | None) -> None:
        """Add a piece of this segment; ``None``: its bytes cannot be had.

        Raises:
            ValueError: it is not this segment's, has another length, or begins before the one that was added last.
        """
        offset = piece.start.value - self.begin.value
        if not self._last_offset <= offset or piece.end.value - self.begin.value > len(self.data):
            raise ValueError(f"{piece.name} is out of order, or of another segment")
        if plain is not None and len(plain) != piece.end.value - piece.start.value:
            raise ValueError(f"{piece.name} has {len(plain)} bytes")
        self._last_offset = offset
        if self.why is not None and (plain is None or piece.start >= self.end):
            return
        if piece.start > self.end:
            self._conclude(TailEnd.MISSING, piece)
        elif plain is None:
            self._spoilt.append(piece)
        else:
            self._extend(piece, memoryview(plain), offset)

    def conclude(self) -> None:
        """Say why it ends where it does: there are no more pieces."""
        if self.why is None:
            self._conclude(TailEnd.NOTHING_BEHIND, None)

    def _extend(self, piece: TailPiece, plain: memoryview, offset: int) -> None:
        filled = self.end.value - self.begin.value
        known = min(filled - offset, len(plain))
        if self.data[offset : offset + known] != plain[:known]:
            same = offset + _common_prefix(bytes(self.data[offset : offset + known]), bytes(plain[:known]))
            self.data[same:filled] = bytes(filled - same)
            self.end = Lsn(self.begin.value + same)
            self.why, self.culprit = TailEnd.CONFLICT, piece
            return
        if self.why is not None:
            return
        if known < len(plain):
            self.data[filled : offset + len(plain)] = plain[known:]
            self.end = piece.end
        self.used.append(piece)

    def _conclude(self, why: TailEnd, culprit: TailPiece | None) -> None:
        """Blame a piece that cannot be used and would have led on before one that is nowhere."""
        furthest = max(self._spoilt, key=lambda piece: piece.end, default=None)
        if furthest is not None and furthest.end > self.end:
            why, culprit = TailEnd.UNUSABLE, furthest
        self.why, self.culprit = why, culprit


def _common_prefix(one: bytes, other: bytes) -> int:
    """Return how many leading bytes are the same, by halves: segments are long."""
    low, high = 0, len(one)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def covered_until(begin: Lsn, pieces: Iterable[TailPiece]) -> Lsn:
    """Return how far pieces that are sorted by where they begin follow each other from ``begin``, by their names."""
    end = begin
    for piece in pieces:
        if piece.start > end:
            break
        end = max(end, piece.end)
    return end


def by_segment(pieces: Sequence[StoredPiece], segment_bytes: int) -> Iterator[tuple[int, list[StoredPiece]]]:
    """Yield the pieces of each segment, in order; those that cross a boundary are nobody's."""
    number, found = -1, list[StoredPiece]()
    for stored in pieces:
        try:
            own = stored.piece.segment(segment_bytes)
        except ValueError:
            continue
        if own != number and found:
            yield number, found
            found = []
        number = own
        found.append(stored)
    if found:
        yield number, found


def describe_end(name: str, assembly: Assembly) -> str:
    """Say why segment ``name`` ends where it does, in words."""
    culprit = assembly.culprit
    if culprit is None:
        return f"{name} is stored up to {assembly.end}"
    if assembly.why is TailEnd.MISSING:
        return f"WAL of {name} from {assembly.end} to {culprit.start} is missing, although what follows it was stored"
    if assembly.why is TailEnd.UNUSABLE:
        return f"the piece of {name} that leads on from {assembly.end} cannot be used ({culprit.name})"
    return (
        f"two pieces of {name} say different things about {assembly.end} (one is {culprit.name}): two servers, or two"
        " histories, wrote under one timeline"
    )
