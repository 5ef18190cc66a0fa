"""``restore`` of a service, put on record: also a restore that failed is evidence.

The record never stands in the way: a ledger that cannot be written is told loudly, and the restore goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from drservice.canonical import Json, canonical_bytes
from drservice.components.postgres.placing import require_empty
from drservice.errors import DrError, ExitStatus, InterruptedRunError, TargetOutsideWindowError
from drservice.evidence.statements import Subject
from drservice.model.checks import Baseline
from drservice.model.estate import FilesComponent, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ComponentName, PointId, ServiceName, make_ulid
from drservice.model.recovery import Target
from drservice.operations.evidence import Evidence, artefact_subjects, snapshot_subjects
from drservice.operations.filesrestore import DocumentCounts, FilesRestore, RestoredFiles
from drservice.operations.holding import held
from drservice.operations.pointbaselines import read_baseline, stands_on_path
from drservice.operations.progress import Progress
from drservice.operations.records import (
    bounded,
    listing_artefact,
    loss_fields,
    neutralized_fields,
    recovery_fields,
    target_fields,
)
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import RestoreContext, RestoreRequest, RestoreResult
from drservice.repository.repository import Repository


def restore_service(context: RestoreContext, evidence: Evidence, request: RestoreRequest) -> RestoreResult:
    """Restore a service to a target, prove it, and put the outcome on record.

    Raises:
        As :func:`run_restore`; what failed is on record too, unless nothing was begun (a wrong call).
    """
    run = make_ulid(context.clock.now(), os.urandom(10))
    evidence.expect(EvidenceKind.RESTORE)
    try:
        result = _run(context, request)
    except DrError as error:
        if error.exit_status is not ExitStatus.USAGE:
            _record_failure(context, evidence, request, run, error)
        raise
    except KeyboardInterrupt:
        _record_failure(context, evidence, request, run, InterruptedRunError("the restore was interrupted"))
        raise
    try:
        point = point_of(context.repository, request.service.name, result)
    except DrError as error:
        point = None  # the record says less then; nothing about evidence stops a rescue
        context.progress.note(f"WARNING: the record does not name the recovery point: {error.message}")
    evidence.record(
        EvidenceKind.RESTORE,
        service=request.service.name,
        run=run,
        subject=[
            *subjects_of(result),
            *artefact_subjects(evidence, document_artefact(result), progress=context.progress),
            *artefact_subjects(evidence, loss_artefact(result), progress=context.progress),
        ],
        fields={
            **recovered_fields(result),
            # One database says nothing about the others: such a record is no proof of the snapshot.
            "outcome": "partial" if result.is_partial or result.side is not None else "restored",
            "target": {**reached_fields(result), "requested": _asked_for(request)},
            "point": point,
            **_in_place_fields(request),
        },
        progress=context.progress,
    )
    return result


def _run(context: RestoreContext, request: RestoreRequest) -> RestoreResult:
    if not request.in_place:
        return run_restore(context, request)
    from drservice.operations.inplace import run_in_place  # noqa: PLC0415 - what it needs is for it alone

    return run_in_place(context, request)


def _record_failure(
    context: RestoreContext, evidence: Evidence, request: RestoreRequest, run: str, error: DrError
) -> None:
    evidence.record(
        EvidenceKind.RESTORE,
        service=request.service.name,
        run=run,
        subject=[],
        fields={
            "outcome": "failed",
            "target": target_fields(
                requested=_asked_for(request),
                kind=request.target.kind.value,
                reached_time=None,
                reached_lsn=None,
                timeline=None,
            ),
            **recovery_fields(error=error),
            **_in_place_fields(request),
        },
        progress=context.progress,
    )


def _in_place_fields(request: RestoreRequest) -> dict[str, Json]:
    """Say that it was production's own directory; of any other restore nothing is said, as before there were two."""
    return {"in_place": True} if request.in_place else {}


def _asked_for(request: RestoreRequest) -> str:
    only = f" (only database {request.database})" if request.database is not None else ""
    return bounded(f"{request.target.describe()}{only}")


def subjects_of(result: RestoreResult) -> list[Subject]:
    """Return what a recovery was made from: the snapshots' keys and the hashes of their headers."""
    return snapshot_subjects(result.used_records)


def reached_fields(result: RestoreResult) -> dict[str, Json]:
    """Return what was asked for and what was reached."""
    target = result.planned.resolved.plan.target
    return target_fields(
        requested=target.describe(),
        kind=target.kind.value,
        reached_time=result.reached.time,
        reached_lsn=str(result.reached.lsn),
        timeline=int(result.reached.timeline),
    )


def recovered_fields(result: RestoreResult, *, rto_seconds: float | None = None) -> dict[str, Json]:
    """Return what restores and drills record alike; ``rto_seconds`` replaces the restore's own if checks followed."""
    fields = recovery_fields(
        point=None,
        snapshots=[(record.component, record.id) for record in result.used_records],
        phases=phases_of(result, rto_seconds=rto_seconds),
        rto_seconds=rto_seconds if rto_seconds is not None else result.rto_seconds,
        documents=document_counts(result),
        isolation=result.isolation,
        environment=(result.environment.id, result.environment.kind),
        error=None,
    )
    # Of a service without Odoo nothing is said, as before there was such a report.
    told: dict[str, Json] = {"losses": [loss_fields(item) for item in result.losses]} if result.losses else {}
    if result.neutralized:
        told["neutralized"] = [neutralized_fields(item) for item in result.neutralized]
    return {**fields, **told}


def loss_artefact(result: RestoreResult) -> tuple[str, bytes] | None:
    """Return the loss reports as they are; ``None`` if there is none."""
    reports: list[Json] = [item.as_json() for item in result.losses]
    return ("losses.json", canonical_bytes(reports)) if reports else None


def document_artefact(result: RestoreResult) -> tuple[str, bytes] | None:
    """Return the names of all documents that are not as they were; ``None`` if there is none."""
    lists: dict[str, list[str]] = {"missing": [], "corrupt": [], "missing_in_production": []}
    for item in result.files:
        if item.documents is not None:
            lists["missing"] += item.documents.missing
            lists["corrupt"] += item.documents.corrupt
            lists["missing_in_production"] += item.documents.missing_in_production
            lists["missing_in_production"] += item.documents.corrupt_in_production
    return ("documents.json", listing_artefact(lists)) if any(lists.values()) else None


def point_of(repository: Repository, service: ServiceName, result: RestoreResult) -> PointId | None:
    """Return the recovery point that the cluster's snapshot belongs to, if it belongs to one.

    Raises:
        ObjectStoreError: the store did not answer.
    """
    used = result.planned.resolved.plan.snapshot
    for point in repository.points(service).listing().points:
        member = point.member(used.component)
        if member is not None and member.snapshot == used.id:
            return point.id
    return None


def phases_of(result: RestoreResult, *, rto_seconds: float | None = None) -> dict[str, float]:
    """Return the seconds by phase; what followed the restore up to ``rto_seconds`` was checking."""
    asked = max(0.0, rto_seconds - result.rto_seconds) if rto_seconds is not None else 0.0
    return {**result.phases, "check": result.phases["check"] + asked}


def document_counts(result: RestoreResult) -> DocumentCounts | None:
    """Return the documents of all folders together; ``None`` if the service has none."""
    counts = [item.counts for item in result.files if item.counts is not None]
    if not counts:
        return None
    total = DocumentCounts()
    for item in counts:
        total = total + item
    return total


def baselines_for(
    repository: Repository, service: ServiceName, result: RestoreResult, *, progress: Progress
) -> Mapping[ComponentName, Baseline]:
    """Return what production said before the recovered position: of the newest point that lies on the path taken.

    A baseline of another branch of history, or of a later position, says nothing about this copy.

    Raises:
        ObjectStoreError: the store did not answer.
    """
    plan = result.planned.resolved.plan
    component = plan.snapshot.component
    listing = repository.points(service).listing()
    for key, error in listing.unreadable.items():
        progress.note(f"WARNING: a recovery point cannot be read and is left out: {key}: {error.message}")
    for point in reversed(listing.points):
        if not stands_on_path(point, plan):
            continue
        baseline = read_baseline(repository, service, point, component, progress)
        if baseline is not None and baseline.lsn <= result.reached.lsn:
            return {component: baseline}
    return {}


def restore_folder(
    context: RestoreContext,
    evidence: Evidence,
    service: Service,
    component: FilesComponent,
    target: Target,
    into: Path,
) -> RestoredFiles:
    """Restore one folder of files by itself, as a snapshot has it, and put that on record.

    Raises:
        TargetDirectoryError: ``into`` is in use.
        TargetOutsideWindowError: there is no snapshot of it.
        RecoveryError, DamagedObjectError, MissingObjectError: nothing is under the name ``into``.
    """
    run = make_ulid(context.clock.now(), os.urandom(10))
    require_empty(into)
    began = context.clock.monotonic()
    files = FilesRestore(repository=context.repository, service=service, progress=context.progress)
    context.progress.step(f"restore {component.name}")
    scope = context.repository.scope(service.name, component.name)
    with held(context.repository, scope, clock=context.clock, progress=context.progress):
        restored = files.folder(component, instant=target.time, root=into)
    if not restored.records:
        raise TargetOutsideWindowError(
            f"there is no snapshot of {service.name}/{component.name}",
            hint=f"Take one: drservice backup {service.name}.",
        )
    context.progress.done()
    seconds = context.clock.monotonic() - began
    evidence.record(
        EvidenceKind.RESTORE,
        service=service.name,
        run=run,
        subject=snapshot_subjects(restored.records),
        fields={
            "outcome": "restored",
            "target": target_fields(
                requested=target.describe(),
                kind=target.kind.value,
                reached_time=restored.records[0].stopped_at,
                reached_lsn=None,
                timeline=None,
            ),
            **recovery_fields(
                snapshots=[(record.component, record.id) for record in restored.records], rto_seconds=seconds
            ),
        },
        progress=context.progress,
    )
    return restored
