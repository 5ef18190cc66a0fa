"""What may be used inside an environment, what was used, and which bound was broken.

Standard library only: the keeper, which starts fast, speaks these words too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds for what runs inside. ``None`` = no bound.

    The kernel refuses what goes beyond a bound of one process at once. What goes beyond a bound of the whole ends the
    environment within moments, and why is on record. The whole is watched while a server runs.
    """

    memory_bytes: int | None = None
    """Memory of everything inside, /tmp and /dev/shm included. Also the most that one process may hold privately
    (RLIMIT_DATA) and the size of each of /tmp and /dev/shm."""
    processes: int | None = None
    """Processes and threads inside (RLIMIT_NPROC): no more can be started."""
    open_files: int | None = None
    """Open files of each process (RLIMIT_NOFILE)."""
    cpu_seconds: int | None = None
    """Processor time of the server and all its children together."""
    disk_bytes: int | None = None
    """Bytes on disk of all folders together. Also the most that one file may hold (RLIMIT_FSIZE)."""
    reserve_bytes: int | None = None
    """Bytes that stay free on each file system of the host that is written to; ``None`` = 256 MiB or a twentieth of the
    file system, whichever is less. There is always a reserve."""
    niceness: int = 0
    """0 to 19; a drill beside production wants 10, a real restore 0. The priority of reading and writing follows it,
    and with any niceness the host's out-of-memory killer takes what is inside first."""


class LimitKind(Enum):
    """Which bound of the whole was broken."""

    MEMORY = "memory"
    CPU = "cpu"
    DISK = "disk"
    SPACE = "space"
    """The host's free space came down to the reserve."""
    LIFETIME = "lifetime"
    """It lived until its expiry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenLimit:
    """Why an environment was ended."""

    limit: LimitKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an environment uses. ``None`` = not known; never 0 for what was not measured."""

    peak_memory_bytes: int | None
    """The most that was seen of everything inside together (proportional: shared pages are counted once)."""
    cpu_ms: int | None
    """Processor time of all servers started here with their children; a program of ``execute`` counts while it runs."""
    processes: int | None
    """Processes inside now, the sandbox's own included."""
    data_bytes: int | None
    """Bytes on disk now, as for the next three."""
    wal_bytes: int | None
    files_bytes: int | None
    log_bytes: int | None
