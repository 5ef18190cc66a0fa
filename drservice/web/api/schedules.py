"""Schedules: the next slots of every service in scope, in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Query

from drservice.clock import from_iso, to_iso
from drservice.errors import InvalidRequestError
from drservice.model.agenda import Agenda
from drservice.model.timetable import Planned
from drservice.web.api.services import Limit
from drservice.web.routes import Route
from drservice.web.schemas import Name, ScheduleDocument, SlotDocument
from drservice.web.site import Here, Who

_Slot = tuple[datetime, tuple[str, str, str], Planned]


def list_slots(
    site: Here,
    principal: Who,
    service: Name | None = None,
    count: Annotated[int, Query(ge=1, le=30, description="how many of each schedule")] = 3,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
    limit: Limit = 50,
) -> ScheduleDocument:
    """List the next slots by the catalogue's time, soonest first."""
    chosen = [item.name for item in site.services_of(principal) if service is None or item.name == service]
    slots = _slots(site.agenda, chosen, site.reading.now(), count)
    if after is not None:
        last = _cursor(after)
        slots = [slot for slot in slots if slot[:2] > last]
    return ScheduleDocument(
        items=[_document(planned, at) for at, _, planned in slots[:limit]],
        next=_cursor_of(slots[limit - 1]) if len(slots) > limit else None,
    )


def next_slots(agenda: Agenda, services: Iterable[str], now: datetime, count: int) -> Sequence[SlotDocument]:
    """Return the next slots of each schedule of these services, soonest first."""
    return [_document(planned, at) for at, _, planned in _slots(agenda, services, now, count)]


def _slots(agenda: Agenda, services: Iterable[str], now: datetime, count: int) -> list[_Slot]:
    return sorted(
        (
            (at, planned.key, planned)
            for service in services
            for planned in agenda.planned(service)
            for at in agenda.next_slots(planned, now, count)
        ),
        key=lambda slot: slot[:2],
    )


def _document(planned: Planned, at: datetime) -> SlotDocument:
    avoidance = planned.calendar.avoidance(at)
    return SlotDocument(
        service=planned.service.name,
        kind=planned.kind.value,
        plan=planned.plan,
        at=at,
        avoided=avoidance.window if avoidance is not None else None,
    )


def _cursor(text: str) -> tuple[datetime, tuple[str, str, str]]:
    at, *key = text.split("~")
    try:
        service, kind, plan = key
        return from_iso(at), (service, kind, plan)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError("after: not a cursor of this list") from error


def _cursor_of(slot: _Slot) -> str:
    return "~".join((to_iso(slot[0]), *slot[1]))


SCHEDULES = (
    Route(name="api.schedules.list", method="GET", path="/api/v1/schedules", endpoint=list_slots, in_schema=True),
)
