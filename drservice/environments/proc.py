"""Facts about processes, read from /proc; standard library only, because the keeper uses it too.

A process is named by pid, start time and boot, so that a recycled pid is never mistaken for it. Signals go
through a pidfd that was opened before the name was compared: the pid cannot change hands in between.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTLED_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one boot; ``start_ticks`` is field 22 of /proc/PID/stat (see proc(5))."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stat:
    state: str
    parent: int
    start_ticks: int
    cpu_ticks: int
    """User and system time of the process and of the children it has waited for."""


class _Place(Enum):
    INSIDE = "inside"
    WATCHING = "watching"
    """The bwrap outside that waits for its process 1."""
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the processes of an environment use at one moment."""

    processes: int
    memory_bytes: int
    """Proportional memory of all (shared pages are counted once) and what lies in their memory file systems."""
    cpu_ms: int
    """Of those that live, with the children they waited for."""


def boot_id() -> str:
    """Return the kernel's name for the present boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identity_of(pid: int) -> ProcessIdentity | None:
    """Return the identity of a live process, ``None`` if there is none (a zombie is none)."""
    stat = _stat(pid)
    if stat is None or stat.state in "ZX":
        return None
    return ProcessIdentity(pid=pid, start_ticks=stat.start_ticks, boot_id=boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Tell whether exactly this process is alive."""
    return identity_of(identity.pid) == identity


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process; ``False`` if it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def children_of(pid: int) -> list[ProcessIdentity]:
    """Return the live children of a process, oldest first."""
    found: list[ProcessIdentity] = []
    boot = boot_id()
    for candidate in _pids():
        stat = _stat(candidate)
        if stat is not None and stat.parent == pid and stat.state not in "ZX":
            found.append(ProcessIdentity(pid=candidate, start_ticks=stat.start_ticks, boot_id=boot))
    return sorted(found, key=lambda child: (child.start_ticks, child.pid))


def processes_of(root: Path) -> list[ProcessIdentity]:
    """Return the processes of an environment: those that live inside, and the bwrap that watches them.

    Inside is who has a folder named like ``root`` (a ULID: unique) mounted below ``/env``; its own command
    line could lie, its mounts cannot. Outside is a ``bwrap`` with that folder among its arguments.
    """
    found: list[ProcessIdentity] = []
    for pid in _pids():
        if _mounts(pid, root.name) or _watches(pid, root):
            identity = identity_of(pid)
            if identity is not None:
                found.append(identity)
    return found


def count_processes(uid: int) -> int:
    """Return how many processes and threads a user has on this host (what RLIMIT_NPROC counts)."""
    total = 0
    for pid in _pids():
        try:
            if (_PROC / str(pid)).stat().st_uid == uid:
                total += sum(1 for _ in (_PROC / str(pid) / "task").iterdir())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended between two looks, or it is not that user's
    return total


class Members:
    """The processes of one environment, looked at again and again at little cost.

    Whether a process belongs is decided by its mounts and kept; for one that does not belong only once it is so old
    that no bwrap can still be setting it up.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._decided: dict[int, tuple[int, _Place]] = {}

    def sample(self) -> Sample:
        """Return what all of them use now."""
        young = (time.clock_gettime(time.CLOCK_BOOTTIME) - _SETTLED_SECONDS) * _TICKS
        decided: dict[int, tuple[int, _Place]] = {}
        count = memory = ticks = 0
        file_systems: dict[int, int] = {}
        for pid in _pids():
            stat = _stat(pid)
            if stat is None or stat.state in "ZX":
                continue
            known = self._decided.get(pid)
            place = known[1] if known is not None and known[0] == stat.start_ticks else self._place(pid)
            if place is not _Place.ELSEWHERE or stat.start_ticks < young:
                decided[pid] = (stat.start_ticks, place)
            if place is not _Place.ELSEWHERE:
                count += 1
                ticks += stat.cpu_ticks
                memory += _proportional_bytes(pid)
            if place is _Place.INSIDE:  # bwrap itself sees the host's /tmp
                file_systems.update(_memory_file_systems(pid))
        self._decided = decided
        return Sample(
            processes=count,
            memory_bytes=memory + sum(file_systems.values()),
            cpu_ms=ticks * 1000 // _TICKS,
        )

    def _place(self, pid: int) -> _Place:
        if _mounts(pid, self._root.name):
            return _Place.INSIDE
        return _Place.WATCHING if _watches(pid, self._root) else _Place.ELSEWHERE


def _proportional_bytes(pid: int) -> int:
    total = 0
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith((b"Pss:", b"SwapPss:")):
            total += int(line.split()[1]) * 1024
    return total


def _memory_file_systems(pid: int) -> dict[int, int]:
    """Return device -> bytes used of /tmp and /dev/shm as the process sees them."""
    found: dict[int, int] = {}
    for inside in ("tmp", "dev/shm"):
        path = _PROC / str(pid) / "root" / inside
        try:
            facts = os.statvfs(path)
            found[path.stat().st_dev] = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        except OSError:
            continue  # it ended meanwhile
    return found


def _pids() -> Iterator[int]:
    return (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, also ") R 1"; the fields begin after the last parenthesis.
    fields = text[text.rindex(b")") + 2 :].split()
    return _Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        start_ticks=int(fields[19]),
        cpu_ticks=sum(map(int, fields[11:15])),
    )


def _mounts(pid: int, name: str) -> bool:
    needle = f"/{name}/".encode()
    for line in _read(pid, "mountinfo").splitlines():
        fields = line.split(b" ")
        if len(fields) > 4 and fields[4].startswith(b"/env/") and needle in fields[3] + b"/":
            return True
    return False


def _watches(pid: int, root: Path) -> bool:
    if _read(pid, "comm").strip() != b"bwrap":
        return False
    inside = os.fsencode(root) + b"/"
    return any(part.startswith(inside) for part in _read(pid, "cmdline").split(b"\0"))


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError as error:
        # Gone, a zombie without mounts (EINVAL), or (as an ordinary user) somebody else's: none is ours.
        if error.errno in {errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM}:
            return b""
        raise
