"""What a recovery environment promises.

``prepare`` makes the place, files are put below :attr:`Environment.data`, ``start`` runs the server inside,
``execute`` runs a program inside beside it, ``destroy`` removes everything and never fails half-way
silently. Nothing inside can reach a network, the caller's environment or a path outside of its own folder.

The folder of an environment on the host::

    ROOT/                 0711, owner = the user that prepares
      environment.json    what it is, who made it, when it expires (there from the first moment, removed last)
      keeper/             the keeper's notes and what the server wrote to its output; never visible inside
      data/               the database cluster (owner = server account, 0700); may be bound from elsewhere
      wal/                feeder exchange: NAME.want is asked for from inside, NAME or NAME.absent answers
      sock/               the server's Unix socket: the only way in (a short folder elsewhere if too long)
      conf/               generated configuration, read-only inside
      files/NAME/         files of other components (documents, configuration), read-only inside; may be bound
                          from elsewhere
      log/                what the server itself wants to write down

``data``, ``wal``, ``sock`` and ``log`` are writable from inside and therefore hostile: the host follows no
link there. What the host relies on (``environment.json``, ``keeper/``) is out of reach from inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Protocol

from drservice.environments.limits import BrokenLimit, Limits, Usage
from drservice.model.ids import EnvironmentId, ServiceName
from drservice.processes import Finished


class EnvironmentState(Enum):
    """What an environment is doing."""

    PREPARED = "prepared"
    RUNNING = "running"
    STOPPED = "stopped"
    """Its server ended, and how is on record."""
    DEAD = "dead"
    """Its keeper (or, before the start, its maker) is gone but its folder is there: the reaper's business."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What to prepare."""

    service: ServiceName
    purpose: str
    """``restore``, ``drill`` or ``probe``; shown by ``environment list``."""
    data_directory: Path | None = None
    """Where the cluster's files live on the host; ``None`` = inside the environment's folder."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Which of :meth:`Environment.folder` live elsewhere on the host (name -> path); they outlive the environment."""
    expires_at: datetime
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A production server that must be out of reach: a host name or address with a port, or a socket folder."""

    host: str
    port: int


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
    broken_limit: BrokenLimit | None
    """Why it was ended before its time, if it was."""


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
    def log(self) -> Path:
        """The folder ``/env/log`` as the host sees it: the server may write in it, so nothing in it is believed."""
        ...

    @property
    def dsn(self) -> str:
        """A libpq string that reaches the server inside from the host (port 5432 of its socket folder)."""
        ...

    def describe(self) -> EnvironmentDescription:
        """Return its present state."""
        ...

    def self_test(self, *, production: Sequence[Endpoint] = ()) -> Sequence[Probe]:
        """Ask from inside whether anything outside can be reached; every probe is returned.

        Args:
            production: the servers this recovery stands in for; without any, that one probe is left out.

        Raises:
            EnvironmentFailedError: the test itself could not run (never a pass).
        """
        ...

    def folder(self, name: str) -> Path:
        """Return the folder ``name`` for files of another component as the host sees it, made on demand.

        Seen inside as ``/env/files/NAME``, read-only: nothing inside can write, replace or plant a link there. It
        belongs to the server account, so that programs inside can read it.

        Raises:
            EnvironmentFailedError: the name is none for a folder here, or the folder cannot be made.
            IsolationError: a link stands in its place.
        """
        ...

    def share(self, folders: Sequence[Path], *, links: Mapping[str, str]) -> None:
        """Have folders of the host writable inside under their own paths, and links made; from the next start on.

        The folders outlive the environment. Nothing inside can replace a shared folder by a link, but what is in it is
        as hostile as ``data``.

        Args:
            folders: they are there, and nobody but the caller can exchange them.
            links: where a link stands inside, and where it leads inside.

        Raises:
            EnvironmentFailedError: a server runs, or a path cannot be provided inside.
        """
        ...

    def write_configuration(self, name: str, content: str) -> str:
        """Put a file into ``conf/`` and return its path as seen from inside."""
        ...

    def start(self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start the server inside under a keeper that survives the caller; returns when its program begins.

        A program that ends at once is no error here: :meth:`running` and :meth:`exit_status` tell.

        Args:
            argv: an absolute path as seen from inside, and arguments.
            environment: variables beside the few that every program inside gets.

        Raises:
            ProgramMissingError: there is no such program.
            EnvironmentFailedError: the sandbox could not be made, or a server runs here already.
        """
        ...

    def running(self) -> bool:
        """Tell whether the server's process is alive."""
        ...

    def exit_status(self) -> int | None:
        """Return how the server ended (128 + n: by signal n), ``None`` while it runs or if it never started."""
        ...

    def server_log(self) -> str:
        """Return what the server wrote (its last 1 MiB)."""
        ...

    def read_server_log(self, offset: int, length: int) -> bytes:
        """Return at most ``length`` bytes of what the server wrote, from ``offset`` on; empty at the present end."""
        ...

    def require_within_limits(self) -> None:
        """Refuse to go on with an environment that was ended for a broken limit; ask when a server is found dead.

        :meth:`start`, :meth:`execute` and :meth:`require_own_socket` ask it themselves.

        Raises:
            EnvironmentLimitError: naming the limit and what was used.
        """
        ...

    def measure(self) -> Usage:
        """Return what is used now, and the peaks so far; what cannot be had is ``None``."""
        ...

    def require_own_socket(self) -> None:
        """Refuse a socket that is not the server's own; ask before each connection from the host.

        Raises:
            IsolationError: something inside put a link (maybe to production's socket) in its place.
            EnvironmentFailedError: there is no socket yet.
        """
        ...

    def execute(self, argv: Sequence[str], *, timeout_seconds: float, stdin: bytes | None = None) -> Finished:
        """Run a program inside, beside the server, and return how it ended (-9 after the timeout)."""
        ...

    def stream(
        self,
        argv: Sequence[str],
        *,
        take: Callable[[bytes], object],
        hear: Callable[[str], object],
        source: BinaryIO | None = None,
        stall_seconds: float,
    ) -> int:
        """Run a program inside, beside the server, and hand over what it writes, piece by piece; return its status.

        What it writes comes from inside and is as hostile as everything there. An exception of ``take`` or ``hear``
        ends the program.

        Args:
            argv: the program and its arguments.
            take: hears each piece of standard output.
            hear: hears each line of standard error (cut at a few KiB).
            source: what it reads as standard input; nothing without.
            stall_seconds: it is ended (status -9) when it wrote nothing for so long.

        Raises:
            ProgramMissingError: there is no such program inside.
            EnvironmentLimitError: the environment was ended for a broken limit, now or before.
        """
        ...

    def stop(self, *, timeout_seconds: float = 60.0) -> None:
        """Stop the server in an orderly way (fast shutdown), by force after the timeout."""
        ...

    def destroy(self) -> None:
        """End every process inside and remove the folder; a bound data directory is left alone.

        Safe to repeat, also after a crash half-way.

        Raises:
            EnvironmentFailedError: something is left, with its name.
        """
        ...
