"""Services against their promises, their recovery points, and the instants that can be reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from drservice.catalogue.facts import DocumentStreamFacts, ServiceFacts
from drservice.catalogue.reading import PointInfo, WindowInfo
from drservice.clock import from_iso, to_iso
from drservice.errors import InvalidRequestError
from drservice.model.estate import Service
from drservice.model.ids import is_ulid
from drservice.model.wal import Lsn
from drservice.web.band import band_of
from drservice.web.routes import Route
from drservice.web.schemas import (
    CaptureDocument,
    InstantsDocument,
    Me,
    Name,
    PointDocument,
    PointPage,
    Promise,
    ServiceDocument,
    ServicePage,
    StretchDocument,
    WindowDocument,
)
from drservice.web.site import Here, TheService, Who, etag_of
from drservice.web.standing import Standing, standing_of

Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]


def me(principal: Who) -> Me:
    """Say who asks, with which roles and for which services."""
    return Me(
        account=principal.account,
        roles=sorted(role.value for role in principal.roles),
        services=sorted(principal.services),
    )


def list_services(site: Here, principal: Who, after: Name | None = None, limit: Limit = 50) -> ServicePage:
    """List the services in scope, by name."""
    visible = [item for item in site.services_of(principal) if after is None or item.name > after]
    chosen = visible[:limit]
    agenda = site.agenda
    now, facts = site.reading.services([item.name for item in chosen], agenda)
    return ServicePage(
        items=[
            service_document(standing_of(item, facts[item.name], now, agenda), facts[item.name], now) for item in chosen
        ],
        next=chosen[-1].name if len(visible) > limit else None,
    )


def get_service(service: TheService, site: Here, request: Request) -> Response:
    """Return one service; its ETag changes with what is known and judged of it, not with each second that passes."""
    agenda = site.agenda
    now, facts = site.reading.services([service.name], agenda)
    known = facts[service.name]
    standing = standing_of(service, known, now, agenda)
    etag = etag_of(service, known, standing.condition, standing.reasons)
    return conditional(request, etag, service_document(standing, known, now).model_dump(mode="json"))


def list_points(
    service: TheService,
    site: Here,
    before: Annotated[str | None, Query(max_length=80, description="`next` of the page before")] = None,
    limit: Limit = 50,
) -> PointPage:
    """List recovery points, newest first."""
    points = site.reading.points(service.name, before=_cursor(before), limit=limit + 1)
    return PointPage(
        items=[point_document(point) for point in points[:limit]],
        next=_cursor_of(points[limit - 1]) if len(points) > limit else None,
    )


def get_window(service: TheService, site: Here) -> WindowDocument:
    """Return what can be reached: each cluster's stretches of WAL, and the instants that all of them have."""
    return window_document(service, site.reading.windows(service.name), site.reading.now())


def window_document(service: Service, windows: Sequence[WindowInfo], now: datetime) -> WindowDocument:
    """Return a service's window."""
    band = band_of([item.name for item in service.databases()], windows, (), now)
    return WindowDocument(
        service=service.name,
        clusters=[
            StretchDocument(
                component=item.component,
                timeline=item.timeline,
                from_lsn=str(Lsn(item.from_lsn)),
                to_lsn=str(Lsn(item.to_lsn)),
                from_time=item.from_time,
                to_time=item.to_time,
            )
            for item in windows
        ],
        reachable=[
            InstantsDocument(from_time=item.begin, to_time=item.end) for item in (band.stretches if band else ())
        ],
        gaps=[InstantsDocument(from_time=item.begin, to_time=item.end) for item in (band.gaps if band else ())],
    )


def service_document(standing: Standing, facts: ServiceFacts, now: datetime) -> ServiceDocument:
    """Return a standing, and what it is judged from, as the API tells it."""
    service = standing.service
    return ServiceDocument(
        name=service.name,
        tier=service.tier,
        owner=service.owner,
        condition=standing.condition.value,
        reasons=list(standing.reasons),
        backed_up_at=standing.backed_up_at,
        backed_up_state=standing.backed_up_state,
        verified_at=standing.verified_at,
        reachable_until=standing.reachable_until,
        seconds_at_risk=_seconds(standing.at_risk),
        documents_seconds_at_risk=_seconds(standing.documents_at_risk),
        effective_rpo_seconds=_seconds(standing.effective),
        documents_promised_seconds=_seconds(standing.promised_documents_rpo),
        documents=[
            capture_document(item.name, facts.captures[item.name], now)
            for item in service.filestores()
            if item.name in facts.captures
        ],
        rpo=Promise(promised_seconds=_seconds(standing.promised_rpo), measured_seconds=_seconds(standing.measured_rpo)),
        rto=Promise(promised_seconds=_seconds(standing.promised_rto), measured_seconds=_seconds(standing.measured_rto)),
        strain=standing.strain,
        missed=standing.missed,
        running=standing.running,
        components=list(service.components),
    )


def capture_document(component: str, stream: DocumentStreamFacts, now: datetime) -> CaptureDocument:
    """Return how documents are captured as the API tells it."""
    return CaptureDocument(
        component=component,
        state=stream.phase(now),
        durable_until=stream.durable_until,
        seconds_at_risk=stream.seconds(now),
        pending=stream.pending,
        missing_in_production=stream.missing,
        corrupt_in_production=stream.corrupt,
        in_database=stream.in_database,
        not_covered=stream.not_covered,
        problem=stream.problem,
        remedy=stream.remedy,
        told_at=stream.told_at,
    )


def point_document(point: PointInfo) -> PointDocument:
    """Return a recovery point as the API tells it."""
    return PointDocument(
        id=point.id,
        service=point.service,
        created_at=point.created_at,
        state=point.state,
        verified_at=point.verified_at,
        members=point.members,
    )


def conditional(request: Request, etag: str, document: object) -> Response:
    """Answer with a document and its ETag, or with 304 to who has it already."""
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return JSONResponse(document, headers=headers)


def _seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


def _cursor(text: str | None) -> tuple[datetime, str] | None:
    if text is None:
        return None
    at, _, identifier = text.partition("~")
    try:
        if is_ulid(identifier):
            return from_iso(at), identifier
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError("before: not a cursor of this list") from error
    raise InvalidRequestError("before: not a cursor of this list")


def _cursor_of(point: PointInfo) -> str:
    return f"{to_iso(point.created_at)}~{point.id}"


SERVICES = (
    Route(name="api.me", method="GET", path="/api/v1/me", endpoint=me, in_schema=True),
    Route(name="api.services.list", method="GET", path="/api/v1/services", endpoint=list_services, in_schema=True),
    Route(
        name="api.services.get",
        method="GET",
        path="/api/v1/services/{service}",
        endpoint=get_service,
        in_schema=True,
        responses={200: {"model": ServiceDocument}, 304: {"description": "Not Modified"}},
    ),
    Route(
        name="api.points.list",
        method="GET",
        path="/api/v1/services/{service}/points",
        endpoint=list_points,
        in_schema=True,
    ),
    Route(
        name="api.window.get",
        method="GET",
        path="/api/v1/services/{service}/window",
        endpoint=get_window,
        in_schema=True,
    ),
)
