"""What pages and API read of the catalogue: what is known of services (``catalogue.facts``), and lists in pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, func, or_, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from drservice.catalogue.database import Database
from drservice.catalogue.facts import ServiceFacts, read_facts
from drservice.catalogue.tables import Document, Host, Point, Record, Snapshot, WalWindow
from drservice.model.agenda import Agenda

_NOW = func.drservice_now(type_=DateTime(timezone=True))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """A machine with a node process."""

    name: str
    version: str
    seen_at: datetime


class Reading:
    """Reads a catalogue. Every method raises CatalogueUnreachableError when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the catalogue's time."""
        with self._database.session() as session:
            return session.execute(select(_NOW)).scalar_one()

    def services(self, names: Sequence[str], agenda: Agenda) -> tuple[datetime, Mapping[str, ServiceFacts]]:
        """Return the catalogue's time, and what it knows of each named service; ``agenda`` knows their schedules."""
        with self._database.session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            now = session.execute(select(_NOW)).scalar_one()
            return now, read_facts(session, names, agenda)

    def windows(self, service: str) -> list[WindowInfo]:
        """Return every stretch of WAL of a service, by cluster and position."""
        query = select(WalWindow).where(WalWindow.service == service).order_by(WalWindow.component, WalWindow.from_lsn)
        with self._database.session() as session:
            return [
                WindowInfo(
                    component=row.component,
                    timeline=row.timeline,
                    from_lsn=row.from_lsn,
                    to_lsn=row.to_lsn,
                    from_time=row.from_time,
                    to_time=row.to_time,
                )
                for row in session.scalars(query)
            ]

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


def _record(row: Record) -> RecordInfo:
    return RecordInfo(
        entry=row.entry,
        kind=row.kind,
        service=row.service,
        host=row.host,
        run=row.run,
        recorded_at=row.recorded_at,
        outcome=row.outcome,
        predicate=row.predicate,
        sha256=row.sha256,
    )
