"""A service against its promises: what is unknown is never kept, and backed up is never verified."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from drservice.catalogue.facts import (
    KNOWN_LATE,
    STREAM_LATE,
    DocumentStreamFacts,
    HoleFacts,
    NewestPoint,
    Proof,
    ServiceFacts,
    WalStreamFacts,
)
from drservice.catalogue.reading import PointInfo, WindowInfo
from drservice.model.agenda import Agenda, Results
from drservice.model.estate import (
    Estate,
    FilesKind,
    FilesSettings,
    Objectives,
    PostgresSettings,
    RepositorySettings,
    Schedules,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.schedule import Cron
from drservice.web.band import band_of
from drservice.web.standing import Condition, Standing, standing_of

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


def drill(entry: int, outcome: str, *, rto_ms: int = 60_000) -> Proof:
    return Proof(
        entry=entry, recorded_at=NOW - HOUR / entry, outcome=outcome, rpo_seconds=0.0, rto_seconds=rto_ms / 1000
    )


GOOD = ServiceFacts(
    service="erp",
    point=NewestPoint(id="P", created_at=NOW - HOUR, state="complete"),
    reached={"database": NOW - timedelta(seconds=2)},
    drill=drill(1, "passed"),
    passed_drill=drill(1, "passed"),
)


def judged(service: Service, facts: ServiceFacts) -> Standing:
    estate = Estate(
        source=Path("drservice.yaml"),
        state_dir=Path("state"),
        repository=RepositorySettings(url="file:///repository"),
        services={service.name: service},
    )
    return standing_of(service, facts, NOW, Agenda(estate))


def test_a_promise_is_kept_only_with_a_point_wal_and_a_passed_drill() -> None:
    assert judged(SERVICE, GOOD).condition is Condition.KEPT


def test_backed_up_and_never_drilled_is_not_proved() -> None:
    standing = judged(SERVICE, replace(GOOD, drill=None, passed_drill=None))
    assert standing.condition is Condition.UNPROVED
    assert standing.backed_up_at == POINT.created_at
    assert standing.verified_at is None


def test_a_newer_drill_that_failed_takes_the_proof_away() -> None:
    standing = judged(SERVICE, replace(GOOD, drill=drill(2, "failed")))
    assert standing.condition is Condition.UNPROVED
    assert standing.verified_at is None
    assert "the last drill ended as failed" in standing.reasons


def test_no_point_is_unprotected_whatever_else_is_good() -> None:
    assert judged(SERVICE, replace(GOOD, point=None)).condition is Condition.UNPROTECTED


def test_a_cluster_without_wal_breaks_the_promise_and_its_risk_is_unknown() -> None:
    standing = judged(SERVICE, replace(GOOD, reached={}))
    assert standing.condition is Condition.BROKEN
    assert standing.at_risk is None


def test_the_worst_cluster_decides_what_is_at_risk() -> None:
    second = PostgresSettings(name=ComponentName("second"), dsn="host=db2")
    service = replace(SERVICE, components={**SERVICE.components, second.name: second})
    facts = replace(GOOD, reached={**GOOD.reached, "second": NOW - KNOWN_LATE - timedelta(minutes=5)})
    standing = judged(service, facts)
    assert standing.at_risk == KNOWN_LATE + timedelta(minutes=5)
    assert standing.condition is Condition.BROKEN


def test_wal_that_the_catalogue_may_not_know_of_yet_breaks_no_promise_and_is_shown() -> None:
    rpo = SERVICE.objectives.rpo
    assert rpo is not None
    newest = replace(GOOD, reached={"database": NOW - KNOWN_LATE - rpo * 0.7})
    assert judged(SERVICE, newest).condition is Condition.KEPT
    assert judged(SERVICE, newest).at_risk == KNOWN_LATE + rpo * 0.7
    beyond = replace(GOOD, reached={"database": NOW - KNOWN_LATE - rpo - timedelta(seconds=1)})
    assert judged(SERVICE, beyond).condition is Condition.BROKEN


def test_a_recovery_that_took_too_long_breaks_the_promise_and_one_nearly_so_strains_it() -> None:
    slow, near = drill(3, "passed", rto_ms=31 * 60_000), drill(3, "passed", rto_ms=29 * 60_000)
    assert judged(SERVICE, replace(GOOD, drill=slow, passed_drill=slow)).condition is Condition.BROKEN
    assert judged(SERVICE, replace(GOOD, drill=near, passed_drill=near)).condition is Condition.STRAINED


def test_a_result_that_is_older_than_its_schedule_allows_is_overdue_whatever_was_missed() -> None:
    service = replace(SERVICE, schedule=Schedules(backup=Cron.parse("0 1 * * *"), verify=Cron.parse("0 3 * * *")))
    fresh = Results(backed_up_at=NOW - HOUR, done={("verify", ""): NOW - HOUR})
    assert judged(service, replace(GOOD, results=fresh, missed=1)).condition is Condition.KEPT
    standing = judged(service, replace(GOOD, results=replace(fresh, backed_up_at=NOW - 49 * HOUR)))
    assert standing.condition is Condition.OVERDUE
    assert standing.reasons == ("backup was due on 2026-11-25 at 05:00 UTC",)
    old = replace(GOOD, results=replace(fresh, done={("verify", ""): NOW - 49 * HOUR}))
    assert judged(service, old).reasons == ("verify was due on 2026-11-25 at 07:00 UTC",)


def test_services_are_ordered_by_how_close_they_are_to_breaking_a_promise() -> None:
    facts = [
        GOOD,
        replace(GOOD, point=None),
        replace(GOOD, reached={"database": NOW - KNOWN_LATE - timedelta(seconds=50)}),
        GOOD,
    ]
    ordered = sorted((judged(SERVICE, item) for item in facts), key=lambda item: item.order)
    assert [item.condition for item in ordered] == [
        Condition.UNPROTECTED,
        Condition.STRAINED,
        Condition.KEPT,
        Condition.KEPT,
    ]


def test_files_only_are_reachable_at_their_points() -> None:
    files = FilesSettings(name=ComponentName("files"), kind=FilesKind.DIRECTORY, path=Path("/srv"))
    service = replace(SERVICE, components={files.name: files})
    assert judged(service, replace(GOOD, reached={})).reachable_until == POINT.created_at


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


STREAM = WalStreamFacts(
    state="streaming",
    is_synchronous=False,
    durable_until=NOW - timedelta(seconds=2),
    seconds_at_risk=0.25,
    slot_status="reserved",
    problem=None,
    remedy=None,
    told_at=NOW - timedelta(seconds=2),
)


def test_seconds_at_risk_are_the_receivers_as_long_as_it_tells() -> None:
    facts = replace(GOOD, reached={"database": NOW - timedelta(minutes=3)}, streams={"database": STREAM})
    assert judged(SERVICE, facts).at_risk == timedelta(seconds=0.25)
    silent = replace(facts, streams={"database": replace(STREAM, told_at=NOW - STREAM_LATE - timedelta(seconds=1))})
    assert judged(SERVICE, silent).at_risk == timedelta(minutes=3)
    unknown = replace(facts, streams={"database": replace(STREAM, seconds_at_risk=None)})
    assert judged(SERVICE, unknown).at_risk == timedelta(minutes=3)
    assert judged(SERVICE, unknown).condition is Condition.BROKEN, "no ten minutes of patience for what is told"
    assert judged(SERVICE, replace(unknown, streams={})).condition is Condition.KEPT


def test_an_open_hole_in_the_wal_breaks_the_promise_and_says_where() -> None:
    hole = HoleFacts(component="database", first_segment="0A", segments=1, is_open=True, cost="it cuts")
    standing = judged(SERVICE, replace(GOOD, holes=(hole,)))
    assert standing.condition is Condition.BROKEN
    assert standing.reasons[0] == "database: WAL from 0A on is missing: it cuts"
    assert judged(SERVICE, replace(GOOD, holes=(replace(hole, is_open=False),))).condition is Condition.KEPT


# --- documents --------------------------------------------------------------------------------------------------

FILESTORE = FilesSettings(
    name=ComponentName("documents"), kind=FilesKind.ODOO_FILESTORE, path=Path("/f"), database="plant", stream=True
)
WHOLE = replace(
    SERVICE,
    objectives=replace(SERVICE.objectives, documents_rpo=timedelta(minutes=2)),
    components={**SERVICE.components, FILESTORE.name: FILESTORE},
)
CAPTURE = DocumentStreamFacts(
    state="streaming",
    durable_until=NOW - timedelta(seconds=9),
    seconds_at_risk=5.0,
    problem=None,
    remedy=None,
    told_at=NOW - timedelta(seconds=2),
    pending=0,
    missing=0,
    corrupt=0,
    in_database=None,
    not_covered=None,
)
STREAMED = replace(GOOD, captured={"documents": NOW - timedelta(seconds=9)}, captures={"documents": CAPTURE})


def test_what_would_be_lost_is_the_larger_of_database_and_documents() -> None:
    standing = judged(WHOLE, STREAMED)
    assert (standing.at_risk, standing.documents_at_risk) == (timedelta(seconds=2), timedelta(seconds=5))
    assert standing.effective == timedelta(seconds=5)
    assert standing.condition is Condition.KEPT
    older = replace(STREAMED, reached={"database": NOW - timedelta(seconds=30)})
    assert judged(WHOLE, older).effective == timedelta(seconds=30)
    without = judged(SERVICE, GOOD)
    assert (without.documents_at_risk, without.effective) == (None, without.at_risk)


def test_what_a_silent_capture_said_is_not_believed() -> None:
    silent = replace(CAPTURE, told_at=NOW - STREAM_LATE - timedelta(seconds=1))
    assert judged(WHOLE, replace(STREAMED, captures={"documents": silent})).effective == timedelta(seconds=9)


def test_what_is_unknown_of_one_half_is_unknown_of_the_whole() -> None:
    never = judged(WHOLE, replace(STREAMED, captured={}, captures={}))
    assert (never.effective, never.condition) == (None, Condition.BROKEN)
    assert never.reasons == ("documents: no pass over its documents is whole, and no stream has proved any",)
    assert judged(WHOLE, replace(STREAMED, reached={})).effective is None
    second = replace(FILESTORE, name=ComponentName("second"))
    two = replace(WHOLE, components={**WHOLE.components, second.name: second})
    assert judged(two, STREAMED).documents_at_risk is None


def test_documents_beyond_their_promise_break_it_and_near_it_strain_it() -> None:
    promised = WHOLE.objectives.documents_rpo
    assert promised is not None
    said = {"documents": replace(CAPTURE, seconds_at_risk=None)}

    def at(age: timedelta) -> Condition:
        return judged(WHOLE, replace(STREAMED, captured={"documents": NOW - age}, captures=said)).condition

    assert at(STREAM_LATE + promised + timedelta(seconds=1)) is Condition.BROKEN
    assert at(STREAM_LATE + promised) is Condition.STRAINED
    assert at(STREAM_LATE + promised * 0.7) is Condition.KEPT
    passes = replace(STREAMED, captured={"documents": NOW - KNOWN_LATE - promised * 0.7}, captures={})
    assert judged(WHOLE, passes).condition is Condition.KEPT, "the catalogue learns of passes late"
