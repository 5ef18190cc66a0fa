"""Projection: what the data plane knows, as rows.

Each function may be repeated with the same facts and changes nothing then. What was read completely replaces what was
there, so that rows of things that have vanished from the repository go; the rows after a rebuild are the rows that were
projected as it happened. Signed bytes stay in the repository: a row is never evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Table, delete, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.tables import Base, Document, Point, Record, Snapshot, WalHole, WalWindow
from drservice.clock import to_iso
from drservice.errors import DrError
from drservice.evidence.ledger import Entry
from drservice.model.continuity import Hole
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.points import PointMember, RecoveryPoint
from drservice.model.snapshot import FilesFacts, SnapshotRecord
from drservice.operations.info import WindowInfo

_REFRESH_PROOFS = text(
    """
    UPDATE point SET verified_at = proof.at
    FROM (
        SELECT asked.id, (
            SELECT max(record.recorded_at) FROM record
            WHERE record.service = asked.service AND record.kind = 'drill' AND record.outcome = 'passed'
              AND record.predicate ->> 'mutation' IS NULL AND record.predicate ->> 'point' = asked.id
        ) AS at
        FROM point AS asked WHERE asked.service = ANY (:services)
    ) AS proof
    WHERE point.id = proof.id AND point.verified_at IS DISTINCT FROM proof.at
    """
)
"""A drill that was made to fail (a mutation) proves nothing about a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentContents:
    """Everything readable that the repository holds of a component."""

    name: ComponentName
    snapshots: tuple[SnapshotRecord, ...]
    windows: tuple[WindowInfo, ...]
    """Of a cluster; empty for files."""
    holes: tuple[Hole, ...] = ()
    """Of a cluster's WAL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContents:
    """Everything readable that the repository holds of a service, and what could not be read, by key."""

    name: ServiceName
    components: tuple[ComponentContents, ...]
    points: tuple[RecoveryPoint, ...]
    unreadable: Mapping[str, DrError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many rows went because what they described is in the repository no more."""

    snapshots: int = 0
    points: int = 0
    records: int = 0


def project_service(session: Session, contents: ServiceContents) -> Pruned:
    """Make the rows of a service those of its contents; components that are not named keep theirs."""
    snapshots = 0
    for component in contents.components:
        project_snapshots(session, component.snapshots)
        project_windows(session, contents.name, component.name, component.windows)
        project_holes(session, contents.name, component.name, component.holes)
        snapshots += _deleted(
            session,
            delete(Snapshot).where(
                Snapshot.service == contents.name,
                Snapshot.component == component.name,
                Snapshot.id.not_in([record.id for record in component.snapshots]),
            ),
        )
    project_points(session, contents.points)
    points = _deleted(
        session,
        delete(Point).where(Point.service == contents.name, Point.id.not_in([point.id for point in contents.points])),
    )
    return Pruned(snapshots=snapshots, points=points)


def project_snapshots(session: Session, records: Iterable[SnapshotRecord]) -> None:
    """Write snapshots, new or known."""
    _upsert(session, Snapshot, ("id",), [_snapshot_row(record) for record in records])


def project_points(session: Session, points: Sequence[RecoveryPoint]) -> None:
    """Write recovery points, new or known, with when a drill last passed from each."""
    _upsert(session, Point, ("id",), [_point_row(point) for point in points])
    _refresh_proofs(session, {point.service for point in points})


def project_windows(
    session: Session, service: ServiceName, component: ComponentName, windows: Iterable[WindowInfo]
) -> None:
    """Replace the reachable stretches of a cluster."""
    session.execute(delete(WalWindow).where(WalWindow.service == service, WalWindow.component == component))
    rows = [
        {
            "service": service,
            "component": component,
            "timeline": int(item.window.timeline),
            "from_lsn": item.window.first.postgres.stop_lsn.value,
            "to_lsn": item.window.end.value,
            "from_time": item.from_time,
            "to_time": item.to_time,
        }
        for item in windows
    ]
    _upsert(session, WalWindow, ("service", "component", "timeline", "from_lsn"), rows)


def project_holes(session: Session, service: ServiceName, component: ComponentName, holes: Iterable[Hole]) -> None:
    """Replace the holes in the WAL of a cluster."""
    session.execute(delete(WalHole).where(WalHole.service == service, WalHole.component == component))
    rows = [
        {
            "service": service,
            "component": component,
            "timeline": int(hole.timeline),
            "from_lsn": hole.gap.begin.value,
            "to_lsn": hole.gap.end.value,
            "first_segment": hole.first_name,
            "segments": len(hole.numbers),
            "is_open": hole.is_open,
            "cost": hole.cost,
        }
        for hole in holes
    ]
    _upsert(session, WalHole, ("service", "component", "timeline", "from_lsn"), rows)


def project_records(session: Session, entries: Iterable[Entry]) -> None:
    """Write records of the ledger, and which points the drills among them have proved."""
    read = list(entries)
    _upsert(session, Record, ("entry",), [_record_row(entry) for entry in read])
    services = {entry.signed.statement.service for entry in read}
    _refresh_proofs(session, {service for service in services if service is not None})


def prune_records(session: Session, *, size: int, unreadable: Iterable[int] = ()) -> Pruned:
    """Delete records beyond the end of a ledger with ``size`` entries, and those of entries nobody can believe.

    The proofs of all points are taken anew.
    """
    gone = _deleted(session, delete(Record).where((Record.entry >= size) | Record.entry.in_(list(unreadable))))
    if gone:
        _refresh_proofs(session, session.execute(text("SELECT DISTINCT service FROM point")).scalars())
    return Pruned(records=gone)


def _snapshot_row(record: SnapshotRecord) -> Document:
    facts: Document
    if isinstance(record.facts, FilesFacts):
        facts = {**asdict(record.facts), "walk_began_at": to_iso(record.facts.walk_began_at)}
    else:
        cluster = record.facts
        facts = {
            "system_id": cluster.system_id,
            "timeline": int(cluster.timeline),
            "start_lsn": str(cluster.start_lsn),
            "stop_lsn": str(cluster.stop_lsn),
            "server_version": cluster.server_version,
            "segment_bytes": cluster.segment_bytes,
            "block_bytes": cluster.block_bytes,
            "data_checksums": cluster.data_checksums,
            "bad_pages": cluster.bad_pages,
        }
    return {
        "id": record.id,
        "service": record.service,
        "component": record.component,
        "kind": record.kind,
        "method": record.method,
        "state": record.state.value,
        "host": record.host,
        "started_at": record.started_at,
        "stopped_at": record.stopped_at,
        "source_bytes": record.source_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        "facts": facts,
    }


def _point_row(point: RecoveryPoint) -> Document:
    return {
        "id": point.id,
        "service": point.service,
        "created_at": point.at,
        "state": point.state.value,
        "members": {member.component: _member(member) for member in point.members},
    }


def _member(member: PointMember) -> Document:
    position = member.position
    return {
        "kind": member.kind,
        "snapshot": member.snapshot,
        "state": member.state.value,
        "started_at": to_iso(member.started_at),
        "stopped_at": to_iso(member.stopped_at),
        "position": None
        if position is None
        else {"system_id": position.system_id, "timeline": int(position.timeline), "lsn": str(position.lsn)},
    }


def _record_row(entry: Entry) -> Document:
    statement = entry.signed.statement
    predicate = statement.predicate
    outcome, run = predicate.get("outcome"), predicate.get("run")
    return {
        "entry": entry.number,
        "kind": statement.kind.value,
        "service": statement.service,
        "host": str(predicate["host"]),
        "run": None if run is None else str(run),
        "recorded_at": statement.recorded_at,
        "outcome": None if outcome is None else str(outcome),
        "predicate": dict(predicate),
        "sha256": entry.signed.sha256,
    }


def _upsert(session: Session, kind: type[Base], key: Sequence[str], rows: Sequence[Document]) -> None:
    """Insert rows or bring those with their key up to date, in the order of keys: writers never wait in a circle."""
    if not rows:
        return
    unique = {tuple(row[name] for name in key): row for row in rows}
    statement = insert(cast("Table", kind.__table__))
    changes = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=changes),
        [unique[name] for name in sorted(unique)],
    )


def _refresh_proofs(session: Session, services: Iterable[str]) -> None:
    asked = sorted(services)
    if asked:
        session.execute(_REFRESH_PROOFS, {"services": asked})


def _deleted(session: Session, statement: Delete) -> int:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
