"""What a schedule will do: its next slots, and how the calendar treats heavy work at each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drservice.model.due import Start, decide_start
from drservice.model.timetable import Planned

SHOWN_SLOTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPreview:
    """A slot to come."""

    at: datetime
    """UTC."""
    local: datetime
    """The same instant in the zone of the schedule."""
    start: Start
    """What is decided then if everything before it has worked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePreview:
    """A schedule and its next slots."""

    cron: str
    calendar: str
    """Empty = none: UTC without windows."""
    timezone: str
    slots: tuple[SlotPreview, ...]


def preview(planned: Planned, *, now: datetime, count: int = SHOWN_SLOTS) -> SchedulePreview:
    """Return the next slots of a schedule, on the assumption that each run before has succeeded."""
    slots = planned.next_slots(after=now, count=count)
    zone = planned.calendar.zone
    return SchedulePreview(
        cron=planned.cron.text,
        calendar=planned.calendar.name,
        timezone=zone.key,
        slots=tuple(
            SlotPreview(
                at=slot,
                local=slot.astimezone(zone),
                start=decide_start(planned, now=slot, slot=slot, last_done=before),
            )
            for before, slot in zip((now, *slots), slots, strict=False)
        ),
    )
