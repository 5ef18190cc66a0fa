"""What the rest of the program may expect of an object store.

Promises, kept by every implementation and proved by one contract suite:

* Keys are ``/``-separated, relative, from ``[A-Za-z0-9._-]``; they never contain ``..`` or empty parts.
* :meth:`ObjectStore.create` is durable, all or nothing, and fails if the key exists. Two concurrent creators
  of one key never both succeed. Snapshot commit, WAL put, ledger append and fences are all this one call.
* Objects are immutable. Nothing here overwrites, with one exception: where a store has no conditions, a writer whose
  own a name is (:func:`drservice.model.storing.is_writers_own`) may put the same content once more.
* :meth:`ObjectStore.list` is complete or raises; an error is never a shorter list.
* ``ObjectNotFoundError`` means the store *answered* that there is no such object. No answer is
  ``StoreUnreachableError``; refusal is ``StoreDeniedError``; no space is ``StoreFullError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol, TypeAlias

from drservice.model.storing import LockSettings

Body: TypeAlias = "bytes | bytearray | memoryview | Sequence[bytes | bytearray | memoryview]"
"""What is stored: one buffer, or several that are stored one after the other (no joining copy needed)."""


class CreateMode(Enum):
    """How a store makes ``create`` exclusive; found out by a race when the store is opened."""

    CONDITIONAL = "conditional"
    """The store honours ``If-None-Match: *`` (or ``link(2)``): the strong form."""

    FIRST_VERSION_WINS = "first-version-wins"
    """Versioned bucket without conditionals: the oldest version of a key is the truth for every reader."""

    SINGLE_WRITER = "single-writer"
    """Neither: HEAD, PUT, a look at what is stored, under a lock on this host. A weakness that is shown to people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store can do."""

    create_mode: CreateMode
    versioned: bool
    writable: bool
    warnings: tuple[str, ...] = ()
    """Sentences for ``check`` and ``info``; empty for a store without weaknesses."""
    distant: bool = False
    """Each request costs the latency of a network: several at once are worth their memory."""
    lock: LockSettings | None = None
    """How every object is locked when it is stored; ``None``: not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a listing tells about an object."""

    key: str
    stored_bytes: int
    modified_at: datetime
    """By the store's clock, aware, UTC."""


class ObjectStore(Protocol):
    """A place for immutable objects."""

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do, as probed when it was opened."""
        ...

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``: durable on return, all or nothing.

        Raises:
            ObjectExistsError: the key is taken, whatever its content. The caller decides what that means.
            StoreFullError, StoreDeniedError, StoreUnreachableError: nothing is visible under ``key``; after
                StoreUnreachableError it may become visible later (a lost reply), so compare before retrying.
        """
        ...

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``.

        A range that reaches past the end raises ``DamagedObjectError`` (the object is shorter than its reader
        knows it to be); a short answer is never returned.

        Raises:
            ObjectNotFoundError, DamagedObjectError, StoreDeniedError, StoreUnreachableError.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object.

        Raises:
            ObjectNotFoundError, StoreDeniedError, StoreUnreachableError.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix`` and is greater than ``start_after``, by key.

        Keys are ordered by code point. Complete or raises.
        """
        ...

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions of ``key``, oldest first; delete markers are passed over.

        On a store without versions: the one body, or nothing.
        """
        ...

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep an object locked until then at least; one that is locked for longer stays so.

        Raises:
            ObjectNotFoundError: there is no such object.
            StoreDeniedError: not allowed.
            ObjectStoreError: the store was opened without locks (:attr:`Capabilities.lock`).
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object (used by collection and probes only); an absent one is fine.

        Raises:
            StoreDeniedError: not allowed, or still locked.
        """
        ...

    def server_time(self) -> datetime:
        """Return the store's own clock, aware, UTC (for a directory: its file system's)."""
        ...

    def close(self) -> None:
        """Release connections; further calls are undefined."""
        ...
