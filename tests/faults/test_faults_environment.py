"""Whoever is killed, and wherever: the reaper leaves no process, mount, namespace, folder, cgroup or loop device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.environments import keeper, proc
from drservice.environments.interface import EnvironmentState
from drservice.environments.sandbox import Sandbox, list_sandboxes, open_sandbox, reap
from tests.contract.env_census import Census, holders_of, namespaces_of, take_census
from tests.contract.env_fixtures import (
    POSTGRES_BIN,
    eventually,
    init_cluster,
    make_sandbox,
    postgres_argv,
    ready,
    root_of,
)
from tests.doubles.clock import ManualClock

_CHANGING = {
    "os.mkdir", "os.rename", "os.chmod", "os.chown", "os.symlink", "os.remove", "os.rmdir", "os.kill", "os.fork",
    "subprocess.Popen", "shutil.rmtree", "signal.pthread_kill",
}  # fmt: skip
"""Audit events (docs.python.org/3/library/audit_events.html) of calls that change something outside."""


@pytest.fixture
def environments() -> Iterator[Path]:
    """A short path, so that the socket lies within the folder."""
    base = Path(tempfile.mkdtemp(prefix="drs-env-"))
    base.chmod(0o711)
    yield base / "e"
    if (base / "e").exists():
        for about in list_sandboxes(base / "e"):
            open_sandbox(about.path).destroy()
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster's files, made once."""
    base = tmp_path_factory.mktemp("template")
    sandbox = make_sandbox(base / "e")
    init_cluster(sandbox)
    yield sandbox.data
    sandbox.destroy()


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a process that kills itself before its ``step``-th change; False if it got to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in _CHANGING:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def reap_all(environments: Path) -> None:
    """Reap twice: what has its name now, what has no name yet when it is old."""
    reap(environments, SystemClock())
    assert list_sandboxes(environments) == []
    reap(environments, ManualClock(SystemClock().now() + timedelta(minutes=30)))


def assert_no_more(environments: Path, before: Census, ids: set[str]) -> None:
    eventually(lambda: not take_census(environments, ids).more_than(before), seconds=5)


def assert_gone(namespaces: frozenset[str]) -> None:
    eventually(lambda: holders_of(namespaces) == [], seconds=5)


def run_keeper(root: Path) -> Callable[[], object]:
    return lambda: keeper.main([str(root)])


def await_end(sandbox: Sandbox) -> None:
    eventually(lambda: not sandbox.running())


def start_postgresql(environments: Path, template: Path) -> Sandbox:
    sandbox = make_sandbox(environments)
    subprocess.run(["cp", "-a", f"{template}/.", str(sandbox.data)], check=True)
    sandbox.start(postgres_argv())
    eventually(lambda: ready(sandbox))
    return sandbox


def end_by_destroy(sandbox: Sandbox, environments: Path) -> None:
    assert root_of(sandbox).parent == environments
    sandbox.destroy()


def end_by_keepers_death(sandbox: Sandbox, environments: Path) -> None:
    kill_noted(sandbox, "keeper")
    eventually(lambda: sandbox.describe().state is EnvironmentState.DEAD)
    assert reap(environments, SystemClock()) == [sandbox.id]


def end_by_servers_death(sandbox: Sandbox, environments: Path) -> None:
    assert root_of(sandbox).parent == environments
    kill_noted(sandbox, "server")
    eventually(lambda: sandbox.exit_status() is not None)
    assert sandbox.exit_status() == 128 + signal.SIGKILL
    sandbox.destroy()


def end_by_expiry(sandbox: Sandbox, environments: Path) -> None:
    assert reap(environments, ManualClock(SystemClock().now() + timedelta(hours=2))) == [sandbox.id]


def kill_noted(sandbox: Sandbox, who: str) -> None:
    noted = json.loads((root_of(sandbox) / "keeper" / keeper.STATE).read_text(encoding="utf-8"))
    assert proc.send_signal(proc.ProcessIdentity(**noted[who]), signal.SIGKILL)


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.long)])
def test_environments_in_a_row_leave_nothing_however_they_end(environments: Path, template: Path, rounds: int) -> None:
    before = take_census(environments)
    ends = (end_by_destroy, end_by_keepers_death, end_by_servers_death, end_by_expiry)
    ids: set[str] = set()
    for number in range(rounds):
        sandbox = start_postgresql(environments, template)
        ids.add(sandbox.id)
        root = root_of(sandbox)
        inside = namespaces_of(root)
        assert {name.split(":")[0] for name in inside} >= {"net", "pid", "mnt", "ipc", "uts"}
        grown = take_census(environments, ids).more_than(before)
        assert {"processes", "folders"} <= set(grown), "the census sees what is there"
        ends[number % len(ends)](sandbox, environments)
        assert_no_more(environments, before, ids)
        assert_gone(inside)
    assert len(ids) == rounds


@pytest.mark.long
def test_a_kill_in_the_middle_of_making_leaves_nothing(environments: Path) -> None:
    before = take_census(environments)
    steps = 0
    while killed_at(steps + 1, lambda: make_sandbox(environments)):
        steps += 1
        reap_all(environments)
        assert_no_more(environments, before, set())
    assert steps > 30
    reap_all(environments)
    assert_no_more(environments, before, set())


@pytest.mark.long
def test_a_kill_in_the_middle_of_starting_leaves_nothing(environments: Path) -> None:
    """The caller dies at each of its changes; after the last the server runs without it."""
    before = take_census(environments)
    steps = 0
    ids: set[str] = set()

    def begin() -> None:
        make_sandbox(environments).start(["sleep", "600"])

    while killed_at(steps + 1, begin):
        steps += 1
        ids.update(about.id for about in list_sandboxes(environments))
        eventually(lambda: _settled(environments))
        for about in list_sandboxes(environments):
            open_sandbox(about.path).destroy()
        reap_all(environments)
        assert_no_more(environments, before, ids)
    (about,) = list_sandboxes(environments)
    assert about.state is EnvironmentState.RUNNING
    open_sandbox(about.path).destroy()
    assert_no_more(environments, before, ids)


def test_a_keeper_killed_at_any_of_its_steps_takes_everything_along(environments: Path) -> None:
    before = take_census(environments)
    started = 0
    step = 0
    while started < 3:
        step += 1
        sandbox = make_sandbox(environments)
        root = root_of(sandbox)
        launch = {
            "argv": sandbox._run_argv(["/bin/sh", "-c", "printf s >&9; exec 9>&-; exec sleep 600"]),
            "bounds": keeper_bounds(sandbox),
        }
        keeper.write_durably(root / "keeper" / keeper.LAUNCH, launch)
        killed_at(step, run_keeper(root))
        started += "server" in _state(root)
        await_end(sandbox)
        assert sandbox.exit_status() in {None, 128 + signal.SIGKILL}
        sandbox.destroy()
        assert_no_more(environments, before, {sandbox.id})
    assert step > 6


def test_a_kill_in_the_middle_of_removing_leaves_nothing(environments: Path) -> None:
    before = take_census(environments)
    steps = 0
    while True:
        sandbox = make_sandbox(environments)
        sandbox.start(["sh", "-c", "mkdir -p /env/data/a/b; sleep 600"])
        if not killed_at(steps + 1, sandbox.destroy):
            break
        steps += 1
        # The maker lives: only what was begun and not finished tells the reaper.
        eventually(lambda: not list_sandboxes(environments) or bool(reap(environments, SystemClock())))
        reap_all(environments)
        assert_no_more(environments, before, {sandbox.id})
    assert steps > 5
    assert_no_more(environments, before, {sandbox.id})


def test_two_environments_at_once_do_not_disturb_each_other(environments: Path, template: Path) -> None:
    first, second = (start_postgresql(environments, template) for _ in range(2))
    assert not namespaces_of(root_of(first)) & namespaces_of(root_of(second))
    for sandbox, name in ((first, "one"), (second, "two")):
        assert (
            ask(sandbox, f"create table {name} (); select count(*) from pg_class where relname in ('one', 'two')")
            == "1"
        )
    kill_noted(first, "keeper")
    eventually(lambda: reap(environments, SystemClock()) == [first.id])
    assert ask(second, "select 'alive'") == "alive"
    second.destroy()


def keeper_bounds(sandbox: Sandbox) -> dict[str, object]:
    bounds = sandbox._bounds()
    return {name: getattr(bounds, name) for name in bounds.__slots__}


def ask(sandbox: Sandbox, sql: str) -> str:
    finished = sandbox.execute(
        [f"{POSTGRES_BIN}/psql", "-XAtq", "-h", "/env/sock", "-U", "postgres", "-c", sql], timeout_seconds=20
    )
    assert finished.status == 0, finished
    return finished.stdout.decode().strip()


def _settled(environments: Path) -> bool:
    """Whether no keeper is still on its way: after the caller's death it goes on by itself."""
    return all(
        "keeper" not in _state(about.path) or about.state is not EnvironmentState.STOPPED
        for about in list_sandboxes(environments)
    )


def _state(root: Path) -> dict[str, object]:
    try:
        value = json.loads((root / "keeper" / keeper.STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    assert isinstance(value, dict)
    return value
