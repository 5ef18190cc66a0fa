"""What a recovery environment promises.

``prepare`` makes the place, files are put below :attr:`Environment.data`, ``start`` runs the server inside,
``execute`` runs a program inside beside it, ``destroy`` removes everything and never fails half-way
silently. Nothing inside can reach a network, the caller's environment or a path outside of its own folder.

The folder of an environment on the host::

    ROOT/                 0711, owner = the user that prepares
      environment.json    what it is, who made it, when it expires (written first, removed last)
      data/               the database cluster (owner = server account, 0700); may be bound from elsewhere
      wal/                feeder exchange: NAME.want is asked for from inside, NAME or NAME.absent answers
      sock/               the server's Unix socket: the only way in
      conf/               generated configuration, read-only inside
      log/                what the server and the keeper wrote
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Protocol

from drservice.model.ids import EnvironmentId, ServiceName
from drservice.processes import Finished


class EnvironmentState(Enum):
    """What an environment is doing."""

    PREPARED = "prepared"
    RUNNING = "running"
    STOPPED = "stopped"
    DEAD = "dead"
    """Its keeper is gone but its folder is there: the reaper's business."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds for what runs inside. ``None`` = no bound."""

    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What to prepare."""

    service: ServiceName
    purpose: str
    """``restore``, ``drill`` or ``probe``; shown by ``environment list``."""
    data_directory: Path | None = None
    """Where the cluster's files live on the host; ``None`` = inside the environment's folder."""
    expires_at: datetime
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question of the isolation self-test, asked from inside."""

    name: str
    isolated: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentDescription:
    """What ``environment list`` shows."""

    id: EnvironmentId
    kind: str
    service: ServiceName
    purpose: str
    state: EnvironmentState
    path: Path
    dsn: str
    """A libpq string that works from the host (Unix socket)."""
    created_at: datetime
    expires_at: datetime


class Environment(Protocol):
    """One prepared environment."""

    @property
    def id(self) -> EnvironmentId:
        """Its name, unique on this host."""
        ...

    @property
    def data(self) -> Path:
        """The cluster's directory as the host sees it; also where files are placed."""
        ...

    @property
    def wal(self) -> Path:
        """The feeder's exchange folder as the host sees it."""
        ...

    @property
    def dsn(self) -> str:
        """A libpq string that reaches the server inside from the host."""
        ...

    def describe(self) -> EnvironmentDescription:
        """Return its present state."""
        ...

    def self_test(self) -> Sequence[Probe]:
        """Ask from inside whether anything outside can be reached; every probe is returned.

        Raises:
            EnvironmentFailedError: the test itself could not run (never a pass).
        """
        ...

    def write_configuration(self, name: str, content: str) -> str:
        """Put a file into ``conf/`` and return its path as seen from inside."""
        ...

    def start(self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start the server inside under a keeper that survives the caller; returns when it runs."""
        ...

    def running(self) -> bool:
        """Tell whether the server's process is alive."""
        ...

    def exit_status(self) -> int | None:
        """Return how the server ended, ``None`` while it runs or if it never started."""
        ...

    def server_log(self) -> str:
        """Return what the server wrote (its last 1 MiB)."""
        ...

    def execute(self, argv: Sequence[str], *, timeout_seconds: float, stdin: bytes | None = None) -> Finished:
        """Run a program inside, beside the server, and return how it ended."""
        ...

    def stop(self, *, timeout_seconds: float = 60.0) -> None:
        """Stop the server in an orderly way (fast shutdown), by force after the timeout."""
        ...

    def destroy(self) -> None:
        """End every process inside and remove the folder; a bound data directory is left alone."""
        ...
