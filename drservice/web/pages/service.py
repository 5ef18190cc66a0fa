"""Service: what can be reached, what would be lost, and an isolated restore to any reachable instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from drservice.catalogue.facts import ServiceFacts
from drservice.catalogue.reading import PointInfo, WindowInfo
from drservice.catalogue.requests import Answered, Transaction
from drservice.catalogue.runs import RunRequest
from drservice.clock import from_iso
from drservice.errors import InvalidRequestError
from drservice.model.agenda import Agenda
from drservice.model.estate import Service
from drservice.web.api.environments import destroy
from drservice.web.api.idempotency import once
from drservice.web.api.schedules import next_slots
from drservice.web.api.starting import backup_run, drill_run, enqueue, restore_run
from drservice.web.auth.identity import Principal
from drservice.web.band import Band, band_of
from drservice.web.pages.rendering import page
from drservice.web.pages.signing import Form
from drservice.web.routes import Route
from drservice.web.schemas import BackupRequest, DrillRequest, RestoreRequest, Ulid
from drservice.web.site import Here, Site, TheService, Who
from drservice.web.standing import standing_of

_POINTS, _RUNS, _SLOTS = 20, 10, 2
To = Annotated[str, Query(max_length=40)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a restore to an instant would be. ``instant`` is ``None`` for the latest position."""

    instant: datetime | None
    effective: datetime | None
    """What is reached; ``None`` if nothing is."""
    point: PointInfo | None
    """What it begins from."""
    lost: timedelta | None
    """Work of so long a time is not in it, at most."""
    documents: datetime | None
    """Documents that were filed later are not proved to be stored, though their rows are reached; ``None``: all are."""
    eta: timedelta | None
    """As long as the last one took."""
    before: datetime | None
    """The nearest reachable instant before one that is not."""
    after: datetime | None


def show(request: Request, service: TheService, site: Here, to: To = "latest") -> HTMLResponse:
    """Show a service, with the preview of a restore to an instant."""
    instant = _instant(to)
    agenda = site.agenda
    now, facts = site.reading.services([service.name], agenda)
    known = facts[service.name]
    points = site.reading.points(service.name, limit=_POINTS)
    band = _band(service, site.reading.windows(service.name), points, now)
    context: dict[str, Any] = {
        "now": now,
        "service": service,
        "standing": standing_of(service, known, now, agenda),
        "facts": known,
        "snapshots": {item.component: item for item in site.reading.snapshots(service.name)},
        "points": points,
        "band": band,
        "runs": site.runs.list(service=service.name, limit=_RUNS),
        "slots": next_slots(agenda, [service.name], now, _SLOTS),
        "plans": [plan.name for plan in site.estate.drills.values() if plan.service == service.name],
        "environments": site.environments.of(service.name),
        "preview": preview_of(service, known, points, band, instant, now, agenda),
        "to": to or "latest",
    }
    return page(request, "service.html", context)


def preview(request: Request, service: TheService, site: Here, to: To = "latest") -> HTMLResponse:
    """Show what a restore to an instant would be, before anything is started."""
    instant = _instant(to)
    agenda = site.agenda
    now, facts = site.reading.services([service.name], agenda)
    known = facts[service.name]
    points = site.reading.points(service.name, limit=_POINTS)
    band = _band(service, site.reading.windows(service.name), points, now)
    return page(
        request,
        "preview.html",
        {
            "now": now,
            "service": service,
            "preview": preview_of(service, known, points, band, instant, now, agenda),
            "to": to or "latest",
        },
    )


def start_backup(request: Request, service: TheService, site: Here, principal: Who, form: Form) -> Response:
    """Start a backup and lead to its run."""
    return _start(request, site, principal, form, BackupRequest(), lambda: backup_run(service, principal))


def start_drill(request: Request, service: TheService, site: Here, principal: Who, form: Form) -> Response:
    """Start a drill and lead to its run."""
    plan = form.get("plan") or None
    known = {item.name for item in site.estate.drills.values() if item.service == service.name}
    if plan is not None and plan not in known:
        raise InvalidRequestError(f"{service.name} has no such drill plan")
    return _start(
        request, site, principal, form, DrillRequest(plan=plan), lambda: drill_run(site, service, principal, plan)
    )


def start_restore(request: Request, service: TheService, site: Here, principal: Who, form: Form) -> Response:
    """Start an isolated restore and lead to its run."""
    instant = _instant(form.get("to", "latest"))
    body = RestoreRequest(to=instant if instant is not None else "latest")
    return _start(request, site, principal, form, body, lambda: restore_run(service, principal, instant))


def destroy_environment(
    request: Request, environment: Ulid, service: TheService, site: Here, principal: Who, form: Form
) -> Response:
    """End an environment, once its name was typed, and lead to the run that does."""
    if form.get("confirm", "").strip() != service.name:
        raise InvalidRequestError(
            f"to end an environment of {service.name}, its name has to be typed", hint="Go back and type the name."
        )

    def work(transaction: Transaction) -> Answered:
        run = destroy(site, service, environment, principal, transaction)
        return Answered(status=HTTPStatus.SEE_OTHER, body="", headers={"Location": f"/runs/{run}"})

    answer, _ = once(request, site, principal, form.get("key"), None, work)
    return Response(status_code=answer.status, headers=dict(answer.headers))


def preview_of(
    service: Service,
    facts: ServiceFacts,
    points: list[PointInfo],
    band: Band | None,
    instant: datetime | None,
    now: datetime,
    agenda: Agenda,
) -> Preview:
    """Work out what a restore to an instant would be (``None`` = the latest position)."""
    standing = standing_of(service, facts, now, agenda)
    effective = standing.reachable_until if instant is None else instant
    if instant is not None and band is not None and not band.holds(instant):
        effective = None
    if instant is not None and band is None:
        effective = next((point.created_at for point in points if point.created_at <= instant), None)
    stretches = band.stretches if band is not None and instant is not None and effective is None else ()
    return Preview(
        instant=instant,
        effective=effective,
        point=next((point for point in points if effective and point.created_at <= effective), None),
        lost=max(now - effective, timedelta(0)) if effective is not None else None,
        documents=_unproved_from(service, facts, effective),
        eta=standing.measured_rto,
        before=max((item.end for item in stretches if instant and item.end < instant), default=None),
        after=min((item.begin for item in stretches if instant and item.begin > instant), default=None),
    )


def _unproved_from(service: Service, facts: ServiceFacts, effective: datetime | None) -> datetime | None:
    known = [facts.captured[item.name] for item in service.filestores() if item.name in facts.captured]
    earliest = min(known, default=None)
    return earliest if earliest is not None and effective is not None and earliest < effective else None


def _band(service: Service, windows: list[WindowInfo], points: list[PointInfo], now: datetime) -> Band | None:
    return band_of([item.name for item in service.databases()], windows, points, now)


def _instant(text: str) -> datetime | None:
    if text in {"", "latest"}:
        return None
    try:
        return from_iso(text)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(
            "that is no instant", hint="Write it as 2026-11-26T02:09:57Z, with Z or an offset."
        ) from error


def _start(
    request: Request,
    site: Site,
    principal: Principal,
    form: dict[str, str],
    body: BaseModel,
    wanted: Callable[[], RunRequest],
) -> Response:
    """Enqueue once, however often the form is sent, and lead to the run."""

    def work(transaction: Transaction) -> Answered:
        run = enqueue(site, wanted(), transaction)
        return Answered(status=HTTPStatus.SEE_OTHER, body="", headers={"Location": f"/runs/{run}"})

    answer, _ = once(request, site, principal, form.get("key"), body, work)
    return Response(status_code=answer.status, headers=dict(answer.headers))


_PATH = "/services/{service}"
SERVICE_PAGES = (
    Route(name="page.service", method="GET", path=_PATH, endpoint=show, kind=HTMLResponse),
    Route(name="page.service.preview", method="GET", path=f"{_PATH}/preview", endpoint=preview, kind=HTMLResponse),
    Route(name="page.service.backup", method="POST", path=f"{_PATH}/backup", endpoint=start_backup, kind=HTMLResponse),
    Route(name="page.service.drill", method="POST", path=f"{_PATH}/drill", endpoint=start_drill, kind=HTMLResponse),
    Route(
        name="page.service.restore", method="POST", path=f"{_PATH}/restore", endpoint=start_restore, kind=HTMLResponse
    ),
    Route(
        name="page.environment.destroy",
        method="POST",
        path=f"{_PATH}/environments/{{environment}}/destroy",
        endpoint=destroy_environment,
        kind=HTMLResponse,
    ),
)
