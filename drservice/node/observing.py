"""What the catalogue is told about a run while it goes on: steps and notes as events, the newest progress.

Told by the process of the run at any rate, written by the lease's thread about once a second. A catalogue that is away
delays that and loses nothing but notes beyond a bound.
"""

from __future__ import annotations

import threading
from collections import deque

from drservice.catalogue.runs import Claim, Runs
from drservice.clock import Clock
from drservice.node.assignment import Advanced, Document, Message, Noted, Step
from drservice.operations.rates import RateMeter

_MOST_WAITING = 1000
_MOST_EVENTS = 5000
"""Of one run: a page shows what happened, not each of a million files."""


class RunObserver:
    """Gathers what a run tells, and writes it when :meth:`write` is called, from another thread."""

    def __init__(self, runs: Runs, claim: Claim, clock: Clock) -> None:
        self._runs = runs
        self._claim = claim
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[tuple[str, Document]] = deque()
        self._told = 0
        self._dropped = 0
        self._step: Step | None = None
        self._meter = RateMeter(begun_at=clock.monotonic())
        self._is_changed = False

    def hear(self, message: Message) -> None:
        """Take what a run has told."""
        now = self._clock.monotonic()
        with self._lock:
            if isinstance(message, Step):
                self._step, self._meter = message, RateMeter(begun_at=now, total=message.total)
                self._add("step", {"name": message.name, "total": message.total, "unit": message.unit})
                self._is_changed = True
            elif isinstance(message, Advanced):
                self._meter.advance(message.done - self._meter.done, now)
                self._is_changed = True
            elif isinstance(message, Noted):
                self._add("note", {"text": message.text})

    def write(self) -> bool:
        """Write what has been heard since the last call; ``False`` if the run is no longer this claim's.

        Raises:
            CatalogueUnreachableError: it is written the next time.
        """
        while (event := self._first()) is not None:
            if not self._runs.event(self._claim, *event):
                return False
            with self._lock:
                self._events.popleft()
        progress = self._progress()
        if progress is None:
            return True
        try:
            return self._runs.progress(self._claim, progress)
        except BaseException:
            with self._lock:
                self._is_changed = True
            raise

    def _add(self, kind: str, data: Document) -> None:
        if len(self._events) >= _MOST_WAITING or self._told >= _MOST_EVENTS:
            self._dropped += 1
            return
        self._told += 1
        self._events.append((kind, data))

    def _first(self) -> tuple[str, Document] | None:
        with self._lock:
            if not self._events and self._dropped:
                self._events.append(("note", {"text": f"{self._dropped} steps and notes are not told"}))
                self._dropped = 0
            return self._events[0] if self._events else None

    def _progress(self) -> Document | None:
        now = self._clock.monotonic()
        with self._lock:
            if not self._is_changed or self._step is None:
                return None
            self._is_changed = False
            rate, rest = self._meter.rate(now), self._meter.seconds_to_go(now)
            return {
                "step": self._step.name,
                "done": self._meter.done,
                "total": self._meter.total,
                "unit": self._step.unit,
                "rate": round(rate, 1) if rate is not None else None,
                "eta_seconds": round(rest, 1) if rest is not None else None,
            }
