"""Keeper and reaper: who may die without taking the sandbox along, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from drservice import processes
from drservice.clock import SystemClock
from drservice.environments import bubblewrap, folder, keeper, proc, seccomp
from drservice.environments.interface import EnvironmentState
from drservice.environments.limits import Limits
from drservice.environments.sandbox import Sandbox, list_sandboxes, open_sandbox, reap
from drservice.errors import EnvironmentFailedError
from drservice.model.ids import make_ulid
from tests.contract.env_fixtures import (
    assert_nothing_left,
    eventually,
    init_cluster,
    make_sandbox,
    postgres_argv,
    ready,
    root_of,
)

_CALLER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests.contract.env_fixtures import make_sandbox, root_of
sandbox = make_sandbox(Path({environments!r}))
if {starts!r}:
    sandbox.start(["sleep", "600"])
print(root_of(sandbox), flush=True)
time.sleep(600)
"""


@pytest.fixture
def environments(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "environments"
    yield path
    for root in folder.folders(path):
        if (root / folder.DESCRIPTION).exists():
            open_sandbox(root).destroy()


@pytest.fixture
def running(environments: Path) -> Sandbox:
    sandbox = make_sandbox(environments)
    sandbox.start(["sleep", "600"])
    return sandbox


def killed_caller(environments: Path, *, starts: bool) -> Path:
    """Let another process prepare (and start) a sandbox, kill -9 it, and return the sandbox's folder."""
    script = _CALLER.format(repository=str(Path(__file__).parents[2]), environments=str(environments), starts=starts)
    caller = processes.start(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert caller.stdout is not None
    with caller.stdout:
        root = Path(caller.stdout.readline().decode().strip())
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
    return root


def keeper_of(root: Path) -> proc.ProcessIdentity:
    noted = json.loads((root / "keeper" / keeper.STATE).read_text(encoding="utf-8"))
    return proc.ProcessIdentity(**noted["keeper"])


def test_a_killed_caller_leaves_the_server_running_and_listed(environments: Path) -> None:
    root = killed_caller(environments, starts=True)
    (about,) = list_sandboxes(environments)
    assert about.path == root
    assert about.state is EnvironmentState.RUNNING
    assert reap(environments, SystemClock()) == []
    open_sandbox(root).destroy()
    assert_nothing_left(root)


def test_a_caller_killed_before_the_start_leaves_work_for_the_reaper(environments: Path) -> None:
    root = killed_caller(environments, starts=False)
    (about,) = list_sandboxes(environments)
    assert about.state is EnvironmentState.DEAD
    assert reap(environments, SystemClock()) == [about.id]
    assert_nothing_left(root)


def test_a_killed_keeper_takes_everything_inside_along(running: Sandbox, environments: Path) -> None:
    root = root_of(running)
    assert proc.processes_of(root) != []
    assert proc.send_signal(keeper_of(root), signal.SIGKILL)
    eventually(lambda: proc.processes_of(root) == [], seconds=5)
    assert not running.running()
    assert running.exit_status() == 128 + signal.SIGKILL
    assert running.describe().state is EnvironmentState.DEAD
    assert reap(environments, SystemClock()) == [running.id]
    assert_nothing_left(root)


def test_an_expired_environment_is_reaped_and_a_young_one_is_not(environments: Path) -> None:
    old = make_sandbox(environments, lives=timedelta(seconds=-1))
    young = make_sandbox(environments)
    old.start(["sleep", "600"])
    root = root_of(old)
    assert reap(environments, SystemClock()) == [old.id]
    assert_nothing_left(root)
    assert [about.id for about in list_sandboxes(environments)] == [young.id]


def test_a_recycled_pid_is_never_killed(running: Sandbox) -> None:
    root = root_of(running)
    bystander = processes.start(["sleep", "600"])
    try:
        true_keeper = keeper_of(root)
        identity = proc.identity_of(bystander.pid)
        assert identity is not None
        forged = {"pid": identity.pid, "start_ticks": identity.start_ticks - 1, "boot_id": identity.boot_id}
        (root / "keeper" / keeper.STATE).write_text(json.dumps({"keeper": forged}), encoding="utf-8")
        running.destroy()
        assert bystander.poll() is None
        assert not proc.is_alive(true_keeper)
    finally:
        bystander.kill()
        bystander.wait()


def test_an_orphaned_program_inside_is_found_and_killed(running: Sandbox) -> None:
    """A psql of a caller that crashed: no keeper knows it."""
    root = root_of(running)
    descriptor = seccomp.open_filter()
    argv = running._run_argv(["/usr/bin/sleep", "600"], filter_descriptor=descriptor)
    argv.remove("--die-with-parent")
    orphan = processes.start(argv, pass_fds=(descriptor,))
    os.close(descriptor)
    try:
        eventually(lambda: len(proc.processes_of(root)) >= 5)
        running.destroy()
        assert_nothing_left(root)
    finally:
        orphan.kill()
        orphan.wait()


def test_what_a_crash_left_of_preparing_and_removing_is_reaped(environments: Path) -> None:
    environments.mkdir()
    long_ago = SystemClock().now() - timedelta(hours=1)
    half_made = environments / f"{folder.NEW_PREFIX}{make_ulid(long_ago, bytes(10))}"
    just_begun = environments / f"{folder.NEW_PREFIX}{make_ulid(SystemClock().now(), bytes(10))}"
    half_gone = environments / make_ulid(long_ago, bytes(9) + b"1")
    foreign = environments / "notes"
    for path in (half_made, just_begun, half_gone, foreign):
        path.mkdir()
    assert len(reap(environments, SystemClock())) == 2
    assert sorted(environments.iterdir()) == sorted([just_begun, foreign])


def test_a_folder_that_cannot_be_understood_is_named_and_does_not_save_the_others(environments: Path) -> None:
    damaged = environments / make_ulid(SystemClock().now(), bytes(10))
    old = make_sandbox(environments, lives=timedelta(seconds=-1))
    damaged.mkdir()
    (damaged / folder.DESCRIPTION).write_text("{}", encoding="utf-8")
    with pytest.raises(EnvironmentFailedError, match=damaged.name):
        reap(environments, SystemClock())
    assert not (environments / old.id).exists()
    (damaged / folder.DESCRIPTION).unlink()


def test_a_data_directory_elsewhere_outlives_its_environment(environments: Path, tmp_path: Path) -> None:
    data = tmp_path / "restored"
    sandbox = make_sandbox(environments, data_directory=data)
    root = root_of(sandbox)
    init_cluster(sandbox)
    sandbox.start(postgres_argv())
    eventually(lambda: ready(sandbox))
    sandbox.destroy()
    assert_nothing_left(root)
    assert (data / "PG_VERSION").read_text(encoding="ascii").strip() == "15"
    assert not (data / "postmaster.pid").exists(), "it was shut down in an orderly way"


def test_a_long_path_gets_a_short_socket_folder(tmp_path: Path) -> None:
    environments = tmp_path / ("long-" * 18)
    sandbox = make_sandbox(environments)
    root = root_of(sandbox)
    sock = Path(sandbox.dsn.split("'")[1])
    try:
        assert len(str(root / "sock" / ".s.PGSQL.5432")) > 107
        assert len(str(sock / ".s.PGSQL.5432")) <= 107
        init_cluster(sandbox)
        sandbox.start(postgres_argv())
        eventually(lambda: ready(sandbox))
        sandbox.require_own_socket()
    finally:
        sandbox.destroy()
    assert_nothing_left(root)
    assert not sock.exists()


def test_limits_hold_inside(environments: Path) -> None:
    limits = Limits(memory_bytes=200 << 20, processes=12, open_files=64, niceness=7)
    sandbox = make_sandbox(environments, limits=limits)
    shown = sandbox.execute(
        ["sh", "-c", "ulimit -n; ulimit -d; nice; df -B1 --output=size /dev/shm"], timeout_seconds=5
    )
    assert shown.stdout.split()[:3] == [b"64", b"204800", str(min(19, os.nice(0) + 7)).encode()]
    assert int(shown.stdout.split()[-1]) == 200 << 20
    greedy = sandbox.execute(["perl", "-e", "my $x = 'x' x (400 << 20); print length $x"], timeout_seconds=20)
    assert greedy.status != 0
    forks = sandbox.execute(
        ["perl", "-e", "for (1..40) { my $p = fork; die qq(refused\\n) if !defined $p; if (!$p) { sleep 5; exit } }"],
        timeout_seconds=20,
    )
    assert b"refused" in forks.stderr


def test_a_sandbox_that_cannot_be_made_says_why(running: Sandbox) -> None:
    running.stop()
    (root_of(running) / "log").rmdir()
    with pytest.raises(EnvironmentFailedError, match="Can't find source path"):
        running.start(["sleep", "600"])
    assert not running.running()


def test_keeper_and_command_line_agree_on_the_descriptor() -> None:
    assert keeper._STARTED_DESCRIPTOR == bubblewrap.STARTED_DESCRIPTOR
    assert keeper._FILTER_DESCRIPTOR == bubblewrap.FILTER_DESCRIPTOR


def test_the_keeper_shuts_the_server_down_when_the_machine_asks_it_to_end(running: Sandbox) -> None:
    proc.send_signal(keeper_of(root_of(running)), signal.SIGTERM)
    eventually(lambda: running.exit_status() == 128 + signal.SIGINT)
    assert running.describe().state is EnvironmentState.STOPPED
