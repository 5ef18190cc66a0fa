"""What a timed command costs: wall and processor seconds, memory of each of its processes, the machine's own load.

Memory is asked of the kernel while the command runs (``VmHWM`` of every process it started, twenty times a second), so
that a process pool is not mistaken for one process: ``rusage`` knows only the largest. Shared memory does not count: a
PostgreSQL that replays has as much of it as it was given, and each of its processes shows all that it has touched.

A virtual machine may give memory that nobody used for half a minute back to its host, and the first to need it again
pays for the way there: where this was written 2.4 instead of 0.15 processor seconds for each GB of a new file. Whoever
came second in a race would win it, so memory is made ready before each timed command.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_PROC = Path("/proc")
_SAMPLE_SECONDS = 0.05
_LOOK_SECONDS = 0.4
_READY_BYTES = 6 << 30
_READY_SHARE = 0.75
_TAKE = "from mmap import *; import sys; mmap(-1, int(sys.argv[1]), flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run of a command took."""

    seconds: float
    processor_seconds: float
    largest_process_bytes: int
    """Peak resident memory of the process that had the most."""
    processes_bytes: int
    """Sum of the peaks of all processes; they need not have had them at the same time."""
    foreign_share: float
    """Share of the machine's processors that others used in the moment before it began."""


@dataclass(slots=True)
class _Memory:
    """Peaks of a process and all that came from it, by pid."""

    root: int
    peaks: dict[int, int] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)

    def look(self) -> None:
        self.known.add(self.root)
        parents = {}
        for entry in os.scandir(_PROC):
            if entry.name.isdigit():
                parents[int(entry.name)] = _parent(entry.name)
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in self.known} - self.known
            grown = bool(more)
            self.known |= more
        for pid in self.known & parents.keys():
            self.peaks[pid] = max(self.peaks.get(pid, 0), _peak_bytes(pid))


def _parent(pid: str) -> int:
    try:
        text = (_PROC / pid / "stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def _peak_bytes(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    known = {name: value for name, _, value in (line.partition(":") for line in lines)}
    most, shared = (int(known.get(name, "0").split()[0]) * 1024 for name in ("VmHWM", "RssShmem"))
    return max(0, most - shared)


def busy_share(seconds: float = _LOOK_SECONDS) -> float:
    """Return which share of all processors was busy during a short wait."""
    before = _busy_and_total()
    time.sleep(seconds)
    after = _busy_and_total()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def _busy_and_total() -> tuple[int, int]:
    fields = [int(word) for word in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def ready_memory() -> None:
    """Touch memory and free it again, so that the next who needs it does not wait for the host of this machine.

    6 GiB, or three quarters of what is free if that is less: more would push out files that were read to be there. A
    process of its own does it, page by page: what it leaves is what the next one gets.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(_READY_BYTES, int(free * _READY_SHARE))
    subprocess.run([sys.executable, "-c", _TAKE, str(size)], check=True)


def timed(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    user: str | None,
    folder: Path,
    output: IO[bytes] | None = None,
) -> tuple[Cost, bytes]:
    """Run a command to its end and return what it cost and what it printed; a failure ends the benchmark.

    Args:
        command: what to run.
        environment: variables beside this process's own.
        user: whom it runs as; ``None`` = this process's.
        folder: where it runs.
        output: where its diagnostics go (default: shown if it fails).
    """
    ready_memory()
    foreign = busy_share()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=output or subprocess.PIPE,
    ) as process:
        memory, ended = _Memory(process.pid), threading.Event()
        watcher = threading.Thread(target=_watch, args=(memory, ended), daemon=True)
        watcher.start()
        printed, said = process.communicate()
        seconds = time.monotonic() - began
        ended.set()
        watcher.join()
    if process.returncode:
        text = (printed + (said or b"")).decode(errors="replace")[-4000:]
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{text}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        Cost(
            seconds=seconds,
            processor_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            largest_process_bytes=max(memory.peaks.values(), default=0),
            processes_bytes=sum(memory.peaks.values()),
            foreign_share=foreign,
        ),
        printed,
    )


def _watch(memory: _Memory, ended: threading.Event) -> None:
    while not ended.wait(_SAMPLE_SECONDS):
        memory.look()


def quietly(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, user: str | None = None, folder: Path
) -> bytes:
    """Run a command that is not timed and return what it printed; its diagnostics are shown only if it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        text = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise SystemExit(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{text}")
    return done.stdout
