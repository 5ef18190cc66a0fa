"""Named restore points that were left (docs/format.md, section 11): each name once per cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from drservice.canonical import Json
from drservice.clock import to_iso
from drservice.errors import ObjectNotFoundError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import HostKey, write_envelope
from drservice.repository.records import Scope

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""63 bytes is what PostgreSQL keeps of a name; the rest makes a key of every store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPoint:
    """A name in the WAL of one cluster."""

    name: str
    system_id: SystemId
    timeline: Timeline
    lsn: Lsn
    left_at: datetime


def is_point_name(text: str) -> bool:
    """Tell whether a restore point may have this name."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def is_name_taken(store: ObjectStore, scope: Scope, system_id: SystemId, name: str) -> bool:
    """Tell whether a restore point of this name was left in a cluster's WAL."""
    try:
        store.stat(layout.name_key(scope.service, scope.component, system_id, name))
    except ObjectNotFoundError:
        return False
    return True


def publish_name(store: ObjectStore, signer: HostKey, scope: Scope, point: NamedPoint, *, now: datetime) -> None:
    """Write down that a name is in a cluster's WAL.

    Raises:
        ObjectExistsError: somebody else left one of this name.
    """
    key = layout.name_key(scope.service, scope.component, point.system_id, point.name)
    fields: dict[str, Json] = {
        "name": point.name,
        "system_id": point.system_id,
        "timeline": int(point.timeline),
        "lsn": str(point.lsn),
        "left_at": to_iso(point.left_at),
    }
    store.create(
        key,
        write_envelope(
            signer=signer, repository=scope.repository, key=key, kind="name", fields=fields, body=[], now=now
        ),
    )
