"""What the Evidence page and its API read: exceptions, drills done and owed, records; never whole statements.

Everything is asked in one transaction, in a handful of queries whose number does not depend on how much there is; what
is shown of a statement is picked out of it by the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, RowMapping, func, select, text
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import Backlog, read_backlog
from drservice.model.agenda import Results

_NOW = func.drservice_now(type_=DateTime(timezone=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which records are asked for: of whom, and recorded from ``begin`` up to, but without, ``end``."""

    services: Sequence[str] | None
    """``None``: of all, and of none in particular."""
    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLine:
    """A record in a list."""

    entry: int
    kind: str
    service: str | None
    host: str
    recorded_at: datetime
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionLine:
    """A record that says that something is not as promised."""

    entry: int
    kind: str
    service: str | None
    recorded_at: datetime
    outcome: str | None
    run_kind: str | None
    """Of missed slots and failed runs: of which kind."""
    plan: str | None
    slots: int | None
    caught_up_by: str | None
    mutation: str | None
    detail: str | None
    """Its first reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenObligation:
    """An obligation that no drill has answered."""

    entry: int
    obligation: str
    service: str | None
    plan: str | None
    recorded_at: datetime
    due_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOnRecord:
    """An ordinary drill on record: the newest of its kind."""

    entry: int
    recorded_at: datetime
    outcome: str | None


@dataclass(slots=True, kw_only=True)
class DrillFacts:
    """What is known of the drills of a service."""

    last: DrillOnRecord | None = None
    passed: DrillOnRecord | None = None
    done: int = 0
    """Drills in the period that passed."""
    failed: int = 0
    """Drills in the period that did not."""
    missed: int = 0
    """Slots for drills that are on record as missed in the period, and that no run made up for."""
    results: Results = field(default_factory=Results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is shown on one page."""

    now: datetime
    exceptions: Sequence[ExceptionLine]
    obligations: Sequence[OpenObligation]
    """Those that are not answered, the one that was due first at the head."""
    drills: Mapping[str, DrillFacts]
    records: Sequence[RecordLine]
    backlog: Backlog


class EvidenceReading:
    """Reads records in a catalogue. Every method raises CatalogueUnreachableError when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the catalogue's time."""
        with self._database.session() as session:
            return session.execute(select(_NOW)).scalar_one()

    def page(
        self,
        scope: Scope,
        *,
        names: Sequence[str],
        schedules: Sequence[tuple[str, str]],
        before: int | None,
        limit: int,
    ) -> Evidence:
        """Return what one page shows.

        Args:
            scope: whose records, and of which period.
            names: the services whose drills are asked for.
            schedules: (service, plan) of every schedule for drills.
            before: the last record of the page before.
            limit: of exceptions and of records.
        """
        with self._reading() as session:
            return Evidence(
                now=session.execute(select(_NOW)).scalar_one(),
                exceptions=_exceptions(session, scope, limit),
                obligations=_open_obligations(session, scope),
                drills=_drills(session, scope, names, schedules),
                records=_records(session, scope, before, limit),
                backlog=read_backlog(session),
            )

    def drills(
        self, scope: Scope, *, names: Sequence[str], schedules: Sequence[tuple[str, str]]
    ) -> tuple[datetime, Mapping[str, DrillFacts], Sequence[OpenObligation]]:
        """Return the catalogue's time, what is known of the drills of services, and what is owed."""
        with self._reading() as session:
            now = session.execute(select(_NOW)).scalar_one()
            return now, _drills(session, scope, names, schedules), _open_obligations(session, scope)

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._database.session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield session


def _parameters(scope: Scope) -> dict[str, Any]:
    services = list(scope.services) if scope.services is not None else None
    return {"services": services, "begin": scope.begin, "end": scope.end}


_SEEN = "(CAST(:services AS text[]) IS NULL OR service = ANY (CAST(:services AS text[])))"
_EXCEPTIONS = text(
    f"""
    SELECT entry, kind, service, recorded_at, outcome, mutation, predicate ->> 'kind' AS run_kind,
        predicate ->> 'plan' AS plan, predicate ->> 'caught_up_by' AS caught_up_by,
        CASE WHEN kind = 'missed' THEN jsonb_array_length(predicate -> 'slots') END AS slots,
        coalesce(predicate #>> '{{error,message}}', predicate #>> '{{reasons,0}}', predicate ->> 'reason',
                 predicate #>> '{{anomalies,0}}', predicate ->> 'comment') AS detail
    FROM record WHERE exception AND recorded_at >= :begin AND recorded_at < :end AND {_SEEN}
    ORDER BY entry DESC LIMIT :limit
    """  # noqa: S608 - put together from the constant above
)
_OPEN_OBLIGATIONS = text(
    f"""
    SELECT owed.entry, owed.obligation, owed.service, owed.predicate #>> '{{plan,name}}' AS plan, owed.recorded_at,
        (owed.predicate ->> 'due_at')::timestamptz AS due_at
    FROM record AS owed
    WHERE owed.kind = 'obligation' AND {_SEEN.replace("service =", "owed.service =")}
      AND NOT EXISTS (
          SELECT FROM record AS answer WHERE answer.obligation = owed.obligation AND answer.kind = 'drill'
      )
    ORDER BY due_at NULLS LAST, owed.entry
    """  # noqa: S608 - as above
)
"""Whatever the period: what is owed stays owed."""
_RECORDS = text(
    f"""
    SELECT entry, kind, service, host, recorded_at, outcome FROM record
    WHERE entry < coalesce(CAST(:before AS bigint), 9223372036854775807) AND {_SEEN}
    ORDER BY entry DESC LIMIT :limit
    """  # noqa: S608 - as above
)
_DRILL = "SELECT entry, recorded_at, outcome FROM record WHERE service = asked.name AND kind = 'drill'"
_NEWEST = "AND mutation IS NULL ORDER BY recorded_at DESC, entry DESC LIMIT 1"
_LAST_DRILLS = text(
    f"""
    SELECT asked.name, last.entry AS last_entry, last.recorded_at AS last_at, last.outcome AS last_outcome,
        passed.entry AS passed_entry, passed.recorded_at AS passed_at
    FROM unnest(CAST(:names AS text[])) AS asked (name)
    CROSS JOIN LATERAL ({_DRILL} {_NEWEST}) AS last
    LEFT JOIN LATERAL (
        {_DRILL} AND outcome = 'passed' AND last.outcome IS DISTINCT FROM 'passed' {_NEWEST}
    ) AS passed ON true
    """  # noqa: S608 - as above
)
"""A newest drill that passed is the newest that passed, too: it is not looked for again."""
_COUNTS = text(
    f"""
    SELECT service, count(*) FILTER (WHERE kind = 'drill' AND outcome = 'passed') AS done,
        count(*) FILTER (WHERE kind = 'drill' AND outcome IS DISTINCT FROM 'passed') AS failed,
        coalesce(sum(jsonb_array_length(predicate -> 'slots')) FILTER (WHERE kind = 'missed'), 0) AS missed
    FROM record
    WHERE kind IN ('drill', 'missed') AND service IS NOT NULL AND recorded_at >= :begin AND recorded_at < :end
      AND mutation IS NULL AND {_SEEN}
      AND (kind = 'drill' OR (predicate ->> 'kind' = 'drill' AND predicate ->> 'caught_up_by' IS NULL))
    GROUP BY service
    """  # noqa: S608 - as above
)
_RUNS = text(
    """
    SELECT asked.service, asked.plan, done.ended_at AS done,
        CASE WHEN done.ended_at IS NULL THEN coalesce(first.at, timetable.settled_until) END AS since
    FROM unnest(CAST(:drilled AS text[]), CAST(:plans AS text[])) AS asked (service, plan)
    LEFT JOIN LATERAL (
        SELECT ended_at FROM run
        WHERE service = asked.service AND kind = 'drill' AND plan = asked.plan
          AND state = 'succeeded' AND state IN ('succeeded', 'partial') AND ended_at IS NOT NULL
        ORDER BY ended_at DESC LIMIT 1
    ) AS done ON true
    LEFT JOIN LATERAL (
        SELECT min(requested_at) AS at FROM run
        WHERE done.ended_at IS NULL AND service = asked.service AND kind = 'drill' AND plan = asked.plan
    ) AS first ON true
    LEFT JOIN timetable
        ON timetable.service = asked.service AND timetable.kind = 'drill' AND timetable.plan = asked.plan
    """
)


def _exceptions(session: Session, scope: Scope, limit: int) -> list[ExceptionLine]:
    rows = session.execute(_EXCEPTIONS, {**_parameters(scope), "limit": limit}).mappings()
    return [ExceptionLine(**row) for row in rows]


def _open_obligations(session: Session, scope: Scope) -> list[OpenObligation]:
    rows = session.execute(_OPEN_OBLIGATIONS, {"services": _parameters(scope)["services"]}).mappings()
    return [OpenObligation(**row) for row in rows]


def _records(session: Session, scope: Scope, before: int | None, limit: int) -> list[RecordLine]:
    parameters = {"services": _parameters(scope)["services"], "before": before, "limit": limit}
    return [RecordLine(**row) for row in session.execute(_RECORDS, parameters).mappings()]


def _drills(
    session: Session, scope: Scope, names: Sequence[str], schedules: Sequence[tuple[str, str]]
) -> Mapping[str, DrillFacts]:
    found = {name: DrillFacts() for name in names}
    for row in session.execute(_LAST_DRILLS, {"names": list(names)}).mappings():
        facts = found[row["name"]]
        facts.last = DrillOnRecord(entry=row["last_entry"], recorded_at=row["last_at"], outcome=row["last_outcome"])
        facts.passed = _passed(row, facts.last)
    for row in session.execute(_COUNTS, {**_parameters(scope), "services": list(names)}).mappings():
        facts = found[row["service"]]
        facts.done, facts.failed, facts.missed = row["done"], row["failed"], int(row["missed"])
    done: dict[str, dict[tuple[str, str], datetime]] = {}
    since: dict[str, dict[tuple[str, str], datetime]] = {}
    columns = {"drilled": [service for service, _ in schedules], "plans": [plan for _, plan in schedules]}
    for row in session.execute(_RUNS, columns).mappings():
        for instant, target in ((row["done"], done), (row["since"], since)):
            if instant is not None:
                target.setdefault(row["service"], {})["drill", row["plan"]] = instant
    for name, facts in found.items():
        drilled_at = facts.passed.recorded_at if facts.passed is not None else None
        facts.results = Results(done=done.get(name, {}), since=since.get(name, {}), drilled_at=drilled_at)
    return found


def _passed(row: RowMapping, last: DrillOnRecord) -> DrillOnRecord | None:
    if last.outcome == "passed":
        return last
    if row["passed_entry"] is None:
        return None
    return DrillOnRecord(entry=row["passed_entry"], recorded_at=row["passed_at"], outcome="passed")
