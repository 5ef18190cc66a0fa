"""A standby as the source of backups: whole copies under load, and everything that spoils one (trap T5)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import read_control_file
from drservice.components.postgres.facts import cluster_facts
from drservice.environments.sandbox import open_sandbox
from drservice.errors import (
    CaptureError,
    ExitStatus,
    PostgresError,
    PostgresUnreachableError,
    StandbyPromotedError,
    SystemIdentifierError,
    WalTimeoutError,
)
from drservice.model.estate import CaptureMethod
from drservice.operations.backup import BackupResult
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.healthsource import asking_primary
from drservice.operations.restorerequest import Afterwards
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.faults.world import Site, at_time, end_of, insert, make_cluster, site_of

METHODS = [CaptureMethod.LOCAL, CaptureMethod.PG_BASEBACKUP]
ONE_LONG = [CaptureMethod.LOCAL, pytest.param(CaptureMethod.PG_BASEBACKUP, marks=pytest.mark.long)]


@dataclass(kw_only=True)
class Meddling:
    """A progress that does something once, when the first bytes of a backup were taken, and remembers notes."""

    action: Callable[[], object] = lambda: None
    notes: list[str] = field(default_factory=list)
    done_once: bool = False

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        del name, total_bytes, total_items

    def advance(self, amount: int) -> None:
        if amount and not self.done_once:
            self.done_once = True
            self.action()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        pass


def make_standby(maker: ClusterMaker, primary: Cluster) -> Cluster:
    """Make and start a streaming standby."""
    copy = maker.folder("standby")
    done = primary.run("pg_basebackup", "-h", primary.sock, "-U", "postgres", "-D", copy, "-c", "fast", "-R")
    assert done.status == 0, done.stderr.decode()
    standby = maker.over(copy)
    standby.configure(archive_mode="on", archive_command="'/bin/false'", wal_receiver_status_interval="1s")
    standby.start()
    return standby


def catch_up(primary: Cluster, standby: Cluster) -> None:
    """Wait until the standby has replayed what the primary has written."""
    position = primary.value("select pg_current_wal_lsn()::text")
    deadline = time.monotonic() + 30
    while not standby.value("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)):
        assert time.monotonic() < deadline, standby.log_text()[-2000:]
        time.sleep(0.01)


@dataclass(kw_only=True)
class Pair:
    """A primary that archives into a spool, and its standby, which archives nothing."""

    primary: Cluster
    standby: Cluster
    spool: Path
    last: int = 0

    def site(self, root: Path, method: CaptureMethod) -> Site:
        """Return a new repository whose component leads to the standby."""
        site = site_of(self.standby, self.spool, root)
        site.method, site.primary_dsn = method, self.primary.dsn()
        site.create()
        return site

    def insert(self, amount: int = 40) -> datetime:
        """Commit orders on the primary and return an instant behind them."""
        instant = insert(self.primary, self.last + 1, self.last + amount)
        self.last += amount
        return instant


@pytest.fixture(scope="module")
def pair(maker: ClusterMaker) -> Iterator[Pair]:
    primary, spool = make_cluster(maker)
    primary.sql("create table orders(id int primary key, at timestamptz default clock_timestamp())")
    primary.sql("create table filler as select i, repeat('x', 500) t from generate_series(1, 12000) i")
    primary.sql("alter system set wal_keep_size = '256MB'")  # or a busy machine lets a slow standby lose its way
    primary.sql("select pg_reload_conf()")
    standby = make_standby(maker, primary)
    yield Pair(primary=primary, standby=standby, spool=spool)
    standby.kill9()
    primary.kill9()


def archive_all(pair: Pair, site: Site) -> None:
    """Bring what was written so far into the repository."""
    pair.primary.wait_archived(pair.primary.switch_wal(), pair.spool)
    site.push_spool()


@pytest.mark.parametrize("method", ONE_LONG)
def test_t5_a_backup_of_a_standby_under_load_restores_to_any_instant_behind_it(
    pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    site = pair.site(tmp_path / "site", method)
    pair.insert()
    pair.primary.sql("checkpoint")
    catch_up(pair.primary, pair.standby)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            pair.insert(20)

    loader = threading.Thread(target=load)
    loader.start()
    try:
        result = site.backup()
    finally:
        stop.set()
        loader.join()
    site.require_sound(snapshots=1)
    facts = result.record.postgres
    assert facts.system_id == read_control_file(pair.primary.data).system_id
    assert facts.start_lsn < facts.stop_lsn
    instant = pair.insert()
    known = pair.last
    pair.insert()
    archive_all(pair, site)
    assert site.restored_ids(at_time(instant)) == list(range(1, known + 1))


def test_t5_the_end_of_a_standbys_snapshot_is_where_recovery_calls_it_consistent(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    pair.insert()
    pair.primary.sql("checkpoint")
    catch_up(pair.primary, pair.standby)
    committed = pair.last
    result = site.backup()
    restored = site.restore(end_of(result.record))
    assert restored.reached.lsn >= result.record.postgres.stop_lsn
    assert result.record.postgres.stop_lsn <= read_control_file(pair.standby.data).min_recovery_point
    assert restored.reached.timeline == 2
    assert committed


@pytest.mark.parametrize("method", METHODS)
def test_t5_a_standby_promoted_in_mid_backup_leaves_no_snapshot(
    maker: ClusterMaker, pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    standby = make_standby(maker, pair.primary)
    try:
        site = site_of(standby, pair.spool, tmp_path / "site")
        site.method = method
        site.create()
        meddling = Meddling(action=lambda: standby.sql("select pg_promote()"))
        with pytest.raises(StandbyPromotedError) as caught:
            site.backup(progress=meddling)
        assert caught.value.exit_status is ExitStatus.FAILED
        assert meddling.done_once
        site.require_sound(snapshots=0)
    finally:
        standby.kill9()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["none", "promoted"])
def test_t5_a_role_that_may_replicate_and_nothing_else_backs_up_a_standby(
    maker: ClusterMaker, pair: Pair, tmp_path: Path, fault: str
) -> None:
    """Without SQL the server's archives are read one by one, as for tablespaces."""
    standby = make_standby(maker, pair.primary)
    try:
        site = site_of(standby, pair.spool, tmp_path / "site")
        site.method, site.dsn, site.primary_dsn = (
            CaptureMethod.PG_BASEBACKUP,
            standby.dsn("nowhere"),
            pair.primary.dsn(),
        )
        site.create()
        if fault == "promoted":
            with pytest.raises(StandbyPromotedError):
                site.backup(progress=Meddling(action=lambda: standby.sql("select pg_promote()")))
            site.require_sound(snapshots=0)
        else:
            site.backup()
            instant = pair.insert()
            known = pair.last
            pair.insert()
            archive_all(pair, site)
            assert site.restored_ids(at_time(instant)) == list(range(1, known + 1))
    finally:
        standby.kill9()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_t5_a_standby_that_archives_itself_is_backed_up_on_an_idle_primary(
    maker: ClusterMaker, pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    """With archive_mode = always the server waits for the last segment, which only the primary can end."""
    standby = make_standby(maker, pair.primary)
    try:
        command = f"cp %p {pair.spool}/.always-%f && mv {pair.spool}/.always-%f {pair.spool}/%f"
        standby.configure(archive_mode="always", archive_command=f"'{command}'")
        standby.restart()
        pair.insert()
        pair.primary.sql("checkpoint")
        catch_up(pair.primary, standby)
        site = site_of(standby, pair.spool, tmp_path / "site")
        site.method, site.primary_dsn, site.archive_wait = method, pair.primary.dsn(), timedelta(seconds=40)
        site.create()
        site.backup()
        site.require_sound(snapshots=1)
    finally:
        standby.kill9()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_t5_a_backup_of_a_standby_under_pgbench_has_every_acknowledged_commit(
    pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    site = pair.site(tmp_path / "site", method)
    pair.primary.pgbench_init(scale=2)
    bench = threading.Thread(target=lambda: pair.primary.pgbench(seconds=8))
    bench.start()
    time.sleep(2)
    record = site.backup().record
    bench.join()
    sums = "select count(*), sum(delta), (select sum(abalance) from pgbench_accounts) from pgbench_history"
    instant, expected = pair.insert(), pair.primary.sql(sums)
    pair.insert()
    archive_all(pair, site)
    result = site.restore(at_time(instant), afterwards=Afterwards.LEAVE_RUNNING)
    try:
        with psycopg.connect(result.environment.dsn, autocommit=True) as connection:
            assert connection.execute(sums.encode()).fetchall() == expected
            assert expected[0][1] == expected[0][2]
            connection.execute("create extension amcheck")
            query = "select count(bt_index_check(oid, true)) from pg_class where relkind = 'i' and relname ~ '^pgbench'"
            assert connection.execute(query).fetchall() == [(3,)]
    finally:
        open_sandbox(result.environment.path).destroy()
    assert record.postgres.bad_pages == 0


@pytest.mark.parametrize("method", ONE_LONG)
def test_t5_a_standby_that_restarts_in_mid_backup_leaves_no_snapshot_and_the_next_run_succeeds(
    pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    site = pair.site(tmp_path / "site", method)
    meddling = Meddling(action=pair.standby.restart)
    with pytest.raises((CaptureError, PostgresUnreachableError)):
        site.backup(progress=meddling)
    assert meddling.done_once
    site.require_sound(snapshots=0)
    site.backup()
    site.require_sound(snapshots=1)


@pytest.mark.parametrize("method", METHODS)
def test_t5_full_page_writes_switched_off_on_the_primary_meanwhile_spoils_the_backup(
    pair: Pair, tmp_path: Path, method: CaptureMethod
) -> None:
    site = pair.site(tmp_path / "site", method)

    def switch_off() -> None:
        pair.primary.sql("alter system set full_page_writes = off")
        pair.primary.sql("select pg_reload_conf()")
        deadline = time.monotonic() + 20
        while pair.primary.value("show full_page_writes") != "off":
            assert time.monotonic() < deadline
        pair.primary.sql("checkpoint")
        catch_up(pair.primary, pair.standby)

    try:
        with pytest.raises(CaptureError, match="full_page_writes"):
            site.backup(progress=Meddling(action=switch_off))
        with pytest.raises(PostgresError, match="full_page_writes"):
            site.backup()  # the last checkpoint is of that time
        site.require_sound(snapshots=0)
    finally:
        pair.primary.sql("alter system reset full_page_writes")
        pair.primary.sql("select pg_reload_conf()")
        pair.primary.sql("checkpoint")
        catch_up(pair.primary, pair.standby)
    site.backup()


def test_t5_without_a_primary_to_ask_the_last_segment_is_waited_for_and_said_so(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    site.primary_dsn, site.archive_wait = None, timedelta(seconds=1)
    pair.insert()
    pair.primary.sql("checkpoint")
    catch_up(pair.primary, pair.standby)
    told = Meddling()
    with pytest.raises(WalTimeoutError, match="the source is a standby") as caught:
        site.backup(progress=told)
    assert "archive_timeout" in caught.value.hint
    assert any("cannot end a WAL segment" in note for note in told.notes)
    site.require_sound(snapshots=0)

    site.archive_wait = timedelta(seconds=30)
    results: list[BackupResult] = []
    waiting = threading.Thread(target=lambda: results.append(site.backup()))
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    pair.primary.switch_wal()
    waiting.join(30)
    assert len(results) == 1
    site.require_sound(snapshots=1)


def test_t5_a_primary_that_is_down_does_not_spoil_a_backup_whose_wal_is_archived(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    pair.insert()
    pair.primary.sql("checkpoint")
    pair.primary.wait_archived(pair.primary.switch_wal(), pair.spool)
    catch_up(pair.primary, pair.standby)
    pair.primary.kill9()
    try:
        told = Meddling()
        site.backup(progress=told)
        assert any("WARNING: the server is a standby and its primary cannot be asked" in note for note in told.notes)
    finally:
        pair.primary.start()
    site.require_sound(snapshots=1)


def test_t5_the_directory_of_a_standby_behind_the_dsn_of_its_primary_is_refused(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    site.dsn = pair.primary.dsn()
    with pytest.raises(CaptureError, match="dsn leads to a primary, but data_directory is a standby's"):
        site.backup()
    site.dsn, site.data_directory = pair.standby.dsn(), pair.primary.data
    with pytest.raises(CaptureError, match="dsn leads to a standby, but data_directory is a primary's"):
        site.backup()
    assert site.objects("/packs/") == []


@pytest.mark.long
def test_t5_a_primary_dsn_that_leads_elsewhere_is_refused_before_anything_is_read(
    maker: ClusterMaker, pair: Pair, tmp_path: Path
) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    site.primary_dsn = pair.standby.dsn()
    with pytest.raises(CaptureError, match="primary_dsn leads to a standby"):
        site.backup()
    other = maker.make(fresh=True, wal_segment_mb=1)
    other.start()
    site.primary_dsn = other.dsn()
    with pytest.raises(SystemIdentifierError, match="primary_dsn leads to cluster"):
        site.backup()
    assert site.objects("/packs/") == []
    other.kill9()


def test_check_tells_what_a_standby_needs_of_its_primary(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    with connect(site.dsn) as session:
        facts = cluster_facts(session)
    assert facts.in_recovery

    def answer(primary_dsn: str | None) -> tuple[CheckState, str]:
        site.primary_dsn = primary_dsn
        checklist = Checklist()
        with asking_primary(site.component, facts, "erp/database", checklist) as primary:
            assert (primary is None) == (primary_dsn is None or "standby" in checklist.results[0].detail)
        (result,) = checklist.results
        return result.state, f"{result.detail} {result.remedy}"

    state, told = answer(None)
    assert (state, "archive_timeout" in told) == (CheckState.WARNING, True)
    state, told = answer(pair.standby.dsn())
    assert (state, "primary_dsn leads to a standby" in told) == (CheckState.FAILED, True)
    assert answer(pair.primary.dsn())[0] is CheckState.OK
    pair.primary.sql("create role onlooker login")
    state, told = answer(pair.primary.dsn(user="onlooker"))
    assert (state, "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO onlooker;" in told) == (CheckState.WARNING, True)


def test_t15_what_was_cached_of_the_primary_says_nothing_of_its_standby(pair: Pair, tmp_path: Path) -> None:
    site = pair.site(tmp_path / "site", CaptureMethod.LOCAL)
    old = site_of(pair.primary, pair.spool, tmp_path / "site")
    rested_at = (pair.standby.data / "PG_VERSION").stat().st_ctime + 2.1  # before that no file counts as unchanged
    time.sleep(max(0.0, rested_at - time.time()))
    old.backup()
    assert site.backup().reused_files == 0
    assert site.backup().reused_files > 100
    # The same inodes and times under another path, as on a cloned machine: only the name of the place differs.
    data = pair.standby.data
    pair.standby.stop()
    pair.standby.data = site.data_directory = data.rename(data.with_name("clone"))
    pair.standby.start()
    assert site.backup().reused_files == 0
