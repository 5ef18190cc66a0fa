"""Restoring over production's own directory, on real clusters that crashed: nothing that was acknowledged is lost."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from drservice.clock import SystemClock
from drservice.components.postgres.presence import listener_of
from drservice.components.postgres.recovery import TargetAction
from drservice.environments.sandbox import Sandbox, open_sandbox
from drservice.errors import (
    BusyError,
    ProofError,
    RecoveryError,
    ServerRunningError,
    StoreDeniedError,
    TargetDirectoryError,
    UnsupportedClusterError,
    UsageError,
)
from drservice.model.recovery import Target, TargetKind
from drservice.objectstore.locks import host_lock
from drservice.operations import inplace, replay
from drservice.operations import restore as restoring
from drservice.operations.asidefolder import AsideFolder
from drservice.operations.inplace import prepare_in_place, run_in_place
from drservice.operations.progress import SilentProgress
from drservice.operations.restorerequest import RestoreRequest, RestoreResult
from drservice.operations.salvage import salvage
from drservice.operations.wal import push_wal
from drservice.wiring.data_plane import DataPlane
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import Pusher, TempEstate, wait_for
from tests.doubles.stores import Fault, FaultyStore

LATEST = Target(kind=TargetKind.LATEST)


@pytest.fixture(scope="module")
def maker(template_cache: Path) -> Iterator[ClusterMaker]:
    made = ClusterMaker(cache=template_cache)
    yield made
    made.close()


@pytest.fixture
def estate(maker: ClusterMaker) -> Iterator[TempEstate]:
    """A running server with one snapshot; it archives by hand (``archive``)."""
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "''"})
    made = TempEstate.over(cluster)
    made.initialise()
    cluster.start()
    cluster.sql("create table orders (id int primary key, note text)")
    cluster.sql("insert into orders select i, 'before' from generate_series(1, 50) i")
    with Pusher(made):
        made.backup()
    yield made
    made.close()
    cluster.kill9()


def in_place(estate: TempEstate, target: Target = LATEST, *, plane: DataPlane | None = None, **changes: Any) -> Any:
    """Restore in place, in this process."""
    if plane is None:
        with estate.plane() as opened:
            return in_place(estate, target, plane=opened, **changes)
    request: RestoreRequest = replace(estate.request(target, into=estate.cluster.data), into=None, in_place=True)
    result: RestoreResult = run_in_place(estate.restore_context(plane), replace(request, **changes))
    return result


class Orders:
    """Commits orders one after the other, and remembers those that the server acknowledged."""

    def __init__(self, estate: TempEstate, first: int) -> None:
        self.acknowledged: list[int] = []
        self._estate = estate
        self._next = first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._estate.cluster.connect() as connection:
                while not self._stop.is_set():
                    connection.execute("insert into orders values (%s, repeat('x', 200))", (self._next,))
                    self.acknowledged.append(self._next)
                    self._next += 1
        except psycopg.Error:
            return  # it was killed


def crash_with_orders(estate: TempEstate, *, segments: int = 2) -> list[int]:
    """Kill the server while it commits, a few segments after the last archived one; return what it acknowledged."""
    with Orders(estate, 1000) as orders:
        for _ in range(segments):
            estate.cluster.switch_wal()
        enough = len(orders.acknowledged) + 100
        wait_for(lambda: len(orders.acknowledged) >= enough, "orders in the last segment")
        estate.cluster.kill9()
    return orders.acknowledged


def lose_data(estate: TempEstate) -> None:
    """Destroy what no crash recovery brings back: every relation of the database."""
    for path in (estate.cluster.data / "base").glob("*/*"):
        if path.name.isdigit() and path.stat().st_size:
            path.write_bytes(b"\0" * path.stat().st_size)


def started(estate: TempEstate) -> list[int]:
    estate.cluster.start()
    return [row[0] for row in estate.cluster.sql("select id from orders order by id")]


def test_after_a_crash_nothing_that_was_acknowledged_is_lost(estate: TempEstate) -> None:
    acknowledged = crash_with_orders(estate)
    lose_data(estate)
    result = in_place(estate)
    found = started(estate)
    assert set(acknowledged) <= set(found), "acknowledged commits were lost"
    assert set(found) - set(acknowledged) - set(range(1, 51)) <= {max(acknowledged) + 1}
    assert result.in_place is not None
    assert any(name.endswith(".partial") for name in result.in_place.salvaged)


@pytest.mark.long
def test_what_was_there_is_kept_beside_the_directory_and_the_restored_server_archives_again(
    estate: TempEstate,
) -> None:
    cluster = estate.cluster
    cluster.sql("alter system set work_mem = '7MB'")
    crash_with_orders(estate)
    (cluster.data / "pg_hba.conf").write_text("# of today\nlocal all all trust\n")
    result = in_place(estate)
    aside = result.in_place.aside
    assert aside.parent == cluster.data.parent
    assert (aside / "pg_hba.conf").read_text().startswith("# of today")
    assert "work_mem" in (aside / "postgresql.auto.conf").read_text()
    assert not (aside / "pg_wal").exists(), "all of it is archived"
    assert "# of today" not in (cluster.data / "pg_hba.conf").read_text()
    assert not (cluster.data / "global" / "pg_control.unproven").exists()
    assert not list((estate.state / "in-place").iterdir())
    started(estate)
    timeline = cluster.value("select timeline_id from pg_control_checkpoint()")
    assert timeline == result.reached.timeline == 2
    cluster.sql("insert into orders values (500000, 'after')")
    name = cluster.switch_wal()
    with Pusher(estate) as pusher:
        pusher.drain(f"{timeline:08X}.history")
        pusher.drain(name)
    with estate.restored(LATEST) as (again, connection):
        assert connection.execute("select count(*) from orders where id = 500000").fetchone() == (1,)
        assert again.planned.resolved.plan.timeline == 2


@pytest.mark.long
def test_the_second_crash_in_the_same_segment_is_salvaged_beside_the_first(estate: TempEstate) -> None:
    cluster = estate.cluster
    cluster.sql("insert into orders values (100, 'first')")
    cluster.kill9()
    with estate.plane() as plane:
        prepared = prepare_in_place(estate.restore_context(plane), request_for(estate))
        archive = plane.repository.wal(plane.repository.scope(*names(estate)))
        system_id = prepared.record.postgres.system_id
        for _ in range(2):  # the same again is fine
            done = salvage(
                cluster.data / "pg_wal",
                prepared.items,
                archive,
                archived=prepared.archived.files,
                system_id=system_id,
                progress=SilentProgress(),
            )
            assert (len(done.saved), done.unsaved) == (1, ())
    cluster.start()
    cluster.sql("insert into orders values (101, 'second')")
    cluster.kill9()
    lose_data(estate)
    result = in_place(estate)
    assert len(list(estate.repository.rglob("*.partial*"))) == 2
    assert {100, 101} <= set(started(estate))
    assert "pg_control" not in result.in_place.set_aside


@pytest.mark.long
def test_a_target_that_only_the_salvage_reaches_is_reached(estate: TempEstate) -> None:
    cluster = estate.cluster
    cluster.sql("insert into orders values (100, 'wanted')")
    instant = cluster.value("select clock_timestamp()")
    cluster.sql("select pg_sleep(0.01)")
    cluster.sql("insert into orders values (101, 'the mistake')")
    cluster.kill9()
    target = Target(kind=TargetKind.TIME, time=instant)
    with estate.plane() as plane:
        prepared = prepare_in_place(estate.restore_context(plane), request_for(estate, target))
    assert prepared.planned is None
    assert prepared.refusal is not None
    in_place(estate, target)
    assert [number for number in started(estate) if number >= 100] == [100]


# --- what is refused, before anything is changed ------------------------------------------------------------


def test_a_running_server_is_refused_by_whatever_shows_it(estate: TempEstate) -> None:
    data = estate.cluster.data
    before = snapshot_of(data)
    with pytest.raises(ServerRunningError):
        in_place(estate)
    (data / "postmaster.pid").rename(data / "postmaster.away")
    with pytest.raises(ServerRunningError):
        in_place(estate)  # its processes work in the directory
    (data / "postmaster.away").rename(data / "postmaster.pid")
    assert snapshot_of(data).items() >= {name: before[name] for name in ("global/pg_control", "PG_VERSION")}.items()
    assert estate.cluster.value("select count(*) from orders") == 50


@pytest.mark.long
def test_a_server_that_can_only_be_heard_is_refused(estate: TempEstate) -> None:
    """As in a container beside this one: other process numbers, other shared memory, but the socket is shared."""
    cluster = estate.cluster
    cluster.kill9()
    path = cluster.sock / ".s.PGSQL.5432"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pid_file = cluster.data / "postmaster.pid"
        pid_file.write_text(f"4194300\n{cluster.data}\n1\n5432\n{cluster.sock}\n\n  1 1\nready\n")
        (cluster.sock / ".s.PGSQL.5432.lock").write_text(f"4194300\n{cluster.data}\n")
        with pytest.raises(ServerRunningError, match="somebody listens"):
            in_place(estate)
        (cluster.sock / ".s.PGSQL.5432.lock").write_text("4194300\n/var/lib/another\n")
        assert listener_of(cluster.data) is not None, "a directory that is not there is no proof of another cluster"
        (cluster.sock / ".s.PGSQL.5432.lock").write_text(f"4194300\n{cluster.sock}\n")
        assert listener_of(cluster.data) is None, "another cluster has the socket now"
    path.unlink()
    assert listener_of(cluster.data) is None, "a file that nobody listens on is no server"


@pytest.mark.long
def test_another_cluster_or_version_and_what_cannot_be_done_in_place_is_refused(
    estate: TempEstate, maker: ClusterMaker
) -> None:
    cluster = estate.cluster
    cluster.stop()
    other = maker.make(wal_segment_mb=1, fresh=True)
    component = estate.parts()[1]
    elsewhere = replace(component, data_directory=other.data)
    before = snapshot_of(other.data)
    with pytest.raises(TargetDirectoryError):
        in_place(estate, component=elsewhere)
    assert snapshot_of(other.data) == before
    with pytest.raises(UsageError, match="no data_directory"):
        in_place(estate, component=replace(component, data_directory=None))
    with pytest.raises(UsageError, match="not there or empty"):
        in_place(estate, component=replace(component, data_directory=cluster.root / "nothing"))
    with pytest.raises(UsageError, match="shut down cleanly"):
        in_place(estate, action=TargetAction.PAUSE)
    version = cluster.data / "PG_VERSION"
    mine = version.read_text()
    for wrong in ("14\n", "17\n"):
        version.write_text(wrong)
        with pytest.raises(TargetDirectoryError, match=f"PostgreSQL {wrong.strip()}"):
            in_place(estate)
    version.write_text(mine)
    (cluster.data / "pg_wal").rename(cluster.root / "wal")
    (cluster.data / "pg_wal").symlink_to(cluster.root / "wal")
    with pytest.raises(UnsupportedClusterError, match="symbolic link"):
        in_place(estate)
    (cluster.data / "pg_wal").unlink()
    (cluster.root / "wal").rename(cluster.data / "pg_wal")
    assert 50 in started(estate), "the directory is as it was"


@pytest.mark.long
def test_without_room_the_bytes_are_named_and_nothing_is_changed(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    estate.cluster.stop()
    before = snapshot_of(estate.cluster.data)
    monkeypatch.setattr(inplace, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(RecoveryError, match=r"1,048,576 bytes free, and [0-9,]+ are needed"):
        in_place(estate)
    assert snapshot_of(estate.cluster.data) == before


# --- when the salvage, or what follows, fails ---------------------------------------------------------------


@pytest.mark.long
def test_without_the_store_for_what_is_salvaged_latest_is_refused_and_the_directory_is_as_it_was(
    estate: TempEstate,
) -> None:
    acknowledged = crash_with_orders(estate)
    before = snapshot_of(estate.cluster.data)
    with estate.plane() as plane, pytest.raises(RecoveryError, match="could not be archived") as failed:
        in_place(estate, plane=refusing(plane))
    assert "The directory was not touched" in failed.value.hint
    assert snapshot_of(estate.cluster.data) == before
    assert set(acknowledged) <= set(started(estate))


@pytest.mark.long
def test_without_the_store_an_instant_that_is_archived_is_reached_and_the_rest_is_set_aside_and_named(
    estate: TempEstate,
) -> None:
    cluster = estate.cluster
    with Pusher(estate) as pusher:
        instant = cluster.value("select clock_timestamp()")
        cluster.sql("select pg_sleep(0.01)")
        cluster.sql("insert into orders values (100, 'archived, and after the instant')")
        pusher.drain(cluster.switch_wal())
    cluster.sql("insert into orders values (101, 'nowhere else')")
    cluster.kill9()
    target = Target(kind=TargetKind.TIME, time=instant)
    with estate.plane() as plane:
        result = in_place(estate, target, plane=refusing(plane))
    outcome = result.in_place
    assert outcome.salvaged == ()
    assert len(outcome.set_aside) == 1
    kept = outcome.aside / "pg_wal" / outcome.set_aside[0]
    assert kept.name.endswith(".partial")
    assert b"nowhere else" in kept.read_bytes()
    assert max(started(estate)) == 50
    # The command that is printed for it.
    with estate.plane() as plane:
        pushed = push_wal(plane.repository, plane.repository.scope(*names(estate)), kept, state_dir=estate.state)
    assert pushed.name == kept.name


@pytest.mark.long
@pytest.mark.parametrize("moment", ["salvage", "take", "place", "replay", "commit"])
def test_killed_at_any_moment_no_server_starts_and_the_same_command_completes_it(
    estate: TempEstate, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = crash_with_orders(estate, segments=1)
    lose_data(estate)
    with monkeypatch.context() as patched:
        owner, name = {
            "salvage": (inplace, "salvage"),
            "take": (AsideFolder, "take_from"),
            "place": (restoring, "finish_cluster"),
            "replay": (restoring, "prove"),
            "commit": (restoring, "place_control"),
        }[moment]
        done: list[str] = []

        def die(*_: object, **__: object) -> None:
            done.append(moment)
            raise Killed

        patched.setattr(owner, name, die)
        # A process that is killed cleans nothing up.
        patched.setattr(restoring, "unveil_control", lambda _: None)
        patched.setattr(Sandbox, "destroy", lambda _: None)
        with pytest.raises(Killed):
            in_place(estate)
        assert done == [moment]
    if moment != "salvage":
        assert_no_server_starts(estate)
    result = in_place(estate)
    assert set(acknowledged) <= set(started(estate))
    assert result.in_place.set_aside == ()
    left = [open_sandbox(estate.state / "environments" / name) for name in estate.environments()]
    assert [sandbox.id for sandbox in left if sandbox.data == estate.cluster.data] == []


@pytest.mark.long
def test_while_it_is_recovered_no_server_starts_on_the_directory(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service manager would: it starts again and again, and neither sees the other's processes."""
    crash_with_orders(estate, segments=0)
    tried: list[int] = []
    prove = replay.prove

    def proving(*arguments: Any, **named: Any) -> Any:
        assert_no_server_starts(estate)
        tried.append(1)
        return prove(*arguments, **named)

    monkeypatch.setattr(restoring, "prove", proving)
    in_place(estate)
    assert tried == [1]
    assert 50 in started(estate)


@pytest.mark.long
def test_a_recovery_that_is_not_proved_leaves_nothing_that_starts(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = crash_with_orders(estate, segments=0)

    def doubt(*_: object, **__: object) -> None:
        raise ProofError("not what was planned")

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "prove", doubt)
        with pytest.raises(ProofError) as failed:
            in_place(estate)
    assert "the same command has completed it" in failed.value.hint
    assert f"{estate.cluster.data.name}.before-" in failed.value.hint
    assert_no_server_starts(estate)
    in_place(estate)
    assert set(acknowledged) <= set(started(estate))


@pytest.mark.long
def test_two_at_once_are_one_too_many(estate: TempEstate) -> None:
    estate.cluster.stop()
    lock = estate.state / "run" / "in-place-erp-database.lock"
    with host_lock(lock, clock=SystemClock(), patience_seconds=0), pytest.raises(BusyError):
        in_place(estate)


# --- helpers ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a restore where a kill would, for a test that then goes on in the same process."""


def names(estate: TempEstate) -> tuple[Any, Any]:
    service, component = estate.parts()
    return service.name, component.name


def request_for(estate: TempEstate, target: Target = LATEST) -> RestoreRequest:
    return replace(estate.request(target, into=estate.cluster.data), into=None, in_place=True)


def snapshot_of(folder: Path) -> dict[str, bytes]:
    """Return what stands in a directory; of links where they lead."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def assert_no_server_starts(estate: TempEstate) -> None:
    cluster = estate.cluster
    trial = Cluster(root=cluster.root, bin=cluster.bin, data=cluster.data)
    trial.start(wait=False)
    assert trial.wait_ended() != 0
    assert "pg_control" in cluster.log_text().splitlines()[-1] + cluster.log_text()[-400:]


def refusing(plane: DataPlane) -> DataPlane:
    """Return the plane over a store that is read, and takes nothing."""
    repository = copy.copy(plane.repository)
    fault = Fault(at=1, operations={"create"}, times=1_000_000, error=StoreDeniedError)
    repository.store = FaultyStore(plane.repository.store, fault)
    return replace(plane, repository=repository)
