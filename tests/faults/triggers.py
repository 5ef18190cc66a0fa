"""A store that does something to the world at a chosen call: the fault is where the test says, and seen to fire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore
from tests.doubles.stores import When

T = TypeVar("T")


class TriggerStore:
    """Calls ``action`` at one call among those of ``operations`` on keys that contain ``part``.

    As a context manager it asserts at its end that the trigger fired, whatever else happened.

    Args:
        inner: the store.
        action: gets the key; what it raises comes out of the call.
        operations: the calls that count.
        part: the keys that count.
        at: the number of the call, from 1.
        when: before or after the real call.
    """

    def __init__(
        self,
        inner: ObjectStore,
        action: Callable[[str], None],
        *,
        operations: Collection[str],
        part: str = "",
        at: int = 1,
        when: When = When.BEFORE,
    ) -> None:
        self._inner = inner
        self._action = action
        self._operations = operations
        self._part = part
        self._at = at
        self._when = when
        self._lock = threading.Lock()
        self.calls = 0
        self.fired = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            assert self.fired, f"the trigger at call {self._at} never fired; {self.calls} calls came"

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._around("create", key, lambda: self._inner.create(key, body))

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._around("read", key, lambda: self._inner.read(key, offset=offset, length=length))

    def stat(self, key: str) -> ObjectInfo:
        return self._around("stat", key, lambda: self._inner.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(self._around("list", prefix, lambda: tuple(self._inner.list(prefix, start_after=start_after))))

    def read_versions(self, key: str) -> Iterator[bytes]:
        return iter(self._around("read_versions", key, lambda: tuple(self._inner.read_versions(key))))

    def extend_lock(self, key: str, until: datetime) -> None:
        self._around("extend_lock", key, lambda: self._inner.extend_lock(key, until))

    def delete(self, key: str) -> None:
        self._around("delete", key, lambda: self._inner.delete(key))

    def server_time(self) -> datetime:
        return self._around("server_time", "", self._inner.server_time)

    def close(self) -> None:
        self._inner.close()

    def _around(self, operation: str, key: str, call: Callable[[], T]) -> T:
        due = self._due(operation, key)
        if due and self._when is When.BEFORE:
            self._fire(key)
        result = call()
        if due and self._when is When.AFTER:
            self._fire(key)
        return result

    def _due(self, operation: str, key: str) -> bool:
        with self._lock:
            if operation not in self._operations or self._part not in key:
                return False
            self.calls += 1
            return self.calls == self._at

    def _fire(self, key: str) -> None:
        self.fired += 1
        self._action(key)
