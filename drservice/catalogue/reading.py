"""What pages and API read of the catalogue: per service the newest of everything, and lists in pages.

The newest of each kind is looked up per service through an index (lateral joins), so an overview of a thousand services
reads a few rows of each and not their histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, CollectionAggregate, DateTime, RowMapping, Text, any_, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Document, Host, Point, Record, Run, Snapshot, WalWindow

_NOW = func.drservice_now(type_=DateTime(timezone=True))
_EACH = "FROM unnest(CAST(:services AS text[])) AS asked (name) CROSS JOIN LATERAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointInfo:
    """A recovery point."""

    id: str
    service: str
    created_at: datetime
    state: str
    members: Document
    verified_at: datetime | None
    """When a drill last passed from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowInfo:
    """A stretch of a cluster's WAL without a gap."""

    component: str
    timeline: int
    from_lsn: int
    to_lsn: int
    from_time: datetime | None
    to_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """The newest snapshot of a component."""

    id: str
    component: str
    kind: str
    state: str
    started_at: datetime
    stopped_at: datetime
    source_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordInfo:
    """A record of the ledger."""

    entry: int
    kind: str
    service: str | None
    host: str
    run: str | None
    recorded_at: datetime
    outcome: str | None
    predicate: Document
    sha256: str

    def milliseconds(self, name: str) -> float | None:
        """Return a duration of the predicate (``name`` ends in ``_ms``) in seconds; ``None`` if it holds none."""
        value = self.predicate.get(name)
        return value / 1000 if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What the catalogue knows of a service."""

    service: str
    point: PointInfo | None = None
    """The newest."""
    windows: tuple[WindowInfo, ...] = ()
    drill: RecordInfo | None = None
    """The newest; drills that are meant to fail do not count."""
    passed_drill: RecordInfo | None = None
    restore: RecordInfo | None = None
    """The newest that was proved."""
    missed: int = 0
    """Slots that nobody was there for and no run was made for since."""
    running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """A machine with a node process."""

    name: str
    version: str
    seen_at: datetime


@dataclass(slots=True, kw_only=True)
class _Found:
    points: dict[str, PointInfo] = field(default_factory=dict)
    windows: dict[str, list[WindowInfo]] = field(default_factory=dict)
    records: dict[tuple[str, str], RecordInfo] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)


class Reading:
    """Reads a catalogue. Every method raises CatalogueUnreachableError when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the catalogue's time."""
        with self._database.session() as session:
            return session.execute(select(_NOW)).scalar_one()

    def services(self, names: Sequence[str]) -> tuple[datetime, Mapping[str, ServiceFacts]]:
        """Return the catalogue's time, and what it knows of each named service."""
        found = _Found()
        with self._database.session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            now = session.execute(select(_NOW)).scalar_one()
            _read(session, list(names), found)
        return now, {
            name: ServiceFacts(
                service=name,
                point=found.points.get(name),
                windows=tuple(found.windows.get(name, ())),
                drill=found.records.get((name, "drill")),
                passed_drill=found.records.get((name, "passed")),
                restore=found.records.get((name, "restore")),
                missed=found.missed.get(name, 0),
                running=found.running.get(name, 0),
            )
            for name in names
        }

    def snapshots(self, service: str) -> list[SnapshotInfo]:
        """Return the newest snapshot of each component of a service."""
        query = (
            select(Snapshot)
            .where(Snapshot.service == service)
            .order_by(Snapshot.component, Snapshot.stopped_at.desc())
            .ext(distinct_on(Snapshot.component))
        )
        with self._database.session() as session:
            return [
                SnapshotInfo(
                    id=row.id,
                    component=row.component,
                    kind=row.kind,
                    state=row.state,
                    started_at=row.started_at,
                    stopped_at=row.stopped_at,
                    source_bytes=row.source_bytes,
                    stored_bytes=row.stored_bytes,
                )
                for row in session.scalars(query)
            ]

    def points(self, service: str, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[PointInfo]:
        """Return recovery points of a service, newest first, after the one that ``before`` names."""
        query = select(Point).where(Point.service == service)
        query = query.order_by(Point.created_at.desc(), Point.id.desc()).limit(limit)
        if before is not None:
            at, identifier = before
            query = query.where(or_(Point.created_at < at, (Point.created_at == at) & (Point.id < identifier)))
        with self._database.session() as session:
            return [
                PointInfo(
                    id=row.id,
                    service=row.service,
                    created_at=row.created_at,
                    state=row.state,
                    members=row.members,
                    verified_at=row.verified_at,
                )
                for row in session.scalars(query)
            ]

    def records(
        self,
        *,
        services: Sequence[str] | None,
        service: str | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[RecordInfo]:
        """Return records of the ledger, newest first: of ``services`` (``None`` = all, and of none in particular)."""
        query = select(Record).order_by(Record.entry.desc()).limit(limit)
        if services is not None:
            query = query.where(Record.service.in_(list(services)))
        if service is not None:
            query = query.where(Record.service == service)
        if kind is not None:
            query = query.where(Record.kind == kind)
        if before is not None:
            query = query.where(Record.entry < before)
        with self._database.session() as session:
            return [_record(row) for row in session.scalars(query)]

    def record(self, entry: int) -> RecordInfo | None:
        """Return a record by its number in the ledger."""
        with self._database.session() as session:
            row = session.get(Record, entry)
            return None if row is None else _record(row)

    def hosts(self) -> list[HostInfo]:
        """Return the hosts, by name."""
        with self._database.session() as session:
            return [
                HostInfo(name=row.name, version=row.version, seen_at=row.seen_at)
                for row in session.scalars(select(Host).order_by(Host.name))
            ]

    def environments(self, service: str, *, limit: int = 20) -> list[Document]:
        """Return what isolated restores of a service said about their environments, newest first.

        Each has ``run``, ``ended_at`` and the ``environment`` of the run's result. Whether it still runs, only its host
        knows.
        """
        query = (
            select(Run.id, Run.ended_at, Run.claimed_by, Run.result["environment"])
            .where(Run.service == service, Run.kind == "restore", Run.result["environment"].isnot(None))
            .order_by(Run.id.desc())
            .limit(limit)
        )
        with self._database.session() as session:
            return [
                {"run": run, "ended_at": ended_at, "host": host, "environment": environment}
                for run, ended_at, host, environment in session.execute(query).all()
                if isinstance(environment, dict)
            ]


def _read(session: Session, names: list[str], found: _Found) -> None:
    for row in _each(session, names, "SELECT * FROM point WHERE service = asked.name ORDER BY created_at DESC LIMIT 1"):
        found.points[row["service"]] = PointInfo(
            id=row["id"],
            service=row["service"],
            created_at=row["created_at"],
            state=row["state"],
            members=row["members"],
            verified_at=row["verified_at"],
        )
    drills = "SELECT * FROM record WHERE service = asked.name AND kind = 'drill' AND predicate ->> 'mutation' IS NULL"
    newest = "ORDER BY recorded_at DESC, entry DESC LIMIT 1"
    restores = "SELECT * FROM record WHERE service = asked.name AND kind = 'restore' AND outcome = 'restored'"
    for what, query in (
        ("drill", f"{drills} {newest}"),
        ("passed", f"{drills} AND outcome = 'passed' {newest}"),
        ("restore", f"{restores} {newest}"),
    ):
        # A newest drill that passed is the newest that passed, too.
        asked = [name for name in names if what != "passed" or not _has_passed(found, name)]
        for row in _each(session, asked, query):
            found.records[row["service"], what] = _record(row)
    for name in names:
        if _has_passed(found, name):
            found.records[name, "passed"] = found.records[name, "drill"]
    for window in session.scalars(
        select(WalWindow).where(WalWindow.service == _one_of(names)).order_by(WalWindow.component, WalWindow.from_lsn)
    ):
        found.windows.setdefault(window.service, []).append(
            WindowInfo(
                component=window.component,
                timeline=window.timeline,
                from_lsn=window.from_lsn,
                to_lsn=window.to_lsn,
                from_time=window.from_time,
                to_time=window.to_time,
            )
        )
    _read_runs(session, names, found)


def _read_runs(session: Session, names: list[str], found: _Found) -> None:
    """Count what waits, runs and was missed; all three are few, whatever the number of runs (index on state)."""
    query = (
        select(Run.service, Run.state, func.count())
        .where(
            Run.service == _one_of(names),
            or_(Run.state == "running", (Run.state == "missed") & Run.caught_up_by.is_(None)),
        )
        .group_by(Run.service, Run.state)
    )
    for service, state, count in session.execute(query):
        (found.missed if state == "missed" else found.running)[service] = count


def _has_passed(found: _Found, name: str) -> bool:
    drill = found.records.get((name, "drill"))
    return drill is not None and drill.outcome == "passed"


def _one_of(names: list[str]) -> CollectionAggregate[bool]:
    """Return what a column is compared with: one array, where IN would be a parameter for each name."""
    return any_(literal(names, ARRAY(Text)))


def _each(session: Session, names: list[str], query: str) -> Sequence[RowMapping]:
    """Run a query for each name; what comes back are its rows."""
    statement = text(f"SELECT found.* {_EACH} ({query}) AS found")
    return session.execute(statement, {"services": names}).mappings().all()


def _record(row: Record | Mapping[str, Any] | RowMapping) -> RecordInfo:
    def value(name: str) -> Any:  # noqa: ANN401 - a column of any type
        return getattr(row, name) if isinstance(row, Record) else row[name]

    return RecordInfo(
        entry=value("entry"),
        kind=value("kind"),
        service=value("service"),
        host=value("host"),
        run=value("run"),
        recorded_at=value("recorded_at"),
        outcome=value("outcome"),
        predicate=value("predicate"),
        sha256=value("sha256"),
    )
