"""What a snapshot is, as far as it can be told without any key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId
from drservice.model.wal import Lsn, Timeline


class SnapshotState(Enum):
    """How good a snapshot is."""

    COMPLETE = "complete"
    DEGRADED = "degraded"
    """Whole, but the source had damaged pages: it never replaces the last good one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """What a snapshot of a PostgreSQL cluster says about itself."""

    system_id: SystemId
    timeline: Timeline
    start_lsn: Lsn
    stop_lsn: Lsn
    server_version: int
    """Major version, for example 15."""
    segment_bytes: int
    block_bytes: int
    data_checksums: bool
    bad_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """The public part of one captured state of one component. Sizes in bytes, times in UTC."""

    id: SnapshotId
    service: ServiceName
    component: ComponentName
    kind: str
    method: str
    state: SnapshotState
    host: str
    started_at: datetime
    stopped_at: datetime
    checked_at: datetime
    """The store's clock when re-used packs were last seen."""
    key_ids: tuple[KeyId, ...]
    sealed_key_id: KeyId
    previous: SnapshotId | None
    source_bytes: int
    read_bytes: int
    stored_bytes: int
    files: int
    postgres: PostgresFacts
    header_sha256: str
