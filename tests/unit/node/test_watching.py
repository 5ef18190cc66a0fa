"""What people are told about promises and overdue results: from data, with tolerance, and only what is asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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
from drservice.model.agenda import Agenda, Results
from drservice.model.estate import (
    Estate,
    FilesKind,
    FilesSettings,
    NotifyKind,
    Objectives,
    PostgresSettings,
    RepositorySettings,
    Schedules,
    Service,
    WalMode,
    WalSettings,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.retention import Period, RetentionPolicy
from drservice.model.schedule import Cron
from drservice.node.watching import COMPARING_PATIENCE, OVERDUE_TOLERANCE, STREAM_PATIENCE, Found, breaches_of
from drservice.notify.interface import Severity

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
RPO, RTO = timedelta(minutes=5), timedelta(minutes=30)
SERVICE = Service(
    name=ServiceName("erp"),
    objectives=Objectives(rpo=RPO, rto=RTO, documents_rpo=RPO),
    components={
        ComponentName("database"): PostgresSettings(
            name=ComponentName("database"), dsn="", wal=WalSettings(mode=WalMode.STREAM)
        ),
        ComponentName("documents"): FilesSettings(
            name=ComponentName("documents"),
            kind=FilesKind.ODOO_FILESTORE,
            path=Path("/f"),
            database="plant",
            stream=True,
        ),
    },
    schedule=Schedules(backup=Cron.parse("0 1 * * *"), retention=Cron.parse("0 5 * * *"), grace=timedelta(hours=4)),
    retention=RetentionPolicy(within=Period.parse("14d")),
)
DONE = {("backup", ""): NOW - timedelta(hours=10), ("retention", ""): NOW - timedelta(hours=7)}
KEPT = ServiceFacts(
    service="erp",
    point=NewestPoint(id="p", created_at=NOW - timedelta(hours=10), state="complete"),
    reached={"database": NOW},
    captured={"documents": NOW},
    results=Results(done=DONE),
)


def found(facts: ServiceFacts = KEPT, service: Service = SERVICE, now: datetime = NOW) -> list[Found]:
    estate = Estate(
        source=Path("/c"),
        state_dir=Path("/s"),
        repository=RepositorySettings(url="file:///r"),
        services={service.name: service},
    )
    return list(breaches_of(service, facts, Agenda(estate), now))


def proof(**values: float) -> Proof:
    shown = {"rpo_seconds": 0.0, "rto_seconds": 60.0, **values}
    return Proof(entry=7, recorded_at=NOW, outcome="passed", **shown)


def test_a_service_that_keeps_its_promises_is_not_told_of() -> None:
    assert found(replace(KEPT, drill=proof(), restore=proof())) == []


def test_work_at_risk_is_told_when_it_is_more_than_the_catalogue_may_not_know_of_yet() -> None:
    limit = NOW - RPO - KNOWN_LATE
    assert found(replace(KEPT, reached={"database": limit})) == []
    (breach,) = found(replace(KEPT, reached={"database": limit - SECOND}))
    assert (breach.what, breach.kind, breach.severity) == ("rpo", NotifyKind.OBJECTIVE, Severity.BUSINESS_CRITICAL)
    assert "work since 2026-11-26T11:44:59" in breach.title
    assert "promised is to lose at most 5 min" in breach.title
    assert breach.next_command == "drservice info erp"


def test_a_cluster_without_wal_behind_its_snapshot_breaks_the_promise_and_a_service_without_a_point_does_not_yet() -> (
    None
):
    (breach,) = found(replace(KEPT, reached={}))
    assert "nothing can be recovered of database" in breach.title
    assert found(replace(KEPT, reached={}, point=None)) == []


def test_files_alone_are_as_old_as_their_newest_point() -> None:
    files = replace(
        SERVICE,
        objectives=Objectives(rpo=timedelta(hours=12)),
        components={
            ComponentName("f"): FilesSettings(name=ComponentName("f"), kind=FilesKind.DIRECTORY, path=Path("/f"))
        },
    )
    old = NewestPoint(id="p", created_at=NOW - timedelta(hours=13), state="complete")
    assert [breach.what for breach in found(replace(KEPT, reached={}, point=old), files)] == ["rpo"]
    assert found(replace(KEPT, reached={}), files) == []


def test_a_drill_that_shows_more_loss_or_time_than_promised_is_told() -> None:
    shown = proof(rpo_seconds=RPO.total_seconds() + 1, rto_seconds=RTO.total_seconds() + 1)
    breaches = found(replace(KEPT, drill=shown))
    assert [breach.what for breach in breaches] == ["measured-rpo", "measured-rto"]
    assert "took 30 min 1 s; promised is 30 min" in breaches[1].title
    newer = replace(proof(), entry=8)
    assert [breach.what for breach in found(replace(KEPT, drill=shown, restore=newer))] == ["measured-rpo"]


def test_documents_that_nobody_captured_for_longer_than_promised_are_told() -> None:
    limit = NOW - RPO - KNOWN_LATE
    assert found(replace(KEPT, captured={"documents": limit})) == []
    (breach,) = found(replace(KEPT, captured={"documents": limit - SECOND}))
    assert (breach.what, breach.kind, breach.severity) == (
        "documents-rpo:documents",
        NotifyKind.OBJECTIVE,
        Severity.BUSINESS_CRITICAL,
    )
    assert "documents were last captured at 2026-11-26T11:44:59" in breach.title


def test_documents_that_nobody_ever_captured_break_the_promise_of_a_service_that_is_backed_up() -> None:
    (breach,) = found(replace(KEPT, captured={}))
    assert (breach.what, "nothing can be recovered of documents" in breach.title) == ("documents-rpo:documents", True)
    assert found(replace(KEPT, captured={}, point=None)) == [], "it is overdue, not broken"


def test_nothing_is_told_of_what_is_not_promised() -> None:
    service = replace(SERVICE, objectives=Objectives())
    facts = replace(KEPT, reached={}, captured={}, drill=proof(rpo_seconds=1e6, rto_seconds=1e6))
    assert found(facts, service) == []


def test_what_is_overdue_is_told_after_grace_and_tolerance_retention_as_technical() -> None:
    results = Results(done={key: at - timedelta(days=1) for key, at in DONE.items()})
    due = datetime(2026, 11, 26, 5, tzinfo=UTC)  # the slot at one o'clock, and four hours of grace
    at_last = due + OVERDUE_TOLERANCE
    late = replace(KEPT, reached={"database": at_last}, captured={"documents": at_last}, results=results)
    assert found(late, now=at_last) == []
    (backup,) = found(late, now=at_last + SECOND)
    assert (backup.what, backup.kind, backup.severity) == (
        "overdue:backup:",
        NotifyKind.OVERDUE,
        Severity.BUSINESS_CRITICAL,
    )
    assert "backup is overdue since 2026-11-26T05:00:00" in backup.title
    assert backup.next_command == "drservice backup erp"
    both = found(replace(KEPT, results=results))
    assert {(breach.what, breach.severity) for breach in both} == {
        ("overdue:backup:", Severity.BUSINESS_CRITICAL),
        ("overdue:retention:", Severity.TECHNICAL),
    }


# --- WAL --------------------------------------------------------------------------------------------------------

HOLE = HoleFacts(component="database", first_segment="00000001000000000000000A", segments=2, is_open=True, cost="lost")
STREAM = WalStreamFacts(
    state="streaming",
    is_synchronous=False,
    durable_until=NOW - SECOND,
    seconds_at_risk=0.2,
    slot_status="reserved",
    problem=None,
    remedy=None,
    told_at=NOW - SECOND,
)


def test_a_hole_that_no_snapshot_lies_behind_is_told_and_asks_for_a_backup() -> None:
    (breach,) = found(replace(KEPT, holes=(HOLE,)))
    assert (breach.kind, breach.severity, breach.wants_backup) == (
        NotifyKind.FAILURE,
        Severity.BUSINESS_CRITICAL,
        True,
    )
    assert breach.next_command == "drservice backup erp"
    assert "put into the queue" in breach.body
    unscheduled = replace(SERVICE, schedule=Schedules())
    (breach,) = found(replace(KEPT, holes=(HOLE,)), unscheduled)
    assert "none is scheduled" in breach.body
    assert found(replace(KEPT, holes=(replace(HOLE, is_open=False),))) == [], "a newer snapshot lies behind it"


def streamed(**changes: object) -> list[Found]:
    return found(replace(KEPT, streams={"database": replace(STREAM, **changes)}))  # type: ignore[arg-type]  # named by the test


def test_a_receiver_that_works_is_not_told_of_and_one_that_fails_for_a_moment_neither() -> None:
    assert streamed() == []
    assert streamed(state="stalled", problem="the store is away") == []


def test_a_receiver_that_does_not_get_on_is_told_with_its_own_remedy() -> None:
    old = NOW - STREAM_PATIENCE - SECOND
    (breach,) = streamed(state="stalled", problem="the store is away", remedy="Look at it.", durable_until=old)
    assert (breach.severity, "the store is away" in breach.title) == (Severity.TECHNICAL, True)
    assert "Look at it." in breach.body
    (breach,) = streamed(told_at=old, durable_until=old)
    assert "silent" in breach.title


def test_commits_that_wait_and_a_slot_that_is_lost_are_told_at_once() -> None:
    (breach,) = streamed(state="absent", is_synchronous=True)
    assert breach.severity is Severity.BUSINESS_CRITICAL
    assert "production may stand still" in breach.body
    (breach,) = streamed(slot_status="lost")
    assert breach.severity is Severity.BUSINESS_CRITICAL
    assert "the server may remove WAL" in breach.body


def test_nothing_is_told_of_a_receiver_that_nobody_wants_any_more() -> None:
    archived = PostgresSettings(name=ComponentName("database"), dsn="")
    service = replace(SERVICE, components={**SERVICE.components, archived.name: archived})
    lost = replace(STREAM, state="absent", durable_until=None)
    assert found(replace(KEPT, streams={"database": lost}), service) == []
    assert len(found(replace(KEPT, streams={"database": lost}))) == 1


def test_work_at_risk_is_told_sooner_where_wal_is_streamed() -> None:
    late = NOW - RPO - STREAM_LATE
    facts = replace(KEPT, reached={"database": late - SECOND}, streams={"database": STREAM})
    assert any(breach.what == "rpo" for breach in found(facts))
    assert not any(breach.what == "rpo" for breach in found(replace(facts, reached={"database": late})))


# --- documents --------------------------------------------------------------------------------------------------

CAPTURE = DocumentStreamFacts(
    state="streaming",
    durable_until=NOW - SECOND,
    seconds_at_risk=1.0,
    problem=None,
    remedy=None,
    told_at=NOW - SECOND,
    pending=0,
    missing=0,
    corrupt=0,
    in_database=None,
    not_covered=None,
)
LATE = NOW - STREAM_PATIENCE - SECOND


def captured(service: Service = SERVICE, **changes: Any) -> list[Found]:
    return found(replace(KEPT, captures={"documents": replace(CAPTURE, **changes)}), service)


def test_a_capture_that_works_is_not_told_of_and_one_that_fails_for_a_moment_neither() -> None:
    assert captured() == []
    assert captured(state="stalled", problem="the store is away", seconds_at_risk=3.0) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state": "absent", "seconds_at_risk": None}, "(absent): it does not run"),
        ({"state": "stalled", "seconds_at_risk": 61.0, "problem": "cannot read it"}, "(stalled): cannot read it"),
        ({"told_at": LATE}, "(silent): its host was silent since 2026-11-26T11:58:59"),
    ],
)
def test_a_capture_that_does_not_get_on_is_told_with_its_own_remedy(changes: dict[str, Any], told: str) -> None:
    (breach,) = captured(durable_until=LATE, remedy="Look at it.", **changes)
    assert (breach.what, breach.kind, breach.severity) == (
        "document-stream:documents",
        NotifyKind.FAILURE,
        Severity.TECHNICAL,
    )
    assert told in breach.title
    assert "nothing later than 2026-11-26T11:58:59" in breach.body
    assert "Look at it." in breach.body
    assert breach.next_command == "drservice check erp"


def test_a_first_capture_takes_as_long_as_it_takes_and_one_that_begins_again_some_minutes() -> None:
    assert captured(state="starting", durable_until=None, seconds_at_risk=None) == []
    begun: dict[str, Any] = {"state": "starting", "seconds_at_risk": None}
    assert captured(**begun, durable_until=NOW - COMPARING_PATIENCE) == []
    (breach,) = captured(**begun, durable_until=NOW - COMPARING_PATIENCE - SECOND)
    assert "it compares everything first" in breach.title
    (silent,) = captured(**begun, durable_until=None, told_at=LATE)
    assert "(silent)" in silent.title


def test_a_capture_that_streams_and_proves_nothing_is_told() -> None:
    stuck = NOW - COMPARING_PATIENCE - SECOND
    (breach,) = captured(durable_until=stuck, seconds_at_risk=COMPARING_PATIENCE.total_seconds() + 1, pending=4)
    assert "it gets no further, 4 wait" in breach.title
    assert captured(durable_until=stuck, seconds_at_risk=2.0) == [], "the database's clock is behind"
    seldom = replace(SERVICE.filestores()[0], interval=COMPARING_PATIENCE)
    hourly = replace(SERVICE, components={**SERVICE.components, seldom.name: seldom})
    assert captured(hourly, durable_until=stuck, seconds_at_risk=COMPARING_PATIENCE.total_seconds() + 1) == []


def test_documents_that_production_lost_are_told_with_how_many() -> None:
    (breach,) = captured(missing=3, corrupt=1)
    assert (breach.what, breach.severity) == ("documents-lost:documents", Severity.BUSINESS_CRITICAL)
    assert "3 missing and 1 damaged documents in production" in breach.title
    assert captured(missing=None, corrupt=None) == [], "nothing is known yet"


def test_nothing_is_told_of_a_capture_that_nobody_wants_any_more() -> None:
    passes = replace(SERVICE.filestores()[0], stream=False)
    service = replace(SERVICE, components={**SERVICE.components, passes.name: passes})
    assert captured(service, state="absent", durable_until=LATE, seconds_at_risk=None) == []


def test_documents_at_risk_are_told_sooner_where_they_are_streamed() -> None:
    late = NOW - RPO - STREAM_LATE
    facts = replace(KEPT, captures={"documents": replace(CAPTURE, seconds_at_risk=None)})
    objective = ["documents-rpo:documents"]
    assert [breach.what for breach in found(replace(facts, captured={"documents": late - SECOND}))] == objective
    assert found(replace(facts, captured={"documents": late})) == []
    said = replace(facts, captured={"documents": late - SECOND}, captures={"documents": CAPTURE})
    assert found(said) == [], "it says itself that less is at risk"
