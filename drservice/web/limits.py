"""How many requests one address or account gets answered: token buckets, in this process's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from drservice.clock import Clock

_MOST_REMEMBERED = 20_000
"""Whoever comes from more addresses than this is forgotten oldest first: memory is bounded, and so is the harm."""


class Limiter:
    """A bucket per name: ``burst`` requests at once, then ``per_second``."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = float(burst)
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one request out of a bucket; return 0, or in how many seconds the next one is there."""
        now = self._clock.monotonic()
        with self._lock:
            level, at = self._buckets.pop(name, (self._burst, now))
            level = min(self._burst, level + (now - at) * self._per_second)
            wait = 0.0 if level >= 1 else (1 - level) / self._per_second
            self._buckets[name] = (level - 1 if wait == 0.0 else level, now)
            if len(self._buckets) > _MOST_REMEMBERED:
                self._buckets.popitem(last=False)
            return wait
