"""Holes in the archived WAL of a cluster, and what each of them costs: pure.

A hole is WAL that is missing between the start of the oldest kept snapshot and the newest archived segment of a
timeline, along the path that leads to it. It matters by what it takes away: a snapshot that cannot become consistent,
or the roll forward of those before it. What lies behind it is reached only from a snapshot that begins there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drservice.model.ids import SnapshotId
from drservice.model.reach import WalGap, WalInventory
from drservice.model.recovery import Target, TargetKind, present_timeline, timeline_for
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Timeline, TimelineSpan, segment_begin, segment_name, segments_between


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Consecutive segments of one timeline that are not archived although they are needed."""

    timeline: Timeline
    numbers: range
    segment_bytes: int
    spoilt: tuple[SnapshotId, ...]
    """Snapshots that cannot become consistent without it."""
    cut: tuple[SnapshotId, ...]
    """Snapshots that can be rolled forward no further than to it."""
    is_open: bool
    """It lies on the present history and no snapshot begins behind it: the latest position cannot be reached."""

    @property
    def names(self) -> Iterator[str]:
        """The missing segments, in order."""
        return (segment_name(self.timeline, number, self.segment_bytes) for number in self.numbers)

    @property
    def first_name(self) -> str:
        """The first of them."""
        return segment_name(self.timeline, self.numbers[0], self.segment_bytes)

    @property
    def follower(self) -> str:
        """The name of the segment behind it, on the same timeline."""
        return segment_name(self.timeline, self.numbers[-1] + 1, self.segment_bytes)

    @property
    def gap(self) -> WalGap:
        """The hole as plans and windows tell it."""
        return WalGap(
            timeline=self.timeline,
            begin=segment_begin(self.numbers[0], self.segment_bytes),
            end=segment_begin(self.numbers[-1] + 1, self.segment_bytes),
            first_name=self.first_name,
            segments=len(self.numbers),
        )

    @property
    def cost(self) -> str:
        """What it takes away, in words."""
        costs = []
        if self.spoilt:
            costs.append(f"{_counted(self.spoilt)} cannot become consistent")
        if self.cut:
            costs.append(f"{_counted(self.cut)} cannot be rolled forward behind it")
        if self.is_open:
            costs.append("the latest position cannot be reached before there is a new snapshot")
        return "; ".join(costs)

    def describe(self) -> str:
        """Return the hole and what it costs, in words."""
        return f"{self.gap.describe()}: {self.cost}"


def holes_of(records: Iterable[SnapshotRecord], inventory: WalInventory) -> list[Hole]:
    """Return the holes that matter, by timeline and position.

    A snapshot's own WAL, from its start to its stop, is missed also where nothing behind it is archived.
    """
    known = [record for record in records if record.postgres.system_id == inventory.system_id]
    missing: dict[Timeline, set[int]] = {}
    for leaf in sorted(inventory.timelines() | {record.postgres.timeline for record in known}):
        target = Target(kind=TargetKind.LATEST, timeline=leaf)
        on_path = [record for record in known if not isinstance(timeline_for(record, inventory, target), str)]
        if on_path:
            for timeline, numbers in _missing_on(inventory.path_to(leaf), on_path, inventory).items():
                missing.setdefault(timeline, set()).update(numbers)
    present = present_timeline(known, inventory)
    return [
        _hole(timeline, run, known, inventory, present)
        for timeline in sorted(missing)
        for run in _runs(sorted(missing[timeline]))
    ]


def _missing_on(
    path: Sequence[TimelineSpan], records: Sequence[SnapshotRecord], inventory: WalInventory
) -> Mapping[Timeline, set[int]]:
    """Return what is missing along one path from the first of the snapshots on it.

    In the segment of a switch the child's file counts: it begins with a copy of the ancestor's bytes.
    """
    size = inventory.segment_bytes
    begin = min(record.postgres.start_lsn for record in records).segment_number(size)
    found: dict[Timeline, set[int]] = {}
    next_begin: int | None = None
    for span in reversed(path):
        held = inventory.segments.get(span.timeline, frozenset()) | _begun_far_enough(span.timeline, records, inventory)
        low = max(begin, span.begin.segment_number(size))
        if next_begin is None:
            own = [
                segments_between(record.postgres.start_lsn, record.postgres.stop_lsn, size)[-1]
                for record in records
                if record.postgres.timeline == span.timeline
            ]
            limit = None if span.end is None else (span.end.value - 1) // size
            high = max((number for number in (*held, *own) if limit is None or number <= limit), default=low - 1)
        else:
            high = next_begin - 1
        if high >= low:
            found[span.timeline] = set(range(low, high + 1)) - held
        if high >= low or next_begin is not None:
            next_begin = min(low, next_begin) if next_begin is not None else low
    return found


def _begun_far_enough(timeline: Timeline, records: Sequence[SnapshotRecord], inventory: WalInventory) -> frozenset[int]:
    """Return the segments that are in pieces as far as the snapshots that end in them need them.

    Only the last of a timeline may be unfinished: what follows one is behind a hole.
    """
    size = inventory.segment_bytes
    tails = inventory.tails.get(timeline, {})
    last = max((*tails, *inventory.segments.get(timeline, ())), default=None)
    if last is None or last not in tails:
        return frozenset()
    stops = [
        record.postgres.stop_lsn
        for record in records
        if record.postgres.timeline == timeline and (record.postgres.stop_lsn.value - 1) // size == last
    ]
    return frozenset({last}) if not stops or tails[last].end >= max(stops) else frozenset()


def _hole(
    timeline: Timeline,
    numbers: range,
    records: Sequence[SnapshotRecord],
    inventory: WalInventory,
    present: Timeline,
) -> Hole:
    size = inventory.segment_bytes
    target = Target(kind=TargetKind.LATEST, timeline=timeline)
    spoilt, cut = [], []
    for record in records:
        own = segments_between(record.postgres.start_lsn, record.postgres.stop_lsn, size)
        if isinstance(timeline_for(record, inventory, target), str):
            continue
        if record.postgres.timeline == timeline and own[0] <= numbers[-1] and numbers[0] <= own[-1]:
            spoilt.append(record.id)
        elif own[0] <= numbers[0]:
            cut.append(record.id)
    leads_on = any(
        span.timeline == timeline and (span.end is None or segment_begin(numbers[0], size) < span.end)
        for span in inventory.path_to(present)
    )
    behind = any(
        record.id not in spoilt
        and record.postgres.start_lsn.segment_number(size) > numbers[-1]
        and not isinstance(timeline_for(record, inventory, Target(kind=TargetKind.LATEST, timeline=present)), str)
        for record in records
    )
    return Hole(
        timeline=timeline,
        numbers=numbers,
        segment_bytes=size,
        spoilt=tuple(spoilt),
        cut=tuple(cut),
        is_open=leads_on and not behind,
    )


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    begin = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield range(numbers[begin], numbers[index - 1] + 1)
            begin = index


def _counted(snapshots: Sequence[SnapshotId]) -> str:
    return f"snapshot {snapshots[0]}" if len(snapshots) == 1 else f"{len(snapshots)} snapshots"
