"""Schedules: the next slots of every service in scope, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Query

from drservice.model.estate import Estate
from drservice.model.timetable import timetable
from drservice.web.routes import Route
from drservice.web.schemas import Name, ScheduleDocument, SlotDocument
from drservice.web.site import Here, Who


def list_slots(
    site: Here,
    principal: Who,
    service: Name | None = None,
    count: Annotated[int, Query(ge=1, le=30, description="how many of each schedule")] = 3,
) -> ScheduleDocument:
    """List the next slots by the catalogue's time."""
    chosen = {item.name for item in site.services_of(principal) if service is None or item.name == service}
    slots = next_slots(site.estate, chosen, site.reading.now(), count)
    return ScheduleDocument(items=sorted(slots, key=lambda slot: (slot.at, slot.service, slot.kind, slot.plan)))


def next_slots(estate: Estate, services: Collection[str], now: datetime, count: int) -> Iterator[SlotDocument]:
    """Yield the next slots of each schedule of these services."""
    for planned in timetable(estate):
        if planned.service.name not in services:
            continue
        for at in planned.next_slots(after=now, count=count):
            avoidance = planned.calendar.avoidance(at)
            yield SlotDocument(
                service=planned.service.name,
                kind=planned.kind.value,
                plan=planned.plan,
                at=at,
                avoided=avoidance.window if avoidance is not None else None,
            )


SCHEDULES = (
    Route(name="api.schedules.list", method="GET", path="/api/v1/schedules", endpoint=list_slots, in_schema=True),
)
