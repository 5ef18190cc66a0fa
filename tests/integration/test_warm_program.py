"""The process that lends itself to tests behaves as the program that they would start otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drservice import processes
from tests.doubles.estate import PROGRAM, wait_for
from tests.doubles.warm import warm_program


@pytest.fixture(params=[lambda: PROGRAM, warm_program], ids=["started", "lent"])
def program(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words: Callable[[], tuple[str, ...]] = request.param
    return words()


def outcome(program: tuple[str, ...], *words: str, folder: Path, **variables: str) -> tuple[int, bytes, bytes]:
    environment = processes.clean_environment(variables)
    done = processes.run([*program, *words], environment=environment, cwd=folder, timeout_seconds=60)
    return done.status, done.stdout, done.stderr


def test_output_status_folder_and_environment_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "drservice.yaml").write_text("version: 1\nnonsense: true\n")
    (tmp_path / "other.yaml").write_text("version: 2\n")
    told = set()
    for words, variables in (
        (("--help",), {}),
        (("info", "--help"), {}),
        (("info",), {}),
        (("config", "show", "--json"), {}),
        (("config", "show"), {"DRSERVICE_CONFIG": "other.yaml"}),
    ):
        started = outcome(PROGRAM, *words, folder=tmp_path, **variables)
        assert outcome(warm_program(), *words, folder=tmp_path, **variables) == started
        told.add(started)
    assert len(told) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_it_has_the_rights_of_the_user_who_asked(program: tuple[str, ...], tmp_path: Path) -> None:
    closed = tmp_path / "closed.yaml"
    closed.write_text("version: 1\n")
    closed.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # up to the system's own
        folder.chmod(folder.stat().st_mode | 0o011)
    argv = [*program, "--config", str(closed), "config", "show"]
    done = processes.run(argv, account=processes.account_named("postgres"), timeout_seconds=60)
    assert done.status == 2
    assert b"is not readable" in done.stderr


@contextmanager
def reading(program: tuple[str, ...], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command and wait until it reads a configuration that nobody writes."""
    fifo = folder / "drservice.yaml"
    os.mkfifo(fifo)
    argv = [*program, "--config", str(fifo), "config", "show"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    opened: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody has it open
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_for(is_read, "the command to open its configuration")
    time.sleep(0.3)  # until it waits in its read: Python may miss a signal that comes just before
    try:
        yield process
    finally:
        os.close(opened[0])
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unwinds_it(program: tuple[str, ...], number: signal.Signals, tmp_path: Path) -> None:
    with reading(program, tmp_path) as process:
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"DR130" in told


def test_it_dies_with_who_asked_for_it(tmp_path: Path) -> None:
    with reading(warm_program(), tmp_path) as process:
        process.kill()
        process.communicate(timeout=30)  # it has the other end of these pipes: they end when it has
        assert process.returncode == -signal.SIGKILL
