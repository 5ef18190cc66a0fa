"""What a snapshot is, by its kind."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from drservice.errors import FormatError
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId
from drservice.model.snapshot import FilesFacts, PostgresFacts, SnapshotRecord, SnapshotState
from tests.doubles.repositories import facts

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
WHOLE = FilesFacts(walk_began_at=NOW, referred=3, missing=0, corrupt=0, foreign=0, vanished=0, unreadable=0, left_out=0)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, SnapshotState.COMPLETE),
        ({"foreign": 4, "vanished": 2, "left_out": 1}, SnapshotState.COMPLETE),
        ({"missing": 1}, SnapshotState.DEGRADED),
        ({"corrupt": 1}, SnapshotState.DEGRADED),
        ({"unreadable": 1}, SnapshotState.PARTIAL),
        ({"unreadable": 1, "corrupt": 1}, SnapshotState.PARTIAL),
    ],
)
def test_damage_in_production_degrades_and_what_cannot_be_read_makes_partial(
    changes: dict[str, int], state: SnapshotState
) -> None:
    assert replace(WHOLE, **changes).state is state  # type: ignore[arg-type]  # named by the test


def test_bad_pages_degrade_a_cluster() -> None:
    assert facts().state is SnapshotState.COMPLETE
    assert facts(bad_pages=1).state is SnapshotState.DEGRADED


def record_with(about: PostgresFacts | FilesFacts) -> SnapshotRecord:
    return SnapshotRecord(
        id=SnapshotId("01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        service=ServiceName("erp"),
        component=ComponentName("documents"),
        kind="odoo-filestore",
        method="walk",
        state=about.state,
        host="db1",
        started_at=NOW,
        stopped_at=NOW,
        checked_at=NOW,
        key_ids=(),
        sealed_key_id=KeyId("k"),
        previous=None,
        source_bytes=0,
        read_bytes=0,
        stored_bytes=0,
        files=0,
        facts=about,
        header_sha256="",
    )


def test_facts_of_another_kind_are_refused() -> None:
    with pytest.raises(FormatError, match="no PostgreSQL cluster"):
        _ = record_with(WHOLE).postgres
    with pytest.raises(FormatError, match="holds no documents"):
        _ = record_with(facts()).documents
    assert record_with(WHOLE).documents is WHOLE
    assert record_with(facts()).postgres == facts()
