"""A throttled run takes less of the machine: it, its threads, and what it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drservice.model.estate import (
    Estate,
    FilesKind,
    FilesSettings,
    NodeSettings,
    PostgresSettings,
    RepositorySettings,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.throttling import NICENESS, slowed, throttle
from drservice.objectstore.paced import PacedStore
from drservice.wiring.data_plane import store_opener

TELL = """
import os, subprocess, sys, threading
from drservice.node.throttling import throttle
def tell(who):
    io = subprocess.run(["ionice", "-p", str(threading.get_native_id())], capture_output=True, text=True).stdout.strip()
    print(who, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), io, flush=True)
tell("before")
throttle()
tell("itself")
thread = threading.Thread(target=tell, args=("thread",))
thread.start()
thread.join()
child = "import os, subprocess; print('child', os.nice(0), subprocess.getoutput(f'ionice -p {os.getpid()}'))"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_a_throttled_process_its_threads_and_what_they_start_get_the_lowest_ordinary_priorities() -> None:
    done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True, env=os.environ)
    before, *after = done.stdout.splitlines()
    assert before.startswith(f"before {os.nice(0)} ")
    assert after == [f"{who} {NICENESS} best-effort: prio 7" for who in ("itself", "thread", "child")]


def test_a_host_without_ionice_is_throttled_by_its_niceness_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given: list[int] = []

    def nice(value: int) -> int:
        given.append(value)
        return 0

    monkeypatch.setattr("os.nice", nice)
    monkeypatch.setattr("drservice.processes._SAFE_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    throttle()
    assert given == [0, NICENESS]
    assert "follows its niceness alone" in capsys.readouterr().err


def test_a_throttled_run_works_in_one_process_and_keeps_to_the_rate_of_its_host(tmp_path: Path) -> None:
    database, files = ComponentName("database"), ComponentName("files")
    service = Service(
        name=ServiceName("erp"),
        components={
            database: PostgresSettings(name=database, dsn="", workers=8),
            files: FilesSettings(name=files, kind=FilesKind.DIRECTORY, path=Path("/f"), workers=4),
        },
    )
    estate = Estate(
        source=Path("/c"),
        state_dir=Path("/s"),
        repository=RepositorySettings(url=f"file://{tmp_path}"),
        services={service.name: service},
        node=NodeSettings(throttled_rate=20_000_000),
    )
    slow = slowed(estate)
    assert [item.workers for item in slow.services[service.name].components.values()] == [1, 1]
    assert (estate.repository.bytes_per_second, slow.repository.bytes_per_second) == (None, 20_000_000)
    assert isinstance(store_opener(slow)(), PacedStore)
    assert not isinstance(store_opener(estate)(), PacedStore)
