"""Snapshots, points and WAL as retention judges them, by the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from drservice.model.ids import ComponentName, PointId, SnapshotId, SystemId, make_ulid
from drservice.model.retentionstock import StoredPoint, StoredSnapshot, WalStart
from drservice.model.retentionwal import StoredWal
from drservice.model.snapshot import SnapshotState
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_name

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
SYSTEM = SystemId("7345678901234567890")
DATABASE = ComponentName("database")
DOCUMENTS = ComponentName("documents")
SEGMENT = 16 << 20


def ulid(at: datetime, number: int = 0) -> str:
    """Return an identifier of an instant; equal for equal arguments."""
    return make_ulid(at, number.to_bytes(10, "big"))


def snapshot(
    age: timedelta,
    *,
    component: ComponentName = DATABASE,
    number: int = 0,
    claimed: timedelta = timedelta(minutes=-1),
    state: SnapshotState = SnapshotState.COMPLETE,
    source_bytes: int = 100 << 20,
    stored_bytes: int = 1 << 20,
    segment: int | None = None,
    system_id: SystemId = SYSTEM,
    void: bool = False,
) -> StoredSnapshot:
    """Return a snapshot that was stored ``age`` before NOW and claims an end ``claimed`` off that."""
    at = NOW - age
    lsn = Lsn((segment if segment is not None else 100) * SEGMENT + 40)
    return StoredSnapshot(
        component=component,
        id=SnapshotId(ulid(at, number + (1000 if component == DOCUMENTS else 0))),
        stored_at=at,
        stopped_at=at + claimed,
        state=state,
        source_bytes=source_bytes,
        stored_bytes=stored_bytes,
        wal=WalStart(system_id=system_id, lsn=lsn, segment_bytes=SEGMENT) if component == DATABASE else None,
        void=void,
    )


def point(*snapshots: StoredSnapshot) -> StoredPoint:
    """Return the point that binds snapshots, stored with the last of them."""
    at = max(item.stored_at for item in snapshots)
    return StoredPoint(
        id=PointId(ulid(at, 77)), stored_at=at, members=tuple((item.component, item.id) for item in snapshots)
    )


def wal(segment: int, *, timeline: int = 1, age: timedelta = timedelta(days=40), suffix: str = "") -> StoredWal:
    """Return an archived segment, or its ``.partial`` file or label with a suffix."""
    name = segment_name(Timeline(timeline), segment, SEGMENT) + suffix
    return StoredWal(
        key=f"s/erp/database/wal/{SYSTEM}/{timeline:08X}/{name}",
        name=WalFileName.parse(name),
        stored_at=NOW - age,
        stored_bytes=SEGMENT,
    )


def history(timeline: int, *, age: timedelta = timedelta(days=4000)) -> StoredWal:
    """Return an archived history file."""
    name = f"{timeline:08X}.history"
    return StoredWal(key=f"w/{name}", name=WalFileName.parse(name), stored_at=NOW - age, stored_bytes=100)
