"""How much memory a server may have for the pages it replays into.

A server that has too little pushes pages out again and again that the next record needs: replay is one process, and
it writes and reads them itself. Of 1.6 GB of WAL of pgbench over a gigabyte of tables replay took 12.7 s of a processor
with 512 MB, 4.9 of them in the kernel, and 7.0 and 1.2 with 2 GB, where all of it has room. Pages that are never
touched cost nothing.
"""

from __future__ import annotations

from pathlib import Path

from drservice.environments.limits import Limits

_MOST_BYTES = 2 << 30
_LEAST_BYTES = 16 << 20
_SHARE = 8
"""Part of what is available: the files themselves are read through the system's cache."""


def buffers_option(
    limits: Limits, *, memory: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup/memory.max")
) -> tuple[str, str]:
    """Return the setting of ``shared_buffers``: an eighth of what is available, within reason and within the limits."""
    known = [limits.memory_bytes, _available(memory), _group_limit(group)]
    least = min((number for number in known if number is not None), default=_LEAST_BYTES * _SHARE)
    chosen = max(_LEAST_BYTES, min(_MOST_BYTES, least // _SHARE))
    return ("shared_buffers", f"{chosen >> 10}kB")


def _available(memory: Path) -> int | None:
    try:
        lines = memory.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None  # a system without it: then the least that is known decides


def _group_limit(group: Path) -> int | None:
    try:
        return int(group.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # "max", or no control groups
