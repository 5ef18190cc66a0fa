"""How far each schedule has been carried out: up to which instant its slots are runs, or noted as missed.

This is what tells a slot that nobody was there for from one of a schedule that was written yesterday. It moves forward
only, in the transaction that inserts the slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from drservice.catalogue.tables import Timetable
from drservice.model.runs import RunKind

_NOW = func.drservice_now(type_=DateTime(timezone=True))


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
    wanted = list(keys)
    if not wanted:
        return {}
    rows = session.scalars(
        select(Timetable).where(
            tuple_(Timetable.service, Timetable.kind, Timetable.plan).in_(
                [(key.service, key.kind, key.plan) for key in wanted]
            )
        )
    )
    return {ScheduleKey(service=row.service, kind=row.kind, plan=row.plan): row.settled_until for row in rows}


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
