"""How objects are kept in a bucket: kinds, storage classes, locks and their generations. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

GENERATION = timedelta(days=10)
"""Locks end at multiples of this: what is used again is extended once per generation, not by every backup."""
TAIL_LOCK = timedelta(hours=24)
"""How long pieces of WAL are locked: whole segments take their place, and four a second are not kept for weeks."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

THAWING_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Classes whose objects must be asked for hours before they can be read."""


class LockMode(Enum):
    """Who can undo a lock before its end."""

    COMPLIANCE = "compliance"
    """Nobody."""

    GOVERNANCE = "governance"
    """Who has a right of its own for that."""


class ObjectKind(Enum):
    """What an object is, as far as its storage class is concerned; the value is the word in the configuration."""

    PACKS = "packs"
    NODES = "nodes"
    SNAPSHOTS = "snapshots"
    WAL = "wal"
    LEDGER = "ledger"
    OTHER = "other"
    """Small, and needed for everything else: keys, holds, lists, the repository's own file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockSettings:
    """How each object is locked when it is stored."""

    mode: LockMode
    days: int

    def needed_until(self, now: datetime) -> datetime:
        """Return until when what a backup uses now must at least be locked."""
        return now + timedelta(days=self.days)

    def generation_end(self, now: datetime) -> datetime:
        """Return until when an object is locked that is stored or extended now: the need, rounded up."""
        past = self.needed_until(now) - _EPOCH
        return _EPOCH + GENERATION * -(-past // GENERATION)

    def end_for(self, key: str, now: datetime) -> datetime:
        """Return until when the object under ``key`` is locked that is stored now."""
        return now + TAIL_LOCK if _is_tail(key) else self.generation_end(now)

    def describe(self) -> str:
        """Say it in a few words."""
        return f"{self.mode.value}, {self.days} days"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How one store is reached and what it is asked for; a directory is reached without any of it."""

    ca_file: Path | None = None
    """Certificates that are trusted instead of the system's."""
    bucket_owner: str | None = None
    """The account that must own the bucket."""
    storage_classes: Mapping[ObjectKind, str] = field(default_factory=dict)
    lock: LockSettings | None = None
    connect_timeout: timedelta = timedelta(seconds=5)
    read_timeout: timedelta = timedelta(seconds=60)
    """Longest silence of the store within one request."""
    retry_for: timedelta = timedelta(seconds=90)
    """How long a request that found no answer is repeated."""


NO_SETTINGS = StoreSettings()


def kind_of(key: str) -> ObjectKind:
    """Return what kind of object lies under a key (docs/format.md, section 1)."""
    match key.split("/"):
        case ["s", _, _, "packs", *_]:
            return ObjectKind.PACKS
        case ["s", _, _, "nodes", *_]:
            return ObjectKind.NODES
        case ["s", _, _, "snapshots", _] | ["s", _, "points", _]:
            return ObjectKind.SNAPSHOTS
        case ["s", _, _, "wal", *_]:
            return ObjectKind.WAL
        case ["ledger", *_]:
            return ObjectKind.LEDGER
        case _:
            return ObjectKind.OTHER


def is_locked(key: str) -> bool:
    """Tell whether objects under this key are locked: all but probes, and holds, which go when their work ends."""
    return not key.startswith(("probe/", "hold/"))


def is_writers_own(key: str) -> bool:
    """Tell whether nobody else can have this name: it carries the run that writes it (pieces of WAL)."""
    return _is_tail(key)


def _is_tail(key: str) -> bool:
    match key.split("/"):
        case ["s", _, _, "tail", *_]:
            return True
        case _:
            return False
