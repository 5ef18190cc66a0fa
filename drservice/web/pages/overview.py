"""Overview: every service against its promises, those first that are closest to breaking one.

Every service is judged for every page of it: what is worst comes first and totals are of all, whatever is shown.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator

from drservice.model.agenda import next_of
from drservice.web.auth.identity import Principal
from drservice.web.pages.rendering import page
from drservice.web.routes import Route
from drservice.web.schemas import ConditionName
from drservice.web.site import Here, Site, Who
from drservice.web.standing import Condition, standing_of

SHOWN = 50
"""On one page."""
_HOST_SILENT_SECONDS = 120
_EMPTY = BeforeValidator(lambda value: value or None)
"""A field that was left empty asks for everything."""


class Wanted:
    """What of it is to be shown."""

    def __init__(
        self,
        condition: Annotated[ConditionName | None, _EMPTY, Query()] = None,
        name: Annotated[str, Query(max_length=63)] = "",
        page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    ) -> None:
        self.condition = Condition(condition) if condition else None
        self.name = name.strip().lower()
        self.page = page

    def query(self, *, page: int) -> str:
        """Return what asks for a page of the same."""
        fields = {"condition": self.condition.value if self.condition else "", "name": self.name}
        return urlencode({**{name: value for name, value in fields.items() if value}, "page": page})


Asked = Annotated[Wanted, Depends()]


def overview(request: Request, site: Here, principal: Who, wanted: Asked) -> HTMLResponse:
    """Show all services."""
    return page(request, "overview.html", _context(site, principal, wanted))


def overview_table(request: Request, site: Here, principal: Who, wanted: Asked) -> HTMLResponse:
    """Show the part that renews itself."""
    return page(request, "overview-table.html", _context(site, principal, wanted))


def _context(site: Site, principal: Principal, wanted: Wanted) -> dict[str, Any]:
    services, agenda = site.services_of(principal), site.agenda
    now, facts = site.reading.services([service.name for service in services], agenda)
    standings = sorted(
        (standing_of(service, facts[service.name], now, agenda) for service in services), key=lambda item: item.order
    )
    counts = Counter(item.condition for item in standings)
    chosen = [
        item
        for item in standings
        if (wanted.condition is None or item.condition is wanted.condition) and wanted.name in item.service.name
    ]
    pages = max(1, -(-len(chosen) // SHOWN))
    current = min(wanted.page, pages)
    shown = chosen[(current - 1) * SHOWN : current * SHOWN]
    return {
        "now": now,
        "total": len(standings),
        "matching": len(chosen),
        "standings": shown,
        "counts": [(condition, counts[condition]) for condition in Condition if counts[condition]],
        "conditions": [condition.value for condition in Condition],
        "wanted": wanted,
        "page": current,
        "pages": pages,
        "upcoming": next_of(agenda, [item.service.name for item in shown], now),
        "silent": [
            host for host in site.reading.hosts() if (now - host.seen_at).total_seconds() > _HOST_SILENT_SECONDS
        ],
    }


OVERVIEW_PAGES = (
    Route(name="page.overview", method="GET", path="/overview", endpoint=overview, kind=HTMLResponse),
    Route(name="page.overview.table", method="GET", path="/overview/table", endpoint=overview_table, kind=HTMLResponse),
)
