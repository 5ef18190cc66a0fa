"""What a retention run found and did, as documents: whole for the command line, counted for a run's result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from drservice.clock import to_iso
from drservice.model.retention import RetentionPolicy, Verdict
from drservice.operations.retention import Removed, RetentionOutcome

_TOLD = 100
"""Of what goes, in a run's result: the counts are whole."""


def retention_document(item: RetentionOutcome) -> dict[str, object]:
    """Return an outcome as the JSON contract spells it."""
    plan = item.plan
    return {
        "service": item.service.name,
        "state": item.state.value,
        "policy": policy_document(item.service.retention),
        "now": to_iso(plan.now),
        "verified_at": to_iso(item.proofs.newest_at) if item.proofs.newest_at is not None else None,
        "anomalies": list(plan.anomalies),
        "unreadable": _problems(item.unreadable.items()),
        "points": [
            {"point": point.id, "stored_at": to_iso(point.stored_at), **_verdict(verdict)}
            for point, verdict in plan.points
        ],
        "snapshots": [
            {
                "component": snapshot.component,
                "snapshot": snapshot.id,
                "stored_at": to_iso(snapshot.stored_at),
                "stopped_at": to_iso(snapshot.stopped_at),
                "state": snapshot.state.value,
                **_verdict(verdict),
            }
            for snapshot, verdict in plan.snapshots
        ],
        "wal": [
            {
                "component": wal.component,
                "system_id": wal.plan.system_id,
                "reason": wal.plan.reason,
                "expired_files": len(wal.plan.expired),
                "expired_bytes": sum(file.stored_bytes for file in wal.plan.expired),
                "remaining_files": wal.plan.remaining,
            }
            for wal in item.wal
        ],
        "documents": [
            {
                "component": sets.component,
                "reason": sets.reason,
                "expired_sets": [file.id for file in sets.expired],
                "expired_bytes": sum(file.stored_bytes for file in sets.expired),
                "remaining_sets": sets.remaining,
            }
            for sets in item.documents
        ],
        "removed": _removed(item.removed),
        "record": item.record,
        "notes": list(item.notes),
    }


def retention_summary(item: RetentionOutcome) -> dict[str, object]:
    """Return an outcome as the result of a run: the same, with what stays counted by its reason."""
    whole = retention_document(item)
    plan = item.plan
    kept = Counter(verdict.kept.value for _, verdict in plan.snapshots if verdict.kept is not None)
    expired = [
        {"component": snapshot.component, "snapshot": snapshot.id, "reason": verdict.reason}
        for snapshot, verdict in plan.snapshots
        if verdict.kept is None
    ]
    removed = item.removed
    return whole | {
        "points": {"kept": len(plan.points) - len(plan.expired_points), "expired": len(plan.expired_points)},
        "snapshots": {"kept": dict(sorted(kept.items())), "expired": len(expired), "newest_expired": expired[-_TOLD:]},
        "documents": [
            {
                "component": sets.component,
                "reason": sets.reason,
                "expired_sets": len(sets.expired),
                "expired_bytes": sum(file.stored_bytes for file in sets.expired),
                "remaining_sets": sets.remaining,
            }
            for sets in item.documents
        ],
        "unreadable": _problems(sorted(item.unreadable.items())[:_TOLD]),
        "removed": None
        if removed is None
        else {
            "points": len(removed.points),
            "snapshots": len(removed.snapshots),
            "wal_files": len(removed.wal),
            "wal_bytes": removed.wal_bytes,
            "document_sets": len(removed.sets),
            "document_set_bytes": removed.set_bytes,
            "refused": dict(Counter(removed.refused.values()).most_common(_TOLD)),
        },
    }


def policy_document(policy: RetentionPolicy) -> dict[str, str | None]:
    """Return the periods of a policy."""
    periods = {
        "within": policy.within,
        "daily": policy.daily,
        "weekly": policy.weekly,
        "monthly": policy.monthly,
        "yearly": policy.yearly,
    }
    return {name: str(period) if period is not None else None for name, period in periods.items()}


def _verdict(verdict: Verdict) -> dict[str, object]:
    return {
        "kept": verdict.kept is not None,
        "by": verdict.kept.value if verdict.kept is not None else None,
        "reason": verdict.reason,
    }


def _removed(removed: Removed | None) -> dict[str, object] | None:
    if removed is None:
        return None
    return {
        "points": removed.points,
        "snapshots": removed.snapshots,
        "wal_files": len(removed.wal),
        "wal_bytes": removed.wal_bytes,
        "document_sets": len(removed.sets),
        "document_set_bytes": removed.set_bytes,
        "refused": _problems(removed.refused.items()),
    }


def _problems(found: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "problem": problem} for key, problem in found]
