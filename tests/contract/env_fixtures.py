"""What tests of environments share: a way to prepare them, and proofs that nothing is left of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from drservice.clock import SystemClock
from drservice.environments import proc
from drservice.environments.interface import EnvironmentSpec
from drservice.environments.limits import Limits
from drservice.environments.sandbox import Sandbox, prepare_sandbox
from drservice.model.ids import ServiceName
from drservice.processes import Finished

POSTGRES_BIN = "/usr/lib/postgresql/15/bin"
LONG = timedelta(hours=1)


def make_spec(
    *, data_directory: Path | None = None, lives: timedelta = LONG, limits: Limits | None = None
) -> EnvironmentSpec:
    return EnvironmentSpec(
        service=ServiceName("erp"),
        purpose="drill",
        data_directory=data_directory,
        expires_at=SystemClock().now() + lives,
        limits=limits or Limits(),
    )


def make_sandbox(
    environments_dir: Path,
    *,
    data_directory: Path | None = None,
    lives: timedelta = LONG,
    limits: Limits | None = None,
) -> Sandbox:
    spec = make_spec(data_directory=data_directory, lives=lives, limits=limits)
    return prepare_sandbox(spec, environments_dir=environments_dir, clock=SystemClock())


def root_of(sandbox: Sandbox) -> Path:
    return sandbox.describe().path


def assert_nothing_left(root: Path) -> None:
    """No process inside or around it, no mount on the host, no folder."""
    assert proc.processes_of(root) == []
    assert root.name not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert not root.exists()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert os.fsencode(root) not in words, f"{process} is left"


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def postgres_argv(*settings: str) -> Sequence[str]:
    words = [word for setting in settings for word in ("-c", setting)]
    return [
        f"{POSTGRES_BIN}/postgres", "-D", "/env/data", "-c", "listen_addresses=",
        "-c", "unix_socket_directories=/env/sock", "-c", "fsync=off", *words,
    ]  # fmt: skip


def init_cluster(sandbox: Sandbox) -> None:
    """Make a small cluster inside, by the sandbox's own means."""
    finished = sandbox.execute(
        [f"{POSTGRES_BIN}/initdb", "-D", "/env/data", "-U", "postgres", "-A", "trust", "--no-sync", "--data-checksums"],
        timeout_seconds=60,
    )
    assert finished.status == 0, finished


def tool(sandbox: Sandbox, name: str, *arguments: str) -> Finished:
    """Run one of PostgreSQL's programs inside, beside the server or without one."""
    return sandbox.execute([f"{POSTGRES_BIN}/{name}", *arguments], timeout_seconds=60)


def ready(sandbox: Sandbox) -> bool:
    finished = sandbox.execute([f"{POSTGRES_BIN}/pg_isready", "-q", "-h", "/env/sock"], timeout_seconds=10)
    return finished.status == 0
