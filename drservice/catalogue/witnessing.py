"""Carries what waits in the catalogue into the ledger: each event once in effect, whoever is killed in between.

The records that the catalogue knows are brought up to the ledger's end first; what was appended since is read one by
one. An event that stands there already is only noted. Otherwise the ledger itself decides between hosts that write the
same event at once (``Ledger.append``, ``unless``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from drservice import telemetry
from drservice.canonical import Json
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import LedgerOutbox, Waiting
from drservice.catalogue.rebuild import catch_up_records
from drservice.catalogue.tables import AccessDay, Document, Record
from drservice.errors import DrError, ObjectStoreError
from drservice.evidence.ledger import Ledger, Unless
from drservice.evidence.statements import Statement, make_statement
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ServiceName
from drservice.operations.evidence import Evidence
from drservice.operations.records import bounded


def carry_out(database: Database, evidence: Evidence) -> int:
    """Put on record what waits and this host may sign; returns how many events wait no more.

    Raises:
        LogKeyError: this host has no signing key that anybody believes.
        LedgerError, ObjectStoreError: the ledger does not take it now; what is not written yet goes on waiting.
        CatalogueUnreachableError: it goes on waiting, or is found in the ledger by the next one who looks.
    """
    evidence.require_signing()
    catch_up_records(database, evidence.ledger)
    outbox, scribe, count = LedgerOutbox(database), _Scribe(evidence), 0
    while outbox.carry(scribe.write, services=_own_services(evidence)) is not None:
        count += 1
    if count:
        catch_up_records(database, evidence.ledger)
    return count


def _own_services(evidence: Evidence) -> tuple[ServiceName, ...]:
    """Return whose events this host's key may sign; empty = all."""
    assert evidence.signer is not None, "it was asked for"
    public_key = evidence.signer.public_key
    grants = [key for key in evidence.ledger.policy.executors if key.public_key == public_key]
    if any(not key.services for key in grants):
        return ()
    return tuple(dict.fromkeys(service for key in grants for service in key.services))


@dataclass(frozen=True, slots=True)
class _Day:
    """The newest day of an access log in the ledger."""

    day: str
    sha256: str


class _Scribe:
    """Writes events, and knows those that stand in the ledger behind the records that the catalogue knows."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._ledger: Ledger = evidence.ledger
        self._events: dict[str, int] = {}
        self._days: dict[str, _Day] = {}
        self._looked_until: int | None = None

    def write(self, session: Session, waiting: Waiting) -> int:
        """Return the entry at which an event stands, after writing it if it does not yet."""
        self._look(session)
        known = self._known(session, waiting.event)
        if known is not None:
            telemetry.info("was on record already", event_name=waiting.event, entry=known)
            self._note_day(session, waiting, self._ledger.entry(known).signed.statement, known)
            return known
        statement = make_statement(
            waiting.kind,
            occasion=self._evidence.occasion(
                ServiceName(waiting.service) if waiting.service is not None else None, waiting.run
            ),
            subject=[],
            fields={"event": waiting.event, **self._fields(session, waiting)},
        )
        assert self._looked_until is not None, "it was looked before"
        record = self._ledger.append(
            statement,
            unless=Unless(since=self._looked_until, stands_in=lambda other: _event_of(other) == waiting.event),
        )
        self._look(session)
        self._note_day(session, waiting, self._ledger.entry(record.number).signed.statement, record.number)
        telemetry.info(
            "put on record",
            kind=waiting.kind.value,
            service=waiting.service,
            event_name=waiting.event,
            entry=record.number,
        )
        return record.number

    def _look(self, session: Session) -> None:
        """Take in what was appended since the last look."""
        if self._looked_until is None:
            newest = session.execute(select(func.max(Record.entry))).scalar_one()
            self._looked_until = 0 if newest is None else newest + 1
        size = self._ledger.size()
        for number in range(self._looked_until, size):
            try:
                statement = self._ledger.entry(number).signed.statement
            except ObjectStoreError:
                raise
            except DrError:
                continue  # whoever wrote it, nobody believes it: no event of ours stands there
            event = _event_of(statement)
            if event is not None:
                self._events.setdefault(event, number)
            if statement.kind is EvidenceKind.ACCESS:
                self._days[str(statement.predicate["log"])] = _day_of(statement.predicate)
        self._looked_until = max(self._looked_until, size)

    def _known(self, session: Session, event: str) -> int | None:
        if event in self._events:
            return self._events[event]
        return session.execute(select(func.min(Record.entry)).where(Record.event == event)).scalar_one()

    def _fields(self, session: Session, waiting: Waiting) -> Document:
        fields = waiting.fields
        if waiting.kind is EvidenceKind.MISSED:
            return {**fields, "plan": _maybe_bounded(fields["plan"]), "reason": bounded(fields["reason"])}
        if waiting.kind is EvidenceKind.FAILURE:
            error = fields["error"]
            told = None if error is None else {"code": error["code"], "message": bounded(str(error["message"]))}
            return {**fields, "plan": _maybe_bounded(fields["plan"]), "error": told}
        log, previous = self._chain(session, waiting)
        before: Json = None if previous is None else {"day": previous.day, "sha256": previous.sha256}
        return {**fields, "log": log, "previous": before}

    def _chain(self, session: Session, waiting: Waiting) -> tuple[str, _Day | None]:
        """Return under which log a day goes, and the day before it; another log begins where they do not fit.

        A catalogue that was set back, or came from a backup, does not know what it has told: its days are a log of
        their own from there on, and nobody takes them for a forgery of those that stand in the ledger.
        """
        told = session.execute(
            select(AccessDay.day, AccessDay.sha256, AccessDay.log)
            .where(AccessDay.entry.is_not(None), AccessDay.day < str(waiting.fields["day"]))
            .order_by(AccessDay.day.desc())
            .limit(1)
        ).one_or_none()
        if told is not None and told.log is not None:
            newest = self._newest_day(session, told.log)
            if newest == _Day(told.day, told.sha256):
                return told.log, newest
        return waiting.event, None

    def _newest_day(self, session: Session, log: str) -> _Day | None:
        if log in self._days:
            return self._days[log]
        predicate = session.execute(
            select(Record.predicate)
            .where(Record.kind == EvidenceKind.ACCESS.value, Record.predicate["log"].astext == log)
            .order_by(Record.entry.desc())
            .limit(1)
        ).scalar_one_or_none()
        return None if predicate is None else _day_of(predicate)

    def _note_day(self, session: Session, waiting: Waiting, statement: Statement, entry: int) -> None:
        if waiting.kind is EvidenceKind.ACCESS:
            session.execute(
                update(AccessDay)
                .where(AccessDay.event == waiting.event)
                .values(entry=entry, log=str(statement.predicate["log"]))
            )


def _event_of(statement: Statement) -> str | None:
    event = statement.predicate.get("event")
    return event if isinstance(event, str) else None


def _day_of(predicate: Mapping[str, Any]) -> _Day:
    return _Day(str(predicate["day"]), str(predicate["sha256"]))


def _maybe_bounded(value: str | None) -> str | None:
    return None if value is None else bounded(value)
