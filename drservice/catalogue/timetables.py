"""How far each schedule has been carried out: up to which instant its slots are runs, or noted as missed.

This is what tells a slot that nobody was there for from one of a schedule that was written yesterday. It moves forward
only, in the transaction that inserts the slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, Select, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.tables import Run, Timetable
from drservice.model.runs import RunKind, RunState

_NOW = func.drservice_now(type_=DateTime(timezone=True))
_ROWS = select(Timetable.service, Timetable.kind, Timetable.plan, Timetable.settled_until)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ScheduleKey:
    """Which schedule: of a service for a kind of run, and of a drill plan."""

    service: str
    kind: str
    plan: str = ""

    @property
    def run_kind(self) -> RunKind:
        """The kind of its runs."""
        return RunKind(self.kind)


def catalogue_now(session: Session) -> datetime:
    """Return the present instant by the catalogue's clock."""
    return session.execute(select(_NOW)).scalar_one()


def settled(session: Session, keys: Iterable[ScheduleKey]) -> Mapping[ScheduleKey, datetime]:
    """Return up to when schedules have been carried out; one that is new has no entry."""
    return _by_key(session, _ROWS, keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What became of the wish to hold a schedule."""

    until: datetime | None
    """Up to when it has been carried out; ``None`` for a new one."""
    is_ours: bool
    """Whether nobody else carries it out until the transaction ends; if not, somebody else is at it."""


def hold(session: Session, key: ScheduleKey) -> Hold:
    """Keep others from a schedule until the transaction ends, unless somebody else does: nobody waits here.

    A process that is stopped in the middle loses its transaction after half a minute, so that the others go on.
    """
    _let_go_in_time(session)
    row = select(Timetable.settled_until).where(
        Timetable.service == key.service, Timetable.kind == key.kind, Timetable.plan == key.plan
    )
    until = session.execute(row.with_for_update(skip_locked=True)).scalar_one_or_none()
    if until is None:
        until = session.execute(row).scalar_one_or_none()
        return Hold(until=until, is_ours=until is None)
    return Hold(until=until, is_ours=True)


def hold_all(session: Session, keys: Iterable[ScheduleKey]) -> Mapping[ScheduleKey, datetime]:
    """Keep others from schedules until the transaction ends; return those that nobody else holds, as :func:`settled`.

    A process that is stopped in the middle loses its transaction after half a minute, so that the others go on.
    """
    wanted = [(key.service, key.kind, key.plan) for key in sorted(keys)]
    if not wanted:
        return {}
    _let_go_in_time(session)
    rows = _ROWS.where(tuple_(Timetable.service, Timetable.kind, Timetable.plan).in_(wanted))
    return _by_key(session, rows.with_for_update(skip_locked=True), keys)


def _by_key(
    session: Session, rows: Select[str, str, str, datetime], keys: Iterable[ScheduleKey]
) -> dict[ScheduleKey, datetime]:
    wanted = set(keys)
    if not wanted:
        return {}
    found = (
        (ScheduleKey(service=name, kind=kind, plan=plan), until) for name, kind, plan, until in session.execute(rows)
    )
    return {key: until for key, until in found if key in wanted}


def _let_go_in_time(session: Session) -> None:
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '30s'"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastDone:
    """The newest run of a schedule that brought a result."""

    at: datetime
    took: timedelta


def last_done(session: Session, key: ScheduleKey) -> LastDone | None:
    """Return the newest run of a schedule that brought a result, whoever asked for it."""
    row = session.execute(
        select(Run.ended_at, Run.started_at)
        .where(
            Run.service == key.service,
            Run.kind == key.kind,
            Run.plan == key.plan,
            Run.state.in_([RunState.SUCCEEDED.value, RunState.PARTIAL.value]),
            Run.ended_at.is_not(None),
        )
        .order_by(Run.ended_at.desc())
        .limit(1)
    ).one_or_none()
    if row is None or row.ended_at is None:
        return None
    return LastDone(at=row.ended_at, took=row.ended_at - (row.started_at or row.ended_at))


def is_under_way(session: Session, key: ScheduleKey) -> bool:
    """Tell whether a run of a schedule waits or works."""
    return (
        session.execute(
            select(Run.id)
            .where(
                Run.service == key.service,
                Run.kind == key.kind,
                Run.plan == key.plan,
                Run.state.in_([RunState.QUEUED.value, RunState.RUNNING.value]),
            )
            .limit(1)
        ).scalar_one_or_none()
        is not None
    )


def settle(session: Session, until: Mapping[ScheduleKey, datetime]) -> None:
    """Note up to when schedules have been carried out; an earlier instant than the noted one changes nothing."""
    if not until:
        return
    # In one order everywhere: two schedulers that wait for each other's rows would be a deadlock.
    rows = [
        {"service": key.service, "kind": key.kind, "plan": key.plan, "settled_until": instant}
        for key, instant in sorted(until.items())
    ]
    statement = insert(Timetable).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Timetable.service, Timetable.kind, Timetable.plan],
            set_={"settled_until": statement.excluded.settled_until},
            where=Timetable.settled_until < statement.excluded.settled_until,
        )
    )
