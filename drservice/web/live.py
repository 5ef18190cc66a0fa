"""Tells viewers of a run that something about it changed: one listener per process, however many viewers.

An announcement only wakes; what is shown is read from the catalogue. So a lost announcement costs a viewer seconds (it
looks by itself every :data:`LOOK_SECONDS`), never an event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.runs import CHANNEL
from drservice.errors import CatalogueUnreachableError

LOOK_SECONDS = 3.0
"""Also how long a stream outlives its revoked token, at most."""
_HEAR_SECONDS = 0.5
_RETRY_SECONDS = 2.0


class Live:
    """Wakes the viewers of runs. Started and stopped with the server, whose event loop it calls into."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._viewers: dict[str, set[asyncio.Event]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.closing = False
        """Streams end soon after this is set."""

    def start(self) -> None:
        """Begin to listen, in a thread of its own."""
        loop = asyncio.get_running_loop()
        self._stop.clear()
        self.closing = False
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="web-live", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and wake every viewer to its end (called in the event loop)."""
        self.closing = True
        self._stop.set()
        self._wake_all()

    def join(self) -> None:
        """Wait for the listener's end."""
        if self._thread is not None:
            self._thread.join(_HEAR_SECONDS + _RETRY_SECONDS + 10)
            self._thread = None

    @contextmanager
    def watching(self, run: str) -> Iterator[asyncio.Event]:
        """Return an event that is set whenever something about the run changed; clear it before you look."""
        changed = asyncio.Event()
        self._viewers.setdefault(run, set()).add(changed)
        try:
            yield changed
        finally:
            self._viewers[run].discard(changed)
            if not self._viewers[run]:
                del self._viewers[run]

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return sum(len(events) for events in self._viewers.values())

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            try:
                with self._database.listening(CHANNEL) as heard:
                    while not self._stop.is_set():
                        for run in set(heard.wait(_HEAR_SECONDS)):
                            loop.call_soon_threadsafe(self._wake, run)
            except CatalogueUnreachableError as error:
                telemetry.warning("live pages look by themselves until the catalogue answers", error=error.message)
                self._stop.wait(_RETRY_SECONDS)

    def _wake(self, run: str) -> None:
        for changed in self._viewers.get(run, ()):
            changed.set()

    def _wake_all(self) -> None:
        for run in list(self._viewers):
            self._wake(run)
