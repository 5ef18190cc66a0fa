"""Restores onto a directory that holds something: killed, without room, full of traps, in use, or the wrong one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.components.postgres.server import find_programs
from drservice.environments.sandbox import list_sandboxes, reap
from drservice.errors import ExitStatus, RecoveryError, ServerRunningError, TargetDirectoryError
from drservice.processes import server_account
from tests.doubles.clock import ManualClock
from tests.doubles.cluster import ClusterMaker
from tests.faults.doomed import Doom, run_doomed
from tests.faults.test_faults_space import small_disk, used_kibibytes
from tests.faults.world import LATEST, Site, World, end_of

ALL_IDS = list(range(1, 501))
KILLED = -9


@pytest.fixture(scope="module")
def restored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that was restored to the end of the older snapshot and belongs to PostgreSQL's user."""
    site = world.site(tmp_path_factory.mktemp("delta") / "site")
    site.restore(end_of(world.older))
    return site.target_dir


@pytest.fixture
def filled(site: Site, restored: Path) -> Site:
    """A site whose target holds the older snapshot."""
    subprocess.run(["cp", "-a", str(restored), str(site.target_dir)], check=True)
    return site


Started = Callable[[Site], subprocess.CompletedProcess[bytes]]


@pytest.fixture
def start(maker: ClusterMaker) -> Started:
    """Have PostgreSQL itself start a copy of the target, in a place where its user may reach it, and ask for orders."""

    def start_single(site: Site) -> subprocess.CompletedProcess[bytes]:
        place = maker.folder("delta") / "data"
        subprocess.run(["cp", "-a", str(site.target_dir), str(place)], check=True)
        account = server_account(place)
        drop = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"] if account else []
        single = [str(find_programs(15).path("postgres")), "--single", "-c", "archive_mode=off", "-D", str(place)]
        query = b"select id from orders order by id\n"
        return subprocess.run(
            [*drop, *single, "postgres"], input=query, capture_output=True, check=False, cwd="/", timeout=60
        )

    return start_single


def ids(started: subprocess.CompletedProcess[bytes]) -> list[int]:
    assert started.returncode == 0, started.stderr
    return [int(number) for number in re.findall(rb' 1: .*= "(\d+)"', started.stdout)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_a_delta_restore_fetches_what_differs_and_reaches_the_target(filled: Site, start: Started) -> None:
    (filled.target_dir / "base" / "77777").mkdir()  # a database that the snapshot does not know
    whole = filled.copy(filled.root.with_name("whole"))
    shutil.rmtree(whole.target_dir)
    fresh = whole.restore(LATEST)
    result = filled.restore(LATEST, delta=True)
    assert result.reached.lsn == fresh.reached.lsn
    assert result.fetched_bytes < fresh.fetched_bytes / 3
    assert not (filled.target_dir / "base" / "77777").exists()
    assert not (filled.target_dir / "RESTORE-INCOMPLETE").exists()
    assert ids(start(filled)) == ALL_IDS


# The first two reads of a pack are of pg_control, before anything is changed.
STAGES = {
    "before the first change": (Doom(verb="restore", delta=True, step="fetch and place"), True),
    "fetching a pack": (Doom(verb="restore", delta=True, operations=["read"], part="/packs/", at=3), False),
    "before pg_control": (Doom(verb="restore", delta=True, step="make durable"), False),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_delta_restore_killed_at_any_stage_is_refused_by_postgresql_and_completed_by_the_next(
    filled: Site, start: Started, stage: str
) -> None:
    doom, is_whole = STAGES[stage]
    assert run_doomed(filled, doom) == KILLED
    reap(filled.environments_dir, ManualClock(SystemClock().now() + timedelta(days=1)))
    assert (filled.target_dir / "global" / "pg_control").exists() is is_whole
    if not is_whole:
        refused = start(filled)
        assert refused.returncode != 0
        assert b"pg_control" in refused.stderr
    filled.restore(LATEST, delta=True)
    assert ids(start(filled)) == ALL_IDS


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_delta_restore_killed_at_every_single_call_is_completed_by_the_next(
    filled: Site, restored: Path, start: Started, when: str
) -> None:
    at = 1
    while run_doomed(filled, Doom(verb="restore", delta=True, at=at, when=when)) == KILLED:
        reap(filled.environments_dir, ManualClock(SystemClock().now() + timedelta(days=1)))
        filled.restore(LATEST, delta=True)
        assert ids(start(filled)) == ALL_IDS
        shutil.rmtree(filled.target_dir)
        subprocess.run(["cp", "-a", str(restored), str(filled.target_dir)], check=True)
        at += 3
    assert at > 10


def test_a_killed_restore_into_a_new_directory_is_completed_with_delta(site: Site, start: Started) -> None:
    assert run_doomed(site, Doom(verb="restore", operations=["read"], part="/packs/", at=3)) == KILLED
    reap(site.environments_dir, ManualClock(SystemClock().now() + timedelta(days=1)))
    with pytest.raises(TargetDirectoryError):
        site.restore(LATEST)
    site.restore(LATEST, delta=True)
    assert ids(start(site)) == ALL_IDS


def test_delta_onto_a_directory_with_planted_symlinks_writes_nowhere_else(
    filled: Site, start: Started, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("pg_control", "PG_VERSION", "recovery.signal", "backup_label", "postgresql.auto.conf"):
        (victim / name).write_bytes(b"precious")
    victim.chmod(0o777)
    before = content(victim)
    data = filled.target_dir
    for name in ("PG_VERSION", "postgresql.auto.conf"):
        (data / name).unlink()
    (data / "PG_VERSION").write_text("15\n")
    (data / "postgresql.auto.conf").symlink_to(victim / "postgresql.auto.conf")
    for name in ("recovery.signal", "backup_label", "global/pg_control.drservice", "global/pg_control.unproven"):
        (data / name).unlink(missing_ok=True)
        (data / name).symlink_to(victim / Path(name).name)
    shutil.rmtree(data / "pg_wal")
    (data / "pg_wal").symlink_to(victim)
    shutil.rmtree(data / "base")
    (data / "base").symlink_to(victim)
    os.mkfifo(data / "global" / "0")
    (data / "pg_tblspc" / "99").symlink_to(victim)
    filled.restore(LATEST, delta=True)
    assert content(victim) == before
    assert not (data / "base").is_symlink()
    assert ids(start(filled)) == ALL_IDS


def test_a_delta_restore_that_fails_before_its_first_change_leaves_a_directory_that_starts(
    filled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(filled.target_dir)

    def leaks(*_: object, **__: object) -> None:
        raise RecoveryError("as if the sandbox leaked")

    monkeypatch.setattr("drservice.operations.restore.require_isolated", leaks)
    with pytest.raises(RecoveryError, match="as if"):
        filled.restore(LATEST, delta=True)
    assert content(filled.target_dir) == before
    assert list_sandboxes(filled.environments_dir) == []


def test_delta_onto_a_running_server_is_refused_and_changes_nothing(site: Site, world: World) -> None:
    with pytest.raises(ServerRunningError) as caught:
        site.restore(LATEST, into=world.cluster.data, delta=True)
    assert caught.value.exit_status is ExitStatus.USAGE
    assert world.cluster.value("select count(*) from orders") == len(ALL_IDS)
    assert (world.cluster.data / "global" / "pg_control").exists()


def test_delta_onto_anything_but_this_cluster_is_refused_and_changes_nothing(site: Site) -> None:
    site.target_dir.mkdir()
    account = server_account()
    if account is not None:
        os.chown(site.target_dir, account.uid, account.gid)
    (site.target_dir / "letters").write_bytes(b"precious")
    with pytest.raises(TargetDirectoryError, match="no data directory"):
        site.restore(LATEST, delta=True)
    assert content(site.target_dir) == {"letters": b"precious"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_delta_restore_without_room_is_refused_before_anything_changes(filled: Site) -> None:
    (filled.target_dir / "base" / "1" / "1259").unlink()
    keep = 3
    for path in sorted((filled.target_dir / "base" / "1").iterdir())[keep:]:
        path.unlink()
    with small_disk(filled.target_dir, kibibytes=used_kibibytes(filled.target_dir) + 64):
        account = server_account()
        assert account is not None
        os.chown(filled.target_dir, account.uid, account.gid)
        before = content(filled.target_dir)
        with pytest.raises(RecoveryError, match="are needed"):
            filled.restore(LATEST, delta=True)
        assert content(filled.target_dir) == before
        assert (filled.target_dir / "global" / "pg_control").exists()
