"""The embedded cluster: started once, found again, shared by processes, and gone when nobody uses it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from drservice import processes
from drservice.catalogue.database import migrate, open_catalogue
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.catalogue.runs import RunRequest, Runs
from drservice.environments import proc
from drservice.errors import CatalogueUnreachableError, ConfigurationError, EmbeddedClusterError, ProgramMissingError
from drservice.model.runs import RunKind

CHILD = """
import sys
from pathlib import Path
from drservice.catalogue.embedded import EmbeddedCluster
cluster = EmbeddedCluster(Path(sys.argv[1]))
print(cluster.start(), flush=True)
sys.stdin.readline()
cluster.stop()
"""


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A folder that the server's user can reach (pytest's own is closed to it); what runs there ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="drs-state-"))
    folder.chmod(0o755)
    yield folder
    for server in servers(folder):
        proc.send_signal(server, signal.SIGQUIT)
    shutil.rmtree(folder)


def servers(state_dir: Path) -> list[proc.ProcessIdentity]:
    running = EmbeddedCluster(state_dir)._postmaster()
    return [running] if running else []


def another_process(state_dir: Path) -> subprocess.Popen[str]:
    """Start the cluster in a process of its own and wait until it has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    """Let the other process stop the cluster and end."""
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def value(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_catalogue_is_made_kept_and_stopped(state_dir: Path) -> None:
    request = RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="anna")
    with EmbeddedCluster(state_dir) as url:
        migrate(url)
        database = open_catalogue(url)
        run = Runs(database).request(request)
        assert value(url, "SHOW listen_addresses") == ""
        assert value(url, "SHOW fsync") == "on"
        database.close()
    assert servers(state_dir) == []
    with pytest.raises(CatalogueUnreachableError):
        open_catalogue(url)
    with EmbeddedCluster(state_dir) as again:
        database = open_catalogue(again)
        assert [known.id for known in Runs(database).list()] == [run]
        database.close()


def test_the_folder_is_closed_to_others_and_no_other_role_gets_in(state_dir: Path) -> None:
    with EmbeddedCluster(state_dir) as url:
        for path in ("catalogue", "catalogue/data", "catalogue/sock"):
            assert (state_dir / path).stat().st_mode & 0o077 == 0
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf"):
            psycopg.connect(url.replace("drservice@", "postgres@"))
        if os.geteuid() == 0:
            nobody = processes.account_named("nobody")
            socket = EmbeddedCluster(state_dir)._sock
            done = processes.run(
                ["psql", "-h", socket, "-U", "drservice", "-c", "SELECT 1", "postgres"], account=nobody
            )
            assert done.status != 0
            (state_dir / "catalogue").chmod(0o711)
            socket.chmod(0o711)
            (socket / ".s.PGSQL.5432").chmod(0o777)
            done = processes.run(
                ["psql", "-h", socket, "-U", "drservice", "-c", "SELECT 1", "postgres"], account=nobody
            )
            assert b"Peer authentication failed" in done.stderr


def test_processes_share_one_server_and_the_last_one_stops_it(state_dir: Path) -> None:
    first, second = another_process(state_dir), another_process(state_dir)
    running = servers(state_dir)
    assert len(running) == 1
    let_go(first)
    assert servers(state_dir) == running
    let_go(second)
    assert servers(state_dir) == []


def test_processes_that_start_at_the_same_moment_start_one_server(state_dir: Path) -> None:
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in starting:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert value(url, "SELECT 1") == 1
    log = (state_dir / "catalogue" / "log").read_text()
    assert "FATAL" not in log.replace("FATAL:  the database system is starting up", "")
    for process in starting:
        let_go(process)
    assert servers(state_dir) == []


def test_a_server_whose_starter_was_killed_is_found_and_stopped_by_the_next(state_dir: Path) -> None:
    process = another_process(state_dir)
    running = servers(state_dir)
    kill(process)
    assert servers(state_dir) == running
    with EmbeddedCluster(state_dir) as url:
        assert servers(state_dir) == running
        assert value(url, "SELECT 1") == 1
    assert servers(state_dir) == []


def test_a_killed_server_comes_back_with_what_was_committed(state_dir: Path) -> None:
    cluster = EmbeddedCluster(state_dir)
    url = cluster.start()
    migrate(url)
    database = open_catalogue(url)
    run = Runs(database).request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="anna"))
    (server,) = servers(state_dir)
    proc.send_signal(server, signal.SIGKILL)
    assert cluster.start() == url
    assert [known.id for known in Runs(database).list()] == [run]
    database.close()
    cluster.stop()
    assert servers(state_dir) == []


@pytest.mark.parametrize("name", ["data/postmaster.pid", "sock/.s.PGSQL.5432.lock"])
def test_a_pid_file_that_names_another_program_does_not_keep_the_server_down(state_dir: Path, name: str) -> None:
    pid_file = state_dir / "catalogue" / name
    with EmbeddedCluster(state_dir) as url:
        content = pid_file.read_text()
    account = processes.server_account(state_dir / "catalogue")
    # The worst case: alive, and of the same user, as a reboot may leave it.
    innocent = processes.start(["sleep", "60"], account=account)
    try:
        pid_file.write_text("\n".join([str(innocent.pid), *content.splitlines()[1:]]) + "\n")
        if account is not None:
            os.chown(pid_file, account.uid, account.gid)
        with EmbeddedCluster(state_dir):
            assert value(url, "SELECT 1") == 1
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_an_initdb_that_was_cut_short_is_done_again(state_dir: Path) -> None:
    with EmbeddedCluster(state_dir):
        pass
    (state_dir / "catalogue" / "data").rename(state_dir / "catalogue" / "data.new")
    (state_dir / "catalogue" / "data.new" / "PG_VERSION").unlink()
    with EmbeddedCluster(state_dir) as url:
        assert value(url, "SELECT 1") == 1
    assert not (state_dir / "catalogue" / "data.new").exists()


@pytest.mark.long
def test_a_start_that_is_killed_at_any_moment_leaves_nothing_that_keeps_the_next_from_starting(state_dir: Path) -> None:
    for delay in (0.3, 0.5, 0.7, 0.9, 1.1, 1.3):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        kill(process)
    with EmbeddedCluster(state_dir) as url:
        assert value(url, "SELECT 1") == 1
    assert servers(state_dir) == []


def test_a_long_state_dir_has_its_socket_elsewhere(state_dir: Path) -> None:
    deep = state_dir / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with EmbeddedCluster(deep) as url:
        assert value(url, "SELECT 1") == 1
        socket = EmbeddedCluster(deep)._sock
        assert not socket.is_relative_to(deep)
    for server in servers(deep):
        proc.send_signal(server, signal.SIGQUIT)
    socket.rmdir()


def test_a_server_that_cannot_start_says_why(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drservice.catalogue.embedded._RETRY_SECONDS", 0.5)
    with EmbeddedCluster(state_dir):
        pass
    (state_dir / "catalogue" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedClusterError, match="pg_control"):
        EmbeddedCluster(state_dir).start()


def test_a_cluster_of_a_version_that_is_not_installed_is_left_alone(state_dir: Path) -> None:
    with EmbeddedCluster(state_dir):
        pass
    version = state_dir / "catalogue" / "data" / "PG_VERSION"
    before = version.read_text()
    version.write_text("13\n")
    with pytest.raises(ProgramMissingError) as raised:
        EmbeddedCluster(state_dir).start()
    assert "drservice rebuild" in raised.value.hint
    version.write_text(before)
    with EmbeddedCluster(state_dir) as url:
        assert value(url, "SELECT 1") == 1


def test_a_link_in_the_place_of_the_lock_is_not_followed(state_dir: Path) -> None:
    (state_dir / "catalogue").mkdir(mode=0o700)
    victim = state_dir / "victim"
    victim.touch()
    (state_dir / "catalogue" / "lock").symlink_to(victim)
    with pytest.raises(ConfigurationError):
        EmbeddedCluster(state_dir).start()


def test_an_ordinary_user_runs_it_without_root(state_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    account = processes.account_named("nobody")
    os.chown(state_dir, account.uid, account.gid)
    source = Path(__file__).resolve().parents[3]
    reachable = processes.run(["test", "-r", source / "drservice" / "errors.py"], account=account).status == 0
    if not reachable:
        pytest.skip("the checkout is closed to other users")
    done = processes.run(
        [sys.executable, "-c", CHILD, state_dir],
        account=account,
        environment=processes.clean_environment({"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}),
        stdin=b"\n",
        timeout_seconds=120,
    )
    assert done.status == 0, done.stderr.decode()
    assert done.stdout.startswith(b"postgresql://")
    assert (state_dir / "catalogue" / "data").stat().st_uid == account.uid
    assert servers(state_dir) == []
