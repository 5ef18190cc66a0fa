"""A service against its promises: what is unknown is never kept, and backed up is never verified."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from drservice.catalogue.reading import PointInfo, RecordInfo, ServiceFacts, WindowInfo
from drservice.model.estate import (
    FilesKind,
    FilesSettings,
    Objectives,
    PostgresSettings,
    Service,
    UnprotectedComponent,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.web.band import band_of
from drservice.web.standing import Condition, standing_of

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SERVICE = Service(
    name=ServiceName("erp"),
    objectives=Objectives(rpo=timedelta(minutes=1), rto=timedelta(minutes=30)),
    components={ComponentName("database"): PostgresSettings(name=ComponentName("database"), dsn="host=db1")},
)
POINT = PointInfo(id="P", service="erp", created_at=NOW - HOUR, state="complete", members={}, verified_at=None)


def window(begin: timedelta, end: timedelta, component: str = "database") -> WindowInfo:
    return WindowInfo(component=component, timeline=1, from_lsn=1, to_lsn=2, from_time=NOW - begin, to_time=NOW - end)


def drill(entry: int, outcome: str, *, rto_ms: int = 60_000) -> RecordInfo:
    return RecordInfo(
        entry=entry,
        kind="drill",
        service="erp",
        host="db1",
        run=None,
        recorded_at=NOW - HOUR / entry,
        outcome=outcome,
        predicate={"rpo_ms": 0, "rto_ms": rto_ms},
        sha256="",
    )


GOOD = ServiceFacts(
    service="erp",
    point=POINT,
    windows=(window(HOUR, timedelta(seconds=2)),),
    drill=drill(1, "passed"),
    passed_drill=drill(1, "passed"),
)


def test_a_promise_is_kept_only_with_a_point_wal_and_a_passed_drill() -> None:
    assert standing_of(SERVICE, GOOD, NOW).condition is Condition.KEPT


def test_backed_up_and_never_drilled_is_not_proved() -> None:
    standing = standing_of(SERVICE, replace(GOOD, drill=None, passed_drill=None), NOW)
    assert standing.condition is Condition.UNPROVED
    assert standing.backed_up_at == POINT.created_at
    assert standing.verified_at is None


def test_a_newer_drill_that_failed_takes_the_proof_away() -> None:
    standing = standing_of(SERVICE, replace(GOOD, drill=drill(2, "failed")), NOW)
    assert standing.condition is Condition.UNPROVED
    assert standing.verified_at is None
    assert "the last drill ended as failed" in standing.reasons


def test_no_point_is_unprotected_whatever_else_is_good() -> None:
    assert standing_of(SERVICE, replace(GOOD, point=None), NOW).condition is Condition.UNPROTECTED


def test_a_component_that_is_not_backed_up_is_unprotected() -> None:
    service = replace(SERVICE, unprotected=(UnprotectedComponent(name=ComponentName("queue"), kind="redis"),))
    assert standing_of(service, GOOD, NOW).condition is Condition.UNPROTECTED


def test_a_cluster_without_wal_breaks_the_promise_and_its_risk_is_unknown() -> None:
    standing = standing_of(SERVICE, replace(GOOD, windows=()), NOW)
    assert standing.condition is Condition.BROKEN
    assert standing.at_risk is None


def test_the_worst_cluster_decides_what_is_at_risk() -> None:
    second = PostgresSettings(name=ComponentName("second"), dsn="host=db2")
    service = replace(SERVICE, components={**SERVICE.components, second.name: second})
    facts = replace(GOOD, windows=(*GOOD.windows, window(HOUR, timedelta(minutes=5), "second")))
    standing = standing_of(service, facts, NOW)
    assert standing.at_risk == timedelta(minutes=5)
    assert standing.condition is Condition.BROKEN


def test_a_recovery_that_took_too_long_breaks_the_promise_and_one_nearly_so_strains_it() -> None:
    slow, near = drill(3, "passed", rto_ms=31 * 60_000), drill(3, "passed", rto_ms=29 * 60_000)
    assert standing_of(SERVICE, replace(GOOD, drill=slow, passed_drill=slow), NOW).condition is Condition.BROKEN
    assert standing_of(SERVICE, replace(GOOD, drill=near, passed_drill=near), NOW).condition is Condition.STRAINED


def test_a_missed_slot_is_overdue() -> None:
    assert standing_of(SERVICE, replace(GOOD, missed=1), NOW).condition is Condition.OVERDUE


def test_services_are_ordered_by_how_close_they_are_to_breaking_a_promise() -> None:
    facts = [GOOD, replace(GOOD, point=None), replace(GOOD, windows=(window(HOUR, timedelta(seconds=50)),)), GOOD]
    ordered = sorted((standing_of(SERVICE, item, NOW) for item in facts), key=lambda item: item.order)
    assert [item.condition for item in ordered] == [
        Condition.UNPROTECTED,
        Condition.STRAINED,
        Condition.KEPT,
        Condition.KEPT,
    ]


def test_files_only_are_reachable_at_their_points() -> None:
    files = FilesSettings(name=ComponentName("files"), kind=FilesKind.DIRECTORY, path=Path("/srv"))
    service = replace(SERVICE, components={files.name: files})
    assert standing_of(service, replace(GOOD, windows=()), NOW).reachable_until == POINT.created_at


def test_the_band_holds_only_what_every_cluster_has_and_shows_the_gaps() -> None:
    windows = (
        window(10 * HOUR, 6 * HOUR),
        window(5 * HOUR, timedelta(0)),
        window(8 * HOUR, timedelta(0), "second"),
    )
    band = band_of(["database", "second"], windows, (POINT,), NOW)
    assert band is not None
    assert [(NOW - item.begin, NOW - item.end) for item in band.stretches] == [
        (8 * HOUR, 6 * HOUR),
        (5 * HOUR, timedelta(0)),
    ]
    assert [(NOW - item.begin, NOW - item.end) for item in band.gaps] == [(6 * HOUR, 5 * HOUR)]
    assert not band.holds(NOW - 5.5 * HOUR)
    assert band.holds(NOW - 7 * HOUR)
    assert [mark.x for mark in band.marks] == [875.0]
    assert band.stretches[0].x == 0
    assert band.stretches[-1].x + band.stretches[-1].width == 1000


def test_a_cluster_without_wal_leaves_no_band() -> None:
    assert band_of(["database", "second"], (window(HOUR, timedelta(0)),), (), NOW) is None
    assert band_of([], (), (), NOW) is None
