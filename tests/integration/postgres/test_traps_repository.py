"""The numbered traps that need a repository: a real cluster is captured, changed behind our back, and restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drservice import processes
from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import parse_control
from drservice.components.postgres.placing import finish_cluster, place_cluster
from drservice.errors import CaptureError, DrError, ReplayError, TargetOutsideWindowError, WalGapError, WalTimeoutError
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.operations.progress import SilentProgress
from drservice.operations.restore import run_restore
from drservice.operations.restoreplan import plan_restore
from drservice.wiring.data_plane import DataPlane
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import Pusher, TempEstate, wait_for

METHODS = ("local", "pg_basebackup")
LATEST = Target(kind=TargetKind.LATEST)
UNARCHIVED = {"archive_mode": "on"}  # with an empty archive_command the server waits for our pusher


@pytest.fixture
def make(clusters: ClusterMaker) -> Iterator[Callable[..., TempEstate]]:
    """Make an estate with its repository over a cluster that is not started."""
    made: list[TempEstate] = []

    def make_estate(
        *, method: str = "local", checksums: bool = True, settings: dict[str, str] | None = None
    ) -> TempEstate:
        cluster = clusters.make(checksums=checksums, wal_segment_mb=1, settings=settings or UNARCHIVED)
        made.append(TempEstate.over(cluster, method=method))
        made[-1].initialise()
        return made[-1]

    yield make_estate
    for estate in made:
        estate.close()


def records(plane: DataPlane, estate: TempEstate) -> tuple[SnapshotRecord, ...]:
    service, component = estate.parts()
    return plane.repository.snapshots(plane.repository.scope(service.name, component.name)).records


def placed(plane: DataPlane, estate: TempEstate, record: SnapshotRecord, name: str) -> tuple[Path, dict[str, bytes]]:
    """Place a snapshot's files as a restore does; return the folder and the snapshot's attachments."""
    parent = estate.cluster.root / "placed"
    parent.mkdir(exist_ok=True)
    hand_over(parent)
    repository = plane.repository
    scope = repository.scope(record.service, record.component)
    reader = repository.reader(scope, record.id)
    account = processes.server_account(None)
    _, files = place_cluster(
        reader,
        parent / name,
        open_store=repository.open_store,
        scope=scope,
        secrets=repository.secrets(scope, repository.open_snapshot(scope, record.id)),
        account=account,
        workers=1,
        progress=SilentProgress(),
    )
    assert not (parent / name / "global" / "pg_control").exists(), "pg_control was there before the files were durable"
    finish_cluster(reader, parent / name, files, account=account)
    return parent / name, dict(reader.secret.attachments)


def finish_wal(cluster: Cluster, pusher: Pusher) -> None:
    """Archive everything that was written so far."""
    pusher.drain(cluster.switch_wal())


def rows(estate: TempEstate, target: Target, plane: DataPlane, query: str) -> list[tuple[object, ...]]:
    with estate.restored(target, plane) as (_, connection):
        return connection.execute(query.encode()).fetchall()


# --- the label, the control file --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_t2_t12_the_label_comes_back_byte_for_byte_and_without_it_nothing_starts(
    make: Callable[..., TempEstate], clusters: ClusterMaker, method: str
) -> None:
    estate = make(method=method)
    estate.cluster.start()
    with Pusher(estate) as pusher, estate.plane() as plane:
        record = estate.backup(plane).record
        finish_wal(estate.cluster, pusher)
        history = next(name for name in pusher.pushed if name.endswith(".backup"))
        written = (estate.cluster.data / "pg_wal" / history).read_bytes()
        folder, attachments = placed(plane, estate, record, "data")
    label = (folder / "backup_label").read_bytes()
    assert label == attachments["backup_label"]
    # The server's own record of this backup in the WAL has every line of the label.
    assert label.endswith(b"\n")
    assert set(label.splitlines()) - set(written.splitlines()) <= {b"BACKUP FROM: primary"}
    control = parse_control((folder / "global" / "pg_control").read_bytes())
    assert control.system_id == record.postgres.system_id
    assert control.checkpoint.value == 0xDEAD
    (folder / "backup_label").unlink()
    (folder / "recovery.signal").unlink()
    orphan = clusters.over(folder)
    orphan.start(wait=False)
    assert orphan.wait_ended() != 0
    assert "could not locate a valid checkpoint record" in orphan.log_text()


# --- the WAL of a backup ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_t4_without_its_wal_there_is_no_snapshot_and_what_was_uploaded_is_used_again(
    make: Callable[..., TempEstate], method: str
) -> None:
    estate = make(method=method, settings={"archive_mode": "on", "archive_command": "'false'"})
    estate.archive_wait_seconds = 3
    estate.write_configuration(estate.config)
    estate.cluster.start()
    estate.cluster.sql("create table t as select i, md5(i::text) from generate_series(1, 20000) i")
    with estate.plane() as plane:
        with pytest.raises(WalTimeoutError) as refused:
            estate.backup(plane)
        assert "the archiver failed" in refused.value.message
        assert "last with 0000000100000000" in refused.value.message
        assert records(plane, estate) == ()
        uploaded = sum(path.stat().st_size for path in estate.repository.rglob("packs/*/*"))
        with Pusher(estate):
            again = estate.backup(plane).record
        assert [record.id for record in records(plane, estate)] == [again.id]
        if method == "local":  # a stream that waits for its end has an open pack, which goes with it
            assert uploaded > 200_000
            assert again.stored_bytes < uploaded / 4, "packs of the failed run were not used again"


def test_t6_a_server_with_minimal_wal_is_refused(make: Callable[..., TempEstate]) -> None:
    estate = make(settings={"wal_level": "minimal", "max_wal_senders": "0"})
    estate.cluster.start()
    with pytest.raises(CaptureError, match="wal_level is minimal"):
        estate.backup()
    estate.method = "pg_basebackup"
    estate.write_configuration(estate.config)
    with pytest.raises(DrError):
        estate.backup()
    with estate.plane() as plane:
        assert records(plane, estate) == ()


def test_t6_a_stretch_of_minimal_wal_is_never_crossed_and_a_new_backup_ends_it(
    make: Callable[..., TempEstate],
) -> None:
    estate = make()
    cluster = estate.cluster
    cluster.start()
    cluster.sql("create table t as select 1 as i")
    with Pusher(estate) as pusher, estate.plane() as plane:
        estate.backup(plane)
        cluster.sql("insert into t values (2)")
        before = cluster.value("select clock_timestamp()")
        finish_wal(cluster, pusher)
        cluster.stop()
        cluster.start([("wal_level", "minimal"), ("archive_mode", "off"), ("max_wal_senders", "0")])
        cluster.sql("create table silent as select i from generate_series(1, 1000) i")  # writes no rows to the WAL
        cluster.sql("insert into t values (3)")
        cluster.stop()
        cluster.start()
        cluster.sql("insert into t values (4)")
        cluster.sql("checkpoint")  # here the server notes that older segments were never archived
        finish_wal(cluster, pusher)
        with pytest.raises(ReplayError, match="wal_level=minimal"):
            run_restore(estate.restore_context(plane), estate.request(LATEST))
        assert estate.environments() == [], "a half-recovered server was left"
        assert rows(estate, Target(kind=TargetKind.TIME, time=before), plane, "select i from t order by 1") == [
            (1,),
            (2,),
        ]
        estate.backup(plane)
        finish_wal(cluster, pusher)
        assert rows(estate, LATEST, plane, "select (select count(*) from silent), max(i) from t") == [(1000, 4)]


def test_t32_nothing_is_reported_before_consistency(make: Callable[..., TempEstate]) -> None:
    """Targets inside the only snapshot are refused, and so is everything when a segment of the snapshot is missing."""
    estate = make()
    cluster = estate.cluster
    cluster.start()
    with Pusher(estate) as pusher, estate.plane() as plane:
        cluster.sql("create table t as select 1 as i")
        record = estate.backup(plane).record
        finish_wal(cluster, pusher)
        cluster.sql("insert into t values (2)")
        after = cluster.value("select clock_timestamp()")
        finish_wal(cluster, pusher)
        finish_wal(cluster, pusher)
        context = estate.restore_context(plane)
        inside = (
            Target(kind=TargetKind.LSN, lsn=record.postgres.start_lsn),
            Target(
                kind=TargetKind.LSN, lsn=replace(record.postgres.stop_lsn, value=record.postgres.stop_lsn.value - 1)
            ),
            Target(kind=TargetKind.TIME, time=record.stopped_at - timedelta(microseconds=1)),
        )
        for target in inside:
            with pytest.raises(TargetOutsideWindowError, match="after the target"):
                plan_restore(context, estate.request(target))
        with estate.restored(Target(kind=TargetKind.SNAPSHOT, snapshot=record.id), plane) as (result, _):
            assert result.reached.lsn >= record.postgres.stop_lsn
            assert result.reached.evidence[0].startswith("consistent at")
        number = record.postgres.start_lsn.segment_number(record.postgres.segment_bytes)
        [needed] = estate.repository.rglob(f"0000000100000000{number:08X}")
        needed.unlink()
        anywhere = (
            LATEST,
            Target(kind=TargetKind.SNAPSHOT, snapshot=record.id),
            Target(kind=TargetKind.TIME, time=after),
        )
        for target in anywhere:
            with pytest.raises(WalGapError, match=needed.name):
                run_restore(context, estate.request(target))
        assert estate.environments() == []


class SlowClock(SystemClock):
    """The clock of a backup host that is an hour behind the server's."""

    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


def test_t29_a_snapshot_dated_by_a_clock_that_is_behind_is_not_taken_for_an_earlier_one(
    make: Callable[..., TempEstate],
) -> None:
    estate = make()
    cluster = estate.cluster
    cluster.start()
    cluster.sql("create table t as select 1 as i")
    with Pusher(estate) as pusher, estate.plane() as plane:
        honest = estate.backup(plane).record
        processes.run(["sleep", "1.1"])  # checkpoints carry whole seconds
        instant = cluster.value("select clock_timestamp()")
        cluster.sql("insert into t values (2)")
        processes.run(["sleep", "1.1"])
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state, clock=SlowClock(), progress=SilentProgress()
        )
        misdated = run_backup(context, *estate.parts()).record
        assert misdated.stopped_at < instant, "nothing was misdated, so this proves nothing"
        finish_wal(cluster, pusher)
        target = Target(kind=TargetKind.TIME, time=instant)
        planned = plan_restore(estate.restore_context(plane), estate.request(target))
        assert planned.resolved.plan.snapshot.id == honest.id
        assert rows(estate, target, plane, "select i from t") == [(1,)]


# --- files that change while they are read ----------------------------------------------------------------------


class MeddlingClock(SystemClock):
    """Does something once, the moment after the listing: that is when the capture asks for the time again."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        self._meddle = meddle
        self._asked = 0

    def now(self) -> datetime:
        self._asked += 1
        if self._asked == 2:
            self._meddle()
        return super().now()


def backup_meddled(estate: TempEstate, plane: DataPlane, meddle: Callable[[], None]) -> BackupResult:
    context = BackupContext(
        repository=plane.repository, state_dir=estate.state, clock=MeddlingClock(meddle), progress=SilentProgress()
    )
    return run_backup(context, *estate.parts())


def test_t9_files_that_vanish_grow_shrink_or_appear_after_the_listing_come_back_right(
    make: Callable[..., TempEstate],
) -> None:
    estate = make()
    cluster = estate.cluster
    cluster.start()
    for name in ("vanishing", "growing", "shrinking"):
        cluster.sql(f"create table {name} as select i, repeat('x', 100) as filler from generate_series(1, 2000) i")
    cluster.sql("checkpoint")
    paths = {name: str(cluster.value(f"select pg_relation_filepath('{name}')")) for name in ("growing", "shrinking")}
    gone = str(cluster.value("select pg_relation_filepath('vanishing')"))
    listed = {name: (cluster.data / path).stat().st_size for name, path in paths.items()}

    def meddle() -> None:
        cluster.sql("drop table vanishing")
        cluster.sql("insert into growing select i, repeat('y', 100) from generate_series(2001, 6000) i")
        cluster.sql("delete from shrinking where i > 100")
        cluster.sql("vacuum shrinking")
        cluster.sql("create table appearing as select i from generate_series(1, 500) i")
        cluster.sql("checkpoint")
        assert not (cluster.data / gone).exists()
        assert (cluster.data / paths["growing"]).stat().st_size > listed["growing"]
        assert (cluster.data / paths["shrinking"]).stat().st_size < listed["shrinking"]

    with Pusher(estate) as pusher, estate.plane() as plane:
        result = backup_meddled(estate, plane, meddle)
        assert result.vanished_files >= 1
        finish_wal(cluster, pusher)
        folder, _ = placed(plane, estate, result.record, "data")
        assert (folder / paths["growing"]).stat().st_size == listed["growing"], "growth is the WAL's business"
        assert (folder / paths["shrinking"]).stat().st_size < listed["shrinking"]
        assert not (folder / gone).exists()
        query = (
            "select (select count(*) from growing), (select count(*) from shrinking), (select count(*) from appearing),"
            " to_regclass('vanishing')"
        )
        snapshot = Target(kind=TargetKind.SNAPSHOT, snapshot=result.record.id)
        assert rows(estate, snapshot, plane, query) == [(6000, 100, 500, None)]


# --- damaged pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_t14_a_damaged_page_degrades_the_snapshot_which_is_never_chosen_over_a_good_one(
    make: Callable[..., TempEstate], method: str
) -> None:
    estate = make(method=method)
    cluster = estate.cluster
    cluster.start()
    cluster.sql("create table t as select i, repeat('x', 100) as filler from generate_series(1, 2000) i")
    path = str(cluster.value("select pg_relation_filepath('t')"))
    with Pusher(estate) as pusher, estate.plane() as plane:
        good = estate.backup(plane).record
        cluster.stop()
        with (cluster.data / path).open("r+b") as relation:
            relation.seek(3 * 8192 + 5000)
            relation.write(b"?")
        cluster.start()
        bad = estate.backup(plane)
        assert bad.record.state is SnapshotState.DEGRADED
        assert bad.bad_pages == ((path, 3),)
        assert bad.record.postgres.bad_pages == 1
        if method == "local":
            time.sleep(2.5)  # now the damaged file counts as settled, and nothing writes to it any more
            assert estate.backup(plane).bad_pages == estate.backup(plane).bad_pages == ((path, 3),)
            bad = estate.backup(plane)
            assert bad.record.state is SnapshotState.DEGRADED
        cluster.sql("create table later as select 1 as i")
        finish_wal(cluster, pusher)
        # The good one is older and needs more WAL; it is taken all the same, and the table is whole.
        planned = plan_restore(estate.restore_context(plane), estate.request(LATEST))
        assert planned.resolved.plan.snapshot.id == good.id
        assert rows(estate, LATEST, plane, "select count(filler), (select i from later) from t") == [(2000, 1)]
        # When it cannot reach the target, the degraded one is better than nothing, and the plan says so.
        hole = good.postgres.stop_lsn.segment_number(good.postgres.segment_bytes)
        [needed] = estate.repository.rglob(f"0000000100000000{hole:08X}")
        needed.unlink()
        planned = plan_restore(estate.restore_context(plane), estate.request(LATEST))
        assert planned.resolved.plan.snapshot.id == bad.record.id
        assert any("DEGRADED" in reason for reason in planned.resolved.plan.reasons)


def test_t14_pages_torn_by_a_writing_server_are_not_reported(make: Callable[..., TempEstate]) -> None:
    estate = make()
    cluster = estate.cluster
    cluster.configure(bgwriter_delay="'10ms'", bgwriter_lru_maxpages="1000", shared_buffers="'1MB'")
    cluster.start()
    cluster.pgbench_init()
    with Pusher(estate) as pusher, estate.plane() as plane, loaded(cluster):
        results = [estate.backup(plane) for _ in range(3)]
        finish_wal(cluster, pusher)
    assert [result.record.state for result in results] == [SnapshotState.COMPLETE] * 3
    assert all(result.bad_pages == () for result in results)


@contextmanager
def loaded(cluster: Cluster) -> Iterator[None]:
    """Run pgbench beside the block; it must have been writing all the time."""
    argv: list[str | Path] = [
        cluster.bin / "pgbench",
        "-n",
        "-T",
        "600",
        "-c",
        "2",
        "-h",
        cluster.sock,
        "-U",
        cluster.user,
        "postgres",
    ]
    process = processes.start(argv, account=cluster.account)
    try:
        wait_for(lambda: cluster.value("select count(*) from pgbench_history") > 0, "pgbench to write")
        yield
        assert process.poll() is None, "the load ended early"
    finally:
        processes.kill_group(process)
        process.wait()


# --- unchanged files --------------------------------------------------------------------------------------------


def settle(cluster: Cluster) -> None:
    """Write everything out and wait until files count as settled (two seconds, see changes.py)."""
    cluster.sql("checkpoint")
    processes.run(["sleep", "2.2"])


def test_t15_every_write_is_captured_however_soon_it_follows(make: Callable[..., TempEstate]) -> None:
    """Rows in the clock tick of a backup, hint bits alone, forks, and a database copied by files."""
    estate = make(checksums=False)
    cluster = estate.cluster
    cluster.start()
    cluster.sql("create table t (i int) with (autovacuum_enabled = off)")
    cluster.sql("create table h (i int) with (autovacuum_enabled = off)")
    cluster.sql("insert into h select generate_series(1, 1000)")
    heap = str(cluster.value("select pg_relation_filepath('h')"))
    with Pusher(estate) as pusher, estate.plane() as plane:
        for number in range(3):
            cluster.sql(f"insert into t values ({number})")
            cluster.sql("checkpoint")
            estate.backup(plane)
        settle(cluster)
        first = estate.backup(plane)
        second = estate.backup(plane)
        assert second.reused_files > 800, "nothing was taken over unread, so this proves nothing"
        assert second.record.read_bytes < first.record.read_bytes
        before = (cluster.data / heap).read_bytes()
        cluster.sql("select count(*) from h")  # sets hint bits, without WAL where there are no checksums
        cluster.sql("checkpoint")
        hinted = (cluster.data / heap).read_bytes()
        assert hinted != before
        assert len(hinted) == len(before)
        folder, _ = placed(plane, estate, estate.backup(plane).record, "hinted")
        assert (folder / heap).read_bytes() == hinted
        cluster.sql("delete from h where i % 2 = 0")
        cluster.sql("vacuum h")
        cluster.sql("checkpoint")
        folder, _ = placed(plane, estate, estate.backup(plane).record, "vacuumed")
        for fork in ("_vm", "_fsm", ""):
            content = (cluster.data / (heap + fork)).read_bytes()
            assert content.strip(b"\0")
            assert (folder / (heap + fork)).read_bytes() == content, fork
        cluster.sql("create database copied template template0 strategy file_copy")
        with cluster.connect("copied") as connection:
            connection.execute("create table c as select 7 as i")
        result = estate.backup(plane)
        finish_wal(cluster, pusher)
        with estate.restored(Target(kind=TargetKind.SNAPSHOT, snapshot=result.record.id), plane) as (found, connection):
            assert connection.execute("select array_agg(i order by i) from t").fetchone() == ([0, 1, 2],)
            assert connection.execute("select count(*) from h").fetchone() == (500,)
            [row] = in_database(found.environment.dsn, "copied", "select i from c")
            assert row == (7,)
        # The same through the WAL record of the file copy, from a snapshot before it.
        with estate.restored(Target(kind=TargetKind.LATEST), plane) as (found, _):
            assert in_database(found.environment.dsn, "copied", "select i from c") == [(7,)]


def in_database(dsn: str, database: str, query: str) -> list[tuple[object, ...]]:
    import psycopg  # noqa: PLC0415 - only this helper leaves the cluster double's own connections

    with psycopg.connect(dsn, dbname=database) as connection:
        return connection.execute(query.encode()).fetchall()


def test_t15_a_re_used_file_number_and_switched_checksums_are_read_anew(make: Callable[..., TempEstate]) -> None:
    estate = make(checksums=False)
    cluster = estate.cluster
    cluster.start()
    cluster.sql("create table a as select i, 'old' as word from generate_series(1, 1000) i")
    number = int(cluster.value("select pg_relation_filenode('a')"))
    path = str(cluster.value("select pg_relation_filepath('a')"))
    settle(cluster)
    with Pusher(estate), estate.plane() as plane:
        estate.backup(plane)
        cluster.sql("drop table a")
        cluster.sql("vacuum pg_class")  # a dead row keeps its number from being given again
        cluster.sql("checkpoint")
    cluster.stop()
    # The counter of object numbers wraps around after four billion; here it is set back.
    assert cluster.run("pg_resetwal", "-o", str(number), cluster.data).status == 0
    cluster.start()
    cluster.sql("create table b as select i, 'new' as word from generate_series(1, 1000) i")
    assert str(cluster.value("select pg_relation_filepath('b')")) == path
    with Pusher(estate) as pusher, estate.plane() as plane:
        record = estate.backup(plane).record
        finish_wal(cluster, pusher)
        snapshot = Target(kind=TargetKind.SNAPSHOT, snapshot=record.id)
        assert rows(estate, snapshot, plane, "select distinct word from b") == [("new",)]
    settle(cluster)
    with Pusher(estate), estate.plane() as plane:
        estate.backup(plane)
        assert estate.backup(plane).reused_files > 800
    cluster.stop()
    assert cluster.run("pg_checksums", "--enable", "-D", cluster.data).status == 0
    cluster.start()
    with Pusher(estate) as pusher, estate.plane() as plane:
        switched = estate.backup(plane)
        finish_wal(cluster, pusher)
        assert switched.reused_files == 0, "files from before the switch were taken over unread"
        assert switched.record.postgres.data_checksums
        snapshot = Target(kind=TargetKind.SNAPSHOT, snapshot=switched.record.id)
        query = "select current_setting('data_checksums'), count(word) from b"
        assert rows(estate, snapshot, plane, query) == [("on", 1000)]
