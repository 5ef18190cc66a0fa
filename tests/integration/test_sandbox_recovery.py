"""A real PostgreSQL in recovery inside the sandbox, fed over the exchange folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drservice.environments import exchange
from drservice.environments.exchange import RESTORE_COMMAND, Exchange
from drservice.environments.sandbox import Sandbox
from tests.contract.env_fixtures import POSTGRES_BIN, eventually, init_cluster, make_sandbox, postgres_argv

Answer = Callable[[Exchange, str], None]


@pytest.fixture
def recovering(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = make_sandbox(tmp_path / "environments")
    init_cluster(sandbox)
    sandbox.execute(["touch", "/env/data/recovery.signal"], timeout_seconds=5)
    sandbox.write_configuration(exchange.SCRIPT_NAME, exchange.fetch_script())
    yield sandbox
    sandbox.destroy()


@contextmanager
def feeding(sandbox: Sandbox, answer: Answer, *, asked: list[str]) -> Iterator[None]:
    stop = threading.Event()

    def feed() -> None:
        with Exchange(sandbox.wal) as folder:
            while not stop.wait(0.02):
                folder.beat()
                for name in folder.requests():
                    asked.append(name)
                    answer(folder, name)

    feeder = threading.Thread(target=feed)
    with Exchange(sandbox.wal) as folder:
        folder.clear()
        folder.beat()
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()


def in_recovery(sandbox: Sandbox) -> str:
    finished = sandbox.execute(
        [f"{POSTGRES_BIN}/psql", "-XAt", "-h", "/env/sock", "-U", "postgres", "-c", "select pg_is_in_recovery()"],
        timeout_seconds=10,
    )
    return finished.stdout.decode().strip()


def test_proven_absence_ends_recovery_and_promotes(recovering: Sandbox) -> None:
    asked: list[str] = []
    with feeding(recovering, Exchange.absent, asked=asked):
        recovering.start(postgres_argv(f"restore_command={RESTORE_COMMAND}"))
        eventually(lambda: in_recovery(recovering) == "f")
    assert "00000002.history" in asked
    assert "000000010000000000000001" in asked


def test_a_refused_segment_stops_the_server_and_never_promotes(recovering: Sandbox) -> None:
    def answer(folder: Exchange, name: str) -> None:
        if name.endswith(".history"):
            folder.absent(name)
        else:
            folder.refuse(name, "a hole in the archive")

    with feeding(recovering, answer, asked=[]):
        recovering.start(postgres_argv(f"restore_command={RESTORE_COMMAND}"))
        eventually(lambda: not recovering.running())
    assert recovering.exit_status() == 1
    log = recovering.server_log()
    assert "a hole in the archive" in log
    assert "selected new timeline" not in log
    assert (recovering.data / "recovery.signal").exists()


def test_a_dead_feeder_stops_the_server_and_never_promotes(recovering: Sandbox) -> None:
    recovering.write_configuration(exchange.SCRIPT_NAME, exchange.fetch_script(stale_seconds=1))
    with Exchange(recovering.wal) as folder:
        folder.beat()
    recovering.start(postgres_argv(f"restore_command={RESTORE_COMMAND}"))
    eventually(lambda: not recovering.running())
    assert "the feeder has been silent" in recovering.server_log()
    assert "selected new timeline" not in recovering.server_log()
