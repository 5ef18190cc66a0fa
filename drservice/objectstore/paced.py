"""Moves at most so many bytes per second to and from a store, on average. Safe for threads, which share the rate.

Whoever has moved more than that waits before it moves on; what is asked without a body (listings, facts) waits for
nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime

from drservice.clock import Clock, SystemClock
from drservice.objectstore.bodies import size_of
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore


class PacedStore:
    """A store behind a rate.

    Args:
        inner: the store.
        bytes_per_second: what is moved at most, sent and received together.
        clock: for tests.
    """

    def __init__(self, inner: ObjectStore, *, bytes_per_second: int, clock: Clock | None = None) -> None:
        self._inner = inner
        self._rate = bytes_per_second
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._free_at = self._clock.monotonic()

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``."""
        self._take(size_of(body))
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``."""
        data = self._inner.read(key, offset=offset, length=length)
        self._take(len(data))
        return data

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object."""
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by key."""
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions, oldest first."""
        for body in self._inner.read_versions(key):
            self._take(len(body))
            yield body

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep an object locked until then at least."""
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is fine."""
        self._inner.delete(key)

    def server_time(self) -> datetime:
        """Return the store's own clock."""
        return self._inner.server_time()

    def close(self) -> None:
        """Release connections."""
        self._inner.close()

    def _take(self, size: int) -> None:
        """Wait until everything before has had its time, and count ``size`` bytes more."""
        with self._lock:
            now = self._clock.monotonic()
            begins = max(self._free_at, now)
            self._free_at = begins + size / self._rate
        if begins > now:
            self._clock.sleep(begins - now)
