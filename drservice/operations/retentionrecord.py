"""``retention --apply`` and ``prune`` with their records: what was let go or marked, what was kept, and why.

Nothing is deleted by a host that nobody would believe about it. A ledger that is away keeps nobody from it: the record
is kept aside on this host like that of a backup, and where that fails too, the command fails and says what it deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from drservice.canonical import Json, canonical_bytes
from drservice.clock import to_iso
from drservice.errors import DrError, InterruptedRunError
from drservice.evidence.ledger import Record
from drservice.evidence.statements import Subject
from drservice.model.estate import Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid
from drservice.model.retention import Kept, RetentionPolicy, Verdict
from drservice.operations.evidence import Evidence, artefact_subjects
from drservice.operations.progress import Progress
from drservice.operations.prune import ComponentPacks, mark_packs
from drservice.operations.records import retention_fields
from drservice.operations.retention import (
    Removed,
    RetentionContext,
    RetentionOutcome,
    carry_out_retention,
    inspect_retention,
)
from drservice.repository.repository import Repository

_PLAN = "plan/retention"


def apply_retention(context: RetentionContext, service: Service, *, accepted: bool = False) -> RetentionOutcome:
    """Delete what may go and put on record what went, also when it ends in the middle.

    Raises:
        LogKeyError: this host cannot sign the record; nothing was deleted.
        ProofUnknownError: it cannot be told which snapshots recovery was last proved with; nothing was deleted.
        ObjectStoreError: the store did not answer; what was deleted so far may go, the next run does the rest.
        LedgerError: neither the ledger nor this host's disk takes the record of what was deleted.
    """
    context.evidence.require_signing()
    planned = inspect_retention(context, service, accepted=accepted)
    run = make_ulid(context.clock.now(), os.urandom(10))
    removed = Removed()
    try:
        outcome = carry_out_retention(context, planned, removed)
    except DrError as error:
        _record(context, run, planned, "failed", removed, error)
        raise
    except KeyboardInterrupt:
        _record(context, run, planned, "failed", removed, InterruptedRunError("retention was interrupted"))
        raise
    record = _record(context, run, outcome, outcome.state.value, removed, None)
    return replace(outcome, record=record.number if record is not None else None)


def _record(
    context: RetentionContext,
    run: str,
    outcome: RetentionOutcome,
    word: str,
    removed: Removed,
    error: DrError | None,
) -> Record | None:
    plan = outcome.plan
    document = canonical_bytes(_plan_document(outcome))
    planned = {
        "points": len(plan.expired_points),
        "snapshots": len(plan.expired),
        "wal_files": sum(len(wal.plan.expired) for wal in outcome.wal),
        "wal_bytes": sum(file.stored_bytes for wal in outcome.wal for file in wal.plan.expired),
        "document_sets": sum(len(sets.expired) for sets in outcome.documents),
    }
    enclosed = ("retention.json", document) if any(planned.values()) or outcome.plan.anomalies else None
    sha256 = hashlib.sha256(document).hexdigest()
    return context.evidence.append_or_keep(
        EvidenceKind.RETENTION,
        service=outcome.service.name,
        run=run,
        subject=[
            Subject(_PLAN, sha256),
            *artefact_subjects(context.evidence, enclosed, progress=context.progress),
        ],
        fields=retention_fields(
            action="retention",
            outcome=word,
            policy=_periods(outcome.service.retention),
            plan_sha256=sha256,
            planned=planned,
            removed={
                "points": len(removed.points),
                "snapshots": len(removed.snapshots),
                "wal_files": len(removed.wal),
                "wal_bytes": removed.wal_bytes,
                "document_sets": len(removed.sets),
            },
            refused=len(removed.refused),
            kept=Counter(verdict.kept.value for _, verdict in plan.snapshots if verdict.kept is not None),
            last_verified=[
                (snapshot.component, snapshot.id)
                for snapshot, verdict in plan.snapshots
                if verdict.kept is Kept.VERIFIED
            ],
            anomalies=plan.anomalies,
            accepted=plan.accepted and bool(plan.anomalies),
            error=error,
        ),
        progress=context.progress,
    )


def _plan_document(outcome: RetentionOutcome) -> Json:
    """Return the whole plan, with the reason of each verdict: what the record names by its hash."""
    plan = outcome.plan
    return {
        "service": outcome.service.name,
        "now": to_iso(plan.now),
        "points": [_named(point.id, verdict) for point, verdict in plan.points],
        "snapshots": [
            {"component": snapshot.component, **_named(snapshot.id, verdict)} for snapshot, verdict in plan.snapshots
        ],
        "wal": [
            {
                "component": wal.component,
                "system_id": wal.plan.system_id,
                "expired": [file.key.rsplit("/", 1)[-1] for file in wal.plan.expired],
                "reason": wal.plan.reason,
            }
            for wal in outcome.wal
        ],
        "documents": [
            {"component": sets.component, "expired": [file.id for file in sets.expired], "reason": sets.reason}
            for sets in outcome.documents
        ],
        "unreadable": sorted(outcome.unreadable),
        "anomalies": list(plan.anomalies),
    }


def _named(identifier: str, verdict: Verdict) -> dict[str, Json]:
    kept = verdict.kept.value if verdict.kept is not None else None
    return {"id": identifier, "kept": kept, "reason": verdict.reason}


def _periods(policy: RetentionPolicy) -> dict[str, str | None]:
    periods = {name: getattr(policy, name) for name in ("within", "daily", "weekly", "monthly", "yearly")}
    return {name: str(period) if period is not None else None for name, period in periods.items()}


def run_prune(
    repository: Repository, evidence: Evidence, service: Service, *, progress: Progress
) -> tuple[ComponentPacks, ...]:
    """Mark the packs that nothing refers to, and put on record how many: nothing is deleted.

    A ledger that does not take the record spoils nothing: it is kept aside and everybody is told.

    Raises:
        PacksUnknownError: a snapshot cannot be read: any pack may be one of its.
        ObjectStoreError: the store did not answer.
    """
    found = mark_packs(repository, service, progress=progress)
    document = canonical_bytes(_marks_document(service, found))
    enclosed = ("prune.json", document) if any(item.unused for item in found) else None
    sha256 = hashlib.sha256(document).hexdigest()
    evidence.record(
        EvidenceKind.RETENTION,
        service=service.name,
        run=make_ulid(evidence.clock.now(), os.urandom(10)),
        subject=[Subject(_PLAN, sha256), *artefact_subjects(evidence, enclosed, progress=progress)],
        fields=retention_fields(
            action="prune",
            outcome="marked",
            policy=_periods(service.retention),
            plan_sha256=sha256,
            planned={
                "packs": sum(len(item.unused) for item in found),
                "pack_bytes": sum(item.unused_bytes for item in found),
            },
            removed={},
        ),
        progress=progress,
    )
    return found


def _marks_document(service: Service, found: Sequence[ComponentPacks]) -> Json:
    return {
        "service": service.name,
        "unused": [
            {"component": item.component, "pack": info.key.rsplit("/", 1)[-1], "stored_bytes": info.stored_bytes}
            for item in found
            for info in item.unused
        ],
    }
