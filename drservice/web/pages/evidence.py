"""Evidence: what did not go well first, drills that are due, done or missed, and the bundle that proves it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from drservice.catalogue.reading import RecordInfo
from drservice.model.runs import RunKind
from drservice.web.api.evidence import require_whole
from drservice.web.auth.identity import Principal
from drservice.web.bundles import verify_now
from drservice.web.pages.rendering import page
from drservice.web.routes import Route
from drservice.web.site import Here, Site, Who

_SHOWN = 50
_DRILLS_SHOWN = 100
"""Never drilled come first, so what is cut off is what is best."""
_GOOD = frozenset({"passed", "complete", "restored", None})


def show(
    request: Request, site: Here, principal: Who, before: Annotated[int | None, Query(ge=0, le=2**62)] = None
) -> HTMLResponse:
    """Show the evidence."""
    return page(request, "evidence.html", {**_context(site, principal, before), "verdict": None})


def verify(request: Request, site: Here, principal: Who) -> HTMLResponse:
    """Make a bundle, let the verifier judge it, and show what it says. Changes nothing, so it may be repeated."""
    require_whole(principal)
    verdict = verify_now(site.estate)
    return page(request, "evidence.html", {**_context(site, principal, None), "verdict": verdict})


def is_exception(record: RecordInfo) -> bool:
    """Tell whether a record says that something did not go well; a drill that is meant to fail has to."""
    if record.kind == "drill" and record.predicate.get("mutation") is not None:
        return record.outcome == "passed"
    return record.outcome not in _GOOD


def _context(site: Site, principal: Principal, before: int | None) -> dict[str, Any]:
    services = sorted(principal.services) if principal.services else None
    records = site.reading.records(services=services, before=before, limit=_SHOWN + 1)
    now = site.reading.now()
    shown = records[:_SHOWN]
    obligations = _obligations(site, principal, now)
    return {
        "now": now,
        "exceptions": [record for record in shown if is_exception(record)],
        "records": shown,
        "next": shown[-1].entry if len(records) > _SHOWN else None,
        "obligations": obligations[:_DRILLS_SHOWN],
        "more_obligations": max(0, len(obligations) - _DRILLS_SHOWN),
        "whole": not principal.services,
    }


def _obligations(site: Site, principal: Principal, now: datetime) -> list[dict[str, Any]]:
    """Return per service when a drill passed last, what was missed, and when the next is due."""
    services = site.services_of(principal)
    agenda = site.agenda
    _, facts = site.reading.services([service.name for service in services], agenda)
    rows: list[dict[str, Any]] = []
    due_at: dict[str, datetime] = {}
    for service in services:
        drills = [planned for planned in agenda.planned(service.name) if planned.kind is RunKind.DRILL]
        if drills:
            due_at[service.name] = min(agenda.next_slot(planned, now) for planned in drills)
    for service in services:
        known = facts[service.name]
        due = due_at.get(service.name)
        rows.append({"service": service, "last": known.drill, "passed": known.passed_drill, "due": due})
    return sorted(rows, key=lambda row: (row["passed"] is not None, row["due"] is None, row["due"] or now))


EVIDENCE_PAGES = (
    Route(name="page.evidence", method="GET", path="/evidence", endpoint=show, kind=HTMLResponse),
    Route(name="page.evidence.verify", method="POST", path="/evidence/verify", endpoint=verify, kind=HTMLResponse),
)
