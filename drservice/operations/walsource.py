"""Where WAL comes from: whole files of the archive, and segments put together from the pieces a receiver stored.

A segment of which every byte is in pieces is as good as a whole one and is given to everybody who asks for it. One that
is not finished is given only to the restore whose plan ends in it, as far as that plan counted: what a receiver stores
while a restore runs changes nothing in it. Neither is ever stored under a segment's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from drservice.errors import DamagedObjectError, FormatError, KeyProblemError, SegmentAbsentError, SegmentConflictError
from drservice.model.ids import SystemId
from drservice.model.reach import TailSegment
from drservice.model.tail import StoredPiece, by_segment, covered_until
from drservice.model.wal import (
    HistoryEntry,
    Lsn,
    Timeline,
    WalFileKind,
    WalFileName,
    segment_begin,
    segment_name,
    segment_number,
)
from drservice.repository.clocks import ClockArchive
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.tail import TailArchive
from drservice.repository.walarchive import WalArchive

Taken = TypeVar("Taken")
_KEPT_BYTES = 64 << 20
"""A rebuilt last segment up to this size is kept: it is read by the search for the target, and by the replay."""


class WalFiles(Protocol):
    """Files of the WAL by name, as the archive gives them."""

    def fetch(self, name: WalFileName, *, system_id: SystemId) -> bytes:
        """Return the plain bytes of a file; raises ``SegmentAbsentError`` if it is proven that there is none."""
        ...

    def fetch_into(
        self, take: Callable[[Iterator[bytes | memoryview]], Taken], name: WalFileName, *, system_id: SystemId
    ) -> Taken:
        """Return what ``take`` makes of the plain pieces of a file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A segment that is in pieces only."""

    timeline: Timeline
    number: int
    name: str
    tail: TailSegment
    is_whole: bool
    pieces: tuple[StoredPiece, ...]
    """By position; all that were listed, also those that do not count."""
    server_time: datetime | None
    """The server's clock when it sent the last byte that counts; ``None``: the pieces were not read."""

    @property
    def stored_at(self) -> datetime:
        """When the last piece that counts reached the store."""
        counted = [item.modified_at for item in self.pieces if item.piece.end <= self.tail.end]
        return max(counted or [item.modified_at for item in self.pieces])


def streamed_segments(
    source: WalSource,
    *,
    segments: dict[Timeline, set[int]],
    histories: Mapping[Timeline, tuple[HistoryEntry, ...]],
    proven: bool,
) -> list[Streamed]:
    """Return what is in pieces only, by timeline and position.

    Args:
        source: of the cluster.
        segments: what is archived whole, by a listing that was made before; what has become whole since is added.
        histories: of the timelines.
        proven: read and check the pieces that count (needs an identity); else their names are believed.

    Raises:
        ObjectStoreError: a listing is not complete.
        NoIdentityError, WrongIdentityError: the pieces cannot be read here.
    """
    found: list[Streamed] = []
    for timeline in source.tail.timelines(source.system_id):
        held = segments.setdefault(timeline, set())
        entries = histories.get(timeline, ())
        branch = entries[-1].end.segment_number(source.segment_bytes) if entries else 0
        own: list[tuple[int, list[StoredPiece]]] = []
        for begin, end in list(_stretches(held, branch)):
            for number, pieces in source.pieces(timeline, begin, end):
                # A receiver stores a segment whole before it stores pieces of the next one: what was listed before
                # that, and the pieces after it, would look like a hole.
                if source.is_archived(timeline, number):
                    held.add(number)
                else:
                    own.append((number, pieces))
        last = max([*held, *(number for number, _ in own)], default=-1)
        found += [
            source.judge(timeline, number, pieces, proven=proven, is_last=number == last) for number, pieces in own
        ]
    return found


def _stretches(held: set[int], branch: int) -> Iterator[tuple[int, int | None]]:
    """Yield the numbers ``[begin, end)`` of which no segment is whole: before the first, holes, behind the last one.

    What lies before the first may be in pieces for good, if its receiver was killed and the slot had gone on.
    """
    following = branch
    for number in sorted(held):
        if number > following:
            yield following, number
        following = max(following, number + 1)
    yield following, None


def _end_of(stored: StoredPiece) -> Lsn:
    return stored.piece.end


class WalSource:
    """The WAL of one cluster, for whoever reads it.

    Args:
        repository: where it lies.
        scope: of the component.
        system_id: of the cluster.
        segment_bytes: size of its segments.
    """

    def __init__(self, repository: Repository, scope: Scope, *, system_id: SystemId, segment_bytes: int) -> None:
        self.archive: WalArchive = repository.wal(scope)
        self.tail: TailArchive = repository.tail(scope)
        self.clocks: ClockArchive = repository.clocks(scope)
        self.system_id = system_id
        self.segment_bytes = segment_bytes
        self._kept: dict[str, bytes] = {}

    def pieces(self, timeline: Timeline, begin: int, end: int | None) -> Iterator[tuple[int, list[StoredPiece]]]:
        """Yield the pieces of the segments with numbers in ``[begin, end)``."""
        listed = self.tail.pieces(
            self.system_id,
            timeline,
            begin=segment_begin(begin, self.segment_bytes),
            end=None if end is None else segment_begin(end, self.segment_bytes),
        )
        yield from by_segment(listed, self.segment_bytes)

    def piece_keys(self, name: str) -> list[str]:
        """Return the keys of all pieces of a segment."""
        number = segment_number(name, self.segment_bytes)
        found = self.pieces(Timeline(int(name[:8], 16)), number, number + 1)
        return [stored.key for _, items in found for stored in items]

    def is_archived(self, timeline: Timeline, number: int) -> bool:
        """Tell whether a segment is archived whole by now."""
        name = WalFileName.parse(segment_name(timeline, number, self.segment_bytes))
        return self.archive.exists(name, system_id=self.system_id)

    def judge(
        self, timeline: Timeline, number: int, pieces: list[StoredPiece], *, proven: bool, is_last: bool
    ) -> Streamed:
        """Return how far a segment can be put together; read are only pieces of one that may be of use."""
        name = segment_name(timeline, number, self.segment_bytes)
        begin = segment_begin(number, self.segment_bytes)
        end = covered_until(begin, (item.piece for item in pieces))
        is_whole = end == begin + self.segment_bytes
        tail = TailSegment(end=end)
        server_time = None
        if proven and (is_whole or is_last):
            made = self.tail.rebuild(self.system_id, timeline, number, self.segment_bytes)
            is_whole, server_time = made.is_whole, made.last_server_time
            problem = made.problem
            tail = TailSegment(
                end=made.end,
                problem=None if problem is None else problem.message,
                is_contradicted=isinstance(problem, SegmentConflictError),
            )
            if is_last and self.segment_bytes <= _KEPT_BYTES:
                self._kept = {name: bytes(made.data)}
        return Streamed(
            timeline=timeline,
            number=number,
            name=name,
            tail=tail,
            is_whole=is_whole,
            pieces=tuple(pieces),
            server_time=server_time,
        )

    def held_until(self, name: str, *, at: datetime) -> Lsn:
        """Return up to which position the pieces of a segment led at an instant of the store's clock, by their names.

        Raises:
            ObjectStoreError: the listing is not complete.
        """
        number = segment_number(name, self.segment_bytes)
        found = self.pieces(Timeline(int(name[:8], 16)), number, number + 1)
        pieces = (stored.piece for _, items in found for stored in items if stored.modified_at <= at)
        return covered_until(segment_begin(number, self.segment_bytes), pieces)

    def server_time_of(self, streamed: Streamed) -> datetime:
        """Return the server's clock when it sent the last byte that counts; of one that cannot be read, the store's.

        Raises:
            ObjectStoreError: the store did not answer as it should.
        """
        if streamed.server_time is not None:
            return streamed.server_time
        last = max((item for item in streamed.pieces if item.piece.end <= streamed.tail.end), key=_end_of, default=None)
        if last is None:
            return streamed.stored_at
        try:
            return self.tail.facts(last, system_id=self.system_id).server_time
        except (FormatError, DamagedObjectError, KeyProblemError):
            return last.modified_at

    # --- reading --------------------------------------------------------------------------------------------

    def fetch(self, name: WalFileName, *, system_id: SystemId) -> bytes:
        """Return the plain bytes of a file of the archive, or of a segment of which every byte is in pieces.

        Raises:
            SegmentAbsentError: there is neither.
            As :meth:`WalArchive.fetch` and :meth:`TailArchive.rebuild`.
        """
        try:
            return self.archive.fetch(name, system_id=system_id)
        except SegmentAbsentError:
            if name.kind is not WalFileKind.SEGMENT:
                raise
            whole = self.whole_from_pieces(name)
            if whole is None:
                raise
            return whole

    def fetch_into(
        self, take: Callable[[Iterator[bytes | memoryview]], Taken], name: WalFileName, *, system_id: SystemId
    ) -> Taken:
        """Return what ``take`` makes of the plain pieces of a file; see :meth:`WalArchive.fetch_into`."""
        try:
            return self.archive.fetch_into(take, name, system_id=system_id)
        except SegmentAbsentError:
            return take(iter([self.fetch(name, system_id=system_id)]))

    def exists(self, name: WalFileName, *, system_id: SystemId) -> bool:
        """Tell whether a file of this name is archived as such."""
        return self.archive.exists(name, system_id=system_id)

    def fetch_last(self, name: WalFileName, *, end: Lsn) -> bytes:
        """Return the last segment of a plan as far as ``end``, zero behind it.

        Raises:
            DamagedObjectError: what was there when the plan was made cannot be had any more.
            As :meth:`WalArchive.fetch` and :meth:`TailArchive.rebuild`.
        """
        number = segment_number(name.name, self.segment_bytes)
        length = end.value - segment_begin(number, self.segment_bytes).value
        kept = self._kept.get(name.name)
        if kept is None:
            made = self.tail.rebuild(self.system_id, name.timeline, number, self.segment_bytes)
            kept = bytes(made.data)
            if made.end < end:
                kept = self._finished_meanwhile(name, end)
        return kept[:length] + bytes(self.segment_bytes - length)

    def _finished_meanwhile(self, name: WalFileName, end: Lsn) -> bytes:
        """Return the whole segment that has taken the place of pieces."""
        try:
            return self.archive.fetch(name, system_id=self.system_id)
        except SegmentAbsentError as error:
            raise DamagedObjectError(
                f"the pieces of {name.name} up to {end} were there when the restore was planned, and are not any more",
                hint="Is somebody deleting WAL? Try again.",
            ) from error

    def whole_from_pieces(self, name: WalFileName) -> bytes | None:
        """Return a segment of which every byte is in pieces; names alone tell whether reading them is worth it."""
        number = segment_number(name.name, self.segment_bytes)
        end = segment_begin(number + 1, self.segment_bytes)
        listed = [stored for _, found in self.pieces(name.timeline, number, number + 1) for stored in found]
        if covered_until(segment_begin(number, self.segment_bytes), (stored.piece for stored in listed)) < end:
            return None
        made = self.tail.rebuild(self.system_id, name.timeline, number, self.segment_bytes)
        if not made.is_whole:
            raise made.problem or DamagedObjectError(f"pieces of {name.name} went away while they were read")
        return bytes(made.data)


class PlannedWal:
    """The WAL of one restore: its last segment is the one that the plan counted, as far as it counted it.

    Args:
        source: of the cluster.
        last: name of the segment that is put together from pieces and not whole; ``None``: the plan has none.
        end: where it ends.
    """

    def __init__(self, source: WalSource, *, last: str | None, end: Lsn) -> None:
        self._source = source
        self._last = last
        self._end = end

    def fetch(self, name: WalFileName, *, system_id: SystemId) -> bytes:
        """Return the plain bytes of a file; see :meth:`WalSource.fetch` and :meth:`WalSource.fetch_last`."""
        if name.name == self._last:
            return self._source.fetch_last(name, end=self._end)
        return self._source.fetch(name, system_id=system_id)

    def fetch_into(
        self, take: Callable[[Iterator[bytes | memoryview]], Taken], name: WalFileName, *, system_id: SystemId
    ) -> Taken:
        """Return what ``take`` makes of the plain pieces of a file."""
        if name.name == self._last:
            return take(iter([self._source.fetch_last(name, end=self._end)]))
        return self._source.fetch_into(take, name, system_id=system_id)
