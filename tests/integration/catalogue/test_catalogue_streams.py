"""Receivers of WAL, holes in it and captures of documents, as the catalogue knows them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from drservice.catalogue.database import Database
from drservice.catalogue.facts import DocumentStreamFacts, ServiceFacts
from drservice.catalogue.projection import project_holes
from drservice.catalogue.reading import Reading
from drservice.catalogue.streams import ABSENT, ToldDocuments, ToldWal, tell_documents, tell_wal
from drservice.catalogue.tables import DocumentStream, Snapshot, StreamRow, WalStream, WalWindow
from drservice.clock import SystemClock
from drservice.jobs.queue import Queue
from drservice.model.agenda import Agenda
from drservice.model.continuity import Hole
from drservice.model.estate import Estate
from drservice.model.ids import ComponentName, ServiceName, SnapshotId
from drservice.model.runs import RunKind
from drservice.model.wal import Timeline
from drservice.node.streamtelling import StreamTeller
from drservice.node.watching import Watcher
from drservice.notify.outbox import Outbox
from drservice.settings.loading import load
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.documentworlds import DocumentWorld

ERP, DATABASE = ServiceName("erp"), ComponentName("database")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOLD = ToldWal(
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


_TABLES = ("wal_stream", "document_stream", "wal_hole", "wal_window", "snapshot")


@pytest.fixture(scope="module")
def shared(catalogues: CatalogueServer) -> Database:
    made = catalogues.database()
    Queue(made).install()
    return made


@pytest.fixture
def database(shared: Database) -> Database:
    """One for the whole file, emptied."""
    with shared.session() as session:
        for table in (*_TABLES, "breach", "duty", "run", "message"):
            session.execute(text(f"DELETE FROM {table}"))
    return shared


def agenda(base: Path, **service: object) -> Agenda:
    components = {
        "database": {"kind": "postgres", "dsn": "host=db1"},
        "documents": {"kind": "odoo-filestore", "path": str(base / "filestore"), "database": "plant", "node": "db1"},
    }
    document = {
        "version": 1,
        "state_dir": str(base / "state"),
        "repository": {"url": f"file://{base}/repository"},
        "services": {"erp": {"components": components, **service}},
    }
    (base / "drservice.yaml").write_text(json.dumps(document))
    return Agenda(load(base / "drservice.yaml").estate)


def facts(database: Database, base: Path) -> ServiceFacts:
    return Reading(database).services(["erp"], agenda(base))[1]["erp"]


def rows(database: Database, table: type[StreamRow]) -> dict[tuple[str, str], StreamRow]:
    """Return what was told last, by service and component."""
    with database.session() as session:
        found = session.scalars(select(table)).all()
        session.expunge_all()
    return {(row.service, row.component): row for row in found}


def add_window(database: Database) -> None:
    with database.session() as session:
        session.add(
            WalWindow(
                service="erp", component="database", timeline=1, from_lsn=1, to_lsn=5, from_time=NOON, to_time=NOON
            )
        )


def test_what_a_host_tells_replaces_what_it_told_and_others_keep_their_rows(database: Database) -> None:
    tell_wal(database, "db1", [TOLD])
    tell_wal(database, "db2", [ToldWal(service="crm", component="database", state=ABSENT, is_synchronous=False)])
    told = rows(database, WalStream)["erp", "database"]
    assert (told.host, told.seconds_at_risk, told.durable_until) == ("db1", 0.25, TOLD.durable_until)
    tell_wal(database, "db1", [])
    assert list(rows(database, WalStream)) == [("crm", "database")]


def test_a_host_that_only_tries_does_not_take_the_row_of_the_one_that_receives(database: Database) -> None:
    waiting = ToldWal(service="erp", component="database", state="connecting", is_synchronous=True)

    def told() -> list[tuple[str, str]]:
        return [(row.host, row.state) for row in rows(database, WalStream).values()]

    tell_wal(database, "db1", [TOLD])
    tell_wal(database, "db2", [waiting])
    assert told() == [("db1", "streaming")]
    tell_wal(database, "db1", [waiting])
    tell_wal(database, "db2", [TOLD])
    assert told() == [("db2", "streaming")]


def test_what_is_streamed_is_reached_only_behind_what_is_archived_and_before_a_hole(
    database: Database, tmp_path: Path
) -> None:
    tell_wal(database, "db1", [TOLD])
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
        [hole] = look(database, estate)
        assert hole.startswith("wal-hole:")
    with database.session() as session:
        runs = session.execute(text("SELECT kind, requested_by FROM run")).all()
    assert [tuple(run) for run in runs] == started


# --- documents --------------------------------------------------------------------------------------------------

CAPTURE = ToldDocuments(
    service="erp",
    component="documents",
    state="streaming",
    durable_until=NOON + timedelta(seconds=5),
    seconds_at_risk=2.0,
    pending=1,
    missing=3,
    corrupt=0,
    in_database=5,
    not_covered=7,
)


def add_pass(database: Database, at: datetime, state: str = "complete") -> None:
    with database.session() as session:
        session.execute(
            insert(Snapshot).values(
                id=f"{at:%H%M%S}{state}", service="erp", component="documents", kind="odoo-filestore", method="local",
                state=state, host="db1", started_at=at, stopped_at=at + timedelta(minutes=1), source_bytes=1,
                read_bytes=1, stored_bytes=1, files=1, facts={},
            )
        )  # fmt: skip


def test_documents_are_captured_up_to_the_newest_whole_pass_or_what_the_stream_has_proved(
    database: Database, tmp_path: Path
) -> None:
    assert facts(database, tmp_path).captured == {}
    add_pass(database, NOON)
    add_pass(database, NOON + timedelta(minutes=9), "partial")
    assert facts(database, tmp_path).captured == {"documents": NOON}
    tell_documents(database, "db1", [CAPTURE])
    known = facts(database, tmp_path)
    assert known.captured == {"documents": CAPTURE.durable_until}
    assert known.captures["documents"].lost == 3
    add_pass(database, NOON + timedelta(minutes=5))
    assert facts(database, tmp_path).captured == {"documents": NOON + timedelta(minutes=5)}


def test_a_capture_that_begins_again_takes_back_nothing_of_what_was_proved_and_found(database: Database) -> None:
    tell_documents(database, "db1", [CAPTURE])
    begun = ToldDocuments(service="erp", component="documents", state="starting", pending=9)
    tell_documents(database, "db1", [begun])
    row = rows(database, DocumentStream)["erp", "documents"]
    assert isinstance(row, DocumentStream)
    assert (row.state, row.pending, row.seconds_at_risk) == ("starting", 9, None)
    assert (row.durable_until, row.missing, row.corrupt) == (CAPTURE.durable_until, 3, 0)
    assert (row.in_database, row.not_covered) == (5, 7)
    tell_documents(database, "db1", [replace(CAPTURE, missing=0)])
    row = rows(database, DocumentStream)["erp", "documents"]
    assert isinstance(row, DocumentStream)
    assert row.missing == 0, "it was compared again"


def test_a_capture_beside_a_real_database_is_told_until_it_ends_and_what_is_lost_is_told_to_people(
    catalogues: CatalogueServer, database: Database, tmp_path: Path
) -> None:
    world = DocumentWorld.create(tmp_path, catalogues.cluster, database="odoo")
    of = agenda(tmp_path)
    estate = replace(of.estate, state_dir=world.filestore.site.state_dir)
    teller = StreamTeller(database, estate=lambda: estate, host="db1", clock=SystemClock())

    def told() -> DocumentStreamFacts:
        teller.tell()
        return Reading(database).services(["erp"], of)[1]["erp"].captures["documents"]

    with world.capture() as running:
        world.upload(b"an invoice")
        running.wait_stored(1)
        running.wait_whole()
        live = told()
        assert (live.state, live.pending, live.lost) == ("streaming", 0, 0)
        assert live.seconds_at_risk is not None
        assert live.seconds_at_risk < 10
        lost = (f"ab/ab{'0' * 38}",)
        world.sql("insert into ir_attachment (store_fname) values (%s)", lost)
        running.wait(lambda state: state.missing == 1, "the row without a file to be noticed")
        assert told().missing == 1
    ended = told()
    assert (ended.state, ended.missing, ended.seconds_at_risk) == ("absent", 1, None)
    assert ended.durable_until is not None
    assert live.durable_until is not None
    assert ended.durable_until >= live.durable_until
    assert look(database, estate) == ["documents-lost:documents"], "that it does not run is no news within a minute"
    with database.session() as session:
        session.execute(text("UPDATE document_stream SET durable_until = durable_until - interval '5 min'"))
    assert look(database, estate) == ["document-stream:documents", "documents-lost:documents"]
    world.sql("delete from ir_attachment where store_fname = %s", lost)
    with world.capture() as running:
        running.wait_whole()
        assert told().lost == 0
        assert look(database, estate) == [], "it runs again, and no row refers to what is lost"


def look(database: Database, estate: Estate) -> list[str]:
    """Look for breaches as a node does, and return those that are known then."""
    with database.session() as session:
        session.execute(text("DELETE FROM duty"))
    Watcher(database).look(estate, Outbox(database, ()))
    with database.session() as session:
        return list(session.execute(text("SELECT what FROM breach ORDER BY what")).scalars())
