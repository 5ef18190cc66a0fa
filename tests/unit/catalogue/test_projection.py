"""Facts of the data plane as rows; no server is asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from drservice.catalogue.projection import _point_row, _snapshot_row
from drservice.catalogue.tables import Point, Snapshot
from drservice.model.ids import ComponentName, KeyId, PointId, ServiceName, SnapshotId
from drservice.model.points import RecoveryPoint, member_of, state_of
from drservice.model.snapshot import FilesFacts, PostgresFacts, SnapshotRecord, SnapshotState
from tests.doubles.repositories import facts

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FILES = FilesFacts(
    walk_began_at=NOON,
    referred=7,
    missing=1,
    corrupt=0,
    foreign=2,
    vanished=3,
    unreadable=0,
    left_out=4,
)


def record(component: str, kind: str, about: FilesFacts | PostgresFacts) -> SnapshotRecord:
    return SnapshotRecord(
        id=SnapshotId(f"01ARZ3NDEKTSV4RRFFQ69G5F{component[:2].upper()}"),
        service=ServiceName("erp"),
        component=ComponentName(component),
        kind=kind,
        method="local",
        state=about.state,
        host="db1",
        started_at=NOON,
        stopped_at=NOON + timedelta(minutes=5),
        checked_at=NOON,
        key_ids=(KeyId("k"),),
        sealed_key_id=KeyId("k"),
        previous=None,
        source_bytes=1000,
        read_bytes=900,
        stored_bytes=300,
        files=12,
        facts=about,
        header_sha256="0" * 64,
    )


def test_a_snapshot_has_every_column_and_its_facts_as_json() -> None:
    cluster, files = record("database", "postgres", facts()), record("filestore", "odoo-filestore", FILES)
    for found in (cluster, files):
        assert set(_snapshot_row(found)) == {column.name for column in Snapshot.__table__.columns}
    assert json.loads(json.dumps(_snapshot_row(cluster)["facts"]))["stop_lsn"] == "0/3000000"
    assert json.loads(json.dumps(_snapshot_row(files)["facts"])) == {
        "walk_began_at": "2026-03-01T12:00:00.000000Z",
        "referred": 7,
        "missing": 1,
        "corrupt": 0,
        "foreign": 2,
        "vanished": 3,
        "unreadable": 0,
        "left_out": 4,
    }
    assert _snapshot_row(files)["state"] == SnapshotState.DEGRADED.value


def test_a_point_names_its_members_by_component() -> None:
    members = (
        member_of(record("database", "postgres", facts())),
        member_of(record("filestore", "odoo-filestore", FILES)),
    )
    point = RecoveryPoint(
        id=PointId("01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        service=ServiceName("erp"),
        host="db1",
        at=NOON,
        state=state_of(members),
        members=members,
    )
    row = _point_row(point)
    # When a drill last passed from it is read from the records, and never overwritten by the point.
    assert set(row) == {column.name for column in Point.__table__.columns} - {"verified_at"}
    assert row["created_at"] == NOON
    assert row["members"]["database"]["position"] == {
        "system_id": "7345678901234567890",
        "timeline": 1,
        "lsn": "0/3000000",
    }
    assert row["members"]["filestore"]["position"] is None
    assert row["members"]["filestore"]["state"] == "degraded"
    assert json.loads(json.dumps(row["members"])) == row["members"]
