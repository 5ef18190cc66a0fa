"""What a scrape says, from a real catalogue with rows of everything."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, text

from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunRequest, Runs
from drservice.catalogue.tables import (
    DocumentStream,
    Host,
    Message,
    Point,
    Record,
    Run,
    Snapshot,
    Timetable,
    WalHole,
    WalStream,
    WalWindow,
)
from drservice.errors import CatalogueUnreachableError
from drservice.model.agenda import Agenda
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
from drservice.model.runs import RunKind, RunState
from drservice.model.schedule import Cron
from drservice.notify.outbox import Backlog
from drservice.web import metrics
from drservice.web.metrics import METRICS, render
from tests.doubles.catalogue import set_clock

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
DATABASE = ComponentName("database")


def service(name: str, *, backup: str | None = None, rpo: timedelta | None = None) -> Service:
    return Service(
        name=ServiceName(name),
        objectives=Objectives(rpo=rpo),
        components={DATABASE: PostgresSettings(name=DATABASE, dsn="dbname=x")},
        schedule=Schedules(backup=Cron.parse(backup) if backup is not None else None),
    )


def estate(*services: Service) -> Estate:
    return Estate(
        source=Path("/etc/drservice/drservice.yaml"),
        state_dir=Path("/var/lib/drservice"),
        repository=RepositorySettings(url="file:///srv/repository"),
        services={item.name: item for item in services},
    )


ERP = estate(service("erp", backup="0 1 * * *", rpo=HOUR))


def put(database: Database, table: type, *rows: dict[str, Any]) -> None:
    with database.session() as session:
        session.execute(insert(table), list(rows))


def scrape(
    database: Database, of: Estate = ERP, scope: tuple[str, ...] = ()
) -> dict[str, dict[tuple[str, ...], float]]:
    """Return values by metric and label values, in the order of the metric's labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(render(database, Agenda(of), scope=scope).decode()):
        for sample in family.samples:
            assert tuple(sorted(sample.labels)) == tuple(sorted(METRICS[sample.name].labels))
            labels = tuple(sample.labels[label] for label in METRICS[sample.name].labels)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def snapshot(number: int, at: datetime, state: str = "complete", of: str = "erp") -> dict[str, Any]:
    return {
        "id": f"S{number}",
        "service": of,
        "component": "database",
        "kind": "postgres",
        "method": "local",
        "state": state,
        "host": "db1",
        "started_at": at - HOUR,
        "stopped_at": at,
        "source_bytes": 1,
        "read_bytes": 1,
        "stored_bytes": 1,
        "files": 1,
        "facts": {},
    }


def point(number: int, at: datetime, *, verified: datetime | None = None, state: str = "complete") -> dict[str, Any]:
    return {
        "id": f"P{number}",
        "service": "erp",
        "created_at": at,
        "state": state,
        "members": {},
        "verified_at": verified,
    }


def record(entry: int, kind: str, at: datetime, outcome: str | None, **predicate: object) -> dict[str, Any]:
    return {
        "entry": entry,
        "kind": kind,
        "service": "erp",
        "host": "db1",
        "run": None,
        "recorded_at": at,
        "outcome": outcome,
        "predicate": predicate,
        "sha256": "0",
    }


def window(component: str, from_lsn: int, until: datetime | None) -> dict[str, Any]:
    return {
        "service": "erp",
        "component": component,
        "timeline": 1,
        "from_lsn": from_lsn,
        "to_lsn": from_lsn + 1,
        "from_time": None,
        "to_time": until,
    }


def test_a_backup_counts_only_if_it_is_complete(database: Database) -> None:
    put(database, Snapshot, snapshot(1, NOON - DAY), snapshot(2, NOON - HOUR, "partial"), snapshot(3, NOON, "degraded"))
    expected = {("erp", "database", "postgres"): (NOON - DAY).timestamp()}
    assert scrape(database)["drservice_backup_timestamp_seconds"] == expected


def test_points_and_verifications_are_two_answers(database: Database) -> None:
    put(database, Point, point(1, NOON - DAY, verified=NOON - HOUR), point(2, NOON), point(3, NOON, state="partial"))
    found = scrape(database)
    assert found["drservice_point_timestamp_seconds"] == {
        ("erp", "complete"): NOON.timestamp(),
        ("erp", "partial"): NOON.timestamp(),
    }
    assert found["drservice_verified_timestamp_seconds"] == {("erp",): (NOON - HOUR).timestamp()}


def test_what_was_never_verified_has_no_timestamp(database: Database) -> None:
    put(database, Point, point(1, NOON))
    assert "drservice_verified_timestamp_seconds" not in scrape(database)


def test_the_wal_ends_where_its_newest_known_instant_is(database: Database) -> None:
    put(database, WalWindow, window("database", 1, NOON - HOUR), window("database", 5, NOON), window("other", 1, None))
    assert scrape(database)["drservice_wal_timestamp_seconds"] == {("erp", "database"): NOON.timestamp()}


def test_drills_by_outcome_without_those_that_must_fail(database: Database) -> None:
    put(
        database,
        Record,
        record(0, "drill", NOON - DAY, "passed"),
        record(1, "drill", NOON - HOUR, "failed"),
        record(2, "drill", NOON, "failed", mutation="drop-wal"),
    )
    assert scrape(database)["drservice_drill_timestamp_seconds"] == {
        ("erp", "passed"): (NOON - DAY).timestamp(),
        ("erp", "failed"): (NOON - HOUR).timestamp(),
    }


def test_a_finding_is_open_until_it_is_closed(database: Database) -> None:
    put(
        database,
        Record,
        record(0, "finding", NOON, None, finding="A", state="opened"),
        record(1, "finding", NOON, None, finding="B", state="opened"),
        record(2, "finding", NOON, None, finding="A", state="closed"),
    )
    assert scrape(database)["drservice_findings_open"] == {("erp",): 1.0}
    put(database, Record, record(3, "finding", NOON, None, finding="B", state="closed"))
    assert scrape(database)["drservice_findings_open"] == {("erp",): 0.0}


def test_runs_by_state_and_what_waits(database: Database) -> None:
    runs = Runs(database)
    set_clock(database, NOON)
    for number in range(3):
        runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by=f"ops{number}"))
    ended = runs.request(RunRequest(service="erp", kind=RunKind.DRILL, requested_by="ops"))
    assert ended is not None
    claim = runs.claim(ended, host="db1", lease=HOUR)
    assert claim is not None
    set_clock(database, NOON + HOUR)
    runs.finish(claim, RunState.FAILED)
    runs.missed("erp", RunKind.VERIFY, "", NOON, "nobody was there")
    found = scrape(database)
    assert found["drservice_runs"] == {
        ("erp", "backup", "queued"): 3.0,
        ("erp", "drill", "failed"): 1.0,
        ("erp", "verify", "missed"): 1.0,
    }
    assert found["drservice_queue_runs"] == {("backup",): 3.0}
    assert found["drservice_queue_oldest_timestamp_seconds"] == {("backup",): NOON.timestamp()}
    assert found["drservice_run_failure_timestamp_seconds"] == {("erp", "drill"): (NOON + HOUR).timestamp()}
    assert "drservice_run_success_timestamp_seconds" not in found
    assert found["drservice_slots_missed"] == {("erp", "verify"): 1.0}


def run(number: int, state: str, requested: datetime, ended: datetime | None) -> dict[str, Any]:
    return {
        "id": f"R{number}",
        "service": "erp",
        "kind": "backup",
        "plan": "",
        "state": state,
        "requested_by": "schedule",
        "requested_at": requested,
        "ended_at": ended,
        "parameters": {},
        "epoch": 1,
        "progress": {},
    }


def due(database: Database) -> datetime:
    return datetime.fromtimestamp(scrape(database)["drservice_due_timestamp_seconds"]["erp", "backup"], UTC)


def test_a_schedule_that_is_kept_is_due_after_its_next_slot(database: Database) -> None:
    set_clock(database, NOON)
    put(database, Run, run(1, "succeeded", NOON - timedelta(hours=11), NOON - timedelta(hours=10)))
    assert NOON < due(database) <= NOON + DAY


def test_a_schedule_whose_runs_fail_becomes_overdue(database: Database) -> None:
    set_clock(database, NOON)
    done = run(1, "succeeded", NOON - 2 * DAY, NOON - 2 * DAY + HOUR)
    put(database, Run, done, run(2, "failed", NOON - HOUR, NOON))
    assert due(database) < NOON


def test_a_schedule_without_any_result_becomes_overdue_from_its_first_run(database: Database) -> None:
    set_clock(database, NOON)
    put(database, Run, run(1, "missed", NOON - 3 * DAY, None))
    assert due(database) < NOON


def test_a_schedule_whose_scheduler_died_becomes_overdue(database: Database) -> None:
    set_clock(database, NOON)
    key = {"service": "erp", "kind": "backup", "plan": ""}
    put(database, Timetable, {**key, "settled_until": NOON - 3 * DAY})
    assert due(database) < NOON


def test_a_new_schedule_is_not_overdue(database: Database) -> None:
    set_clock(database, NOON)
    assert due(database) > NOON


def test_promises_and_conditions_are_told_of_each_service(database: Database) -> None:
    found = scrape(database)
    assert found["drservice_objective_seconds"] == {("erp", "rpo"): 3600.0}
    conditions = found["drservice_service_condition"]
    assert conditions["erp", "unprotected"] == 1.0
    assert sum(conditions.values()) == 1.0
    assert len(conditions) > 3


def test_the_outbox_and_hosts_are_told(database: Database) -> None:
    set_clock(database, NOON)
    message = {
        "place": "ops",
        "kind": "failure",
        "severity": "technical",
        "title": "t",
        "body": "b",
        "attempts": 0,
        "created_at": NOON,
        "given_up_at": None,
    }
    put(
        database,
        Message,
        {**message, "id": "1", "event": "1"},
        {**message, "id": "2", "event": "2", "given_up_at": NOON},
    )
    put(database, Host, {"name": "db1", "incarnation": "x", "version": "1", "seen_at": NOON - HOUR})
    found = scrape(database)
    assert found["drservice_outbox_messages"] == {("waiting",): 1.0, ("given_up",): 1.0}
    assert found["drservice_outbox_oldest_timestamp_seconds"] == {(): NOON.timestamp()}
    assert found["drservice_host_seen_timestamp_seconds"] == {("db1",): (NOON - HOUR).timestamp()}
    assert found["drservice_catalogue_timestamp_seconds"] == {(): NOON.timestamp()}
    assert found["drservice_catalogue_up"] == {(): 1.0}


def test_a_catalogue_that_is_away_is_a_value_and_nothing_else_is_told() -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    found = scrape(away)
    away.close()
    assert found["drservice_catalogue_up"] == {(): 0.0}
    assert set(found) == {"drservice_catalogue_up", "drservice_build_info"}


def test_a_catalogue_that_goes_away_in_the_middle_leaves_no_half_of_a_picture(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(_: Database) -> Backlog:
        raise CatalogueUnreachableError("the catalogue does not answer")

    monkeypatch.setattr(metrics, "backlog", break_off)
    found = scrape(database)
    assert found["drservice_catalogue_up"] == {(): 0.0}
    assert set(found) == {"drservice_catalogue_up", "drservice_build_info"}


def test_services_that_left_the_configuration_are_not_told(database: Database) -> None:
    put(database, Snapshot, snapshot(1, NOON), snapshot(2, NOON, of="gone"))
    assert b"gone" not in render(database, Agenda(ERP))


def test_a_limited_token_sees_its_services_and_nothing_of_the_machinery(database: Database) -> None:
    both = estate(service("erp", backup="0 1 * * *", rpo=HOUR), service("crm", backup="0 2 * * *", rpo=HOUR))
    put(database, Snapshot, snapshot(1, NOON), snapshot(2, NOON, of="crm"))
    put(database, Host, {"name": "db1", "incarnation": "x", "version": "1"})
    Runs(database).request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="ops"))
    whole, limited = scrape(database, both), scrape(database, both, ("crm",))
    assert {labels[0] for labels in whole["drservice_backup_timestamp_seconds"]} == {"erp", "crm"}
    told = {labels[0] for name, values in limited.items() if "service" in METRICS[name].labels for labels in values}
    assert told == {"crm"}
    machinery = {"drservice_queue_runs", "drservice_host_seen_timestamp_seconds", "drservice_outbox_messages"}
    assert machinery <= set(whole)
    assert not machinery & set(limited)


@pytest.mark.parametrize("name", ['erp"} 1\nfake{x="', "erp\\", "é<script>"])
def test_a_name_cannot_forge_a_line(database: Database, name: str) -> None:
    put(database, Snapshot, snapshot(1, NOON, of=name))
    of = estate(service(name))
    assert scrape(database, of)["drservice_backup_timestamp_seconds"] == {
        (name, "database", "postgres"): NOON.timestamp()
    }


def test_a_scrape_of_a_thousand_services_and_a_hundred_thousand_runs_takes_seconds_at_most(database: Database) -> None:
    names = [f"service-{number:04}" for number in range(1000)]
    with database.session() as session:
        session.execute(
            text(
                "INSERT INTO run (id, service, kind, plan, state, requested_by, requested_at, ended_at, parameters,"
                " epoch, progress) SELECT 'R' || n, 'service-' || lpad((n % 1000)::text, 4, '0'), 'backup', '',"
                " 'succeeded', 'schedule', drservice_now(), drservice_now(), '{}', 1, '{}'"
                " FROM generate_series(1, 100000) AS n"
            )
        )
        session.execute(text("ANALYZE run"))
    of = estate(*(service(name, backup="0 1 * * *", rpo=HOUR) for name in names))
    began = time.monotonic()
    found = scrape(database, of)
    assert sum(found["drservice_runs"].values()) == 100_000
    assert len(found["drservice_due_timestamp_seconds"]) == 1000
    assert time.monotonic() - began < 10


# --- WAL --------------------------------------------------------------------------------------------------------


def stream(component: str, told_at: datetime, **changes: object) -> dict[str, Any]:
    return {
        "service": "erp",
        "component": component,
        "host": "db1",
        "state": "streaming",
        "is_synchronous": False,
        "durable_until": told_at - timedelta(seconds=1),
        "seconds_at_risk": 0.25,
        "bytes_at_risk": 80,
        "safe_wal_bytes": None,
        "told_at": told_at,
        **changes,
    }


def test_receivers_are_told_as_they_are_and_a_silent_ones_lag_grows(database: Database) -> None:
    set_clock(database, NOON)
    put(
        database,
        WalStream,
        stream("database", NOON),
        stream("silent", NOON - HOUR, safe_wal_bytes=-5),
        stream("new", NOON, state="connecting", durable_until=None, seconds_at_risk=None, bytes_at_risk=None),
    )
    found = scrape(database)
    lag = found["drservice_wal_durable_lag_seconds"]
    assert lag == {("erp", "database"): 0.25, ("erp", "silent"): HOUR.total_seconds() + 1}
    assert found["drservice_wal_durable_lag_bytes"] == {("erp", "database"): 80, ("erp", "silent"): 80}
    assert found["drservice_wal_slot_room_bytes"] == {("erp", "silent"): 0}
    states = {labels[1:] for labels, value in found["drservice_wal_stream_state"].items() if value == 1}
    assert states == {("database", "streaming"), ("silent", "absent"), ("new", "connecting")}
    assert len(found["drservice_wal_stream_state"]) == 15


def test_what_is_streamed_is_in_the_repository_unless_a_hole_lies_before_it(database: Database) -> None:
    set_clock(database, NOON)
    put(database, WalWindow, window("database", 1, NOON - HOUR))
    put(database, WalStream, stream("database", NOON))
    newest = ("erp", "database")
    found = scrape(database)
    assert found["drservice_wal_timestamp_seconds"][newest] == (NOON - timedelta(seconds=1)).timestamp()
    assert found["drservice_wal_holes"] == {(*newest, "open"): 0, (*newest, "passed"): 0}
    hole = {"service": "erp", "component": "database", "timeline": 1, "segments": 1, "cost": "", "first_segment": ""}
    put(database, WalHole, {**hole, "from_lsn": 1, "to_lsn": 2, "is_open": True})
    put(database, WalHole, {**hole, "from_lsn": 0, "to_lsn": 1, "is_open": False})
    found = scrape(database)
    assert found["drservice_wal_timestamp_seconds"][newest] == (NOON - HOUR).timestamp()
    assert found["drservice_wal_holes"] == {(*newest, "open"): 1, (*newest, "passed"): 1}


# --- documents --------------------------------------------------------------------------------------------------


def filed(*names: str) -> Estate:
    """Return an estate whose service has filestores of these names."""
    stores = {
        ComponentName(name): FilesSettings(
            name=ComponentName(name), kind=FilesKind.ODOO_FILESTORE, path=Path("/f"), database="plant", stream=True
        )
        for name in names
    }
    whole = service("erp")
    objectives = replace(whole.objectives, documents_rpo=HOUR)
    return estate(replace(whole, objectives=objectives, components={**whole.components, **stores}))


def capture(component: str, told_at: datetime, **changes: object) -> dict[str, Any]:
    return {
        "service": "erp",
        "component": component,
        "host": "db1",
        "state": "streaming",
        "durable_until": told_at - timedelta(seconds=3),
        "seconds_at_risk": 2.0,
        "pending": 4,
        "missing": 1,
        "corrupt": 0,
        "in_database": 5,
        "not_covered": 6,
        "told_at": told_at,
        **changes,
    }


def test_captures_are_told_as_they_are_and_a_silent_ones_lag_grows(database: Database) -> None:
    set_clock(database, NOON)
    nothing = dict.fromkeys(("durable_until", "seconds_at_risk", "missing", "corrupt", "in_database", "not_covered"))
    put(
        database,
        DocumentStream,
        capture("documents", NOON),
        capture("silent", NOON - HOUR, pending=None),
        capture("new", NOON, state="starting", **nothing),
        capture("unproved", NOON - HOUR, state="starting", **{**nothing, "seconds_at_risk": 2.0}),
    )
    found = scrape(database, filed("documents", "silent", "new", "unproved"))
    lag = found["drservice_documents_durable_lag_seconds"]
    assert lag == {("erp", "documents"): 2.0, ("erp", "silent"): HOUR.total_seconds() + 3}
    assert found["drservice_documents_pending"] == {
        ("erp", "documents"): 4, ("erp", "new"): 4, ("erp", "unproved"): 4
    }  # fmt: skip
    assert found["drservice_documents_lost"] == {
        ("erp", component, state): count
        for component in ("documents", "silent")
        for state, count in (("missing", 1), ("corrupt", 0))
    }
    assert found["drservice_documents_not_covered"] == {("erp", "documents"): 6, ("erp", "silent"): 6}
    states = {labels[1:] for labels, value in found["drservice_documents_stream_state"].items() if value == 1}
    assert states == {("documents", "streaming"), ("silent", "absent"), ("new", "starting"), ("unproved", "absent")}
    assert found["drservice_objective_seconds"]["erp", "documents_rpo"] == HOUR.total_seconds()


def test_what_a_service_would_lose_is_the_larger_of_database_and_documents(database: Database) -> None:
    set_clock(database, NOON)
    put(database, WalWindow, window("database", 1, NOON - timedelta(seconds=20)))
    of = filed("documents")
    assert "drservice_effective_rpo_seconds" not in scrape(database, of), "of the documents nothing is known"
    put(database, Snapshot, {**snapshot(1, NOON), "component": "documents", "kind": "odoo-filestore"})
    found = scrape(database, of)
    assert found["drservice_documents_timestamp_seconds"] == {("erp", "documents"): (NOON - HOUR).timestamp()}
    assert found["drservice_effective_rpo_seconds"] == {("erp",): HOUR.total_seconds()}
    put(database, DocumentStream, capture("documents", NOON))
    found = scrape(database, of)
    assert found["drservice_documents_timestamp_seconds"]["erp", "documents"] == NOON.timestamp() - 3
    assert found["drservice_effective_rpo_seconds"] == {("erp",): 20.0}
    put(database, WalStream, stream("database", NOON, seconds_at_risk=0.0))
    put(database, WalWindow, window("database", 5, NOON))
    with database.session() as session:
        session.execute(text("UPDATE document_stream SET seconds_at_risk = 0"))
    assert scrape(database, of)["drservice_effective_rpo_seconds"] == {("erp",): 0.0}, "nothing is a value"
