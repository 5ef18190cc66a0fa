"""Counts what a store is asked: calls, failures, bytes and seconds per operation. Safe for threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from drservice.clock import Clock, SystemClock
from drservice.errors import DrError
from drservice.objectstore.bodies import size_of
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore


class Operation(Enum):
    """The calls of the contract."""

    CREATE = "create"
    READ = "read"
    STAT = "stat"
    LIST = "list"
    READ_VERSIONS = "read_versions"
    EXTEND_LOCK = "extend_lock"
    DELETE = "delete"
    SERVER_TIME = "server_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one operation has cost so far."""

    calls: int = 0
    failures: int = 0
    """Calls that ended with an error, also an expected one such as "exists"."""
    sent_bytes: int = 0
    received_bytes: int = 0
    objects: int = 0
    """Entries that listings yielded, or versions that were read."""
    seconds: float = 0.0


class MeteredStore:
    """A store that knows what it was asked."""

    def __init__(self, inner: ObjectStore, *, clock: Clock | None = None) -> None:
        self._inner = inner
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._usage = {operation: Usage() for operation in Operation}

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self._inner.capabilities

    def usage(self) -> dict[Operation, Usage]:
        """Return a copy of the counters as they are now."""
        with self._lock:
            return dict(self._usage)

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``."""
        with self._call(Operation.CREATE):
            self._inner.create(key, body)
        self._add(Operation.CREATE, sent_bytes=size_of(body))

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``."""
        with self._call(Operation.READ):
            data = self._inner.read(key, offset=offset, length=length)
        self._add(Operation.READ, received_bytes=len(data))
        return data

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object."""
        with self._call(Operation.STAT):
            return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by key."""
        with self._call(Operation.LIST):
            for info in self._inner.list(prefix, start_after=start_after):
                self._add(Operation.LIST, objects=1)
                yield info

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions, oldest first."""
        with self._call(Operation.READ_VERSIONS):
            for body in self._inner.read_versions(key):
                self._add(Operation.READ_VERSIONS, objects=1, received_bytes=len(body))
                yield body

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep an object locked until then at least."""
        with self._call(Operation.EXTEND_LOCK):
            self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is fine."""
        with self._call(Operation.DELETE):
            self._inner.delete(key)

    def server_time(self) -> datetime:
        """Return the store's own clock."""
        with self._call(Operation.SERVER_TIME):
            return self._inner.server_time()

    def close(self) -> None:
        """Release connections; the counters stay."""
        self._inner.close()

    @contextlib.contextmanager
    def _call(self, operation: Operation) -> Iterator[None]:
        started = self._clock.monotonic()
        failures = 0
        try:
            yield
        except DrError:
            failures = 1
            raise
        finally:
            self._add(operation, calls=1, failures=failures, seconds=self._clock.monotonic() - started)

    def _add(
        self,
        operation: Operation,
        *,
        calls: int = 0,
        failures: int = 0,
        sent_bytes: int = 0,
        received_bytes: int = 0,
        objects: int = 0,
        seconds: float = 0.0,
    ) -> None:
        with self._lock:
            usage = self._usage[operation]
            self._usage[operation] = replace(
                usage,
                calls=usage.calls + calls,
                failures=usage.failures + failures,
                sent_bytes=usage.sent_bytes + sent_bytes,
                received_bytes=usage.received_bytes + received_bytes,
                objects=usage.objects + objects,
                seconds=usage.seconds + seconds,
            )
