"""What an estate asks for by schedule, and what becomes of slots: due, missed, caught up. Pure rules.

A slot is due when it comes; it is missed if nobody was there for longer than ``tolerance``. What is missed is always
recorded. Whether a run is made for it is the service's policy, and never more than one run for all slots that were
missed together: ten nightly backups after ten days of darkness would say nothing that one does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from drservice.model.calendar import Calendar
from drservice.model.estate import CatchUp, DrillPlan, Estate, Service
from drservice.model.runs import RunKind
from drservice.model.schedule import Cron

TOLERANCE = timedelta(minutes=5)
"""How late a slot may be noticed and still be its own run: a restart is no missed slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One schedule of a service: what runs, when, and by which calendar."""

    service: Service
    kind: RunKind
    plan: str
    """Name of a drill plan, else empty."""
    cron: Cron
    calendar: Calendar
    key: tuple[str, str, str] = field(init=False, repr=False, compare=False)
    """Names it within the estate: service, kind, plan."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.service.name, self.kind.value, self.plan))

    def next_slots(self, *, after: datetime, count: int) -> tuple[datetime, ...]:
        """Return its next slots (UTC)."""
        return self.cron.next_slots(self.calendar.zone, after=after, count=count)


def timetable(estate: Estate) -> tuple[Planned, ...]:
    """Return every schedule of an estate: services in the file's order, each with backup, verify, retention, drills."""
    return tuple(planned for service in estate.services.values() for planned in _of_service(estate, service))


def host_of(service: Service, kind: RunKind) -> str | None:
    """Return the host that a run needs the disks of; ``None`` = any will do."""
    if kind is RunKind.DOCUMENTS:
        return next((item.node for item in service.filestores() if item.node is not None), None)
    if kind is RunKind.BACKUP:
        return next((item.node for item in service.components.values() if item.node is not None), None)
    return None


def drills_without_effect(estate: Estate) -> tuple[Service, ...]:
    """Return the services whose ``schedule.drill`` starts nothing: each of their drills has another schedule."""
    return tuple(
        service
        for service in estate.services.values()
        if service.schedule.drill is not None
        and (plans := _plans_of(estate, service))
        and all(plan.schedule not in {None, service.schedule.drill} for plan in plans)
    )


def _of_service(estate: Estate, service: Service) -> list[Planned]:
    calendar = estate.calendar(service)
    wanted: list[tuple[RunKind, str, Cron | None]] = [
        (RunKind.BACKUP, "", service.schedule.backup),
        (RunKind.VERIFY, "", service.schedule.verify),
        (RunKind.RETENTION, "", service.schedule.retention),
    ]
    plans = _plans_of(estate, service) or [estate.drill(service, None)]
    wanted += [(RunKind.DRILL, plan.name, plan.schedule or service.schedule.drill) for plan in plans]
    return [
        Planned(service=service, kind=kind, plan=plan, cron=cron, calendar=calendar)
        for kind, plan, cron in wanted
        if cron is not None
    ]


def _plans_of(estate: Estate, service: Service) -> list[DrillPlan]:
    return [plan for plan in estate.drills.values() if plan.service == service.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of the slots between two instants."""

    due: tuple[datetime, ...]
    """Each becomes a run."""
    missed: tuple[datetime, ...]
    """Each is recorded as missed; in rising order."""
    catches_up: bool
    """Whether one run is made for all that was missed."""
    reason: str
    """Why there is or is not such a run; empty if nothing was missed."""


def settle_slots(planned: Planned, *, settled: datetime, now: datetime, tolerance: timedelta = TOLERANCE) -> Settlement:
    """Judge the slots after ``settled`` up to and with ``now``.

    Args:
        planned: the schedule.
        settled: up to when its slots were judged before; for a new schedule the instant at which it was first seen,
            so that nothing is missed of a time before anybody asked for it.
        now: by the catalogue's clock. If it lies before ``settled`` (a clock was set back) nothing is judged twice.
        tolerance: a slot noticed at most this late is due.
    """
    slots = tuple(planned.cron.slots_between(planned.calendar.zone, after=settled, until=now)) if now > settled else ()
    due = tuple(slot for slot in slots if now - slot <= tolerance)
    missed = slots[: len(slots) - len(due)]
    if not missed:
        return Settlement(due=due, missed=(), catches_up=False, reason="")
    if due:
        return Settlement(due=due, missed=missed, catches_up=False, reason="the run of the slot that is due covers it")
    if planned.service.catch_up is CatchUp.SKIP:
        return Settlement(due=(), missed=missed, catches_up=False, reason="catch_up is skip: the next slot is the next")
    return Settlement(
        due=(), missed=missed, catches_up=True, reason="catch_up is run-once: one run for every slot that was missed"
    )
