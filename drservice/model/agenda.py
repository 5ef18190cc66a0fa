"""What each schedule of a configuration asks for next, and which results are overdue: one rule for whoever asks.

Pages, metrics, the gate and notices all judge by :func:`due_of`: something is overdue if its newest result is older
than its schedule allows, whatever a scheduler did or did not do. Where results are known from is the caller's; what of
them counts for which schedule is said here.

Cron expressions are slow to follow and change with the configuration only: an :class:`Agenda` remembers per schedule
what it worked out last, so that a page of a thousand services works out little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from drservice.model.due import Due, next_due
from drservice.model.estate import Estate
from drservice.model.runs import RunKind
from drservice.model.timetable import Planned, timetable

PlanName: TypeAlias = tuple[str, str]
"""Names a schedule within a service: the kind of its runs and the drill plan, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What is known of the results of a service: of its runs, and of what is there whoever made it."""

    done: Mapping[PlanName, datetime] = field(default_factory=dict)
    """When the newest run of a schedule that succeeded ended; one that could not read everything did not."""
    since: Mapping[PlanName, datetime] = field(default_factory=dict)
    """Since when a schedule without such a run is waited for."""
    backed_up_at: datetime | None = None
    """The instant of the newest recovery point that is not partial, whoever made it."""
    drilled_at: datetime | None = None
    """When a drill last passed, whoever ran it; mutations do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A result that should be there and is not."""

    planned: Planned
    due: Due
    last_done: datetime | None
    """When the newest result was reached; ``None`` if there is none."""

    @property
    def what(self) -> str:
        """Name what is missing: the kind of run, with its plan."""
        return " ".join(word for word in (self.planned.kind.value, self.planned.plan) if word)


Judge: TypeAlias = Callable[[Planned, datetime | None, datetime], Due]
"""(schedule, newest result, since) -> by when the next one has to be there."""


def judge(planned: Planned, last_done: datetime | None, since: datetime) -> Due:
    """Work out by when the next result has to be there (``model.due``)."""
    return next_due(planned, last_done=last_done, since=since)


def last_done(planned: Planned, results: Results, *, is_only: bool) -> datetime | None:
    """Return when the newest result was reached that counts for a schedule.

    Args:
        planned: the schedule.
        results: of its service.
        is_only: whether it is the only schedule of its kind. Where there are several, a drill that passed does not say
            for which it counts, and only runs do.
    """
    by_run = results.done.get(planned.key[1:])
    by_anybody = None
    if planned.kind is RunKind.BACKUP:
        by_anybody = results.backed_up_at
    elif planned.kind is RunKind.DRILL and is_only:
        by_anybody = results.drilled_at
    if by_run is None or by_anybody is None:
        return by_run or by_anybody
    return max(by_run, by_anybody)


def due_of(planned: Planned, results: Results, *, is_only: bool, by: Judge = judge) -> Due | None:
    """Return by when the next result of a schedule has to be there; ``None`` if nobody has waited for one yet."""
    done = last_done(planned, results, is_only=is_only)
    since = done if done is not None else results.since.get(planned.key[1:])
    return None if since is None else by(planned, done, since)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Schedule:
    planned: Planned
    key: tuple[str, str, str]
    is_only: bool
    """Whether it is the only one of its kind."""


class Agenda:
    """The schedules of one configuration. Make one per configuration and keep it; threads may share it."""

    def __init__(self, estate: Estate) -> None:
        self.estate = estate
        by_service: dict[str, list[Planned]] = defaultdict(list)
        for planned in timetable(estate):
            by_service[planned.service.name].append(planned)
        self._planned = {service: tuple(found) for service, found in by_service.items()}
        self._schedules = {service: _schedules(found) for service, found in by_service.items()}
        self._dues: dict[tuple[str, str, str], tuple[tuple[datetime | None, datetime], Due]] = {}
        self._slots: dict[tuple[str, str, str], tuple[datetime, tuple[datetime, ...]]] = {}

    def planned(self, service: str) -> Sequence[Planned]:
        """Return the schedules of a service."""
        return self._planned.get(service, ())

    def keys(self, services: Iterable[str]) -> Sequence[tuple[str, str, str]]:
        """Return the names of the schedules of these services: service, kind, plan."""
        return [schedule.key for service in services for schedule in self._schedules.get(service, ())]

    def next_slot(self, planned: Planned, now: datetime) -> datetime:
        """Return the first slot of a schedule after an instant."""
        return self.next_slots(planned, now, 1)[0]

    def next_slots(self, planned: Planned, now: datetime, count: int) -> Sequence[datetime]:
        """Return the first slots of a schedule after an instant."""
        since, slots = self._slots.get(planned.key, (now, ()))
        if len(slots) < count or not since <= now < slots[0]:
            slots = planned.next_slots(after=now, count=count)
            self._slots[planned.key] = (now, slots)
        return slots[:count]

    def dues(self, service: str, results: Results) -> Iterator[tuple[Planned, Due]]:
        """Yield by when the next result of each schedule of a service has to be there, if anybody waits for it."""
        for schedule in self._schedules.get(service, ()):
            due = due_of(schedule.planned, results, is_only=schedule.is_only, by=self._judge)
            if due is not None:
                yield schedule.planned, due

    def overdue(self, service: str, results: Results, now: datetime) -> Sequence[Overdue]:
        """Return what of a service is overdue, longest first."""
        found = [
            Overdue(
                planned=schedule.planned,
                due=due,
                last_done=last_done(schedule.planned, results, is_only=schedule.is_only),
            )
            for schedule in self._schedules.get(service, ())
            if (due := due_of(schedule.planned, results, is_only=schedule.is_only, by=self._judge)) is not None
            and due.is_overdue(now)
        ]
        return sorted(found, key=lambda item: (item.due.at, item.planned.key)) if len(found) > 1 else found

    def _judge(self, planned: Planned, done: datetime | None, since: datetime) -> Due:
        known = self._dues.get(planned.key)
        if known is None or known[0] != (done, since):
            known = ((done, since), judge(planned, done, since))
            self._dues[planned.key] = known
        return known[1]


def _schedules(planned: Sequence[Planned]) -> tuple[_Schedule, ...]:
    kinds = [item.kind for item in planned]
    return tuple(_Schedule(planned=item, key=item.key, is_only=kinds.count(item.kind) == 1) for item in planned)


def next_of(agenda: Agenda, services: Collection[str], now: datetime) -> Mapping[str, tuple[Planned, datetime]]:
    """Return the next slot of each of these services, with its schedule; without one a service has no entry."""
    found: dict[str, tuple[Planned, datetime]] = {}
    for service in services:
        slots = [(agenda.next_slot(planned, now), planned.key, planned) for planned in agenda.planned(service)]
        if slots:
            at, _, planned = min(slots, key=lambda item: item[:2])
            found[service] = (planned, at)
    return found
