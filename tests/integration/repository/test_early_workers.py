"""Workers that are forked before there is work: they work like others, and none outlives whoever made it.

A test's own process has threads, in which none are made: each test is a program of its own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import drservice

_ECHO = """
    import functools, os, sys, threading, time
    from drservice.repository.pool import Pool, early_workers
    MARKS = []

    class Echo:
        def __init__(self, name):
            self.name = name
        def work(self, batch):
            time.sleep(0.02)  # or the first would do it all
            return (os.getpid(), batch, list(MARKS))
        def flush(self):
            return (os.getpid(), None, list(MARKS))
        def close(self):
            pass

    def echoed(workers=2, batches=4):
        pool = Pool(Echo, workers)
        try:
            return [reply for _, reply in pool.run(range(batches))]
        finally:
            pool.close()
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """Return the beginning of a command that runs lines which know ``echo``."""
    (tmp_path / "echo.py").write_text(textwrap.dedent(_ECHO))
    beginning = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(drservice.__path__[0]).parent)!r}]"
    return [sys.executable, "-c", f"{beginning}; exec(sys.argv[1])"]


def run(program: list[str], lines: str) -> str:
    done = subprocess.run(
        [*program, f"import echo\necho.MARKS.append('ours')\n{textwrap.dedent(lines)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_REPLIES = """
    print(sorted(batch for _, batch, _ in replies if batch is not None),
          len({pid for pid, _, _ in replies}), {mark for _, _, marks in replies for mark in marks})
"""


def test_workers_made_early_have_loaded_what_their_maker_has(program: list[str]) -> None:
    lines = "with echo.early_workers(2):\n    replies = echo.echoed()\n" + textwrap.dedent(_REPLIES)
    assert run(program, lines) == "[0, 1, 2, 3] 2 {'ours'}"


def test_a_process_with_threads_starts_interpreters_instead(program: list[str]) -> None:
    lines = """
        ended = echo.threading.Event()
        echo.threading.Thread(target=ended.wait).start()
        with echo.early_workers(2):
            replies = echo.echoed()
        ended.set()
    """
    assert run(program, textwrap.dedent(lines) + textwrap.dedent(_REPLIES)) == "[0, 1, 2, 3] 2 set()"


def test_a_second_pool_and_one_that_needs_more_start_what_is_lacking(program: list[str]) -> None:
    lines = """
        with echo.early_workers(1):
            replies = echo.echoed(workers=2) + echo.echoed(workers=1)
        print([len(marks) for _, batch, marks in replies if batch is None])
    """
    assert sorted(run(program, lines)) == sorted("[1, 0, 0]")


def test_one_that_was_killed_before_it_had_work_is_replaced(program: list[str]) -> None:
    lines = """
        from drservice.repository import pool
        with echo.early_workers(2):
            process = pool._early[0][1]
            process.kill()
            process.join()
            replies = echo.echoed()
    """
    assert run(program, textwrap.dedent(lines) + textwrap.dedent(_REPLIES)) == "[0, 1, 2, 3] 2 {'ours'}"


def test_those_that_nobody_asked_for_end_with_the_block(program: list[str]) -> None:
    lines = """
        from drservice.repository import pool
        with echo.early_workers(2):
            pids = [process.pid for _, process in pool._early]
        print(len(pids), [pid for pid in pids if echo.os.path.exists(f"/proc/{pid}")])
    """
    assert run(program, lines) == "2 []"


def test_they_end_when_their_maker_is_killed(program: list[str]) -> None:
    lines = """
        import echo
        from drservice.repository import pool
        with echo.early_workers(2):
            print(*(process.pid for _, process in pool._early), flush=True)
            echo.time.sleep(60)
    """
    with subprocess.Popen([*program, textwrap.dedent(lines)], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        pids = maker.stdout.readline().split()
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        deadline = time.monotonic() + 10
        while left := [pid for pid in pids if _lives(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
    assert len(pids) == 2


def _lives(pid: str) -> bool:
    """Tell whether it runs: what died is not always reaped at once by whoever inherits it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
