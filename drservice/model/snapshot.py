"""What a snapshot is, as far as it can be told without any key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from drservice.errors import FormatError
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId
from drservice.model.wal import Lsn, Timeline


class SnapshotState(Enum):
    """How good a snapshot is."""

    COMPLETE = "complete"
    DEGRADED = "degraded"
    """Whole, but the source itself is damaged (pages, documents): it never replaces the last good one."""

    PARTIAL = "partial"
    """Something could not be read, so it is not in the snapshot."""


POSTGRES_KIND = "postgres"
FILES_KINDS = frozenset({"odoo-filestore", "directory", "git", "redis"})
"""Kinds whose snapshots carry :class:`FilesFacts`."""


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

    @property
    def state(self) -> SnapshotState:
        """How good a snapshot with these facts is."""
        return SnapshotState.DEGRADED if self.bad_pages else SnapshotState.COMPLETE


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesFacts:
    """What a snapshot of a filestore or folder says about itself: counts only, names are in its sealed part."""

    walk_began_at: datetime
    """The host's clock before the first folder was listed: what a database had committed by then is in here, unless
    production had lost it."""
    referred: int | None
    """Documents that production's rows referred to before the walk; ``None`` if nobody asked a database."""
    missing: int
    """Of those, the ones that production itself did not have."""
    corrupt: int
    """Files whose content is not what their name, or the row about them, says: damaged in production, stored as they
    are."""
    foreign: int
    """Files under names that no filestore uses; not stored."""
    vanished: int
    """Deleted between the listing and the reading."""
    unreadable: int
    """What could not be read (permission, stale handle, input/output error)."""
    left_out: int
    """Sockets, devices and pipes, and in a filestore also links: named in the sealed part, not stored."""

    @property
    def state(self) -> SnapshotState:
        """How good a snapshot with these facts is."""
        if self.unreadable:
            return SnapshotState.PARTIAL
        return SnapshotState.DEGRADED if self.corrupt or self.missing else SnapshotState.COMPLETE


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
    facts: PostgresFacts | FilesFacts
    header_sha256: str

    @property
    def postgres(self) -> PostgresFacts:
        """The facts of a cluster's snapshot.

        Raises:
            FormatError: it is a snapshot of something else.
        """
        if not isinstance(self.facts, PostgresFacts):
            raise FormatError(f"snapshot {self.id} of {self.service}/{self.component} is no PostgreSQL cluster")
        return self.facts

    @property
    def documents(self) -> FilesFacts:
        """The facts of a filestore's or folder's snapshot.

        Raises:
            FormatError: it is a snapshot of something else.
        """
        if not isinstance(self.facts, FilesFacts):
            raise FormatError(f"snapshot {self.id} of {self.service}/{self.component} holds no documents")
        return self.facts
