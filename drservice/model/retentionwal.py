"""Which archived WAL nothing needs any more. Pure.

What stays: everything from the start of the oldest snapshot of its cluster on, on every timeline (positions are
compared, never names or ages, because after a recovery to an instant a new timeline runs below the old one again);
every history file; what reached the store only days ago, because a copy being filled shows WAL before snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drservice.model.ids import SystemId
from drservice.model.retentionstock import StoredSnapshot
from drservice.model.wal import WalFileKind, WalFileName, segment_number

GRACE = timedelta(days=7)
"""The age by the store's clock below which no WAL goes; the same as for packs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWal:
    """A file of the archive, or what was stored of a segment; a repaired copy has the name of what it repairs."""

    key: str
    name: WalFileName
    stored_at: datetime
    """By the store's clock."""
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WalPlan:
    """What may go of one cluster's WAL."""

    system_id: SystemId
    reason: str
    expired: tuple[StoredWal, ...]
    """Files by key, oldest position of each timeline first; then pieces and clocks in the same order."""
    remaining: int


def plan_wal(
    files: Iterable[StoredWal], *, system_id: SystemId, snapshots: Sequence[StoredSnapshot], now: datetime
) -> WalPlan:
    """Judge the archive of one cluster.

    Args:
        files: all of it, by key.
        system_id: the cluster.
        snapshots: every snapshot of the component that exists, of other clusters too.
        now: by the store's clock.
    """
    listed = list(files)
    old = [item for item in listed if item.name.kind is not WalFileKind.HISTORY and item.stored_at <= now - GRACE]
    starts = [item.wal for item in snapshots if item.wal is not None and item.wal.system_id == system_id]
    sizes = {start.segment_bytes for start in starts}
    if len(sizes) > 1:
        return _plan(system_id, "its snapshots disagree about the size of a segment: all of it stays", listed, [])
    if not starts:
        return _without_snapshots(system_id, listed, old, snapshots, now)
    (segment_bytes,) = sizes
    first = min(start.segment for start in starts)
    expired = [item for item in old if segment_number(item.name.name, segment_bytes) < first]
    begin = min(start.lsn for start in starts)
    return _plan(system_id, f"the oldest snapshot of this cluster needs it from {begin} on", listed, expired)


def _without_snapshots(
    system_id: SystemId,
    listed: list[StoredWal],
    old: list[StoredWal],
    snapshots: Sequence[StoredSnapshot],
    now: datetime,
) -> WalPlan:
    """Judge the WAL of a cluster that has no snapshot: before its first one, or after its last one has expired.

    After the last one another cluster has taken over long ago, and nothing has been archived since.
    """
    newest = max((item.stored_at for item in listed), default=now)
    taken_over = min((item.stored_at for item in snapshots), default=now)
    if newest < taken_over <= now - GRACE and newest <= now - GRACE:
        return _plan(system_id, "no snapshot of this cluster is left, and another cluster took over", listed, old)
    return _plan(system_id, "there is no snapshot of this cluster yet: all of it stays", listed, [])


def _plan(system_id: SystemId, reason: str, listed: list[StoredWal], expired: list[StoredWal]) -> WalPlan:
    return WalPlan(system_id=system_id, reason=reason, expired=tuple(expired), remaining=len(listed) - len(expired))
