"""Evidence: what is not as promised first, drills that are due, done or missed, and the bundle that proves it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from fastapi.responses import HTMLResponse
from pydantic import AwareDatetime, BeforeValidator

from drservice.catalogue.evidencereading import EvidenceReading, ExceptionLine
from drservice.clock import to_iso
from drservice.web.api.evidence import require_whole
from drservice.web.auth.identity import Principal
from drservice.web.bundles import verify_now
from drservice.web.duties import Duty, drill_schedules, duties, is_overdue, scope_of
from drservice.web.pages.rendering import page
from drservice.web.routes import Route
from drservice.web.site import Here, Site, Who

_SHOWN = 50
_OWED_SHOWN = 50
_DAY = timedelta(days=1)


def _instant(value: object, *, after: timedelta) -> object:
    """Return what a form with days asks for: midnight (UTC), or ``after`` it; a field that was left empty, nothing."""
    if not isinstance(value, str) or len(value) != len("2026-11-26"):
        return value or None
    try:
        return datetime.combine(date.fromisoformat(value), time(), UTC) + after
    except (ValueError, OverflowError):
        return value  # refused as what it is


_Begin = Annotated[AwareDatetime | None, BeforeValidator(lambda value: _instant(value, after=timedelta(0)))]
_End = Annotated[AwareDatetime | None, BeforeValidator(lambda value: _instant(value, after=_DAY))]
"""A day is in the period to its end."""


def show(
    request: Request,
    site: Here,
    principal: Who,
    begin: Annotated[_Begin, Query(alias="from")] = None,
    end: Annotated[_End, Query(alias="to")] = None,
    duty: Duty | None = None,
    after: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> HTMLResponse:
    """Show the evidence."""
    context = _context(site, principal, begin=begin, end=end, duty=duty, after=after, before=before)
    return page(request, "evidence.html", {**context, "verdict": None})


def verify(request: Request, site: Here, principal: Who) -> HTMLResponse:
    """Make a bundle, let the verifier judge it, and show what it says. Changes nothing, so it may be repeated."""
    require_whole(principal)
    verdict = verify_now(site.estate)
    return page(request, "evidence.html", {**_context(site, principal), "verdict": verdict})


def _context(
    site: Site,
    principal: Principal,
    *,
    begin: datetime | None = None,
    end: datetime | None = None,
    duty: Duty | None = None,
    after: int = 0,
    before: int | None = None,
) -> dict[str, Any]:
    names = [service.name for service in site.services_of(principal)]
    reading = EvidenceReading(site.database)
    scope = scope_of(principal, reading.now(), begin, end)
    found = reading.page(
        scope, names=names, schedules=drill_schedules(site.agenda, names), before=before, limit=_SHOWN + 1
    )
    judged = duties(site, found.drills, found.obligations, found.now)
    chosen = [item for item in judged if duty is None or item.duty is duty]
    overdue = [item for item in found.obligations if is_overdue(item, found.now)]
    records = found.records[:_SHOWN]
    asked = {"from": begin, "to": end}
    return {
        "now": found.now,
        "scope": scope,
        "last_day": (scope.end - timedelta(microseconds=1)).date(),
        "period": urlencode({name: to_iso(instant) for name, instant in asked.items() if instant is not None}),
        "exceptions": [(item, words_of(item)) for item in found.exceptions[:_SHOWN]],
        "more_exceptions": len(found.exceptions) > _SHOWN,
        "overdue": overdue[:_OWED_SHOWN],
        "more_overdue": max(0, len(overdue) - _OWED_SHOWN),
        "backlog": found.backlog,
        "duty": duty,
        "counts": [(word, sum(item.duty is word for item in judged)) for word in Duty],
        "duties": chosen[after : after + _SHOWN],
        "next_duties": after + _SHOWN if len(chosen) > after + _SHOWN else None,
        "records": records,
        "next": records[-1].entry if len(found.records) > _SHOWN else None,
        "whole": not principal.services,
    }


def words_of(line: ExceptionLine) -> str:
    """Return what an exception says, in a few words."""
    what = " ".join(word for word in (line.run_kind, line.plan) if word)
    if line.kind == "missed":
        count = "a slot" if line.slots == 1 else f"{line.slots} slots"
        instead = f"run {line.caught_up_by} makes up for it" if line.caught_up_by else "nothing makes up for it"
        return f"{what}: {count} missed; {instead}"
    if line.kind == "failure":
        return f"{what}: {line.detail or 'no reason was told'}"
    if line.mutation is not None:
        return f"{line.mutation}: damage that was built in was not noticed"
    return line.detail or ""


EVIDENCE_PAGES = (
    Route(name="page.evidence", method="GET", path="/evidence", endpoint=show, kind=HTMLResponse),
    Route(name="page.evidence.verify", method="POST", path="/evidence/verify", endpoint=verify, kind=HTMLResponse),
)
