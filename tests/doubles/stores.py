"""Stores that misbehave on purpose, around any store; with their fault off they keep its contract.

``FaultyStore`` fails the Nth call, before or after doing it; ``SlowStore`` waits; ``StaleListStore`` lists the
past; ``RecordingStore`` writes down what it was asked; ``truncating_store`` and ``bit_flipping_store``
damage what is read; ``MissingStore`` withholds objects.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from drservice.errors import DamagedObjectError, DrError, ObjectNotFoundError, StoreUnreachableError
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore

T = TypeVar("T")
Calls: TypeAlias = "list[tuple[str, str]]"

ALL_OPERATIONS = frozenset({"create", "read", "stat", "list", "read_versions", "extend_lock", "delete", "server_time"})


class When(Enum):
    """On which side of the real call the fault lies."""

    BEFORE = "before"
    """The request never arrived."""
    AFTER = "after"
    """The request was carried out, its reply was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Which call fails, and how.

    Args:
        at: the number of the failing call among those of ``operations``, from 1.
        operations: the calls that count.
        when: before or after the real call.
        error: makes the error that is raised.
        times: how many calls in a row fail.
    """

    at: int
    operations: Collection[str] = ALL_OPERATIONS
    when: When = When.BEFORE
    error: Callable[[str], DrError] = StoreUnreachableError
    times: int = 1


class FaultyStore:
    """Fails the Nth call. As a context manager it asserts at its end that the fault fired.

    A listing or a reading of versions counts as one call, which fails at its start (BEFORE) or after its
    first entry (AFTER), as a cut connection does.
    """

    def __init__(self, inner: ObjectStore, fault: Fault | None = None) -> None:
        self._inner = inner
        self._fault = fault
        self._lock = threading.Lock()
        self.calls = 0
        """Calls so far among the operations that count."""
        self.fired = 0
        """Faults raised so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.assert_fired()

    def assert_fired(self) -> None:
        """Fail the test if the fault never happened: it proved nothing then."""
        if self._fault is not None and self.fired == 0:
            raise AssertionError(f"the fault at call {self._fault.at} never fired; {self.calls} calls came")

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._around("create", lambda: self._inner.create(key, body))

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._around("read", lambda: self._inner.read(key, offset=offset, length=length))

    def stat(self, key: str) -> ObjectInfo:
        return self._around("stat", lambda: self._inner.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._cut("list", self._inner.list(prefix, start_after=start_after))

    def read_versions(self, key: str) -> Iterator[bytes]:
        return self._cut("read_versions", self._inner.read_versions(key))

    def extend_lock(self, key: str, until: datetime) -> None:
        self._around("extend_lock", lambda: self._inner.extend_lock(key, until))

    def delete(self, key: str) -> None:
        self._around("delete", lambda: self._inner.delete(key))

    def server_time(self) -> datetime:
        return self._around("server_time", self._inner.server_time)

    def close(self) -> None:
        self._inner.close()

    def _due(self, operation: str) -> When | None:
        with self._lock:
            if self._fault is None or operation not in self._fault.operations:
                return None
            self.calls += 1
            if not self._fault.at <= self.calls < self._fault.at + self._fault.times:
                return None
            self.fired += 1
            return self._fault.when

    def _fail(self, operation: str, when: When) -> DrError:
        assert self._fault is not None
        return self._fault.error(f"injected {when.value} {operation}, call {self.calls}")

    def _around(self, operation: str, call: Callable[[], T]) -> T:
        when = self._due(operation)
        if when is When.BEFORE:
            raise self._fail(operation, when)
        result = call()
        if when is When.AFTER:
            raise self._fail(operation, when)
        return result

    def _cut(self, operation: str, entries: Iterator[T]) -> Iterator[T]:
        when = self._due(operation)
        if when is When.BEFORE:
            raise self._fail(operation, when)
        for entry in entries:
            yield entry
            if when is When.AFTER:
                raise self._fail(operation, when)
        if when is When.AFTER:
            raise self._fail(operation, when)


class SlowStore:
    """Waits before every call; ``wait`` is given by the test (a sleep, an event, a counter)."""

    def __init__(self, inner: ObjectStore, *, wait: Callable[[str], None]) -> None:
        self._inner = inner
        self._wait = wait

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._wait("create")
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._wait("read")
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        self._wait("stat")
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self._wait("list")
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        self._wait("read_versions")
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        self._wait("extend_lock")
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._wait("delete")
        self._inner.delete(key)

    def server_time(self) -> datetime:
        self._wait("server_time")
        return self._inner.server_time()

    def close(self) -> None:
        self._inner.close()


class StaleListStore:
    """Listings leave out what was created through this object since :meth:`freeze`, until :meth:`thaw`."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._is_frozen = False
        self._recent: set[str] = set()
        self.hidden = 0
        """Entries left out so far; a test asserts that it is not 0."""

    def freeze(self) -> None:
        self._is_frozen = True

    def thaw(self) -> None:
        self._is_frozen = False
        self._recent.clear()

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._inner.create(key, body)
        if self._is_frozen:
            self._recent.add(key)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        for info in self._inner.list(prefix, start_after=start_after):
            if info.key in self._recent:
                self.hidden += 1
            else:
                yield info

    def read_versions(self, key: str) -> Iterator[bytes]:
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._inner.delete(key)
        self._recent.discard(key)

    def server_time(self) -> datetime:
        return self._inner.server_time()

    def close(self) -> None:
        self._inner.close()


class RecordingStore:
    """Writes down every call as (operation, key or prefix), in order."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.calls: Calls = []

    def count(self, operation: str) -> int:
        """Return how often an operation was called."""
        return Counter(name for name, _ in self.calls)[operation]

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._record("create", key)
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._record("read", key)
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        self._record("stat", key)
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self._record("list", prefix)
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        self._record("read_versions", key)
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        self._record("extend_lock", key)
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._record("delete", key)
        self._inner.delete(key)

    def server_time(self) -> datetime:
        self._record("server_time", "")
        return self._inner.server_time()

    def close(self) -> None:
        self._inner.close()

    def _record(self, operation: str, key: str) -> None:
        with self._lock:
            self.calls.append((operation, key))


class DamagingStore:
    """What the stores that damage reads share: ``damage`` changes whole bodies of keys that ``chooses`` picks.

    The damage is done to the object as the reader sees it: sizes, ranges and versions agree with it.
    """

    def __init__(self, inner: ObjectStore, *, chooses: Callable[[str], bool], damage: Callable[[bytes], bytes]) -> None:
        self._inner = inner
        self._chooses = chooses
        self._damage = damage
        self.damaged = 0
        """Bodies damaged so far; a test asserts that it is not 0."""

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if not self._chooses(key):
            return self._inner.read(key, offset=offset, length=length)
        body = self._spoilt(self._inner.read(key))
        end = len(body) if length is None else offset + length
        if offset > len(body) or end > len(body):
            raise DamagedObjectError(f"{key} has {len(body)} bytes only")
        return body[offset:end]

    def stat(self, key: str) -> ObjectInfo:
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        for body in self._inner.read_versions(key):
            yield self._spoilt(body) if self._chooses(key) else body

    def extend_lock(self, key: str, until: datetime) -> None:
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def server_time(self) -> datetime:
        return self._inner.server_time()

    def close(self) -> None:
        self._inner.close()

    def _spoilt(self, body: bytes) -> bytes:
        self.damaged += 1
        return self._damage(body)


def truncating_store(inner: ObjectStore, *, chooses: Callable[[str], bool], lost_bytes: int = 1) -> DamagingStore:
    """Return a store whose chosen objects have lost their last ``lost_bytes`` bytes."""
    return DamagingStore(inner, chooses=chooses, damage=lambda body: body[: max(0, len(body) - lost_bytes)])


def bit_flipping_store(inner: ObjectStore, *, chooses: Callable[[str], bool], position: int = -1) -> DamagingStore:
    """Return a store whose chosen objects have one bit changed in the byte at ``position``."""

    def flip(body: bytes) -> bytes:
        if not body:
            return body
        spoilt = bytearray(body)
        spoilt[position % len(body)] ^= 0x10
        return bytes(spoilt)

    return DamagingStore(inner, chooses=chooses, damage=flip)


class MissingStore:
    """Chosen objects are gone: not found, not listed, no versions."""

    def __init__(self, inner: ObjectStore, *, chooses: Callable[[str], bool]) -> None:
        self._inner = inner
        self._chooses = chooses
        self.withheld = 0
        """Answers changed so far; a test asserts that it is not 0."""

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._require(key)
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        self._require(key)
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        for info in self._inner.list(prefix, start_after=start_after):
            if self._chooses(info.key):
                self.withheld += 1
            else:
                yield info

    def read_versions(self, key: str) -> Iterator[bytes]:
        if self._chooses(key):
            self.withheld += 1
            return iter(())
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        self._require(key)
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def server_time(self) -> datetime:
        return self._inner.server_time()

    def close(self) -> None:
        self._inner.close()

    def _require(self, key: str) -> None:
        if self._chooses(key):
            self.withheld += 1
            raise ObjectNotFoundError(f"withheld: {key}")
