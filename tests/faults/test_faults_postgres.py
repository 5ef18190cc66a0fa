"""PostgreSQL dying, restarting or hanging up in the middle, and Ctrl-C: no snapshot, no half restore."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from drservice.cli.main import StoppedError
from drservice.environments.sandbox import list_sandboxes
from drservice.errors import (
    BusyError,
    CaptureError,
    DrError,
    ExitStatus,
    PostgresError,
    PostgresUnreachableError,
    ReplayError,
    WalTimeoutError,
)
from drservice.model.estate import CaptureMethod
from drservice.objectstore.directory import DirectoryStore
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.faults.triggers import TriggerStore
from tests.faults.world import LATEST, Listener, Site, World, empty, insert, make_cluster, site_of

ALL_IDS = list(range(1, 501))


def at_first_pack(site: Site, action: Callable[[], object]) -> TriggerStore:
    """A store that does something in the middle of a backup: when its first data pack is to be stored."""
    return TriggerStore(
        DirectoryStore(site.repository_dir), lambda _: (action(), None)[1], operations=["create"], part="/packs/"
    )


@pytest.fixture
def own(maker: ClusterMaker, tmp_path: Path) -> Iterator[tuple[Cluster, Site]]:
    """A cluster and a repository of one's own, for tests that kill the server."""
    cluster, spool = make_cluster(maker)
    site = site_of(cluster, spool, tmp_path / "own")
    site.create()
    cluster.sql("create table orders(id int primary key, at timestamptz default clock_timestamp())")
    insert(cluster, 1, 20)
    yield cluster, site
    cluster.kill9()


def kill_and_start(cluster: Cluster) -> None:
    cluster.kill9()
    cluster.start()


SERVER_FAULTS: dict[str, Callable[[Cluster], None]] = {
    "killed": Cluster.kill9,
    "killed and started": kill_and_start,
    "restarted": Cluster.restart,
}


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_a_server_that_goes_down_during_a_backup_leaves_no_snapshot(own: tuple[Cluster, Site], fault: str) -> None:
    cluster, site = own
    store = at_first_pack(site, lambda: SERVER_FAULTS[fault](cluster))
    with store, pytest.raises((CaptureError, PostgresUnreachableError)):
        site.backup(store)
    site.require_sound(snapshots=0)
    if cluster.process is None:
        cluster.start()
    result = site.backup()
    assert result.record.stored_bytes < result.record.source_bytes / 20, "the packs of the broken run are re-used"
    site.require_sound(snapshots=1)
    assert site.restored_ids(LATEST) == list(range(1, 21))


def test_a_backup_session_that_is_terminated_leaves_no_snapshot(world: World, site: Site) -> None:
    def terminate() -> None:
        ended = world.cluster.sql(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'drservice backup'"
        )
        assert ended == [(True,)]

    with at_first_pack(site, terminate) as store, pytest.raises((CaptureError, PostgresUnreachableError)):
        site.backup(store)
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


def test_a_pg_basebackup_that_is_terminated_leaves_no_snapshot(world: World, site: Site) -> None:
    site.method = CaptureMethod.PG_BASEBACKUP
    fired: list[object] = []

    class Terminating(Listener):
        def advance(self, amount: int) -> None:
            del amount
            if not fired:
                fired.extend(
                    world.cluster.sql(
                        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                        " where application_name = 'pg_basebackup'"
                    )
                )

    with pytest.raises((CaptureError, PostgresError)):
        site.backup(progress=Terminating())
    assert fired == [(True,)]
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


def test_a_server_that_is_down_is_unreachable(own: tuple[Cluster, Site]) -> None:
    cluster, site = own
    cluster.stop()
    with pytest.raises(DrError) as caught:
        site.backup()
    assert caught.value.exit_status is ExitStatus.UNREACHABLE
    site.require_sound(snapshots=0)


def test_wal_that_never_reaches_the_store_leaves_no_snapshot(site: Site) -> None:
    site.archive_wait = type(site.archive_wait)(seconds=1)
    with pytest.raises(WalTimeoutError) as caught:
        site.backup(archive=False)
    assert "archiver" in caught.value.message
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


def test_two_backups_at_once_on_one_host_make_one_snapshot(site: Site) -> None:
    refused: list[DrError] = []

    def second() -> None:
        with pytest.raises(BusyError) as caught:
            site.backup(archive=False)
        refused.append(caught.value)

    with at_first_pack(site, second) as store:
        site.backup(store)
    assert refused[0].exit_status is ExitStatus.BUSY
    site.require_sound(snapshots=3)
    site.backup()  # the lock is free again
    site.require_sound(snapshots=4)


def kill_server_inside(site: Site) -> None:
    """Kill the postmaster in the only sandbox that runs."""
    (running,) = list_sandboxes(site.environments_dir)
    state = json.loads((running.path / "keeper" / "state.json").read_text())
    os.kill(state["server"]["pid"], signal.SIGKILL)


def test_a_server_that_dies_in_the_replay_fails_the_restore_and_leaves_no_environment(site: Site) -> None:
    # The server asks for the next history file when it begins to recover, and waits for the answer.
    with (
        TriggerStore(
            DirectoryStore(site.repository_dir),
            lambda _: kill_server_inside(site),
            operations=["list"],
            part=".history",
        ) as store,
        pytest.raises(ReplayError),
    ):
        site.restore(LATEST, store)
    site.require_never_promoted()
    site.require_sound(snapshots=2)
    empty(site.target_dir)
    assert site.restored_ids(LATEST) == ALL_IDS


@pytest.mark.long  # longer than the server inside waits for a sign of life
def test_a_store_that_is_away_for_longer_than_the_servers_patience_does_not_spoil_the_replay(site: Site) -> None:
    store = TriggerStore(
        DirectoryStore(site.repository_dir), lambda _: time.sleep(25), operations=["list"], part=".history"
    )
    with store:
        assert site.restored_ids(LATEST, store) == ALL_IDS


def test_a_server_that_dies_after_the_replay_is_not_proven(site: Site) -> None:
    listener = Listener(on_step=lambda step: kill_server_inside(site) if step == "prove the target" else None)
    with pytest.raises(DrError):
        site.restore(LATEST, progress=listener)
    assert listener.steps[-1] == "prove the target"
    site.require_no_environment()


def stop(_: str = "") -> NoReturn:
    raise StoppedError("stopped by SIGTERM")


@pytest.mark.parametrize(
    "step", ["plan", "isolation self-test", "fetch and place", "make durable", "replay WAL", "prove the target"]
)
def test_a_restore_stopped_by_a_signal_at_any_step_leaves_no_environment(site: Site, step: str) -> None:
    listener = Listener(on_step=lambda name: stop() if name == step else None)
    with pytest.raises(StoppedError):
        site.restore(LATEST, progress=listener)
    site.require_no_environment()
    assert not (site.target_dir / "postmaster.pid").exists()
    assert threading.active_count() < 8, "no feeder is left"


@pytest.mark.parametrize("part", ["/packs/", "/nodes/", "/snapshots/"])
def test_a_backup_stopped_by_a_signal_leaves_no_snapshot_and_no_session(world: World, site: Site, part: str) -> None:
    store = TriggerStore(DirectoryStore(site.repository_dir), stop, operations=["create"], part=part)
    with store, pytest.raises(StoppedError):
        site.backup(store)
    deadline = time.monotonic() + 5
    while world.cluster.value("select count(*) from pg_stat_activity where application_name like 'drservice backup%'"):
        assert time.monotonic() < deadline, "the backup session is still open"
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)
