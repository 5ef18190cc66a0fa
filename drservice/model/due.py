"""When something has to be done, whether it is overdue, and whether heavy work may start now. Pure rules.

Overdue is judged from data (when the last point was backed up or verified), never from what a scheduler did or did
not do: a scheduler that died silently is the very thing that has to be noticed.

Windows of a calendar delay heavy work only as long as nothing breaks: not the next slot of the same schedule, and not
the objective. Otherwise it starts inside the window with less of the machine, and says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from drservice.model.calendar import DuringAvoid
from drservice.model.estate import Service
from drservice.model.runs import RunKind
from drservice.model.timetable import Planned


class StartKind(Enum):
    """How heavy work begins."""

    NOW = "now"
    DELAYED = "delayed"
    THROTTLED = "throttled"
    """At once, with less of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Whether work begins, and why so."""

    kind: StartKind
    at: datetime
    """When it begins: now, or the end of the window."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """By when something has to have ended."""

    slot: datetime | None
    """The slot that asks for it; ``None`` if an objective comes first."""
    at: datetime
    reason: str

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether that time has passed."""
        return now > self.at


def promised_age(service: Service, kind: RunKind) -> timedelta | None:
    """Return how old the newest result of a kind of run may be for the objectives to hold; ``None`` = any age.

    A cluster's WAL is shipped between backups, so its recovery point does not depend on the age of a backup; folders
    alone have nothing but their backups.
    """
    if kind is RunKind.DOCUMENTS:
        return service.objectives.documents_rpo
    if kind is RunKind.BACKUP and not service.databases():
        return service.objectives.rpo
    return None


def decide_start(
    planned: Planned, *, now: datetime, slot: datetime, last_done: datetime | None, expected: timedelta = timedelta(0)
) -> Start:
    """Decide whether heavy work for a slot begins now, later, or now and throttled.

    Args:
        planned: the schedule.
        now: the instant of the question.
        slot: the slot that is to be run (of a run that catches up: the newest one that was missed).
        last_done: when the newest result was reached; ``None`` if there is none, and then nothing waits.
        expected: how long the work takes, as far as anybody knows.
    """
    avoidance = planned.calendar.avoidance(now)
    if avoidance is None:
        return Start(kind=StartKind.NOW, at=now, reason="no window holds it back")
    window = f"{avoidance.window} of calendar {planned.calendar.name}"
    if planned.calendar.during_avoid is DuringAvoid.THROTTLE:
        return Start(kind=StartKind.THROTTLED, at=now, reason=f"{window}: work is throttled then")
    if avoidance.until is None:
        return Start(kind=StartKind.THROTTLED, at=now, reason=f"{window}: there is no time without a window")
    if last_done is None:
        return Start(kind=StartKind.THROTTLED, at=now, reason=f"{window}, but there is no result at all yet")
    limit, why = _limit(planned, slot=slot, last_done=last_done)
    if avoidance.until + expected > limit:
        return Start(kind=StartKind.THROTTLED, at=now, reason=f"{window} lasts too long: {why} at {_shown(limit)}")
    return Start(kind=StartKind.DELAYED, at=avoidance.until, reason=f"{window} until {_shown(avoidance.until)}")


def _limit(planned: Planned, *, slot: datetime, last_done: datetime) -> tuple[datetime, str]:
    """Return by when the work of a slot has to have ended, and what breaks then."""
    limits = [(planned.cron.next_slot(planned.calendar.zone, after=slot), "the next slot comes")]
    promised = promised_age(planned.service, planned.kind)
    if promised is not None:
        limits.append((last_done + promised, "the objective breaks"))
    return min(limits)


def next_due(planned: Planned, *, last_done: datetime | None, since: datetime) -> Due:
    """Return by when the next result of a schedule has to be there.

    Args:
        planned: the schedule.
        last_done: when the newest result was reached (a point stored, a point verified, a drill ended).
        since: when the schedule was first seen; counts while there is no result.
    """
    base = last_done if last_done is not None else since
    slot = planned.cron.next_slot(planned.calendar.zone, after=base)
    following = planned.cron.next_slot(planned.calendar.zone, after=slot)
    start = decide_start(planned, now=slot, slot=slot, last_done=base)
    begins = start.at
    by_schedule = max(begins, min(begins + planned.service.schedule.grace, following))
    promised = promised_age(planned.service, planned.kind)
    if promised is not None and base + promised < by_schedule:
        return Due(slot=None, at=base + promised, reason=f"the objective allows no result older than {promised}")
    delayed = f", begins when {start.reason} is over" if start.kind is StartKind.DELAYED else ""
    return Due(slot=slot, at=by_schedule, reason=f"the slot {_shown(slot)} asks for it{delayed}")


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
