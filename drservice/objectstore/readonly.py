"""A store that cannot be changed through this object, whatever its credentials allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from drservice.errors import StoreDeniedError
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore

_HINT = "This command only reads; nothing was changed."


class ReadOnlyStore:
    """A store opened for reading.

    Args:
        inner: the store.
        reason: why, said when somebody wants to write; by default that the command only reads.
    """

    def __init__(self, inner: ObjectStore, *, reason: str = _HINT) -> None:
        self._inner = inner
        self._reason = reason
        self._capabilities = replace(inner.capabilities, writable=False)

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do; never writable."""
        return self._capabilities

    def create(self, key: str, body: Body) -> None:
        """Refuse.

        Raises:
            StoreDeniedError: always.
        """
        del body
        raise StoreDeniedError(f"cannot create {key}: {self.description} is open for reading", hint=self._reason)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``."""
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object."""
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by key."""
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions, oldest first."""
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        """Refuse.

        Raises:
            StoreDeniedError: always.
        """
        del until
        raise StoreDeniedError(f"cannot lock {key}: {self.description} is open for reading", hint=self._reason)

    def delete(self, key: str) -> None:
        """Refuse.

        Raises:
            StoreDeniedError: always.
        """
        raise StoreDeniedError(f"cannot delete {key}: {self.description} is open for reading", hint=self._reason)

    def server_time(self) -> datetime:
        """Return the store's own clock."""
        return self._inner.server_time()

    def close(self) -> None:
        """Release connections."""
        self._inner.close()
