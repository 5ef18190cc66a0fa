"""What retention judges: snapshots and points as the store shows them, and the holds of running work. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from drservice.clock import to_iso
from drservice.model.ids import ComponentName, PointId, SnapshotId, SystemId
from drservice.model.snapshot import SnapshotState
from drservice.model.wal import Lsn

SnapshotKey: TypeAlias = tuple[ComponentName, SnapshotId]

_DAMAGE = {SnapshotState.COMPLETE: 0, SnapshotState.DEGRADED: 1, SnapshotState.PARTIAL: 2}
BACKUP_HOLD = "backup"
"""A running backup relies on what it saw after its hold, and on nothing older but packs, which no retention deletes."""
LONG_BACKUP_HOLD = "long backup"
"""What follows it where a backup takes long: it began later than what the backup relies on, so it keeps everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalStart:
    """From where on a snapshot of a cluster needs WAL."""

    system_id: SystemId
    lsn: Lsn
    segment_bytes: int

    @property
    def segment(self) -> int:
        """The number of the first segment it needs."""
        return self.lsn.segment_number(self.segment_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWalk:
    """What a pass over files says about itself."""

    length: timedelta
    """How long it took, never negative."""
    is_asked: bool
    """Whether the rows were asked before which documents they refer to, so that what was missing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A snapshot: what it says, and when the store received it."""

    component: ComponentName
    id: SnapshotId
    stored_at: datetime
    """By the store's clock."""
    stopped_at: datetime
    """By the writing host's clock: a claim."""
    state: SnapshotState
    source_bytes: int
    stored_bytes: int
    wal: WalStart | None
    walk: StoredWalk | None = None
    """Of a pass over files."""
    void: bool = False
    """Stored too long after its packs were checked, or copied here without its time."""

    @property
    def key(self) -> SnapshotKey:
        """What names it within a service."""
        return (self.component, self.id)

    @property
    def damage(self) -> int:
        """0 if it is complete; the larger, the worse."""
        return _DAMAGE[self.state]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint:
    """A recovery point: which snapshots it binds, and when the store received it."""

    id: PointId
    stored_at: datetime
    members: tuple[SnapshotKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Running work that relies on what is stored. ``component`` is ``None`` if the hold cannot be read."""

    key: str
    purpose: str
    component: ComponentName | None
    since: datetime
    """By the store's clock."""
    until: datetime

    @property
    def keeps_everything(self) -> bool:
        """Whether it is of work that may need any snapshot of the service: all but a backup."""
        return self.purpose != BACKUP_HOLD

    def keeps(self, component: ComponentName, stored_at: datetime, *, now: datetime) -> bool:
        """Tell whether something of a component may not go because of this hold."""
        if now >= self.until:
            return False
        return self.keeps_everything or (self.component in {None, component} and stored_at >= self.since)

    def describe(self) -> str:
        """Return the hold in words."""
        return f"a {self.purpose} that began at {to_iso(self.since)} may need it, until {to_iso(self.until)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything a service has, as far as it was asked for."""

    snapshots: tuple[StoredSnapshot, ...]
    points: tuple[StoredPoint, ...] = ()
    verified: frozenset[SnapshotId] = frozenset()
    """Snapshots that recovery was proved with, as far back as was looked."""
    last_verified: frozenset[SnapshotId] = frozenset()
    """Those of the newest proof of each component."""
    holds: tuple[Hold, ...] = ()
    """Of this service."""
    unreadable: frozenset[SnapshotKey] = frozenset()
    unreadable_points: tuple[str, ...] = ()
