"""Fetches WAL ahead of a server that replays it: the next segments, in parallel, into a spool outside ``pg_wal``.

One process for each server that replays, started by ``wal fetch --ahead``; it follows what PostgreSQL asks for, keeps
the next few segments ready, checked against their signed hashes, and ends with everything it has made when nobody asks
any more. It answers nothing: a segment it did not find is asked of the archive by ``wal fetch``, which alone proves
absence. See :mod:`drservice.walclient.spool` for who believes what.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import BusyError, DrError, SegmentAbsentError
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import WalFileKind, WalFileName, segment_name, segment_number
from drservice.repository.walarchive import WalArchive
from drservice.walclient import spool

_LOOK_SECONDS = 0.02
_IDLE_SECONDS = 60.0
_AGAIN_SECONDS = 2.0
_MOST_THREADS = 4
_MOST_BYTES = 512 << 20
"""That a spool may hold, whatever the segment size; one segment always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """How far to fetch ahead."""

    count: int
    segment_bytes: int

    def names_after(self, name: str) -> Sequence[str]:
        """Return the names of the segments behind one, on its timeline."""
        parsed = WalFileName.parse(name)
        if parsed.kind is not WalFileKind.SEGMENT:
            return ()
        number = segment_number(name, self.segment_bytes)
        most = max(1, min(self.count, _MOST_BYTES // self.segment_bytes))
        return [segment_name(parsed.timeline, number + step, self.segment_bytes) for step in range(1, most + 1)]


def spool_path(state_dir: Path, service: ServiceName, component: ComponentName) -> Path:
    """Return where a component's spools are."""
    return state_dir / "spool" / f"{service}-{component}"


def is_held(folder: Path) -> bool:
    """Tell whether a process fetches into a spool."""
    try:
        file = os.open(folder / spool.ABOUT, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return spool.is_locked(file)
    finally:
        os.close(file)


@contextmanager
def own_spool(folder: Path, said: bytes) -> Iterator[None]:
    """Make a spool and hold it for the block; what an earlier process left is removed, and everything at the end.

    Raises:
        BusyError: another process has it.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(folder / spool.ABOUT, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another process fetches ahead into {folder}") from error
        for entry in folder.iterdir():
            if entry.name not in {spool.ABOUT, spool.ASKED}:
                entry.unlink()
        os.ftruncate(file, 0)
        os.pwrite(file, said + f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)


class Prefetcher:
    """Keeps a spool filled.

    Args:
        archive: where segments come from.
        system_id: whose they are.
        folder: of the spool, held with :func:`own_spool`.
        ahead: how far.
        clock: of this host.
        idle_seconds: without a question, after which it ends.
    """

    def __init__(
        self,
        *,
        archive: WalArchive,
        system_id: SystemId,
        folder: Path,
        ahead: Ahead,
        clock: Clock,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._archive = archive
        self._system_id = system_id
        self._folder = folder
        self._ahead = ahead
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._running: dict[str, Future[None]] = {}
        self._not_before: dict[str, float] = {}

    def run(self, asked: str, stop: threading.Event) -> None:
        """Fetch what follows ``asked`` and whatever is asked for later, until nobody asks or ``stop`` is set.

        Raises:
            OSError: the spool cannot be written.
        """
        moved_at = self._clock.monotonic()
        with ThreadPoolExecutor(min(_MOST_THREADS, self._ahead.count), thread_name_prefix="prefetch") as threads:
            while not stop.wait(_LOOK_SECONDS):
                now = self._clock.monotonic()
                latest = self._asked() or asked
                if latest != asked:
                    asked, moved_at = latest, now
                    self._not_before.clear()
                if now - moved_at > self._idle_seconds:
                    break
                self._fill(self._ahead.names_after(asked), threads, now)

    def _asked(self) -> str:
        try:
            return (self._folder / spool.ASKED).read_text(encoding="ascii")
        except FileNotFoundError:
            return ""

    def _fill(self, wanted: Sequence[str], threads: ThreadPoolExecutor, now: float) -> None:
        for name in [name for name, work in self._running.items() if work.done()]:
            self._running.pop(name).result()
        here = {entry.name.partition(".")[0]: entry for entry in self._folder.iterdir() if len(entry.name) > 24}
        for name, entry in here.items():
            if name not in wanted and name not in self._running:
                entry.unlink(missing_ok=True)  # PostgreSQL is past it
        for name in wanted:
            if name in here or name in self._running:
                continue
            if self._not_before.get(name, now) > now:
                break  # and what is behind it can wait as well
            self._running[name] = threads.submit(self._fetch, name)

    def _fetch(self, name: str) -> None:
        """Put one segment into the spool, whole or not at all.

        Raises:
            OSError: the spool cannot be written.
        """
        part = self._folder / f"{name}{spool.PART}"
        try:
            part.touch(mode=0o600)
            data = self._archive.fetch(WalFileName.parse(name), system_id=self._system_id)
            if len(data) != self._ahead.segment_bytes:
                self._not_before[name] = self._clock.monotonic() + _AGAIN_SECONDS
                return  # wal fetch looks into it when PostgreSQL asks
            part.write_bytes(data)
            part.rename(self._folder / f"{name}.{hashlib.sha256(data).hexdigest()}")
        except SegmentAbsentError:
            self._not_before[name] = self._clock.monotonic() + _AGAIN_SECONDS
        except DrError as error:
            self._not_before[name] = self._clock.monotonic() + _AGAIN_SECONDS
            telemetry.warning("segment not fetched ahead", name=name, problem=error.message)
        finally:
            part.unlink(missing_ok=True)
