"""Beside the shipping of a component's WAL: its archive is kept continuous, and where it streams, a heartbeat."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from drservice.clock import Clock
from drservice.model.estate import PostgresSettings, WalMode
from drservice.operations.continuity import ArchiveWatch, keep_continuous
from drservice.operations.walheartbeat import beating
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_LAST_SECONDS = 5.0


@contextmanager
def cared_for(
    repository: Repository, scope: Scope, component: PostgresSettings, *, state_dir: Path, clock: Clock
) -> Iterator[None]:
    """Do it while the block runs; what is under way at its end is done again by whoever comes next."""
    watch = ArchiveWatch(repository, scope, directory=local_directory(component), state_dir=state_dir, clock=clock)
    stop = threading.Event()
    thread = threading.Thread(target=keep_continuous, args=(watch, stop), name="wal-continuity", daemon=True)
    every = None if component.wal.mode is WalMode.ARCHIVE else component.wal.heartbeat
    with nullcontext() if every is None else beating(component.production_dsn, seconds=every.total_seconds()):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_LAST_SECONDS)


def local_directory(component: PostgresSettings) -> Path | None:
    """Return the data directory of a component if this host has it."""
    directory = component.data_directory
    return directory if directory is not None and (directory / "global" / "pg_control").exists() else None
