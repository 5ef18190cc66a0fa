"""Environments: what restores and kept drills have left on hosts, how to connect, and ending one.

Ending is a run on the host that has it: nothing else reaches it.
"""

from __future__ import annotations

from fastapi import Response

from drservice.catalogue.environments import EnvironmentInfo
from drservice.catalogue.requests import Transaction
from drservice.catalogue.runs import RunRequest
from drservice.errors import AbsentError, BusyError
from drservice.model.estate import Service
from drservice.model.runs import RunKind, RunState
from drservice.web.api.starting import enqueue, run_url
from drservice.web.auth.identity import Principal
from drservice.web.routes import Route
from drservice.web.schemas import Enqueued, EnvironmentDocument, EnvironmentPage, Ulid
from drservice.web.site import Here, Site, TheService, Who


def list_environments(service: TheService, site: Here) -> EnvironmentPage:
    """List the environments of a service, newest first."""
    return EnvironmentPage(items=[environment_document(item) for item in site.environments.of(service.name)])


def destroy_environment(environment: Ulid, service: TheService, site: Here, principal: Who) -> Response:
    """End an environment and remove it. Asked again, the answer names the same run, also after it is gone."""
    with site.database.session() as transaction:
        run = destroy(site, service, environment, principal, transaction)
    known = site.runs.get(run)
    return Response(
        Enqueued(run=run, state=(known.state if known is not None else RunState.QUEUED).value).model_dump_json(),
        202,
        {"Location": run_url(run)},
        "application/json",
    )


def destroy(site: Site, service: Service, environment: str, principal: Principal, transaction: Transaction) -> str:
    """Return the run that ends an environment of a service: the one there is, or a new one for its host.

    Raises:
        AbsentError: the service has no such environment, and had none that a run has ended.
        BusyError: a drill or restore is still at work in it.
    """
    found = site.environments.hold(environment, session=transaction)
    before = site.environments.end_of(service.name, environment, session=transaction)
    if before is not None:
        return before
    if found is None or found.service != service.name:
        raise AbsentError(f"{service.name} has no environment {environment}")
    if found.made_by is not None:
        raise BusyError(f"run {found.made_by} is still at work in {environment}", hint="Cancel that run instead.")
    wanted = RunRequest(
        service=service.name,
        kind=RunKind.DESTROY,
        requested_by=principal.account,
        parameters={"environment": environment},
        host=found.host,
    )
    return enqueue(site, wanted, transaction)


def environment_document(item: EnvironmentInfo) -> EnvironmentDocument:
    """Return an environment as the API tells it."""
    return EnvironmentDocument(
        id=item.id,
        service=item.service,
        host=item.host,
        purpose=item.purpose,
        state=item.state,
        dsn=item.dsn,
        created_at=item.created_at,
        expires_at=item.expires_at,
        seen_at=item.seen_at,
        made_by=item.made_by,
        ended_by=item.ended_by,
    )


_PATH = "/api/v1/services/{service}/environments"
ENVIRONMENTS = (
    Route(name="api.environments.list", method="GET", path=_PATH, endpoint=list_environments, in_schema=True),
    Route(
        name="api.environments.destroy",
        method="DELETE",
        path=f"{_PATH}/{{environment}}",
        endpoint=destroy_environment,
        status=202,
        in_schema=True,
        responses={
            202: {"model": Enqueued, "headers": {"Location": {"description": "the run", "schema": {"type": "string"}}}}
        },
    ),
)
