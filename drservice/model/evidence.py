"""What evidence is about: the kinds of statements, the roles of keys, and how a seed becomes a target. Pure."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from enum import Enum

from drservice.model.ids import RepositoryId

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far the clocks of hosts may differ: writers hold to it, and policies ask for it."""
SEED_BYTES = 32
_TARGET_CONTEXT = b"drservice target v1\n"
_MICROSECOND = timedelta(microseconds=1)


class EvidenceKind(Enum):
    """What a statement is about; the value is the word in its predicate type."""

    BACKUP = "backup"
    RESTORE = "restore"
    OBLIGATION = "obligation"
    DRILL = "drill"
    APPROVAL = "approval"
    PROBE = "probe"
    FINDING = "finding"
    KEY = "key"
    MISSED = "missed"
    FAILURE = "failure"
    RETENTION = "retention"
    ACCESS = "access"


class KeyRole(Enum):
    """What a key signs: records, checkpoints, or approvals."""

    EXECUTOR = "executor"
    LOG = "log"
    APPROVER = "approver"


class KeyAction(Enum):
    """What a key entry says about a key."""

    ADDED = "added"
    ROTATED = "rotated"
    REVOKED = "revoked"


def ledger_origin(repository: RepositoryId) -> str:
    """Return the origin line of a repository's ledger: the name its checkpoints carry."""
    return f"drservice/{repository}"


def seed_commitment(seed: bytes) -> str:
    """Return what an obligation publishes about its seed: the hex SHA-256 of it.

    Raises:
        ValueError: a seed has 32 bytes.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    return hashlib.sha256(seed).hexdigest()


def target_from_seed(seed: bytes, begin: datetime, end: datetime) -> datetime:
    """Return the instant that a seed chooses from ``begin`` to ``end``, both included (docs/evidence.md).

    Whole microseconds are counted, so that every implementation reaches the same instant.

    Raises:
        ValueError: a seed of another size, a naive instant, or an empty window.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    if begin.tzinfo is None or end.tzinfo is None or end < begin:
        raise ValueError(f"{begin} to {end} is no window in time")
    number = int.from_bytes(hashlib.sha256(_TARGET_CONTEXT + seed).digest()[:8], "big")
    width = (end - begin) // _MICROSECOND + 1
    return begin.astimezone(UTC) + (number % width) * _MICROSECOND
