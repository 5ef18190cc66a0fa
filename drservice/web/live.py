"""Tells viewers of a run that something about it changed: one listener per process, however many viewers.

An announcement only wakes; what is shown is read from the catalogue. So a lost announcement costs a viewer seconds (it
looks by itself every :data:`LOOK_SECONDS`), never an event. What viewers have in common is done once for all of them:
reading, writing an event down as text, and the question whether they are still somebody.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.runs import CHANNEL, EventInfo, RunInfo, Runs
from drservice.errors import CatalogueUnreachableError
from drservice.web.auth.identity import Identity, Principal
from drservice.web.schemas import EventDocument

LOOK_SECONDS = 3.0
"""Also how long a stream outlives its revoked token, at most."""
_HEAR_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_SHARED_SECONDS = 1.0
"""A read without news that is older is not shared: an announcement may have been lost."""
_READ_EVENTS = 200
_KEPT_EVENTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event as it is sent."""

    number: int
    kind: str
    text: str
    """JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run as it is now, for one of its viewers."""

    run: RunInfo | None
    """``None``: there is no such run any more."""
    progress: str
    """JSON; empty if there is none."""
    events: Sequence[Told]


@dataclass(slots=True)
class _Watched:
    """A run that somebody watches, as it was read last for all of them."""

    viewers: set[asyncio.Event] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    version: int = 0
    """Counts announcements."""
    seen_version: int = -1
    """The version that was there when ``seen`` began to be read."""
    seen_at: float = 0.0
    seen: RunInfo | None = None
    progress: str = ""
    events: deque[Told] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    last: int = 0
    """The number of the last event that was read."""


class Live:
    """Wakes the viewers of runs and reads for them. Lives with the server, whose event loop it calls into."""

    def __init__(self, database: Database, runs: Runs, identity: Identity) -> None:
        self._database = database
        self._runs = runs
        self._identity = identity
        self._asking = asyncio.Lock()
        self._streams: dict[asyncio.Event, Principal] = {}
        self._asked: frozenset[str] = frozenset()
        self._known: Mapping[str, Principal] = {}
        self._known_at = 0.0
        self._watched: dict[str, _Watched] = {}
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
    def watching(self, run: str, viewer: Principal) -> Iterator[asyncio.Event]:
        """Return an event that is set whenever something about the run changed; clear it before you look."""
        changed = asyncio.Event()
        watched = self._watched.setdefault(run, _Watched())
        watched.viewers.add(changed)
        self._streams[changed] = viewer
        try:
            yield changed
        finally:
            del self._streams[changed]
            watched.viewers.discard(changed)
            if not watched.viewers:
                del self._watched[run]

    async def still(self, viewer: Principal) -> tuple[Principal | None, float]:
        """Return a viewer as of now, ``None`` if nobody any more, and until when (of the loop's clock) to believe it.

        All viewers of the process are asked about together; who asks within a moment of another gets the same answer.
        """
        clock = asyncio.get_running_loop().time
        async with self._asking:
            if viewer.token not in self._asked or clock() - self._known_at > _SHARED_SECONDS:
                asked, began = {item.token: item for item in self._streams.values()}, clock()
                self._known = await run_in_threadpool(self._identity.still, asked.values())
                self._asked, self._known_at = frozenset(asked), began
            return self._known.get(viewer.token), self._known_at + LOOK_SECONDS

    async def look(self, run: str, after: int) -> Seen:
        """Return a watched run as it is now, and its events after a number (several hundred at most).

        Viewers who are woken together share one read. It begins after what woke the first of them, or it is not shared.
        """
        watched = self._watched[run]
        wanted = watched.version
        async with watched.lock:
            is_old = asyncio.get_running_loop().time() - watched.seen_at > _SHARED_SECONDS
            if watched.seen_version < wanted or is_old:
                watched.last = max(watched.last, after) if watched.seen_version < 0 else watched.last
                version = watched.version
                more = True
                while more:
                    present, events = await run_in_threadpool(self._read, run, watched.last)
                    if present is not None and (watched.seen is None or present.progress != watched.seen.progress):
                        watched.progress = json.dumps(present.progress) if present.progress else ""
                    watched.seen = present
                    watched.events.extend(events)
                    watched.last = events[-1].number if events else watched.last
                    more = len(events) == _READ_EVENTS
                watched.seen_version, watched.seen_at = version, asyncio.get_running_loop().time()
            present, progress, last = watched.seen, watched.progress, watched.last
            if after >= last:
                return Seen(run=present, progress=progress, events=())
            kept = list(watched.events)
            first = kept[0].number if kept else last + 1
        if after + 1 >= first:
            events = [event for event in kept if event.number > after]
        else:
            _, events = await run_in_threadpool(self._read, run, after)  # who came late reads what is not kept
        return Seen(run=present, progress=progress, events=events)

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return sum(len(watched.viewers) for watched in self._watched.values())

    def _read(self, run: str, after: int) -> tuple[RunInfo | None, list[Told]]:
        """Read a run before its events: one that is over then has no event that is not read after it."""
        present = self._runs.get(run)
        return present, [_told(event) for event in self._runs.events(run, after, limit=_READ_EVENTS)]

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
        watched = self._watched.get(run)
        if watched is not None:
            watched.version += 1
            for changed in watched.viewers:
                changed.set()

    def _wake_all(self) -> None:
        for run in list(self._watched):
            self._wake(run)


def _told(event: EventInfo) -> Told:
    document = EventDocument(number=event.number, at=event.at, kind=event.kind, data=event.data)
    return Told(number=event.number, kind=event.kind, text=document.model_dump_json())
