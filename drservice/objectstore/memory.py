"""A store in memory, for tests and for rehearsals: everything the contract promises, except durability."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from drservice.clock import Clock, SystemClock
from drservice.errors import (
    DamagedObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreDeniedError,
)
from drservice.model.storing import LockSettings, is_locked
from drservice.objectstore.bodies import buffers_of
from drservice.objectstore.interface import Body, Capabilities, CreateMode, ObjectInfo
from drservice.objectstore.keys import is_key, split_key, split_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """One stored body; ``body`` is ``None`` for a delete marker."""

    body: bytes | None
    modified_at: datetime


class MemoryStore:
    """Objects in a dictionary, safe for threads; its clock is the store's clock."""

    def __init__(
        self, *, clock: Clock | None = None, versioned: bool = False, lock: LockSettings | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._versions: dict[str, list[_Version]] = {}
        self._locked_until: dict[str, datetime] = {}
        self._capabilities = Capabilities(
            create_mode=CreateMode.CONDITIONAL, versioned=versioned, writable=True, lock=lock
        )

    @property
    def description(self) -> str:
        """A printable address."""
        return "memory"

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self._capabilities

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``.

        Raises:
            ObjectExistsError: the key is taken.
        """
        split_key(key)
        data = b"".join(buffers_of(body))
        with self._lock:
            if any(version.body is not None for version in self._versions.get(key, ())):
                raise ObjectExistsError(f"{key} exists in memory")
            self._append(key, data)
            if (lock := self._capabilities.lock) is not None and is_locked(key):
                self._locked_until[key] = lock.end_for(key, self._clock.now())

    def plant_version(self, key: str, body: bytes | None) -> None:
        """Do what another program with the bucket's credentials can do: add a version under any name.

        ``None`` adds a delete marker. Without versions the body is replaced or removed.
        """
        with self._lock:
            if not self._capabilities.versioned:
                self._versions.pop(key, None)
                if body is None:
                    return
            self._append(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the newest body of the object, or exactly ``length`` bytes from ``offset``.

        Raises:
            ObjectNotFoundError, DamagedObjectError.
        """
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"no range begins at {offset} with length {length}")
        bodies = self._bodies(key)
        if not bodies:
            raise ObjectNotFoundError(f"there is no {key} in memory")
        data = bodies[-1]
        end = len(data) if length is None else offset + length
        if offset > len(data) or end > len(data):
            raise DamagedObjectError(f"{key} has {len(data)} bytes; bytes {offset} to {end} were expected")
        return data[offset:end]

    def stat(self, key: str) -> ObjectInfo:
        """Return size and time of the object's oldest version.

        Raises:
            ObjectNotFoundError.
        """
        split_key(key)
        with self._lock:
            info = self._info(key)
        if info is None:
            raise ObjectNotFoundError(f"there is no {key} in memory")
        return info

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix`` and is greater than ``start_after``, by key."""
        split_prefix(prefix)
        with self._lock:
            keys = sorted(key for key in self._versions if key.startswith(prefix) and key > start_after and is_key(key))
            found = [self._info(key) for key in keys]
        return iter([info for info in found if info is not None])

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions of ``key``, oldest first."""
        return iter(self._bodies(key))

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep an object locked until then at least.

        Raises:
            ObjectNotFoundError, ObjectStoreError.
        """
        split_key(key)
        if self._capabilities.lock is None:
            raise ObjectStoreError(f"cannot lock {key}: the store was opened without locks")
        with self._lock:
            if self._info(key) is None:
                raise ObjectNotFoundError(f"there is no {key} in memory")
            self._locked_until[key] = max(until, self._locked_until.get(key, until))

    def locked_until(self, key: str) -> datetime | None:
        """Return until when an object is locked (for tests)."""
        return self._locked_until.get(key)

    def delete(self, key: str) -> None:
        """Remove an object with all its versions; an absent one is fine.

        Raises:
            StoreDeniedError: it is locked.
        """
        split_key(key)
        with self._lock:
            locked_until = self._locked_until.get(key)
            if locked_until is not None and self._clock.now() < locked_until:
                raise StoreDeniedError(f"cannot delete {key}: it is locked until {locked_until}")
            self._versions.pop(key, None)

    def server_time(self) -> datetime:
        """Return the clock's time."""
        return self._clock.now()

    def close(self) -> None:
        """Keep everything: a test may look inside afterwards."""

    def _append(self, key: str, body: bytes | None) -> None:
        version = _Version(body=body, modified_at=self._clock.now())
        self._versions.setdefault(key, []).append(version)

    def _bodies(self, key: str) -> tuple[bytes, ...]:
        split_key(key)
        with self._lock:
            versions = tuple(self._versions.get(key, ()))
        return tuple(version.body for version in versions if version.body is not None)

    def _info(self, key: str) -> ObjectInfo | None:
        for version in self._versions.get(key, ()):
            if version.body is not None:
                return ObjectInfo(key=key, stored_bytes=len(version.body), modified_at=version.modified_at)
        return None
