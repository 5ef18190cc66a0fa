"""What is put on record: results become the fields of statements (docs/evidence.md). Pure.

Durations are whole milliseconds and texts are bounded, because a record is small and has one spelling. Nothing personal
goes in: names of files are hashes, and details are the ones that people see on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from drservice.canonical import Json, canonical_bytes
from drservice.clock import to_iso
from drservice.environments.interface import Probe
from drservice.errors import DrError
from drservice.model.checks import CheckResult
from drservice.model.losses import LossReport
from drservice.model.neutralized import Neutralized
from drservice.model.origin import Origin
from drservice.model.points import RecoveryPoint
from drservice.model.snapshot import POSTGRES_KIND, SnapshotRecord
from drservice.operations.phases import PHASES

if TYPE_CHECKING:  # a backup puts itself on record and loads nothing of restores
    from drservice.operations.filesrestore import DocumentCounts

_TEXT_LETTERS = 400
_DETAIL_LETTERS = 240
_REASONS = 24
_MOST_BYTES = 44_000
"""An envelope spells its payload in Base64 and may have 65,535 bytes."""
_PERIODS = ("within", "daily", "weekly", "monthly", "yearly")
_EXPIRING = ("points", "snapshots", "wal_files", "wal_bytes")
_SETS = "document_sets"
_LONG = ("checks", "reasons", "not_tested")
_SHORTER = (120, 60, 30, 13)


def bounded(text: str, letters: int = _TEXT_LETTERS) -> str:
    """Return a text that fits into a record, cut visibly if it does not."""
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return plain if len(plain) <= letters else plain[: letters - 12] + " [shortened]"


def milliseconds(seconds: float | None) -> int | None:
    """Return whole milliseconds, rounded up: a record never says faster than it was."""
    return None if seconds is None else -int(-max(0.0, seconds) * 1000 // 1)


def promised_ms(promise: timedelta | None) -> int | None:
    """Return a promise in whole milliseconds."""
    return None if promise is None else promise // timedelta(milliseconds=1)


def backup_fields(
    *,
    outcome: str,
    point: RecoveryPoint | None,
    records: Sequence[SnapshotRecord],
    started_at: datetime,
    ended_at: datetime,
    error: DrError | None,
) -> dict[str, Json]:
    """Return what a backup puts on record."""
    return {
        "outcome": outcome,
        "point": point.id if point is not None else None,
        "started_at": to_iso(started_at),
        "ended_at": to_iso(ended_at),
        "components": [_captured(record) for record in records],
        "error": error_fields(error),
        # Of what was captured from a server nothing is said, as before anything was imported.
        **({"origin": _origin(point.origin)} if point is not None and point.origin is not None else {}),
    }


def _origin(origin: Origin) -> dict[str, Json]:
    return {**origin.as_json(), "file": bounded(origin.file), "database": bounded(origin.database)}


def _captured(record: SnapshotRecord) -> dict[str, Json]:
    position: dict[str, Json] = {"start_lsn": None, "stop_lsn": None, "timeline": None}
    damage: dict[str, Json] = {"missing_in_production": None, "corrupt_in_production": None}
    if record.kind == POSTGRES_KIND:
        facts = record.postgres
        position = {
            "start_lsn": str(facts.start_lsn),
            "stop_lsn": str(facts.stop_lsn),
            "timeline": int(facts.timeline),
        }
    else:
        damage = {
            "missing_in_production": record.documents.missing,
            "corrupt_in_production": record.documents.corrupt,
        }
    return {
        "component": record.component,
        "kind": record.kind,
        "method": record.method,
        "snapshot": record.id,
        "state": record.state.value,
        "source_bytes": record.source_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        **position,
        **damage,
    }


def retention_fields(
    *,
    action: str,
    outcome: str,
    policy: Mapping[str, str | None],
    plan_sha256: str,
    planned: Mapping[str, int],
    removed: Mapping[str, int],
    refused: int = 0,
    kept: Mapping[str, int] | None = None,
    last_verified: Iterable[tuple[str, str]] = (),
    anomalies: Iterable[str] = (),
    accepted: bool = False,
    error: DrError | None = None,
) -> dict[str, Json]:
    """Return what retention puts on record; counts that are not named are 0.

    Args:
        action: ``retention`` lets go, ``prune`` marks.
        outcome: how it ended.
        policy: the periods in force, by name.
        plan_sha256: of the plan's canonical bytes, which are an artefact where something was to go.
        planned: what was to go.
        removed: what went.
        refused: how many objects the store did not let go of.
        kept: how many snapshots stay, by reason.
        last_verified: (component, snapshot) of those that recovery was last proved with.
        anomalies: what a person has to look at before anything goes.
        accepted: whether one has.
        error: what ended it early.
    """
    periods: dict[str, Json] = {name: policy.get(name) for name in _PERIODS}
    counts: dict[str, Json] = {name: planned.get(name, 0) for name in (*_EXPIRING, "packs", "pack_bytes")}
    gone: dict[str, Json] = {name: removed.get(name, 0) for name in _EXPIRING}
    for told, known in ((counts, planned), (gone, removed)):
        # Of a service without document sets nothing is said, as before there were any.
        told.update({_SETS: known[_SETS]} if known.get(_SETS) else {})
    return {
        "action": action,
        "outcome": outcome,
        "policy": periods,
        "plan": plan_sha256,
        "planned": counts,
        "removed": gone,
        "refused": refused,
        "kept": [{"by": by, "snapshots": count} for by, count in sorted((kept or {}).items())],
        "last_verified": [{"component": component, "snapshot": snapshot} for component, snapshot in last_verified],
        "anomalies": texts(anomalies),
        "accepted": accepted,
        "error": error_fields(error),
    }


def target_fields(
    *, requested: str, kind: str, reached_time: datetime | None, reached_lsn: str | None, timeline: int | None
) -> dict[str, Json]:
    """Return what was asked for and what was reached."""
    return {
        "requested": bounded(requested),
        "kind": kind,
        "reached_time": to_iso(reached_time) if reached_time is not None else None,
        "reached_lsn": reached_lsn,
        "timeline": timeline,
    }


def recovery_fields(
    *,
    point: str | None = None,
    snapshots: Iterable[tuple[str, str]] = (),
    phases: Mapping[str, float] | None = None,
    rto_seconds: float | None = None,
    documents: DocumentCounts | None = None,
    isolation: Iterable[Probe] = (),
    environment: tuple[str, str] | None = None,
    error: DrError | None = None,
) -> dict[str, Json]:
    """Return what restores and drills put on record alike; what is not named was not reached.

    Args:
        point: the recovery point that was used, if any.
        snapshots: (component, snapshot) of everything that was placed.
        phases: seconds by phase; ``None`` if it did not come to an end.
        rto_seconds: from the decision to the checks passed.
        documents: what became of the documents; ``None`` without any.
        isolation: the self-test's probes.
        environment: (id, kind).
        error: what ended it early.
    """
    return {
        "point": point,
        "snapshots": [{"component": component, "snapshot": snapshot} for component, snapshot in snapshots],
        "phases_ms": {name: milliseconds(phases[name]) for name in PHASES} if phases is not None else None,
        "rto_ms": milliseconds(rto_seconds),
        "documents": document_fields(documents),
        "isolation": [
            {"name": probe.name, "isolated": probe.isolated, "detail": bounded(probe.detail, _DETAIL_LETTERS)}
            for probe in isolation
        ],
        "environment": {"id": environment[0], "kind": environment[1]} if environment is not None else None,
        "error": error_fields(error),
    }


def document_fields(counts: DocumentCounts | None) -> dict[str, Json] | None:
    """Return the counts of documents, each for itself."""
    if counts is None:
        return None
    return {
        "expected": counts.expected,
        "missing": counts.missing,
        "corrupt": counts.corrupt,
        "extra": counts.extra,
        "missing_in_production": counts.missing_in_production,
        # Where they are as new as the rows nothing is said, as before anybody knew.
        **({"behind_ms": milliseconds(counts.behind_seconds)} if counts.behind_seconds else {}),
    }


def loss_fields(report: LossReport) -> dict[str, Json]:
    """Return a loss report in numbers; the whole of it is an artefact of a restore."""
    return {
        "component": report.component,
        "database": bounded(report.database),
        "lossy": report.is_lossy,
        "from": to_iso(report.window.begin),
        "to": to_iso(report.window.end) if report.window.end is not None else None,
        "known_behind": report.known.point if report.known is not None else None,
        "rows_lost": report.rows_lost,
        "numbers_at_risk": len(report.certain_numbers),
        "queued": sum(item.count for item in report.queues),
        "overdue_actions": report.overdue_count,
    }


def neutralized_fields(done: Neutralized) -> dict[str, Json]:
    """Return what was done to a copy of Odoo in numbers."""
    return {
        "component": done.component,
        "database": bounded(done.database),
        "is_odoo": done.is_odoo,
        "scripts": len(done.scripts) if done.unknown is None else None,
        "without_code": len(done.without_code),
        "other_databases": len(done.other_databases),
    }


def check_fields(results: Iterable[CheckResult], *, not_applicable: bool = False) -> list[Json]:
    """Return each check with its outcome; ``not_applicable`` ones count for nothing."""
    return [
        {
            "name": result.name,
            "state": result.state.value,
            "severity": result.severity.value,
            "not_applicable": not_applicable,
            "owner": bounded(result.owner) if result.owner is not None else None,
            "duration_ms": milliseconds(result.seconds),
            "detail": bounded(result.detail, _DETAIL_LETTERS),
        }
        for result in results
    ]


def texts(items: Iterable[str]) -> list[Json]:
    """Return a bounded list of bounded texts; what is left out is counted."""
    found = list(items)
    shown: list[Json] = [bounded(text) for text in found[:_REASONS]]
    if len(found) > _REASONS:
        shown.append(f"and {len(found) - _REASONS} more")
    return shown


def error_fields(error: DrError | None) -> dict[str, Json] | None:
    """Return an error's code and message."""
    return None if error is None else {"code": error.code, "message": bounded(error.message)}


def fitting(fields: dict[str, Json]) -> tuple[dict[str, Json], tuple[str, bytes] | None]:
    """Shorten the texts of an outcome until it fits into a record; return also what was cut, as an artefact.

    A copy that answers a hundred checks at length must not be able to keep its own failure off the record.
    """
    if len(canonical_bytes(fields)) <= _MOST_BYTES:
        return fields, None
    whole = canonical_bytes({name: fields[name] for name in _LONG})
    shorter = fields
    for letters in _SHORTER:
        shorter = {**fields, **{name: _shortened(fields[name], letters) for name in _LONG}}
        if len(canonical_bytes(shorter)) <= _MOST_BYTES:
            break
    return shorter, ("outcome.json", whole)


def _shortened(value: Json, letters: int) -> Json:
    """Return texts and the details of checks with at most so many letters."""
    if not isinstance(value, list):
        return value
    return [
        {**item, "detail": bounded(str(item["detail"]), letters)}
        if isinstance(item, Mapping)
        else bounded(str(item), letters)
        for item in value
    ]


def listing_artefact(lists: Mapping[str, Iterable[str]]) -> bytes:
    """Return lists of names (missing documents, say) as an artefact; equal lists give equal bytes."""
    return canonical_bytes({name: sorted(items) for name, items in lists.items()})
