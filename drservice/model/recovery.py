"""Where a recovery can go, and from which snapshot: pure rules that explain themselves.

Sources: PostgreSQL documentation, 26.3 "Continuous Archiving and Point-in-Time Recovery" and 20.5.6 "Recovery Target".
A plan names the snapshot, the timelines and the WAL it needs; a refusal names the gap and the nearest reachable
positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from drservice.clock import to_iso
from drservice.errors import TargetOutsideWindowError, UsageError, WalGapError
from drservice.model.ids import SnapshotId
from drservice.model.reach import Reach, WalGap, WalInventory, holder_of, measure_reach
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import (
    Lsn,
    Timeline,
    TimelineSpan,
    segment_begin,
    segment_name,
    segments_between,
)


class TargetKind(Enum):
    """What kind of instant is asked for."""

    LATEST = "latest"
    CONSISTENT = "consistent"
    """The newest instant that rows and documents share."""
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The instant to recover to. Exactly the field of its kind is set."""

    kind: TargetKind
    time: datetime | None = None
    lsn: Lsn | None = None
    """Of ``CONSISTENT`` once it is known: every record that begins before it, and no other. ``None``: no rows are newer
    than the documents, so it is the latest position."""
    xid: int | None = None
    name: str | None = None
    snapshot: SnapshotId | None = None
    timeline: Timeline | None = None
    """``None`` = the latest that descends from the snapshot."""

    @property
    def is_latest(self) -> bool:
        """Whether it is the end of the WAL, wherever that is."""
        return self.kind is TargetKind.LATEST or (self.kind is TargetKind.CONSISTENT and self.lsn is None)

    def describe(self) -> str:
        """Return the target in words."""
        match self.kind:
            case TargetKind.TIME:
                assert self.time is not None
                return f"time {to_iso(self.time)}"
            case TargetKind.LSN:
                return f"LSN {self.lsn}"
            case TargetKind.XID:
                return f"transaction {self.xid}"
            case TargetKind.NAME:
                return f"restore point {self.name}"
            case TargetKind.SNAPSHOT:
                return f"the end of snapshot {self.snapshot}"
            case TargetKind.LATEST | TargetKind.CONSISTENT:
                is_latest = self.kind is TargetKind.LATEST
                what = "latest archived position" if is_latest else "newest instant that rows and documents share"
                return f"the {what}{f' (LSN {self.lsn})' if self.lsn is not None else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A snapshot that was looked at and why it was not taken."""

    snapshot: SnapshotId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """What a restore will do."""

    snapshot: SnapshotRecord
    target: Target
    timeline: Timeline
    reach: Reach
    considered: tuple[Considered, ...]
    reasons: tuple[str, ...]


def timeline_for(snapshot: SnapshotRecord, inventory: WalInventory, target: Target) -> Timeline | str:
    """Return the timeline that leads furthest from a snapshot (or the one the target names), or why there is none.

    It is the highest whose history passes through the snapshot's own timeline at or after its end.
    """
    own = snapshot.postgres.timeline
    if target.kind is TargetKind.SNAPSHOT:
        return own
    wanted = [target.timeline] if target.timeline is not None else sorted(inventory.timelines() | {own}, reverse=True)
    for timeline in wanted:
        if timeline != own and timeline not in inventory.histories:
            continue
        for span in inventory.path_to(timeline):
            ends_later = span.end is None or span.end >= snapshot.postgres.stop_lsn
            if span.timeline == own and ends_later:
                return timeline
    return f"timeline {target.timeline} does not descend from its timeline {own}"


def present_timeline(snapshots: Iterable[SnapshotRecord], inventory: WalInventory) -> Timeline:
    """Return the timeline of the present history: the highest that anything is archived of."""
    own = {item.postgres.timeline for item in snapshots if item.postgres.system_id == inventory.system_id}
    return max(inventory.timelines() | own, default=Timeline(1))


def planned_timeline(
    snapshot: SnapshotRecord, inventory: WalInventory, target: Target, present: Timeline
) -> Timeline | str:
    """Return the timeline a recovery ends on, or the reason why it cannot start from this snapshot.

    Without a named timeline only the present history is meant, as with PostgreSQL's ``latest``: a branch that was left
    when recovery went back and promoted is never taken silently.
    """
    timeline = timeline_for(snapshot, inventory, target)
    if isinstance(timeline, str) or target.timeline is not None or target.kind is TargetKind.SNAPSHOT:
        return timeline
    if timeline == present:
        return timeline
    if present != snapshot.postgres.timeline and present not in inventory.histories:
        why = f"the history file of timeline {present} is not archived, so how it descends is not known"
    else:
        why = f"the present history (timeline {present}) left timeline {snapshot.postgres.timeline} before its end"
    return f"{why}; --timeline {timeline} reaches the end of that branch"


def _on_the_way(
    snapshots: Iterable[SnapshotRecord], inventory: WalInventory, timeline: Timeline
) -> list[SnapshotRecord]:
    """Return the snapshots whose end lies on the path to a timeline.

    The WAL of each was stored before it was: an archive that ends earlier has lost WAL, even if nothing behind it is
    left to tell.
    """
    way = Target(kind=TargetKind.LATEST, timeline=timeline)
    own = (item for item in snapshots if item.postgres.system_id == inventory.system_id)
    return [item for item in own if timeline_for(item, inventory, way) == timeline]


def choose_plan(
    target: Target, snapshots: Iterable[SnapshotRecord], inventory: WalInventory, *, located: Lsn | None = None
) -> RecoveryPlan:
    """Choose the snapshot to start from: the newest whose end lies at or before the target and whose WAL suffices.

    Args:
        target: where to go.
        snapshots: all readable snapshots of the component.
        inventory: the archived WAL of the cluster.
        located: for ``xid`` and ``name``: the position of the record, found in the WAL beforehand.

    Raises:
        TargetOutsideWindowError: no snapshot reaches the target; says why for each, and what is reachable.
        WalGapError: a hole lies between every usable snapshot and the target; before the latest position also one that
            only a newer snapshot tells of.
        UsageError: ``xid`` or ``name`` without ``located``.
    """
    needed = _needed_position(target, located)
    considered: list[Considered] = []
    gaps: list[WalGap] = []
    known = list(snapshots)
    candidates = sorted(known, key=lambda s: _newness(s, target), reverse=True)
    for wish in (SnapshotState.COMPLETE, SnapshotState.DEGRADED):
        for snapshot in (item for item in candidates if item.state is wish):
            verdict = _try_snapshot(snapshot, target, needed, inventory, known)
            if isinstance(verdict, RecoveryPlan):
                return RecoveryPlan(
                    snapshot=snapshot,
                    target=target,
                    timeline=verdict.timeline,
                    reach=verdict.reach,
                    considered=tuple(considered),
                    reasons=verdict.reasons,
                )
            reason, gap = verdict
            considered.append(Considered(snapshot=snapshot.id, reason=reason))
            if gap is not None:
                gaps.append(gap)
    raise _refusal(target, candidates, inventory, considered, gaps)


def _newness(snapshot: SnapshotRecord, target: Target) -> tuple[float, int]:
    """Order snapshots by how near they come to a target: an instant from the one that ended last before it."""
    ended = snapshot.stopped_at.timestamp() if target.kind is TargetKind.TIME else 0.0
    return (ended, snapshot.postgres.stop_lsn.value)


def _needed_position(target: Target, located: Lsn | None) -> Lsn | None:
    if target.kind in {TargetKind.LSN, TargetKind.CONSISTENT}:
        return target.lsn
    if target.kind in {TargetKind.XID, TargetKind.NAME}:
        if located is None:
            raise UsageError(f"the position of {target.describe()} is not known")
        return located
    return None


def _try_snapshot(
    snapshot: SnapshotRecord,
    target: Target,
    needed: Lsn | None,
    inventory: WalInventory,
    known: Sequence[SnapshotRecord],
) -> RecoveryPlan | tuple[str, WalGap | None]:
    unfit = _unfit(snapshot, target, needed, inventory)
    if unfit is not None:
        return unfit, None
    timeline = planned_timeline(snapshot, inventory, target, present_timeline(known, inventory))
    if isinstance(timeline, str):
        return timeline, None
    written = None
    if target.is_latest:
        written = max(item.postgres.stop_lsn for item in _on_the_way(known, inventory, timeline))
    reach = measure_reach(snapshot, inventory, timeline, written=written)
    short = _falls_short(snapshot, target, needed, reach)
    if short is not None:
        return short, reach.gap
    return RecoveryPlan(
        snapshot=snapshot,
        target=target,
        timeline=timeline,
        reach=reach,
        considered=(),
        reasons=_reasons(snapshot, target, reach, inventory.segment_bytes),
    )


def _unfit(snapshot: SnapshotRecord, target: Target, needed: Lsn | None, inventory: WalInventory) -> str | None:
    """Return why a snapshot cannot be the start, whatever WAL there is."""
    facts = snapshot.postgres
    if facts.system_id != inventory.system_id:
        return f"it is of another cluster ({facts.system_id})"
    if target.kind is TargetKind.SNAPSHOT and snapshot.id != target.snapshot:
        return "another snapshot is asked for"
    if target.kind is TargetKind.TIME and target.time is not None and snapshot.stopped_at > target.time:
        return f"it ends at {to_iso(snapshot.stopped_at)}, after the target"
    if needed is not None and facts.stop_lsn > needed:
        return f"it ends at {facts.stop_lsn}, after the target"
    return None


def _falls_short(snapshot: SnapshotRecord, target: Target, needed: Lsn | None, reach: Reach) -> str | None:
    """Return why the WAL behind a snapshot does not lead to the target."""
    hole = f": {reach.gap.describe()}" if reach.gap else ""
    if reach.end < snapshot.postgres.stop_lsn:
        return f"the WAL it needs to become consistent is not complete{hole}"
    if needed is not None and reach.end < needed:
        return f"its WAL ends at {reach.end}, before the target{hole}"
    if target.is_latest and reach.gap is not None:
        return f"its WAL does not lead to the latest position{hole}"
    return None


def _reasons(snapshot: SnapshotRecord, target: Target, reach: Reach, segment_bytes: int) -> tuple[str, ...]:
    facts = snapshot.postgres
    span = segments_between(facts.start_lsn, facts.stop_lsn, segment_bytes)
    reasons = [
        f"snapshot {snapshot.id} is the newest that ends at or before {target.describe()}",
        f"{len(span)} WAL segment(s) make it consistent, {reach.segments} in all follow without a hole",
    ]
    if len(reach.path) > 1:
        left = ", ".join(f"{span.timeline} up to {span.end}" for span in reach.path[:-1])
        reasons.append(f"the way leads along timeline {left}, then {reach.path[-1].timeline}")
    if snapshot.state is SnapshotState.DEGRADED:
        reasons.append(f"it is DEGRADED: {facts.bad_pages} damaged page(s); no good snapshot reaches the target")
    if reach.gap is not None:
        reasons.append(f"{reach.gap.describe()}: nothing behind the gap can be reached from it")
    return tuple(reasons)


def _refusal(
    target: Target,
    snapshots: Sequence[SnapshotRecord],
    inventory: WalInventory,
    considered: Sequence[Considered],
    gaps: Sequence[WalGap],
) -> TargetOutsideWindowError | WalGapError:
    what = f"{target.describe()} cannot be reached"
    hint = (
        "Reachable: "
        + ("; ".join(reachable_windows(snapshots, inventory)) or "nothing, there is no usable snapshot")
        + "."
    )
    if target.timeline is not None:
        what += f" along timeline {target.timeline}"
        hint += f" Timelines: {'; '.join(describe_timelines(inventory)) or 'none is archived'}."
    why = "; ".join(f"{item.snapshot}: {item.reason}" for item in considered[:5])
    if gaps:
        if target.is_latest:
            hint += _around(target, snapshots, inventory)
        return WalGapError(f"{what}: {gaps[0].describe()}. {why}", hint=hint)
    return TargetOutsideWindowError(f"{what}. {why or 'There is no snapshot'}", hint=hint)


def _around(target: Target, snapshots: Sequence[SnapshotRecord], inventory: WalInventory) -> str:
    """Return how to get what lies on either side of a gap before the latest position: the next commands."""
    service = snapshots[0].service
    way = f" --timeline {target.timeline}" if target.timeline is not None else ""
    before = ""
    for snapshot in snapshots:
        timeline = planned_timeline(snapshot, inventory, target, present_timeline(snapshots, inventory))
        if snapshot.postgres.system_id != inventory.system_id or isinstance(timeline, str):
            continue
        reach = measure_reach(snapshot, inventory, timeline)
        if reach.end < snapshot.postgres.stop_lsn:
            continue
        last = segment_begin((reach.end.value - 1) // inventory.segment_bytes, inventory.segment_bytes)
        if reach.gap is None:
            cut = [item for item in _on_the_way(snapshots, inventory, timeline) if item.postgres.stop_lsn > reach.end]
            before = f"--to latest{way}" + "".join(f" --without-snapshot {item.id}" for item in cut)
        else:
            before = f"--lsn {last}{way}" if last >= snapshot.postgres.stop_lsn else f"--snapshot {snapshot.id}"
        before = f" Before the gap: drservice restore {service} {before}."
        break
    return f"{before} Behind the gap nothing can be reached: take a backup now: drservice backup {service}."


def describe_timelines(inventory: WalInventory) -> list[str]:
    """Return every archived timeline in words: where it branched off, and how far its own WAL goes."""
    found: list[str] = []
    for timeline in sorted(inventory.timelines()):
        numbers = inventory.segments.get(timeline, frozenset()) | inventory.partials.get(timeline, frozenset())
        tails = inventory.tails.get(timeline, {})
        path = inventory.path_to(timeline)
        begin = f" branched off {path[-2].timeline} at {path[-1].begin}" if len(path) > 1 else ""
        known = begin or (" has no history file" if timeline > 1 else "")
        end = " without WAL of its own"
        ends = [segment_begin(number + 1, inventory.segment_bytes) for number in numbers]
        if ends or tails:
            end = f" to {max([*ends, *(tail.end for tail in tails.values())])}"
        found.append(f"{timeline}{known}{end}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of positions that can be reached: from the end of ``first`` to ``end``, without a hole."""

    first: SnapshotRecord
    timeline: Timeline
    end: Lsn
    last_segment: str
    """Name of the last archived segment in it."""
    stored_at: datetime | None
    """When that segment reached the store."""
    path: tuple[TimelineSpan, ...]
    """The history that leads to its end."""

    def describe(self) -> str:
        """Return the window in words."""
        begin = f"{to_iso(self.first.stopped_at)} ({self.first.postgres.stop_lsn}, snapshot {self.first.id})"
        stored = f", archived at {to_iso(self.stored_at)}" if self.stored_at else ""
        return f"from {begin} to {self.end}{stored}"


def windows_of(snapshots: Iterable[SnapshotRecord], inventory: WalInventory) -> list[Window]:
    """Return the reachable stretches, oldest first, joined where one snapshot's WAL reaches the next."""
    windows: list[Window] = []
    for snapshot in sorted(snapshots, key=lambda s: s.postgres.stop_lsn):
        if snapshot.postgres.system_id != inventory.system_id:
            continue
        timeline = timeline_for(snapshot, inventory, Target(kind=TargetKind.LATEST))
        if isinstance(timeline, str):
            continue
        reach = measure_reach(snapshot, inventory, timeline)
        if reach.end < snapshot.postgres.stop_lsn:
            continue
        first = snapshot
        if windows and windows[-1].end >= snapshot.postgres.stop_lsn and windows[-1].timeline <= timeline:
            first = windows.pop().first
        number = snapshot.postgres.start_lsn.segment_number(inventory.segment_bytes) + reach.segments - 1
        holder = holder_of(number, reach.path, inventory) or timeline
        last = reach.tail or reach.partial or segment_name(holder, number, inventory.segment_bytes)
        windows.append(
            Window(
                first=first,
                timeline=timeline,
                end=reach.end,
                last_segment=last,
                stored_at=inventory.stored_at.get(last),
                path=reach.path,
            )
        )
    return windows


def gaps_of(snapshots: Iterable[SnapshotRecord], inventory: WalInventory) -> list[WalGap]:
    """Return the holes behind the snapshots, each once."""
    found: dict[str, WalGap] = {}
    for snapshot in snapshots:
        timeline = timeline_for(snapshot, inventory, Target(kind=TargetKind.LATEST))
        if snapshot.postgres.system_id == inventory.system_id and not isinstance(timeline, str):
            gap = measure_reach(snapshot, inventory, timeline).gap
            if gap is not None:
                found.setdefault(gap.first_name, gap)
    return list(found.values())


def reachable_windows(snapshots: Iterable[SnapshotRecord], inventory: WalInventory) -> list[str]:
    """Return the reachable stretches in words, oldest first."""
    return [window.describe() for window in windows_of(snapshots, inventory)]
