"""Identifiers: names people choose, and ULIDs that sort by time of making."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NewType

ServiceName = NewType("ServiceName", str)
ComponentName = NewType("ComponentName", str)
RepositoryId = NewType("RepositoryId", str)
SnapshotId = NewType("SnapshotId", str)
PointId = NewType("PointId", str)
RunId = NewType("RunId", str)
KeyId = NewType("KeyId", str)
EnvironmentId = NewType("EnvironmentId", str)
SystemId = NewType("SystemId", str)
"""PostgreSQL's 64-bit system identifier, in decimal (JSON numbers would lose digits)."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def is_name(text: str) -> bool:
    """Tell whether ``text`` may name a service, component or host (it becomes part of object keys)."""
    return _NAME.match(text) is not None


def is_ulid(text: str) -> bool:
    """Tell whether ``text`` is a ULID in its canonical upper-case form."""
    return _ULID.match(text) is not None


def make_ulid(now: datetime, entropy: bytes) -> str:
    """Make a ULID (https://github.com/ulid/spec): 48 bits of milliseconds, then 80 bits of ``entropy``.

    Args:
        now: the instant, aware.
        entropy: exactly 10 random bytes.
    """
    if len(entropy) != 10:
        raise ValueError("a ULID takes 10 random bytes")
    milliseconds = int(now.timestamp() * 1000)
    number = (milliseconds << 80) | int.from_bytes(entropy, "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def ulid_time(ulid: str) -> datetime:
    """Return the instant a ULID was made, by its maker's clock (millisecond resolution)."""
    number = 0
    for letter in ulid:
        number = (number << 5) | _CROCKFORD.index(letter)
    return datetime.fromtimestamp((number >> 80) / 1000, tz=UTC)
