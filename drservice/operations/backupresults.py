"""The result of a backup as a plain document, by itself: a backup loads nothing of restores and drills.

As in :mod:`drservice.operations.results`, names never change within a version. Pure.
"""

from __future__ import annotations

from drservice.clock import to_iso
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.backup import BackupResult
from drservice.operations.servicebackup import FilesResult, ServiceBackup


def backup_document(result: ServiceBackup, service: str) -> dict[str, object]:
    """Return a backup of a service as the JSON contract spells it."""
    return {
        "service": service,
        "point": result.point.id if result.point is not None else None,
        "state": result.state.value,
        "snapshots": [
            *(_cluster(item) for item in result.databases),
            *(_captured_files(item) for item in result.files),
        ],
        "notes": list(result.notes),
    }


def _shared(record: SnapshotRecord, seconds: float) -> dict[str, object]:
    return {
        "component": record.component,
        "kind": record.kind,
        "snapshot": record.id,
        "method": record.method,
        "state": record.state.value,
        "started_at": to_iso(record.started_at),
        "stopped_at": to_iso(record.stopped_at),
        "source_bytes": record.source_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        "seconds": round(seconds, 3),
    }


def _cluster(result: BackupResult) -> dict[str, object]:
    record = result.record
    return {
        **_shared(record, result.seconds),
        "start_lsn": str(record.postgres.start_lsn),
        "stop_lsn": str(record.postgres.stop_lsn),
        "timeline": int(record.postgres.timeline),
        "reused_files": result.reused_files,
        "bad_pages": [{"path": path, "block": block} for path, block in result.bad_pages],
        "notes": list(result.notes),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
    }


def _captured_files(result: FilesResult) -> dict[str, object]:
    record = result.record
    facts = record.documents
    return {
        **_shared(record, result.seconds),
        "start_lsn": None,
        "stop_lsn": None,
        "timeline": None,
        "reused_files": result.captured.reused_files,
        "referred": facts.referred,
        "missing_in_production": facts.missing,
        "corrupt_in_production": facts.corrupt,
        "foreign": facts.foreign,
        "vanished": facts.vanished,
        "unreadable": [{"path": path, "reason": reason} for path, reason in result.unreadable],
        "notes": list(result.notes),
    }
