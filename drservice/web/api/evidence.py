"""Evidence: records as the catalogue knows them, the bundle that proves them, and what its verifier says."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path as InPath
from fastapi import Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import AwareDatetime
from starlette.background import BackgroundTask

from drservice.catalogue.evidencereading import DrillOnRecord, EvidenceReading
from drservice.catalogue.reading import RecordInfo
from drservice.catalogue.requests import Answered, Transaction
from drservice.errors import AbsentError, ForbiddenError
from drservice.model.ids import ServiceName
from drservice.web.api.idempotency import Key, once, response_of
from drservice.web.api.services import Limit
from drservice.web.auth.identity import Principal
from drservice.web.bundles import make_bundle, verify_now
from drservice.web.duties import ServiceDuty, drill_schedules, duties, scope_of
from drservice.web.routes import Route
from drservice.web.schemas import (
    DrillDocument,
    DutyName,
    Name,
    ObligationDocument,
    ObligationPage,
    RecordDocument,
    RecordPage,
    VerificationDocument,
)
from drservice.web.site import Here, Who


def list_records(
    site: Here,
    principal: Who,
    service: Name | None = None,
    kind: Annotated[str | None, Query(pattern="^[a-z]{1,20}$")] = None,
    before: Annotated[int | None, Query(ge=0, le=2**62, description="`next` of the page before")] = None,
    limit: Limit = 50,
) -> RecordPage:
    """List records of the ledger, newest first."""
    found = site.reading.records(
        services=sorted(principal.services) if principal.services else None,
        service=service,
        kind=kind,
        before=before,
        limit=limit + 1,
    )
    return RecordPage(
        items=[record_document(record) for record in found[:limit]],
        next=str(found[limit - 1].entry) if len(found) > limit else None,
    )


def get_record(entry: Annotated[int, InPath(ge=0, le=2**62)], site: Here, principal: Who) -> RecordDocument:
    """Return one record."""
    found = site.reading.record(entry)
    if found is None or not principal.sees(found.service):
        raise AbsentError(f"there is no record {entry}")
    return record_document(found)


def list_obligations(
    site: Here,
    principal: Who,
    service: Name | None = None,
    state: DutyName | None = None,
    begin: Annotated[AwareDatetime | None, Query(alias="from")] = None,
    end: Annotated[AwareDatetime | None, Query(alias="to")] = None,
    after: Annotated[int, Query(ge=0, le=1_000_000, description="`next` of the page before")] = 0,
    limit: Limit = 50,
) -> ObligationPage:
    """List how services stand with their drills in a period (a quarter up to now), the worst first."""
    names = [item.name for item in site.services_of(principal) if service in {None, item.name}]
    reading = EvidenceReading(site.database)
    scope = scope_of(principal, reading.now(), begin, end)
    now, drills, owed = reading.drills(scope, names=names, schedules=drill_schedules(site.agenda, names))
    found = [item for item in duties(site, drills, owed, now) if state in {None, item.duty.value}]
    return ObligationPage(
        period_from=scope.begin,
        period_to=scope.end,
        items=[_obligation_document(item) for item in found[after : after + limit]],
        next=str(after + limit) if len(found) > after + limit else None,
    )


def get_bundle(
    site: Here,
    principal: Who,
    service: Name | None = None,
    begin: Annotated[AwareDatetime | None, Query(alias="from")] = None,
    end: Annotated[AwareDatetime | None, Query(alias="to")] = None,
) -> FileResponse:
    """Make a bundle now and download it; ``service`` chooses what its report is about."""
    require_whole(principal)
    chosen = ServiceName(site.service(service).name) if service is not None else None
    bundle = make_bundle(site.estate, begin=begin, end=end, service=chosen)
    return FileResponse(
        bundle.path,
        media_type="application/zip",
        filename=bundle.path.name,
        headers={"X-Manifest-SHA256": bundle.manifest_sha256},
        background=BackgroundTask(bundle.remove),
    )


def verify(site: Here, principal: Who, request: Request, key: Key = None) -> Response:
    """Make a bundle and let its stand-alone verifier judge it."""
    require_whole(principal)

    def work(_: Transaction) -> Answered:
        verdict = verify_now(site.estate)
        document = VerificationDocument(
            verified=verdict.verified, manifest_sha256=verdict.manifest_sha256, lines=list(verdict.lines)
        )
        return Answered(status=200, body=document.model_dump_json())

    answer, replayed = once(request, site, principal, key, None, work)
    return response_of(answer, replayed=replayed)


def require_whole(principal: Principal) -> None:
    """Refuse the bundle to who may not see everything: every bundle holds the records of all services.

    Raises:
        ForbiddenError: the scope is limited.
    """
    if principal.services:
        raise ForbiddenError(
            "a bundle holds the records of every service",
            hint="Ask somebody whose account is not limited to some services.",
        )


def _obligation_document(item: ServiceDuty) -> ObligationDocument:
    return ObligationDocument(
        service=item.service,
        state=item.duty.value,
        due_at=item.due_at,
        reason=item.reason,
        last=_drill_document(item.last),
        passed=_drill_document(item.passed),
        done=item.done,
        failed=item.failed,
        missed=item.missed,
        open=item.open,
        overdue=item.overdue,
    )


def _drill_document(drill: DrillOnRecord | None) -> DrillDocument | None:
    if drill is None:
        return None
    return DrillDocument(entry=drill.entry, recorded_at=drill.recorded_at, outcome=drill.outcome)


def record_document(record: RecordInfo) -> RecordDocument:
    """Return a record as the API tells it."""
    return RecordDocument(
        entry=record.entry,
        kind=record.kind,
        service=record.service,
        host=record.host,
        run=record.run,
        recorded_at=record.recorded_at,
        outcome=record.outcome,
        sha256=record.sha256,
        predicate=record.predicate,
    )


EVIDENCE = (
    Route(
        name="api.evidence.list", method="GET", path="/api/v1/evidence/records", endpoint=list_records, in_schema=True
    ),
    Route(
        name="api.evidence.get",
        method="GET",
        path="/api/v1/evidence/records/{entry}",
        endpoint=get_record,
        in_schema=True,
    ),
    Route(
        name="api.evidence.obligations",
        method="GET",
        path="/api/v1/evidence/obligations",
        endpoint=list_obligations,
        in_schema=True,
    ),
    Route(
        name="api.evidence.bundle",
        method="GET",
        path="/api/v1/evidence/bundle",
        endpoint=get_bundle,
        kind=FileResponse,
        in_schema=True,
        responses={200: {"content": {"application/zip": {}}, "description": "the bundle"}},
    ),
    Route(
        name="api.evidence.verify",
        method="POST",
        path="/api/v1/evidence/verifications",
        endpoint=verify,
        in_schema=True,
        responses={200: {"model": VerificationDocument}},
    ),
)
