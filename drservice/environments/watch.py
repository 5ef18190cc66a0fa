"""The keeper's watch over what an environment uses as a whole: memory, processor time, disk space, lifetime.

The kernel's own bounds (bubblewrap.py) hold for each process and at once; what is summed over processes and files has
to be looked at again and again, because a cgroup with controllers is not to be had everywhere, least of all by an
ordinary user. Lifetime and free space are looked at every tenth of a second; processes too, or so much later that
looking at them (their page tables are read) takes at most a tenth of the time. What runs inside is hostile: nothing
here waits for it, follows its links or trusts its sizes.

Standard library only (besides ``proc`` and ``limits``), because the keeper loads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from drservice.environments import proc
from drservice.environments.limits import BrokenLimit, LimitKind

USAGE = "usage.json"

PERIOD_SECONDS = 0.1
_REST_PER_WORK = 9
_WALK_SLICE_SECONDS = 0.02
_WALK_REST_SECONDS = 1.0
_NOTE_SECONDS = 0.5
_BLOCK_BYTES = 512
"""The unit of ``st_blocks`` (stat(2))."""
_LEAST_RESERVE_BYTES = 256 << 20
_LEAST_RESERVE_PART = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the environment may use as a whole; ``None`` = no bound."""

    memory_bytes: int | None
    cpu_seconds: int | None
    disk_bytes: int | None
    reserve_bytes: int | None
    """Free bytes that stay on each file system; ``None`` = 256 MiB or a twentieth of it, whichever is less."""
    ends_at: float
    """On ``CLOCK_BOOTTIME``: no clock that somebody sets prolongs or cuts a life."""
    folders: Mapping[str, str]
    """What can be written from inside, as the host sees it, and what is counted as disk use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the keeper has seen so far; ``usage.json``."""

    peak_memory_bytes: int = 0
    cpu_ms: int = 0


class Watch:
    """Looks at one environment; its keeper calls :meth:`look` every :data:`PERIOD_SECONDS`."""

    def __init__(self, root: Path, bounds: Bounds) -> None:
        self._notes = root / "keeper"
        self._bounds = bounds
        self._members = proc.Members(root)
        self._noted = read_noted(self._notes) or Noted()
        self._earlier_cpu_ms = self._noted.cpu_ms
        self._note_due = 0.0
        self._processes_due = 0.0
        self._walk: Iterator[int] = iter(())
        self._walk_due = 0.0

    def look(self) -> BrokenLimit | None:
        """Return the first bound that is broken now."""
        begin = time.monotonic()
        broken = self._lifetime() or self._space() or self._processes(begin) or self._disk(begin)
        if begin >= self._note_due or broken is not None:
            self.note()
            self._note_due = begin + _NOTE_SECONDS
        return broken

    def note(self, *, cpu_ms: int = 0) -> None:
        """Write ``usage.json``; ``cpu_ms`` is what the kernel charged in the end."""
        self._noted = Noted(
            peak_memory_bytes=self._noted.peak_memory_bytes,
            cpu_ms=max(self._noted.cpu_ms, self._earlier_cpu_ms + cpu_ms),
        )
        temporary = self._notes / f".{USAGE}.new"
        try:
            temporary.write_text(json.dumps(asdict(self._noted)), encoding="utf-8")
            temporary.replace(self._notes / USAGE)
        except OSError as error:  # the disk is full or being cleared: watching goes on, the next note tells all
            sys.stderr.write(f"{USAGE} cannot be written: {error}\n")

    def _lifetime(self) -> BrokenLimit | None:
        late = time.clock_gettime(time.CLOCK_BOOTTIME) - self._bounds.ends_at
        return (
            BrokenLimit(limit=LimitKind.LIFETIME, detail="it has reached the end of its lifetime")
            if late >= 0
            else None
        )

    def _processes(self, now: float) -> BrokenLimit | None:
        if now < self._processes_due:
            return None
        sample = self._members.sample()
        ended = time.monotonic()
        self._processes_due = ended + _REST_PER_WORK * (ended - now)
        self._noted = Noted(
            peak_memory_bytes=max(self._noted.peak_memory_bytes, sample.memory_bytes),
            # A process that was not waited for takes its time along: the sum may shrink, what was seen stays seen.
            cpu_ms=max(self._noted.cpu_ms, self._earlier_cpu_ms + sample.cpu_ms),
        )
        memory, cpu = self._bounds.memory_bytes, self._bounds.cpu_seconds
        if memory is not None and sample.memory_bytes > memory:
            return BrokenLimit(
                limit=LimitKind.MEMORY, detail=f"{sample.memory_bytes} bytes of memory are used, {memory} are allowed"
            )
        if cpu is not None and self._noted.cpu_ms > cpu * 1000:
            return BrokenLimit(
                limit=LimitKind.CPU, detail=f"{self._noted.cpu_ms} ms of processor time are used, {cpu} s are allowed"
            )
        return None

    def _space(self) -> BrokenLimit | None:
        for name, folder in self._bounds.folders.items():
            try:
                facts = os.statvfs(folder)
            except FileNotFoundError:
                continue
            free = facts.f_bavail * facts.f_frsize
            reserve = self._bounds.reserve_bytes
            if reserve is None:
                reserve = min(_LEAST_RESERVE_BYTES, facts.f_blocks * facts.f_frsize // _LEAST_RESERVE_PART)
            if free < reserve:
                return BrokenLimit(
                    limit=LimitKind.SPACE,
                    detail=f"{free} bytes are free on the file system of {name}, {reserve} must stay free",
                )
        return None

    def _disk(self, now: float) -> BrokenLimit | None:
        """Go on counting for a moment: a walk through millions of files must not keep the other bounds waiting."""
        bound = self._bounds.disk_bytes
        if bound is None or now < self._walk_due:
            return None
        deadline = time.monotonic() + _WALK_SLICE_SECONDS
        for seen in self._walk:
            if seen > bound:
                return BrokenLimit(
                    limit=LimitKind.DISK, detail=f"at least {seen} bytes are on disk, {bound} are allowed"
                )
            if time.monotonic() >= deadline:
                return None
        self._walk = _running_total(map(Path, self._bounds.folders.values()))
        self._walk_due = now + _WALK_REST_SECONDS
        return None


def read_noted(notes: Path) -> Noted | None:
    """Return what the last keeper noted, ``None`` if there was none.

    Raises:
        ValueError: the note is damaged.
        OSError: it cannot be read.
    """
    try:
        value = json.loads((notes / USAGE).read_text(encoding="utf-8"))
        return Noted(**value)
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ValueError(f"{notes / USAGE}: {error}") from error


def bytes_on_disk(folder: Path) -> int | None:
    """Return the bytes that a folder's files occupy, ``None`` if it is not there or cannot be looked into."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            return None
    except OSError:
        return None
    total = 0
    for total in _running_total(iter([folder])):  # noqa: B007 - the last one is the sum
        pass
    return total


def _running_total(folders: Iterator[Path]) -> Iterator[int]:
    """Yield the bytes seen so far after each entry; no link is followed, what vanishes or is closed counts nothing."""
    waiting = [os.fspath(folder) for folder in folders]
    total = 0
    while waiting:
        path = waiting.pop()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    try:
                        facts = entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(os.path.join(path, entry.name))  # noqa: PTH118 - a million times
                    except OSError:
                        continue
                    total += facts.st_blocks * _BLOCK_BYTES
                    yield total
        except OSError:
            continue
        finally:
            os.close(descriptor)
