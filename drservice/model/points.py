"""Recovery points: a database position with the files that were captured after it, published as one object.

A document exists on disk before the row that refers to it is committed, and goes only after the row is gone. So a pass
over the files that *begins* after the database's position holds every document that the rows of that position refer to;
the other order loses documents without anybody noticing (docs/adr/0006-component-order.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from drservice.model.ids import ComponentName, PointId, ServiceName, SnapshotId, SystemId
from drservice.model.origin import Origin
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import Lsn, Timeline


class PointState(Enum):
    """How good a recovery point is: as good as the worst of its snapshots."""

    COMPLETE = "complete"
    DEGRADED = "degraded"
    """Whole, but something was damaged in production already."""
    PARTIAL = "partial"
    """Something could not be read, and is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabasePosition:
    """Where a cluster stood: the end of its snapshot."""

    system_id: SystemId
    timeline: Timeline
    lsn: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class PointMember:
    """One snapshot of a recovery point. ``position`` is set for PostgreSQL clusters only."""

    component: ComponentName
    kind: str
    snapshot: SnapshotId
    header_sha256: str
    state: SnapshotState
    started_at: datetime
    stopped_at: datetime
    position: DatabasePosition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A consistent set of snapshots of one service. ``at``: the instant it stands for, by the host's clock."""

    id: PointId
    service: ServiceName
    host: str
    at: datetime
    state: PointState
    members: tuple[PointMember, ...]
    origin: Origin | None = None
    """Of one that was imported; ``at`` then is the newest time that a row bears."""

    def member(self, component: ComponentName) -> PointMember | None:
        """Return a component's snapshot."""
        return next((item for item in self.members if item.component == component), None)


def member_of(record: SnapshotRecord) -> PointMember:
    """Return what a recovery point says about a snapshot."""
    position = None
    if record.kind == "postgres":
        facts = record.postgres
        position = DatabasePosition(system_id=facts.system_id, timeline=facts.timeline, lsn=facts.stop_lsn)
    return PointMember(
        component=record.component,
        kind=record.kind,
        snapshot=record.id,
        header_sha256=record.header_sha256,
        state=record.state,
        started_at=record.started_at,
        stopped_at=record.stopped_at,
        position=position,
    )


def state_of(members: Iterable[PointMember]) -> PointState:
    """Return how good a point with these snapshots is."""
    states = {member.state for member in members}
    if SnapshotState.PARTIAL in states:
        return PointState.PARTIAL
    return PointState.DEGRADED if SnapshotState.DEGRADED in states else PointState.COMPLETE


def instant_of(members: Sequence[PointMember]) -> datetime:
    """Return the instant a point stands for: the end of the last database snapshot; without one, of the first files."""
    positions = [member.stopped_at for member in members if member.position is not None]
    return max(positions) if positions else min(member.started_at for member in members)


def order_for_documents(records: Sequence[SnapshotRecord], instant: datetime | None) -> tuple[SnapshotRecord, ...]:
    """Return in which order snapshots of a filestore are looked into for the documents of an instant.

    First the earliest pass that began after the instant: it holds all of them, unless production's garbage collection
    was faster. Then the later ones and the earlier ones, nearest first: a document is named by its content, so a
    copy is right wherever it lies. ``None`` stands for the latest position.
    """
    ordered = sorted(records, key=lambda record: (record.started_at, record.id))
    if instant is None:
        return tuple(reversed(ordered))
    after = [record for record in ordered if record.started_at >= instant]
    before = [record for record in ordered if record.started_at < instant]
    return (*after, *reversed(before))


def files_at(records: Sequence[SnapshotRecord], instant: datetime | None) -> SnapshotRecord | None:
    """Return which snapshot of a folder stands for an instant: the newest that ended by then, else the first after.

    ``None`` as the instant stands for the latest; ``None`` is returned without any snapshot.
    """
    ordered = sorted(records, key=lambda record: (record.stopped_at, record.id))
    if not ordered:
        return None
    if instant is None:
        return ordered[-1]
    return next((record for record in reversed(ordered) if record.stopped_at <= instant), ordered[0])
