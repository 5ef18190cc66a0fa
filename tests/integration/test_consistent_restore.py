"""A host is lost moments after its last documents were filed: ``consistent`` is where rows and documents agree."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest

from drservice.environments.sandbox import open_sandbox
from drservice.model.documents import StoredSet
from drservice.model.estate import FilesSettings, Service
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn
from drservice.operations.backup import BackupContext
from drservice.operations.filesrestore import RestoredFiles
from drservice.operations.locate import RecoveryEnd
from drservice.operations.progress import SilentProgress
from drservice.operations.restore import run_restore
from drservice.operations.restoreplan import plan_restore, scanner_of
from drservice.operations.restorerequest import RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.servicebackup import backup_service
from drservice.operations.streamstate import StreamState
from drservice.operations.walstream import StreamContext, stream_wal
from drservice.wiring.data_plane import DataPlane
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import TempEstate, wait_for
from tests.doubles.filestores import name_of
from tests.doubles.plant import placed
from tests.property.test_documents_any_instant import SCHEMA, Odoo, captured, service_of

CONSISTENT, LATEST = Target(kind=TargetKind.CONSISTENT), Target(kind=TargetKind.LATEST)
FILED = "insert into ir_attachment (store_fname) values (%s)"


@contextmanager
def receiving(estate: TempEstate, plane: DataPlane) -> Iterator[list[StreamState]]:
    """Receive WAL for the block; the newest state comes last."""
    states: list[StreamState] = []
    stop = threading.Event()
    service, component = estate.parts()
    context = StreamContext(
        service=service.name, repository=plane.repository, state_dir=estate.state, clock=plane.clock
    )
    thread = threading.Thread(
        target=stream_wal, args=(context, component), kwargs={"stop": stop, "observe": states.append}, daemon=True
    )
    thread.start()
    try:
        wait_for(lambda: bool(states) and states[-1].durable_lsn is not None, "the receiver to stream")
        yield states
    finally:
        stop.set()
        thread.join(60)


@dataclass(kw_only=True)
class Told(SilentProgress):
    """A progress that keeps what is told beside it."""

    notes: list[str] = field(default_factory=list)

    def note(self, text: str, /) -> None:
        self.notes.append(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A service whose host is gone."""

    estate: TempEstate
    service: Service
    documents: FilesSettings
    proven: dict[str, bytes]
    """What was filed before the last look at the documents began."""
    later: frozenset[str]
    """What was filed after it, and nobody has."""
    newest: StoredSet

    def request(self, target: Target) -> RestoreRequest:
        return replace(self.estate.request(target), service=self.service, files=(self.documents,))

    def context(self, plane: DataPlane, progress: SilentProgress | None = None) -> RestoreContext:
        return replace(self.estate.restore_context(plane), progress=progress or SilentProgress())


@pytest.fixture(scope="module")
def lost(template_cache: Path) -> Iterator[Lost]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "off"})
    estate = TempEstate.over(cluster)
    estate.wal_settings = {"mode": "stream", "interval": "50ms"}
    estate.write_configuration(estate.config)
    estate.initialise()
    (estate.state / "run").mkdir(exist_ok=True)
    cluster.start()
    yield _lose(estate)
    estate.close()
    maker.close()


def _lose(estate: TempEstate) -> Lost:
    cluster = estate.cluster
    cluster.sql(SCHEMA)
    filestore = cluster.root / "filestore"
    filestore.mkdir()
    service, _, documents = service_of(estate, filestore)

    def write(content: bytes) -> str:
        path = filestore / name_of(content)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return name_of(content)

    def file(content: bytes) -> str:
        name = write(content)
        with cluster.connect() as connection:
            connection.execute(FILED, (name,))
        return name

    contents = [b"invoice %d" % number for number in range(6)]
    proven = {file(content): content for content in contents[:3]}
    capture = Odoo(cluster=cluster, filestore=filestore, chance=random.Random(0))  # hears only what is durable
    with estate.plane() as plane, receiving(estate, plane) as states:
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state, clock=plane.clock, progress=SilentProgress()
        )
        backup_service(context, service, None, taken=lambda _: None)
        with cluster.connect() as connection:
            with captured(plane, estate, capture):
                proven |= {file(content): content for content in contents[3:]}
                wait_for(lambda: capture.durable is not None, "a look at all documents")
                connection.execute("begin")
                late = name_of(b"its row is written before the last look, its file and its commit come after it")
                connection.execute(FILED, (late,))
                cluster.sql("create table flushed ()")
            write(b"its row is written before the last look, its file and its commit come after it")
            connection.execute("commit")  # the very next record of the WAL
        later = {late, *(file(b"after the last look %d" % number) for number in range(3))}
        end = Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text"))
        wait_for(lambda: (states[-1].durable_lsn or Lsn(0)) >= end, "the WAL to be stored")
        cluster.kill9()
        newest = plane.repository.document_sets(plane.repository.scope(service.name, documents.name)).newest()
        assert newest is not None
    shutil.rmtree(cluster.data)
    shutil.rmtree(filestore)
    return Lost(
        estate=estate,
        service=service,
        documents=documents,
        proven=proven,
        later=frozenset(later),
        newest=newest,
    )


@contextmanager
def restored(
    lost: Lost, target: Target, progress: SilentProgress | None = None
) -> Iterator[tuple[RestoreResult, RestoredFiles]]:
    with lost.estate.plane() as plane:
        result = run_restore(lost.context(plane, progress), lost.request(target))
    try:
        [files] = result.files
        yield result, files
    finally:
        open_sandbox(lost.estate.state / "environments" / result.environment.id).destroy()


def rows(result: RestoreResult) -> set[str]:
    with psycopg.connect(result.environment.dsn) as connection:
        return {name for (name,) in connection.execute("select store_fname from ir_attachment").fetchall()}


def test_the_newest_instant_that_rows_and_documents_share_misses_no_document(lost: Lost) -> None:
    with restored(lost, CONSISTENT) as (result, files):
        plan, documents = result.planned.resolved.plan, files.documents
        assert documents is not None
        assert (documents.missing, documents.corrupt) == ((), ())
        assert rows(result) == set(lost.proven), "every row that was proven, and not one that was committed later"
        assert placed(files.root) == lost.proven
        assert plan.target == Target(kind=TargetKind.CONSISTENT, lsn=lost.newest.position.lsn)
        assert result.reached.lsn <= lost.newest.position.lsn
        assert files.counts is not None
        assert (files.counts.behind_seconds, result.is_partial) == (0, False)


def test_the_latest_position_says_beforehand_what_it_may_lack_and_names_the_other_target(lost: Lost) -> None:
    told = Told()
    with lost.estate.plane() as plane:
        planned = plan_restore(lost.context(plane), lost.request(LATEST))
    assert planned.ends is not None
    assert planned.ends.behind_seconds is not None
    assert 0 < planned.ends.behind_seconds < 30
    before = planned.ends.describe_latest()
    assert before is not None
    assert "--to consistent" in before
    assert before in planned.resolved.notes
    with restored(lost, LATEST, told) as (result, files):
        assert before in told.notes
        assert files.documents is not None
        assert set(files.documents.missing) == lost.later
        assert rows(result) == lost.later | set(lost.proven)
        assert any("drservice restore erp --to consistent" in note for note in files.notes)
        assert result.is_partial


def test_where_no_record_begins_behind_the_position_recovery_goes_to_the_end(lost: Lost) -> None:
    """The server takes a target that it never meets for an error: the last record begins before it."""

    def ends(plane: DataPlane, position: Lsn) -> RecoveryEnd:
        target = Target(kind=TargetKind.CONSISTENT, lsn=position)
        return plan_restore(lost.context(plane), lost.request(target)).resolved.ends

    with lost.estate.plane() as plane:
        planned = plan_restore(lost.context(plane), lost.request(LATEST))
        name, end = planned.resolved.plan.reach.tail, planned.resolved.wal_end
        assert name is not None
        assert end is not None
        record = planned.resolved.plan.snapshot
        with scanner_of(lost.context(plane), record, planned.scope, planned.archived) as scanner:
            last = scanner.dump(name).events[-1].lsn
        inside = Lsn(end.value - 8)
        assert (ends(plane, last), ends(plane, inside)) == (RecoveryEnd.TARGET, RecoveryEnd.END_OF_WAL)
