"""Overview: every service against its promises, those first that are closest to breaking one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from drservice.web.api.schedules import next_slots
from drservice.web.auth.identity import Principal
from drservice.web.pages.rendering import page
from drservice.web.routes import Route
from drservice.web.schemas import SlotDocument
from drservice.web.site import Here, Site, Who
from drservice.web.standing import Condition, standing_of

SHOWN = 100
"""A page of more is no overview; the API has all, and what is worst is never cut off."""
_HOST_SILENT_SECONDS = 120


def overview(request: Request, site: Here, principal: Who) -> HTMLResponse:
    """Show all services."""
    return page(request, "overview.html", _context(site, principal))


def overview_table(request: Request, site: Here, principal: Who) -> HTMLResponse:
    """Show the part that renews itself."""
    return page(request, "overview-table.html", _context(site, principal))


def _context(site: Site, principal: Principal) -> dict[str, Any]:
    services = site.services_of(principal)
    now, facts = site.reading.services([service.name for service in services])
    standings = sorted(
        (standing_of(service, facts[service.name], now) for service in services), key=lambda item: item.order
    )
    counts = Counter(item.condition for item in standings)
    shown = standings[:SHOWN]
    upcoming: dict[str, SlotDocument] = {}
    for slot in next_slots(site.estate, {item.service.name for item in shown}, now, 1):
        if slot.service not in upcoming or slot.at < upcoming[slot.service].at:
            upcoming[slot.service] = slot
    return {
        "now": now,
        "standings": shown,
        "hidden": len(standings) - len(shown),
        "counts": [(condition, counts[condition]) for condition in Condition if counts[condition]],
        "upcoming": upcoming,
        "silent": [
            host for host in site.reading.hosts() if (now - host.seen_at).total_seconds() > _HOST_SILENT_SECONDS
        ],
    }


OVERVIEW_PAGES = (
    Route(name="page.overview", method="GET", path="/overview", endpoint=overview, kind=HTMLResponse),
    Route(name="page.overview.table", method="GET", path="/overview/table", endpoint=overview_table, kind=HTMLResponse),
)
