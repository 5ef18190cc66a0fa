"""What of the WAL is there, and how far it leads from a snapshot: pure rules.

PostgreSQL looks for each segment under the name of the newest timeline that it is to follow, then of its ancestors, and
takes the first that it finds; the same is done here. The last segment may be one that was never finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from drservice.model.ids import SystemId
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import (
    HistoryEntry,
    Lsn,
    Timeline,
    TimelineSpan,
    segment_begin,
    segment_name,
    timeline_path,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TailSegment:
    """A segment of which only pieces from its begin on are stored."""

    end: Lsn
    """The bytes before it can be had."""
    problem: str | None = None
    """Why it ends there although more was stored."""
    is_contradicted: bool = False
    """Pieces say different things about what follows: two histories lie under one name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalInventory:
    """Which whole segments are archived for one cluster, and its history files."""

    system_id: SystemId
    segment_bytes: int
    segments: Mapping[Timeline, frozenset[int]]
    histories: Mapping[Timeline, tuple[HistoryEntry, ...]]
    stored_at: Mapping[str, datetime] = field(default_factory=dict)
    """When each segment reached the store, by name and by the store's clock, as far as known."""
    partials: Mapping[Timeline, frozenset[int]] = field(default_factory=dict)
    """Numbers of the segments that were archived as ``.partial``: the last one of a timeline, as far as it was written.
    It serves only where its timeline ends and no whole one is archived."""
    tails: Mapping[Timeline, Mapping[int, TailSegment]] = field(default_factory=dict)
    """What is in pieces only and not whole, by number; nothing that is archived as ``.partial``. It serves where its
    timeline ends. Segments of which every byte is in pieces are among ``segments``."""

    def timelines(self) -> set[Timeline]:
        """Return every timeline that has WAL or a history file."""
        return set(self.segments) | set(self.histories) | set(self.tails)

    def path_to(self, timeline: Timeline) -> tuple[TimelineSpan, ...]:
        """Return the spans that lead to ``timeline``; timeline 1 needs no history file."""
        return timeline_path(timeline, self.histories.get(timeline, ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class WalGap:
    """Segments that are missing although later ones are archived: positions ``[begin, end)``."""

    timeline: Timeline
    begin: Lsn
    end: Lsn
    first_name: str
    segments: int

    def describe(self) -> str:
        """Return the gap in words."""
        return f"{self.segments} WAL segment(s) from {self.first_name} on are missing ({self.begin} to {self.end})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one snapshot can be rolled forward along one path."""

    path: tuple[TimelineSpan, ...]
    end: Lsn
    """Position behind the last byte that follows without a hole; nothing behind it may be replayed."""
    segments: int
    gap: WalGap | None
    fork: Lsn | None = None
    """Set where the last segment is an ancestor's that runs on past the point where the path leaves it: recovery must
    stop there, because what follows in that file is the history that was left."""
    partial: str | None = None
    """Name of the archived ``.partial`` file that the last segment is served from, if it is."""
    tail: str | None = None
    """Name of the last segment, if it is put together from pieces and not whole."""


def measure_reach(
    snapshot: SnapshotRecord, inventory: WalInventory, timeline: Timeline, *, written: Lsn | None = None
) -> Reach:
    """Follow the archived WAL from the start of a snapshot along a timeline until the first missing segment.

    Where the archive ends before ``written``, a position that WAL is known to have reached, its end is a gap.
    """
    size = inventory.segment_bytes
    path = inventory.path_to(timeline)
    first = snapshot.postgres.start_lsn.segment_number(size)
    last = max((number for span in path for number in _held(span, inventory)), default=first - 1)
    number = first
    fork: Lsn | None = None
    tail: Timeline | None = None
    while number <= last and fork is None and tail is None:
        holder = holder_of(number, path, inventory)
        tail = _unfinished(number, path, inventory) if number == last else None
        if holder is not None:
            fork = limit_of(number, path, holder, size)
            if tail is not None and fork is not None and inventory.tails[tail][number].end > fork:
                fork = None  # the child's pieces go on behind it
            else:
                tail = None
        elif tail is None:
            break
        number += 1
    missing = number if fork is None and tail is None else number - 1  # its rest, or the child's copy of it
    partial = None
    ending = _ends_in_partial(number, path, inventory) if fork is None and number > last and number >= first else None
    if ending is not None:
        partial = f"{segment_name(ending, number, size)}.partial"
        fork = limit_of(number, path, ending, size)
        number += 1
        missing = number if fork is None else number - 1
    end = fork if fork is not None else segment_begin(number, size)
    is_cut = number <= last
    if tail is not None:
        end = inventory.tails[tail][number - 1].end
        leaves = limit_of(number - 1, path, tail, size)
        is_cut = end < (leaves if leaves is not None else _begin_of(tail, path))
        fork, end = (leaves, leaves) if leaves is not None and end >= leaves else (None, end)
    if written is not None and end < written:
        is_cut, last = True, max(last, (written.value - 1) // size)
    gap = _gap(end, missing, number, last, path, inventory) if is_cut else None
    return Reach(
        path=path,
        end=end,
        segments=number - first,
        gap=gap,
        fork=fork,
        partial=partial,
        tail=None if tail is None else segment_name(tail, number - 1, size),
    )


def _gap(
    begin: Lsn, missing: int, number: int, last: int, path: Sequence[TimelineSpan], inventory: WalInventory
) -> WalGap:
    """Return what is missing from ``begin`` on: its first file is ``missing``, and looked for is from ``number`` on."""
    size = inventory.segment_bytes
    after = number
    while after <= last and holder_of(after, path, inventory) is None:
        after += 1
    owner = _owner(missing, path, size)
    return WalGap(
        timeline=owner,
        begin=begin,
        end=segment_begin(after, size),
        first_name=segment_name(owner, missing, size),
        segments=after - missing,
    )


def _held(span: TimelineSpan, inventory: WalInventory) -> Iterator[int]:
    """Yield the numbers of the segments of which anything is stored that can be used, and that lie on a span."""
    size = inventory.segment_bytes
    whole = inventory.segments.get(span.timeline, ())
    begun = (number for number in inventory.tails.get(span.timeline, ()) if _is_begun(number, span.timeline, inventory))
    yield from (number for number in (*whole, *begun) if _lies_on(number, span, size))


def _is_begun(number: int, timeline: Timeline, inventory: WalInventory) -> bool:
    tail = inventory.tails.get(timeline, {}).get(number)
    return tail is not None and tail.end > segment_begin(number, inventory.segment_bytes)


def _unfinished(number: int, path: Sequence[TimelineSpan], inventory: WalInventory) -> Timeline | None:
    """Return the timeline whose pieces serve the last segment: the newest that has any, unless it has it whole.

    A child's pieces begin with a copy of its ancestor's bytes: before they go on behind the switch, those of whoever
    leads further along the path serve.
    """
    best, furthest = None, Lsn(0)
    for span in reversed(path):
        if _lies_on(number, span, inventory.segment_bytes):
            if number in inventory.segments.get(span.timeline, ()):
                break
            if _is_begun(number, span.timeline, inventory):
                held = inventory.tails[span.timeline][number].end
                if (end := held if span.end is None else min(held, span.end)) > furthest:
                    best, furthest = span.timeline, end
                if held > span.begin:
                    break
            if number > span.begin.segment_number(inventory.segment_bytes):
                break
    return best


def _begin_of(timeline: Timeline, path: Sequence[TimelineSpan]) -> Lsn:
    return next(span.begin for span in path if span.timeline == timeline)


def _ends_in_partial(number: int, path: Sequence[TimelineSpan], inventory: WalInventory) -> Timeline | None:
    """Return the timeline whose WAL ends in a segment archived as ``.partial``: the last, or one left inside of it.

    The server that was promoted archives what it had of the old timeline's last segment; of the new one, which begins
    with the same bytes, nothing is stored before it is finished.
    """
    for span in reversed(path):
        if _lies_on(number, span, inventory.segment_bytes):
            is_left = limit_of(number, path, span.timeline, inventory.segment_bytes) is not None
            if number in inventory.partials.get(span.timeline, ()) and (is_left or span is path[-1]):
                return span.timeline
            if number > span.begin.segment_number(inventory.segment_bytes):
                return None
    return None


def _lies_on(number: int, span: TimelineSpan, size: int) -> bool:
    """Tell whether segment ``number`` can hold WAL of a span (the segment of a switch lies on both timelines)."""
    begins = number >= span.begin.segment_number(size)
    return begins and (span.end is None or number <= (span.end.value - 1) // size)


def holder_of(number: int, path: Sequence[TimelineSpan], inventory: WalInventory) -> Timeline | None:
    """Return the timeline whose archive serves a segment: the newest that has it, as PostgreSQL looks for it."""
    size = inventory.segment_bytes
    for span in reversed(path):
        if _lies_on(number, span, size):
            if number in inventory.segments.get(span.timeline, ()):
                return span.timeline
            if number > span.begin.segment_number(size):
                return None  # wholly on this timeline: an ancestor's file of this number is another history
    return None


def limit_of(number: int, path: Sequence[TimelineSpan], holder: Timeline, size: int) -> Lsn | None:
    """Return where the path leaves a timeline inside its own segment ``number``; ``None`` if it goes on behind it.

    The child's file of that segment begins with a copy of the ancestor's bytes; the ancestor's own file goes on with
    the history that was left, and PostgreSQL would replay it.
    """
    for span in path:
        if span.timeline == holder and span.end is not None and (span.end.value - 1) // size == number:
            return span.end if span.end.value % size else None
    return None


def _owner(number: int, path: Sequence[TimelineSpan], size: int) -> Timeline:
    for span in reversed(path):
        if _lies_on(number, span, size):
            return span.timeline
    return path[-1].timeline
