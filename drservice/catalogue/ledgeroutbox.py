"""What happened in the catalogue and is to stand in the ledger: it waits here until a host has put it on record.

* An event is written in the transaction of what it is about: both happen or neither.
* Events are carried in their order, by one host at a time (an advisory lock), whichever can sign for their service.
* The event's name is in its record. Whoever carries it looks for it first (:mod:`drservice.catalogue.witnessing`), so a
  host that dies between the ledger and this table leaves no second record.

Free-form texts are shortened when they are carried; here they are as the writer had them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, DateTime, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.tables import Document, LedgerEvent, Run
from drservice.clock import to_iso
from drservice.errors import StatementError
from drservice.model.evidence import EvidenceKind
from drservice.model.runs import RunKind, RunState

SCHEDULE = "schedule"
"""Who asks for a run of a slot."""
MOST_SLOTS = 1000
"""In one record, which may have 65,535 bytes."""
UNFINISHED = frozenset({RunState.FAILED, RunState.CANCELLED})
_NOW = func.drservice_now(type_=DateTime(timezone=True))
_LOCK = 0x64726C6564676572
"""Advisory lock of whoever carries events into the ledger ("drledger")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An event that is not on record yet."""

    event: str
    kind: EvidenceKind
    service: str | None
    run: str | None
    fields: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits, and what cannot be spelled as a record."""

    waiting: int
    oldest: datetime | None
    problems: int


def put_event(session: Session, event: Waiting) -> None:
    """Let an event wait; the same one again changes nothing."""
    session.execute(
        insert(LedgerEvent)
        .values(event=event.event, kind=event.kind.value, service=event.service, run=event.run, fields=event.fields)
        .on_conflict_do_nothing(index_elements=["event"])
    )


def put_missed(
    session: Session,
    *,
    service: str,
    kind: RunKind,
    plan: str,
    slots: Sequence[tuple[str, datetime]],
    reason: str,
    caught_up_by: str | None,
) -> None:
    """Let missed slots wait, each with the id of its run, oldest first."""
    now = session.execute(select(_NOW)).scalar_one()
    for first in range(0, len(slots), MOST_SLOTS):
        chunk = slots[first : first + MOST_SLOTS]
        fields = {
            "kind": kind.value,
            "plan": plan or None,
            "slots": [to_iso(slot) for _, slot in chunk],
            "reason": reason,
            "caught_up_by": caught_up_by,
            "noticed_at": to_iso(now),
        }
        put_event(
            session,
            Waiting(event=chunk[0][0], kind=EvidenceKind.MISSED, service=service, run=None, fields=fields),
        )


def put_failure(session: Session, run: str) -> None:
    """Let a run wait that ended without its result, if a schedule asked for it.

    A drill that is on record already is not told of again. Of passes over documents, which come every few seconds, the
    first that fails is told and not each that follows.
    """
    row = session.execute(
        select(
            Run.service, Run.kind, Run.plan, Run.state, Run.scheduled_for, Run.requested_by, Run.parameters,
            Run.epoch, Run.started_at, Run.ended_at, Run.result, Run.error,
        ).where(Run.id == run)
    ).one()  # fmt: skip
    wanted_for = to_iso(row.scheduled_for) if row.scheduled_for is not None else row.parameters.get("catches_up")
    if row.requested_by != SCHEDULE or wanted_for is None or RunState(row.state) not in UNFINISHED:
        return
    is_on_record = row.kind == RunKind.DRILL.value and (row.result or {}).get("record") is not None
    if is_on_record or (
        row.kind == RunKind.DOCUMENTS.value and _has_failed_before(session, run, row.service, row.kind)
    ):
        return
    error = row.error
    fields = {
        "kind": row.kind,
        "plan": row.plan or None,
        "outcome": row.state,
        "scheduled_for": wanted_for,
        "claims": row.epoch,
        "started_at": to_iso(row.started_at) if row.started_at is not None else None,
        "ended_at": to_iso(row.ended_at),
        "error": {"code": error.get("code"), "message": error.get("message")} if error else None,
    }
    put_event(session, Waiting(event=run, kind=EvidenceKind.FAILURE, service=row.service, run=run, fields=fields))


def _has_failed_before(session: Session, run: str, service: str, kind: str) -> bool:
    before = session.execute(
        select(Run.state)
        .where(
            Run.service == service,
            Run.kind == kind,
            Run.id < run,
            Run.ended_at.is_not(None),
            Run.state != RunState.MISSED.value,
        )
        .order_by(Run.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    return before is not None and RunState(before) in UNFINISHED


class LedgerOutbox:
    """The events that wait in a catalogue.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_waiting(self) -> bool:
        """Tell whether there is anything to carry."""
        with self._database.session() as session:
            return session.execute(select(LedgerEvent.number).where(*_open()).limit(1)).scalar() is not None

    def backlog(self) -> Backlog:
        """Return what waits."""
        with self._database.session() as session:
            return read_backlog(session)

    def carry(self, write: Callable[[Session, Waiting], int], *, services: Sequence[str] = ()) -> Waiting | None:
        """Have the first event written into the ledger, and note at which entry it stands.

        What ``write`` raises leaves the event waiting, except that it cannot be spelled as a record: that is noted,
        told by :meth:`backlog`, and keeps no other event from the ledger.

        Args:
            write: puts an event on record; returns the number of its entry.
            services: whose events this host may sign; empty = all. Those of no service may be anybody's.

        Returns:
            the event that was looked at; ``None`` if there is none, or another host is at work.
        """
        with self._database.session() as session:
            # Whoever is stopped in the middle of this must not keep the others from it.
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '120s'"))
            if not session.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar_one():
                return None
            query = select(LedgerEvent).where(*_open()).order_by(LedgerEvent.number).limit(1)
            if services:
                query = query.where(or_(LedgerEvent.service.is_(None), LedgerEvent.service.in_(list(services))))
            row = session.scalars(query).one_or_none()
            if row is None:
                return None
            waiting = Waiting(
                event=row.event, kind=EvidenceKind(row.kind), service=row.service, run=row.run, fields=row.fields
            )
            try:
                values: dict[str, object] = {"entry": write(session, waiting), "written_at": _NOW}
            except StatementError as error:
                values = {"problem": error.message}
                telemetry.error("an event cannot be put on record", event_name=row.event, problem=error.message)
            session.execute(update(LedgerEvent).where(LedgerEvent.number == row.number).values(**values))
            return waiting


def read_backlog(session: Session) -> Backlog:
    """Return what waits, and what cannot be put on record: few rows, found by the index on what has no entry."""
    is_open = LedgerEvent.problem.is_(None)
    row = session.execute(
        select(
            func.count().filter(is_open),
            func.min(LedgerEvent.created_at).filter(is_open),
            func.count(LedgerEvent.problem),
        ).where(LedgerEvent.entry.is_(None))
    ).one()
    return Backlog(waiting=row[0], oldest=row[1], problems=row[2])


def _open() -> tuple[ColumnElement[bool], ...]:
    return (LedgerEvent.entry.is_(None), LedgerEvent.problem.is_(None))
