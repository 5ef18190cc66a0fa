"""Every object's key is the one that docs/format.md names."""

from __future__ import annotations

from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId
from drservice.model.wal import Timeline
from drservice.objectstore.keys import is_key
from drservice.repository import layout

ERP, DB = ServiceName("erp"), ComponentName("database")


def test_keys_are_those_of_the_format() -> None:
    made = [
        layout.pack_key(ERP, DB, "packs", "ab" * 32),
        layout.snapshot_key(ERP, DB, SnapshotId("01ARZ3NDEKTSV4RRFFQ69G5FAV")),
        layout.wal_key(ERP, DB, SystemId("123"), Timeline(10), "0000000A.history"),
        layout.data_key_key(ERP, KeyId("01ARZ3NDEKTSV4RRFFQ69G5FAK"), "01ARZ3NDEKTSV4RRFFQ69G5FAX"),
    ]
    assert made == [
        f"s/erp/database/packs/ab/{'ab' * 32}",
        "s/erp/database/snapshots/01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "s/erp/database/wal/123/0000000A/0000000A.history",
        "keys/erp/01ARZ3NDEKTSV4RRFFQ69G5FAK/01ARZ3NDEKTSV4RRFFQ69G5FAX.age",
    ]
    assert all(is_key(key) for key in made)


def test_the_service_of_a_key_is_its_second_part_for_keys_and_snapshots_only() -> None:
    assert layout.service_of("s/erp/database/snapshots/x") == "erp"
    assert layout.service_of("keys/erp/x/y.age") == "erp"
    for key in ("hold/x", "gc/00000001/condemned", "drservice-repository.json", "s"):
        assert layout.service_of(key) is None
