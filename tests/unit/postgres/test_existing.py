"""Which directories may be restored onto: of the same cluster, one's own, and without a server; any doubt refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drservice.components.postgres import existing
from drservice.components.postgres.existing import UNPROVEN, examine, require_stopped, set_aside
from drservice.errors import ServerRunningError, TargetDirectoryError
from drservice.model.ids import SystemId
from drservice.processes import account_named
from tests.unit.postgres.test_controlfile import control_bytes

CLUSTER = SystemId("18000000000000000001")
OTHER = SystemId("18000000000000000002")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as far as it is looked at, whose owner is PostgreSQL's where root looks."""
    folder = tmp_path / "data"
    (folder / "global").mkdir(parents=True)
    (folder / "PG_VERSION").write_text("15\n")
    (folder / "global/pg_control").write_bytes(control_bytes(15))
    if os.geteuid() == 0:
        account = account_named("postgres")
        for path in (folder, folder / "global"):
            os.chown(path, account.uid, account.gid)
    return folder


def refused(data: Path, *words: str, system_id: SystemId = CLUSTER) -> None:
    before = sorted(str(path) for path in data.rglob("*"))
    with pytest.raises(TargetDirectoryError) as caught:
        examine(data, system_id=system_id)
    for word in words:
        assert word in caught.value.message
    assert sorted(str(path) for path in data.rglob("*")) == before


def test_a_data_directory_of_the_same_cluster_may_be_restored_onto(data: Path) -> None:
    found = examine(data, system_id=CLUSTER)
    assert found is not None
    assert (found.path, found.inode) == (data, data.stat().st_ino)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_new_or_empty_directory_is_nothing_to_restore_onto(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert examine(tmp_path / name, system_id=CLUSTER) is None


def test_one_whose_pg_control_an_earlier_restore_set_aside_is_recognised(data: Path) -> None:
    (data / "global/pg_control").rename(data / "global" / UNPROVEN)
    assert examine(data, system_id=CLUSTER) is not None


def test_what_an_interrupted_restore_of_the_same_cluster_left_is_recognised(data: Path) -> None:
    for path in (data / "PG_VERSION", data / "global/pg_control"):
        path.unlink()
    (data / "RESTORE-INCOMPLETE").write_text(f"{OTHER}\n")
    refused(data, "no data directory")
    (data / "RESTORE-INCOMPLETE").write_text(f"{CLUSTER}\n")
    assert examine(data, system_id=CLUSTER) is not None


def test_other_clusters_and_other_folders_are_refused(data: Path) -> None:
    refused(data, f"of the cluster {CLUSTER}", OTHER, system_id=OTHER)
    (data / "global" / UNPROVEN).write_bytes(b"junk")
    assert examine(data, system_id=CLUSTER) is not None
    (data / "global/pg_control").write_bytes(b"junk")
    refused(data, "without a readable pg_control")
    (data / "PG_VERSION").write_text("no number\n")
    refused(data, "is not empty and no data directory")


def exchange_folder(data: Path) -> None:
    kept = data.rename(data.with_name("kept"))
    data.symlink_to(kept)


def exchange_control(data: Path) -> None:
    (data / "global/pg_control").rename(data / "control")
    (data / "global/pg_control").symlink_to(data / "control")


def exchange_version(data: Path) -> None:
    (data / "PG_VERSION").unlink()
    os.mkfifo(data / "PG_VERSION")


@pytest.mark.parametrize("exchange", [exchange_folder, exchange_control, exchange_version])
def test_links_and_pipes_are_not_read(data: Path, exchange: Callable[[Path], None]) -> None:
    exchange(data)
    refused(data)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
def test_a_directory_that_root_owns_is_refused(data: Path) -> None:
    os.chown(data, 0, 0)
    refused(data, "belongs to user 0")


# --- servers ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a server's name that works in the directory."""
    program = tmp_path / "postgres"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"], cwd=data)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{process.pid}/comm").read_text() != "postgres\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def stopped(data: Path) -> None:
    descriptor = os.open(data, os.O_RDONLY)
    try:
        require_stopped(data, descriptor)
    finally:
        os.close(descriptor)


def test_a_server_is_found_without_its_pid_file(data: Path, server: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ServerRunningError, match=f"process {server.pid}"):
        examine(data, system_id=CLUSTER)


def test_a_shell_that_stands_in_the_directory_is_no_server(data: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], cwd=data)
    try:
        stopped(data)
    finally:
        process.kill()
        process.wait()


def test_a_pid_file_of_a_process_that_has_ended_or_works_elsewhere_is_stale(data: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        (data / "postmaster.pid").write_text(f"{process.pid}\n{data}\n")
        stopped(data)
    finally:
        process.kill()
        process.wait()
    stopped(data)


def test_a_process_of_the_pid_file_that_cannot_be_looked_at_counts_as_a_server(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "postmaster.pid").write_text("1\n")
    real = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(path) == "/proc/1/cwd":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ServerRunningError, match=r"process 1, which the postmaster\.pid"):
        stopped(data)


def test_a_pid_file_that_cannot_be_read_refuses(data: Path) -> None:
    (data / "postmaster.pid").write_text("junk\n")
    with pytest.raises(ServerRunningError, match="cannot be read"):
        stopped(data)


def test_shared_memory_that_somebody_uses_refuses(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "key shmid perms size cpid lpid nattch uid\n 5432001 7 600 56 1 1 {} 104\n"
    real = Path.read_bytes
    users = 2
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda path: table.format(users).encode() if str(path) == "/proc/sysvipc/shm" else real(path),
    )
    (data / "postmaster.pid").write_text(f"4000001\n{data}\n0\n5432\n/tmp\n*\n  5432001         7\nready\n")
    with pytest.raises(ServerRunningError, match="share its memory"):
        stopped(data)
    users = 0
    stopped(data)


# --- setting pg_control aside -------------------------------------------------------------------------------


def test_pg_control_is_set_aside_and_that_can_be_repeated(data: Path) -> None:
    found = examine(data, system_id=CLUSTER)
    assert found is not None
    set_aside(found)
    set_aside(found)
    assert sorted(path.name for path in (data / "global").iterdir()) == [UNPROVEN]


def test_a_server_that_started_meanwhile_gets_its_pg_control_back(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(data, system_id=CLUSTER)
    assert found is not None

    def running(path: Path, _: int) -> None:
        assert not (data / "global/pg_control").exists()
        raise ServerRunningError(f"a server runs on {path}")

    monkeypatch.setattr(existing, "require_stopped", running)
    with pytest.raises(ServerRunningError):
        set_aside(found)
    assert (data / "global/pg_control").read_bytes() == control_bytes(15)


def test_another_directory_of_that_name_is_refused(data: Path) -> None:
    found = examine(data, system_id=CLUSTER)
    assert found is not None
    data.rename(data.with_name("kept"))
    (data / "global").mkdir(parents=True)
    with pytest.raises(TargetDirectoryError, match="another directory"):
        set_aside(found)
