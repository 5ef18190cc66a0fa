"""Receivers of WAL and holes in it, as the catalogue knows them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from drservice.catalogue.database import Database
from drservice.catalogue.facts import ServiceFacts
from drservice.catalogue.projection import project_holes
from drservice.catalogue.reading import Reading
from drservice.catalogue.tables import WalWindow
from drservice.catalogue.walstreams import ABSENT, ToldStream, WalStreams
from drservice.jobs.queue import Queue
from drservice.model.agenda import Agenda
from drservice.model.continuity import Hole
from drservice.model.ids import ComponentName, ServiceName, SnapshotId
from drservice.model.runs import RunKind
from drservice.model.wal import Timeline
from drservice.node.watching import Watcher
from drservice.notify.outbox import Outbox
from drservice.settings.loading import load
from tests.doubles.catalogue import CatalogueServer

ERP, DATABASE = ServiceName("erp"), ComponentName("database")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOLD = ToldStream(
    service="erp",
    component="database",
    state="streaming",
    is_synchronous=True,
    timeline=1,
    durable_lsn=5,
    server_lsn=7,
    durable_until=NOON + timedelta(seconds=5),
    seconds_at_risk=0.25,
    bytes_at_risk=2,
    slot_status="reserved",
)
HOLE = Hole(
    timeline=Timeline(1), numbers=range(6, 8), segment_bytes=1 << 20, spoilt=(), cut=(SnapshotId("S"),), is_open=True
)


@pytest.fixture(scope="module")
def shared(catalogues: CatalogueServer) -> Database:
    made = catalogues.database()
    Queue(made).install()
    return made


@pytest.fixture
def database(shared: Database) -> Database:
    """One for the whole file, emptied."""
    with shared.session() as session:
        for table in ("wal_stream", "wal_hole", "wal_window", "breach", "duty", "run", "message"):
            session.execute(text(f"DELETE FROM {table}"))
    return shared


def agenda(base: Path, **service: object) -> Agenda:
    component = {"kind": "postgres", "dsn": "host=db1"}
    document = {
        "version": 1,
        "state_dir": str(base / "state"),
        "repository": {"url": f"file://{base}/repository"},
        "services": {"erp": {"components": {"database": component}, **service}},
    }
    (base / "drservice.yaml").write_text(json.dumps(document))
    return Agenda(load(base / "drservice.yaml").estate)


def facts(database: Database, base: Path) -> ServiceFacts:
    return Reading(database).services(["erp"], agenda(base))[1]["erp"]


def add_window(database: Database) -> None:
    with database.session() as session:
        session.add(
            WalWindow(
                service="erp", component="database", timeline=1, from_lsn=1, to_lsn=5, from_time=NOON, to_time=NOON
            )
        )


def test_what_a_host_tells_replaces_what_it_told_and_others_keep_their_rows(database: Database) -> None:
    streams = WalStreams(database)
    streams.tell("db1", [TOLD])
    streams.tell("db2", [ToldStream(service="crm", component="database", state=ABSENT, is_synchronous=False)])
    [told] = streams.streams("erp")
    assert (told.host, told.seconds_at_risk, told.durable_until) == ("db1", 0.25, TOLD.durable_until)
    streams.tell("db1", [])
    assert streams.streams("erp") == []
    assert len(streams.streams("crm")) == 1


def test_a_host_that_only_tries_does_not_take_the_row_of_the_one_that_receives(database: Database) -> None:
    streams = WalStreams(database)
    waiting = ToldStream(service="erp", component="database", state="connecting", is_synchronous=True)
    streams.tell("db1", [TOLD])
    streams.tell("db2", [waiting])
    assert [(told.host, told.state) for told in streams.streams("erp")] == [("db1", "streaming")]
    streams.tell("db1", [waiting])
    streams.tell("db2", [TOLD])
    assert [(told.host, told.state) for told in streams.streams("erp")] == [("db2", "streaming")]


def test_what_is_streamed_is_reached_only_behind_what_is_archived_and_before_a_hole(
    database: Database, tmp_path: Path
) -> None:
    WalStreams(database).tell("db1", [TOLD])
    assert facts(database, tmp_path).reached == {}, "no snapshot leads there"
    add_window(database)
    assert facts(database, tmp_path).reached == {"database": TOLD.durable_until}
    with database.session() as session:
        project_holes(session, ERP, DATABASE, [HOLE])
    known = facts(database, tmp_path)
    assert known.reached == {"database": NOON}
    assert [(hole.first_segment, hole.segments, hole.is_open) for hole in known.holes] == [
        ("000000010000000000000006", 2, True)
    ]
    with database.session() as session:
        project_holes(session, ERP, DATABASE, [])
    assert facts(database, tmp_path).holes == ()


@pytest.mark.parametrize(
    ("schedule", "started"),
    [({"backup": "0 1 * * *"}, [(RunKind.BACKUP.value, "continuity")]), ({}, [])],
    ids=["scheduled", "by hand"],
)
def test_an_open_hole_starts_one_backup_where_backups_are_scheduled(
    database: Database, tmp_path: Path, schedule: dict[str, str], started: list[tuple[str, str]]
) -> None:
    estate = agenda(tmp_path, schedule=schedule).estate
    with database.session() as session:
        project_holes(session, ERP, DATABASE, [HOLE])
    for _ in range(2):
        with database.session() as session:
            session.execute(text("DELETE FROM duty"))
        Watcher(database).look(estate, Outbox(database, ()))
    with database.session() as session:
        runs = session.execute(text("SELECT kind, requested_by FROM run")).all()
        assert session.execute(text("SELECT count(*) FROM breach WHERE what LIKE 'wal-hole:%'")).scalar_one() == 1
    assert [tuple(run) for run in runs] == started
