"""The gate: may this service be released now?

The one question that the catalogue cannot answer alone: what is at risk this second is asked of production and the
store, so that nobody releases on yesterday's picture.
"""

from __future__ import annotations

from fastapi import Request, Response

from drservice.catalogue.requests import Answered, Transaction
from drservice.model.estate import Service
from drservice.operations.checklist import CheckState
from drservice.operations.gate import GateContext, GateResult, ask_gate
from drservice.operations.progress import SilentProgress
from drservice.operations.restorepoint import require_point_name
from drservice.web.api.idempotency import Key, once, response_of
from drservice.web.auth.permissions import Permission
from drservice.web.routes import Route
from drservice.web.schemas import GateCheck, GateDocument, GateRequest
from drservice.web.site import Here, Site, TheService, Who
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


def ask(
    service: TheService, site: Here, principal: Who, request: Request, body: GateRequest, key: Key = None
) -> Response:
    """Ask the gate; 200 whether it is open or closed."""
    if body.restore_point is not None:
        principal.require(Permission.OPERATE)
        require_point_name(body.restore_point)

    def work(_: Transaction) -> Answered:
        return Answered(status=200, body=_asked(site, service, body.restore_point).model_dump_json())

    answer, replayed = once(request, site, principal, key, body, work)
    return response_of(answer, replayed=replayed)


def _asked(site: Site, service: Service, restore_point: str | None) -> GateDocument:
    with open_data_plane(site.estate) as plane, open_evidence(plane) as evidence:
        context = GateContext(
            estate=site.estate,
            repository=plane.repository,
            evidence=evidence,
            state_dir=site.estate.state_dir,
            clock=plane.clock,
            progress=SilentProgress(),
        )
        return _document(ask_gate(context, service, restore_point=restore_point))


def _document(result: GateResult) -> GateDocument:
    return GateDocument(
        service=result.service.name,
        open=result.is_open,
        at=result.at,
        checks=[
            GateCheck(name=check.name, state=check.state.value, detail=check.detail, remedy=check.remedy)
            for check in result.checks
        ],
        reasons=[f"{check.name}: {check.detail}" for check in result.checks if check.state is CheckState.FAILED],
        restore_points=[
            {
                "component": left.component.name,
                "name": left.point.name,
                "lsn": str(left.point.lsn),
                "timeline": int(left.point.timeline),
            }
            for left in result.left
        ],
    )


GATE = (
    Route(
        name="api.gate.ask",
        method="POST",
        path="/api/v1/services/{service}/gate",
        endpoint=ask,
        in_schema=True,
        responses={200: {"model": GateDocument}},
    ),
)
