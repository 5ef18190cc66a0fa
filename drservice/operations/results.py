"""Results as plain documents: the names of the command line's JSON contract, also kept with a run.

Names never change within a version; golden tests compare them. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drservice.clock import to_iso
from drservice.errors import DrError, ExitStatus
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.operations.filesrestore import DocumentCounts, RestoredFiles
from drservice.operations.restorerequest import InPlaceOutcome, RestoreResult
from drservice.operations.servicerestore import document_counts, phases_of

if TYPE_CHECKING:
    from drservice.operations.drillconclusion import DrillResult
    from drservice.operations.verify import Verification


def error_document(error: DrError) -> dict[str, object]:
    """Return an error as the JSON contract spells it."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_status": int(error.exit_status),
    }


def verification_document(item: Verification) -> dict[str, object]:
    """Return the verification of a component as the JSON contract spells it."""
    found = item.verified
    return {
        "service": found.scope.service,
        "component": found.scope.component,
        "snapshots": [record.id for record in found.snapshots],
        "packs_total": found.packs_total,
        "packs_read": found.packs_checked,
        "wal_files": found.wal_files,
        "bytes_read": found.bytes_read,
        "decrypted": found.decrypted,
        "findings": [
            {"key": f.key, "code": f.code, "problem": f.problem, "snapshots": list(f.snapshots)} for f in found.findings
        ],
        "condemned": list(item.condemned),
        "not_published": item.not_published,
        "not_judged": list(item.not_judged),
    }


def restore_document(result: RestoreResult, service: str) -> dict[str, object]:
    """Return a restore as the JSON contract spells it."""
    plan = result.planned.resolved.plan
    environment = result.environment
    return {
        "run": environment.id,
        "service": service,
        "target": {
            "requested": plan.target.describe(),
            "reached_time": to_iso(result.reached.time) if result.reached.time else None,
            "reached_lsn": str(result.reached.lsn),
            "timeline": int(result.reached.timeline),
        },
        "snapshot": plan.snapshot.id,
        "consistent": result.planned.ends.as_document() if result.planned.ends is not None else None,
        "unreadable": list(result.planned.unreadable),
        "evidence": list(result.reached.evidence),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
        "rto_seconds": round(result.rto_seconds, 3),
        "environment": {
            "id": environment.id if result.kept else None,
            "kind": environment.kind,
            "path": str(result.into or environment.path),
            "dsn": environment.dsn if result.kept else None,
        },
        "isolation": [{"name": p.name, "isolated": p.isolated, "detail": p.detail} for p in result.isolation],
        "database": result.side.database if result.side is not None else None,
        "left_out": list(result.side.left_out) if result.side is not None else [],
        "restored_bytes": result.restored_bytes,
        "fetched_bytes": result.fetched_bytes,
        "wal_segments": result.wal_segments,
        "stripped_settings": list(result.stripped_settings),
        "tablespaces": [
            {"oid": item.oid, "location": item.location or None, "path": str(item.path), "in_place": item.in_place}
            for item in result.tablespaces
        ],
        "action": result.action.value,
        "in_place": _in_place(result.in_place),
        "documents": documents_document(document_counts(result)),
        "files": [restored_files_document(item) for item in result.files],
        "losses": [item.as_json() for item in result.losses],
        "neutralized": [item.as_json() for item in result.neutralized],
    }


def _in_place(outcome: InPlaceOutcome | None) -> dict[str, object] | None:
    if outcome is None:
        return None
    return {
        "directory": str(outcome.directory),
        "aside": str(outcome.aside),
        "salvaged": list(outcome.salvaged),
        "set_aside": list(outcome.set_aside),
    }


def documents_document(counts: DocumentCounts | None) -> dict[str, object]:
    """Return the documents of a recovery as the JSON contract spells them; nulls without any."""
    if counts is None:
        return {"expected": None, "missing": None, "corrupt": None, "extra": None, "missing_in_production": None}
    return {
        "expected": counts.expected,
        "missing": counts.missing,
        "corrupt": counts.corrupt,
        "extra": counts.extra,
        "missing_in_production": counts.missing_in_production,
    }


def restored_files_document(item: RestoredFiles) -> dict[str, object]:
    """Return a restored folder as the JSON contract spells it."""
    placed, covered = item.documents, item.covered
    return {
        "component": item.component.name,
        "kind": item.component.kind.value,
        "path": str(item.root) if item.records or item.files else None,  # documents may come from sets alone
        "snapshots": [record.id for record in item.records],
        "sets": list(placed.used_sets) if placed is not None else [],
        "covered_until": to_iso(covered.newest) if covered is not None and covered.newest is not None else None,
        "behind_seconds": (
            round(covered.behind_seconds, 3) if covered is not None and covered.newest is not None else None
        ),
        "files": item.files,
        "written_bytes": item.written_bytes,
        "fetched_bytes": item.fetched_bytes,
        "missing": list(placed.missing) if placed is not None else [],
        "corrupt": list(placed.corrupt) if placed is not None else [],
        "missing_in_production": list(placed.missing_in_production) if placed is not None else [],
        "corrupt_in_production": list(placed.corrupt_in_production) if placed is not None else [],
        "recovered_from_older": list(placed.recovered_from_older) if placed is not None else [],
        "problems": list(item.problems()),
        "notes": list(item.notes),
    }


def drill_document(result: DrillResult) -> dict[str, object]:
    """Return a drill as the JSON contract spells it."""
    from drservice.operations.drillrecord import requested_target  # noqa: PLC0415 - whoever has a drill has loaded it

    restored = result.restored
    measured = result.measured
    environment = restored.environment if restored is not None else None
    is_kept = restored is not None and not result.destroyed
    return {
        "run": result.run,
        "service": result.prepared.service.name,
        "plan": result.prepared.plan.name,
        "target": {
            "requested": requested_target(result.prepared),
            "kind": result.prepared.chosen.kind.value,
            "reached_time": to_iso(restored.reached.time) if restored is not None and restored.reached.time else None,
            "reached_lsn": str(restored.reached.lsn) if restored is not None else None,
            "timeline": int(restored.reached.timeline) if restored is not None else None,
        },
        "phases": (
            {k: round(v, 3) for k, v in phases_of(restored, rto_seconds=result.rto_seconds).items()}
            if restored is not None
            else None
        ),
        "rto_seconds": _seconds(measured.rto_ms),
        "environment": {
            "id": environment.id if environment is not None and is_kept else None,
            "kind": environment.kind if environment is not None else None,
            "path": str(environment.path) if environment is not None and is_kept else None,
            "dsn": environment.dsn if environment is not None and is_kept else None,
        },
        "documents": documents_document(document_counts(restored) if restored is not None else None),
        "verdict": "passed" if result.verdict.passed else "failed",
        "reasons": list(result.verdict.reasons),
        "warnings": list(result.verdict.warnings),
        "not_tested": list(result.verdict.not_tested),
        "checks": [_check(item) for item in result.results],
        "rpo_seconds": _seconds(measured.rpo_ms),
        "documents_rpo_seconds": _documents_rpo(result),
        "effective_rpo_seconds": _effective_rpo(result),
        "target_accuracy_seconds": _seconds(measured.target_accuracy_ms),
        "isolation": (
            [{"name": p.name, "isolated": p.isolated, "detail": p.detail} for p in restored.isolation]
            if restored is not None
            else []
        ),
        "record": result.record.number if result.record is not None else None,
        "obligation_record": result.obligation_entry,
        "unproven": result.unproven.message if result.unproven is not None else None,
        "findings": list(result.findings),
        "closed_findings": list(result.closed),
        "mutation": result.prepared.mutation.value if result.prepared.mutation is not None else None,
        "detected": result.detected,
        "destroyed": result.destroyed,
        "losses": [item.as_json() for item in restored.losses] if restored is not None else [],
        "neutralized": [item.as_json() for item in restored.neutralized] if restored is not None else [],
        "error": {"code": result.error.code, "message": result.error.message} if result.error is not None else None,
    }


def _documents_rpo(result: DrillResult) -> float | None:
    """Return the RPO of the documents: that of the rows, and what the documents are behind them; never the smaller."""
    database = _seconds(result.measured.rpo_ms)
    counts = document_counts(result.restored) if result.restored is not None else None
    if database is None or counts is None or counts.is_unproven:
        return None
    return round(database + counts.behind_seconds, 3)


def _effective_rpo(result: DrillResult) -> float | None:
    """Return the larger of database and documents; ``None`` if one of them is not known."""
    has_documents = result.restored is not None and document_counts(result.restored) is not None
    return _documents_rpo(result) if has_documents else _seconds(result.measured.rpo_ms)


def drill_exit_status(result: DrillResult) -> ExitStatus:
    """Return 0 for a passed drill, 4 if only a promise was broken, 1 otherwise; also 1 if not on record and sealed."""
    if result.record is None or result.unproven is not None:
        return ExitStatus.FAILED
    if result.verdict.passed:
        return ExitStatus.OK
    critical = [
        item for item in result.results if item.severity is Severity.CRITICAL and item.state is not CheckState.PASSED
    ]
    documents = document_counts(result.restored) if result.restored is not None else None
    lost = documents is not None and bool(documents.missing or documents.corrupt)
    is_left = not result.destroyed and not result.kept
    is_breach = result.error is None and not critical and not lost and not is_left and result.measured.isolated is True
    return ExitStatus.BREACHED if is_breach else ExitStatus.FAILED


def _check(item: CheckResult) -> dict[str, object]:
    return {
        "name": item.name,
        "state": item.state.value,
        "severity": item.severity.value,
        "owner": item.owner,
        "seconds": round(item.seconds, 3),
        "detail": item.detail,
    }


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
