"""Runs: requested for a slot or by somebody, claimed under an epoch, renewed, and ended.

The rules, all kept by the database so that any number of nodes may work at once:

* A slot is one row: whoever inserts second gets nothing (``UNIQUE (service, kind, plan, scheduled_for)``).
* A state changes only along ``model.runs.MOVES``.
* Claiming counts the epoch up; every later write names it and changes nothing unless the run is still running under
  it. A host that slept through the loss of its lease, or through the cancellation, therefore harms nothing: its writes
  return ``False`` and it has to stop.
* Leases end by the database's clock (``drservice_now()``); hosts' clocks decide nothing.
* Each change of state is an event of the run, numbered from 1 without a gap, and announced on :data:`CHANNEL`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, DateTime, Update, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import UNFINISHED, put_failure
from drservice.catalogue.tables import Document, Run, RunEvent
from drservice.errors import DrError, LeaseLostError
from drservice.model.ids import make_ulid
from drservice.model.runs import MOVES, RunKind, RunState

_NOW = func.drservice_now(type_=DateTime(timezone=True))
CHANNEL = "drservice_run"
"""Of LISTEN: the id of a run is announced with each of its events and each change of its progress."""
MOST_CLAIMS = 8
"""A run that lost its lease in this claim is not tried again: it may be what kills its hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What is to be run."""

    service: str
    kind: RunKind
    requested_by: str
    plan: str = ""
    """Name of a drill plan, or empty."""
    parameters: Document = field(default_factory=dict)
    host: str | None = None
    """Who may run it: a host, or anybody."""
    scheduled_for: datetime | None = None
    """The slot; ``None`` for a run that somebody asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to write about a run, until the lease ends."""

    run: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as it stands (``catalogue.tables.Run`` explains the fields)."""

    id: str
    service: str
    kind: RunKind
    plan: str
    scheduled_for: datetime | None
    state: RunState
    host: str | None
    requested_by: str
    requested_at: datetime
    parameters: Document
    epoch: int
    claimed_by: str | None
    lease_until: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_by: str | None
    progress: Document
    result: Document | None
    error: Document | None
    caught_up_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventInfo:
    """Something that happened in a run."""

    run: str
    number: int
    at: datetime
    epoch: int
    kind: str
    """state | step | note."""
    data: Document


class Runs:
    """The runs in a catalogue.

    Methods that take ``session`` write in the caller's transaction when it is given, so that a job may be deferred on
    the same connection; otherwise in one of their own.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database, *, most_claims: int = MOST_CLAIMS) -> None:
        self._database = database
        self._most_claims = most_claims

    def request(self, request: RunRequest, *, session: Session | None = None) -> str | None:
        """Put a run into the queue and return its id; ``None`` if its slot is taken.

        Raises:
            ValueError: the slot is a time without a zone.
        """
        return self._insert(request, RunState.QUEUED, {"requested_by": request.requested_by}, session)

    def missed(
        self,
        service: str,
        kind: RunKind,
        plan: str,
        slot: datetime,
        reason: str,
        *,
        session: Session | None = None,
    ) -> str | None:
        """Note that nobody was there for a slot; return the id, ``None`` if the slot is taken."""
        request = RunRequest(service=service, kind=kind, plan=plan, requested_by="schedule", scheduled_for=slot)
        return self._insert(request, RunState.MISSED, {"reason": reason}, session)

    def caught_up(self, missed: str, by: str, *, session: Session | None = None) -> bool:
        """Note which run was made for a missed slot; ``False`` unless it is missed and not caught up yet."""
        with self._in(session) as inner:
            changed = _changed(
                inner,
                update(Run)
                .where(Run.id == missed, Run.state == RunState.MISSED.value, Run.caught_up_by.is_(None))
                .values(caught_up_by=by),
            )
            if changed:
                _add_event(inner, missed, 0, "note", {"caught_up_by": by})
            return changed

    def claim(self, run: str, *, host: str, lease: timedelta) -> Claim | None:
        """Take a queued run under a new epoch; ``None`` if it is not queued, or is another host's."""
        with self._database.session() as session:
            epoch = session.execute(
                _move(RunState.QUEUED, RunState.RUNNING)
                .where(Run.id == run, Run.host.is_(None) | (Run.host == host))
                .values(
                    epoch=Run.epoch + 1,
                    claimed_by=host,
                    lease_until=_NOW + lease,
                    started_at=func.coalesce(Run.started_at, _NOW),
                )
                .returning(Run.epoch)
            ).scalar_one_or_none()
            if epoch is None:
                return None
            _add_event(session, run, epoch, "state", {"state": RunState.RUNNING.value, "host": host})
            return Claim(run=run, epoch=epoch)

    def renew(self, claim: Claim, lease: timedelta) -> bool:
        """Extend the lease from now; ``False`` if the run is no longer this claim's: stop working."""
        with self._database.session() as session:
            return _changed(session, _held(claim).values(lease_until=_NOW + lease))

    def cancel_requested(self, claim: Claim) -> str | None:
        """Return who wants this run to end, if anybody; ask with each renewal and end with :meth:`finish`."""
        with self._database.session() as session:
            return session.execute(
                select(Run.cancel_requested_by).where(Run.id == claim.run, Run.epoch == claim.epoch)
            ).scalar_one_or_none()

    def event(self, claim: Claim, kind: str, data: Document) -> bool:
        """Add an event (``step`` or ``note``); ``False`` if the run is no longer this claim's."""
        with self._database.session() as session:
            if not _lock(session, claim):
                return False
            _add_event(session, claim.run, claim.epoch, kind, data)
            return True

    def progress(self, claim: Claim, document: Document) -> bool:
        """Replace the progress and announce it (no event: only the newest counts); ``False`` if no longer its claim."""
        with self._database.session() as session:
            changed = _changed(session, _held(claim).values(progress=document))
            if changed:
                _announce(session, claim.run)
            return changed

    def finish(
        self,
        claim: Claim,
        state: RunState,
        *,
        result: Document | None = None,
        error: Document | None = None,
    ) -> bool:
        """End a run; ``False`` if it is no longer this claim's, whose result then counts for nothing here.

        Raises:
            ValueError: ``state`` is none that a running run ends in.
        """
        if not state.is_over:
            raise ValueError(f"a run does not end as {state.value}")
        with self._database.session() as session:
            changed = _changed(
                session,
                _move(RunState.RUNNING, state)
                .where(Run.id == claim.run, Run.epoch == claim.epoch)
                .values(result=result, error=error, ended_at=_NOW, lease_until=None),
            )
            if changed:
                data: Document = {"state": state.value, **({"error": error} if error else {})}
                _add_event(session, claim.run, claim.epoch, "state", data)
                if state in UNFINISHED:
                    put_failure(session, claim.run)
            return changed

    def release(self, claim: Claim, reason: str, *, session: Session | None = None) -> bool:
        """Give a running run back to the queue (a host drains); ``False`` if it is no longer this claim's."""
        with self._in(session) as inner:
            changed = _changed(
                inner,
                _move(RunState.RUNNING, RunState.QUEUED)
                .where(Run.id == claim.run, Run.epoch == claim.epoch)
                .values(claimed_by=None, lease_until=None),
            )
            if changed:
                data = {"state": RunState.QUEUED.value, "reason": reason}
                _add_event(inner, claim.run, claim.epoch, "state", data)
            return changed

    def refuse(self, run: str, error: Document, *, session: Session | None = None) -> bool:
        """Let a queued run fail that nobody can take (its service is gone); ``False`` if it is not queued."""
        with self._in(session) as inner:
            epoch = inner.execute(
                _move(RunState.QUEUED, RunState.FAILED)
                .where(Run.id == run)
                .values(error=error, ended_at=_NOW)
                .returning(Run.epoch)
            ).scalar_one_or_none()
            if epoch is not None:
                _add_event(inner, run, epoch, "state", {"state": RunState.FAILED.value, "error": error})
                put_failure(inner, run)
            return epoch is not None

    def cancel(self, run: str, by: str) -> RunState | None:
        """Cancel a queued run at once; ask the host of a running one to end it.

        Returns:
            the state it has now: CANCELLED; RUNNING until its host (or, if that is gone, the reaper) has ended it;
            the state it had ended in before; ``None`` for an unknown run.
        """
        with self._database.session() as session:
            found = session.execute(select(Run.state, Run.epoch).where(Run.id == run).with_for_update()).one_or_none()
            if found is None:
                return None
            state, epoch = RunState(found.state), found.epoch
            if state is RunState.QUEUED:
                session.execute(
                    _move(state, RunState.CANCELLED).where(Run.id == run).values(cancel_requested_by=by, ended_at=_NOW)
                )
                _add_event(session, run, epoch, "state", {"state": RunState.CANCELLED.value, "by": by})
                put_failure(session, run)
                return RunState.CANCELLED
            if state is RunState.RUNNING and _changed(
                session,
                update(Run).where(Run.id == run, Run.cancel_requested_by.is_(None)).values(cancel_requested_by=by),
            ):
                _add_event(session, run, epoch, "note", {"cancel_requested_by": by})
            return state

    def reap(self, *, session: Session | None = None) -> list[str]:
        """Take running runs whose lease ran out from their hosts and return those that are in the queue again.

        The next claim has a new epoch, so the old host's writes change nothing. A run whose cancellation was asked for
        is cancelled; one that lost its lease too often (``most_claims``) fails. Reapers may run at the same time.
        """
        with self._in(session) as inner:
            lost = inner.execute(
                select(Run.id, Run.epoch, Run.claimed_by, Run.cancel_requested_by)
                .where(Run.state == RunState.RUNNING.value, Run.lease_until < _NOW)
                .order_by(Run.id)
                .with_for_update(skip_locked=True)
            ).all()
            return [run.id for run in lost if self._take(inner, run.id, run.epoch, run.claimed_by, run[3])]

    def get(self, run: str) -> RunInfo | None:
        """Return a run, ``None`` for an unknown one."""
        with self._database.session() as session:
            row = session.get(Run, run)
            return None if row is None else _info(row)

    def list(
        self,
        *,
        service: str | None = None,
        services: Sequence[str] | None = None,
        kind: RunKind | None = None,
        state: RunState | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Sequence[RunInfo]:
        """Return runs, newest request first; ``before`` is the id of the last one of the page before.

        ``services`` limits them to what somebody may see (``None``: everything).
        """
        query = select(Run).order_by(Run.id.desc()).limit(limit)
        if services is not None:
            query = query.where(Run.service.in_(services))
        if service is not None:
            query = query.where(Run.service == service)
        if kind is not None:
            query = query.where(Run.kind == kind.value)
        if state is not None:
            query = query.where(Run.state == state.value)
        if before is not None:
            query = query.where(Run.id < before)
        with self._database.session() as session:
            return [_info(row) for row in session.scalars(query)]

    def events(self, run: str, after: int = 0, *, limit: int = 1000) -> Sequence[EventInfo]:
        """Return the events of a run that follow number ``after``, in order."""
        query = (
            select(RunEvent).where(RunEvent.run == run, RunEvent.number > after).order_by(RunEvent.number).limit(limit)
        )
        with self._database.session() as session:
            return [
                EventInfo(run=row.run, number=row.number, at=row.at, epoch=row.epoch, kind=row.kind, data=row.data)
                for row in session.scalars(query)
            ]

    def _insert(
        self, request: RunRequest, state: RunState, about: Mapping[str, Any], session: Session | None
    ) -> str | None:
        slot = request.scheduled_for
        if slot is not None and slot.tzinfo is None:
            raise ValueError("a slot has a time zone")
        with self._in(session) as inner:
            now = inner.execute(select(_NOW)).scalar_one()
            over = state.is_over
            identifier = inner.execute(
                insert_unless_there(Run)
                .values(
                    id=make_ulid(now, secrets.token_bytes(10)),
                    service=request.service,
                    kind=request.kind.value,
                    plan=request.plan,
                    scheduled_for=slot,
                    state=state.value,
                    host=request.host,
                    requested_by=request.requested_by,
                    requested_at=now,
                    parameters=request.parameters,
                    ended_at=now if over else None,
                    result=dict(about) if over else None,
                )
                .on_conflict_do_nothing(index_elements=["service", "kind", "plan", "scheduled_for"])
                .returning(Run.id)
            ).scalar_one_or_none()
            if identifier is not None:
                _add_event(inner, identifier, 0, "state", {"state": state.value, **about})
            return identifier

    def _take(self, session: Session, run: str, epoch: int, host: str | None, cancelled_by: str | None) -> bool:
        data: Document = {"reason": "lease lost", "host": host}
        change: dict[str, Any] = {"claimed_by": None, "lease_until": None}
        state = RunState.QUEUED
        if cancelled_by is not None:
            state = RunState.CANCELLED
            data["by"] = cancelled_by
        elif epoch >= self._most_claims:
            state = RunState.FAILED
            change["error"] = data["error"] = error_document(
                LeaseLostError(f"{host} did not renew its lease; this was claim {epoch} of the run, and the last")
            )
        if state.is_over:
            change["ended_at"] = _NOW
        session.execute(_move(RunState.RUNNING, state).where(Run.id == run).values(**change))
        _add_event(session, run, epoch, "state", {"state": state.value, **data})
        if state in UNFINISHED:
            put_failure(session, run)
        return state is RunState.QUEUED

    @contextmanager
    def _in(self, session: Session | None) -> Iterator[Session]:
        if session is not None:
            yield session
            return
        with self._database.session() as own:
            yield own


def error_document(error: DrError) -> Document:
    """Return what a run keeps of an error."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_status": int(error.exit_status),
    }


def _move(before: RunState, after: RunState) -> Update:
    """Return the update along one arrow of ``MOVES``, of runs that are where it begins."""
    if after not in MOVES[before]:
        raise ValueError(f"a run does not go from {before.value} to {after.value}")
    return update(Run).where(Run.state == before.value).values(state=after.value)


def _held(claim: Claim) -> Update:
    return update(Run).where(Run.id == claim.run, Run.epoch == claim.epoch, Run.state == RunState.RUNNING.value)


def _changed(session: Session, statement: Update) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1


def _lock(session: Session, claim: Claim) -> bool:
    return (
        session.execute(
            select(Run.id)
            .where(Run.id == claim.run, Run.epoch == claim.epoch, Run.state == RunState.RUNNING.value)
            .with_for_update()
        ).scalar_one_or_none()
        is not None
    )


def _add_event(session: Session, run: str, epoch: int, kind: str, data: Document) -> None:
    """Add the next event of a run whose row this transaction has changed or locked.

    The lock came with an earlier statement: within one statement the highest number would be read as of its beginning,
    before the wait for the lock, and two events would want the same number.
    """
    number = session.execute(
        select(func.coalesce(func.max(RunEvent.number), 0) + 1).where(RunEvent.run == run)
    ).scalar_one()
    session.execute(insert(RunEvent).values(run=run, number=number, epoch=epoch, kind=kind, data=data))
    _announce(session, run)


def _announce(session: Session, run: str) -> None:
    session.execute(select(func.pg_notify(CHANNEL, run)))


def _info(row: Run) -> RunInfo:
    return RunInfo(
        id=row.id,
        service=row.service,
        kind=RunKind(row.kind),
        plan=row.plan,
        scheduled_for=row.scheduled_for,
        state=RunState(row.state),
        host=row.host,
        requested_by=row.requested_by,
        requested_at=row.requested_at,
        parameters=row.parameters,
        epoch=row.epoch,
        claimed_by=row.claimed_by,
        lease_until=row.lease_until,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cancel_requested_by=row.cancel_requested_by,
        progress=row.progress,
        result=row.result,
        error=row.error,
        caught_up_by=row.caught_up_by,
    )
