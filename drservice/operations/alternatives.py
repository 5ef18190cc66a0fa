"""What else could be restored when the chosen snapshot turns out to be damaged: named, never taken silently.

A damaged snapshot stops its restore. Going on from another one is a decision for a person, so the error names it and
how to ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from drservice.clock import to_iso
from drservice.errors import DrError, RecoveryError, WalError
from drservice.model.reach import WalInventory
from drservice.model.recovery import Target, TargetKind, choose_plan
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Lsn
from drservice.operations.locate import Resolved

_NONE = "No other snapshot reaches this target; `drservice info` shows the others, `drservice verify` the extent."


def offering_another(
    error: DrError, resolved: Resolved, records: Sequence[SnapshotRecord], inventory: WalInventory
) -> DrError:
    """Return ``error`` with the chosen snapshot's name in its message and the one to use instead in its hint."""
    used = resolved.plan.snapshot
    others = [record for record in records if record.id != used.id]
    if resolved.plan.target.kind is TargetKind.SNAPSHOT:
        hint = _nearest(used, others, inventory)
    else:
        hint = _same_target(resolved, others, inventory)
    return type(error)(f"snapshot {used.id} cannot be restored: {error.message}", hint=hint)


def _nearest(used: SnapshotRecord, others: Sequence[SnapshotRecord], inventory: WalInventory) -> str:
    """Look for the nearest snapshot: older ones first, because what spoilt this one may be in later ones too."""
    older = [record for record in others if record.postgres.stop_lsn <= used.postgres.stop_lsn]
    newer = [record for record in others if record.postgres.stop_lsn > used.postgres.stop_lsn]
    ordered = sorted(older, key=lambda r: r.postgres.stop_lsn, reverse=True) + sorted(
        newer, key=lambda r: r.postgres.stop_lsn
    )
    for record in ordered:
        try:
            choose_plan(Target(kind=TargetKind.SNAPSHOT, snapshot=record.id), [record], inventory)
        except (RecoveryError, WalError):
            continue  # it lacks WAL; the next one is asked
        return f"The nearest other snapshot ended at {to_iso(record.stopped_at)}: --snapshot {record.id}."
    return _NONE


def _same_target(resolved: Resolved, others: Sequence[SnapshotRecord], inventory: WalInventory) -> str:
    target = resolved.plan.target
    is_searched = target.kind in {TargetKind.XID, TargetKind.NAME}
    try:
        other = choose_plan(
            target, others, inventory, located=Lsn.parse(resolved.replay.value) if is_searched else None
        ).snapshot
    except (RecoveryError, WalError):
        return _NONE
    return (
        f"Snapshot {other.id} of {to_iso(other.stopped_at)} reaches the same target: empty the target directory and"
        f" run again with --without-snapshot {resolved.plan.snapshot.id}."
    )
