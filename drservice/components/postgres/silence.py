"""Reading from a program that may fall silent for ever: after a bounded silence it is ended, and the reader is told.

``pg_basebackup`` without WAL waits on the server until the WAL of the backup is archived (documentation 55.4,
BASE_BACKUP, option WAIT), with no limit of its own: a broken archive_command would hang a backup for good (trap T4).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from drservice.clock import Clock

_LOOKS_PER_LIMIT = 10


class WatchedPipe:
    """A pipe whose writer is ended when it says nothing for too long; use as a context manager.

    Only time spent waiting in a read counts, and only after the first byte: before it, a spread checkpoint may take
    as long as checkpoint_timeout (trap T7).
    """

    def __init__(self, source: IO[bytes], *, limit_seconds: float, clock: Clock, end: Callable[[], None]) -> None:
        self._source = source
        self._limit = limit_seconds
        self._clock = clock
        self._end = end
        self._waiting_since: float | None = None
        self._begun = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="silence", daemon=True)
        self.fell_silent = False
        """Whether the writer was ended for its silence."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def readinto(self, view: memoryview) -> int:
        """Fill ``view`` as far as the writer goes on; 0 at its end."""
        if self._begun:
            self._waiting_since = self._clock.monotonic()
        count = int(self._source.readinto(view))  # type: ignore[attr-defined]  # binary pipes have it
        self._waiting_since = None
        self._begun = self._begun or count > 0
        return count

    def read(self, amount: int) -> bytes:
        """Return up to ``amount`` bytes; none at the writer's end."""
        buffer = bytearray(amount)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def _watch(self) -> None:
        while not self._over.wait(self._limit / _LOOKS_PER_LIMIT):
            since = self._waiting_since
            if since is not None and self._clock.monotonic() - since > self._limit:
                self.fell_silent = True
                self._end()
                return
