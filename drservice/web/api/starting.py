"""Starting runs: a backup, a drill, an isolated restore. A request only puts a run into the queue.

A restore in place is not offered here: it takes more than one person.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from drservice.catalogue.requests import Answered, Transaction
from drservice.catalogue.runs import RunRequest
from drservice.clock import to_iso
from drservice.errors import AbsentError, BusyError, UnknownNameError
from drservice.model.estate import Service
from drservice.model.runs import RunKind, RunState
from drservice.model.timetable import host_of
from drservice.web.api.idempotency import Key, once, response_of
from drservice.web.auth.identity import Principal
from drservice.web.routes import Route
from drservice.web.schemas import BackupRequest, DrillRequest, Enqueued, RestoreRequest
from drservice.web.site import Here, Site, TheService, Who

LATEST = "latest"


def start_backup(
    service: TheService, site: Here, principal: Who, request: Request, body: BackupRequest, key: Key = None
) -> Response:
    """Start a backup."""
    return _enqueue(site, principal, request, key, body, backup_run(service, principal))


def start_drill(
    service: TheService, site: Here, principal: Who, request: Request, body: DrillRequest, key: Key = None
) -> Response:
    """Start a drill: an isolated restore, checks, a verdict, a record; the environment goes."""
    return _enqueue(site, principal, request, key, body, drill_run(site, service, principal, body.plan))


def start_restore(
    service: TheService, site: Here, principal: Who, request: Request, body: RestoreRequest, key: Key = None
) -> Response:
    """Start an isolated restore; its environment stays until it is destroyed or expires."""
    to = body.to if isinstance(body.to, datetime) else None
    return _enqueue(site, principal, request, key, body, restore_run(service, principal, to))


def backup_run(service: Service, principal: Principal) -> RunRequest:
    """Return what to enqueue for a backup."""
    host = host_of(service, RunKind.BACKUP)
    return RunRequest(service=service.name, kind=RunKind.BACKUP, requested_by=principal.account, host=host)


def drill_run(site: Site, service: Service, principal: Principal, plan: str | None) -> RunRequest:
    """Return what to enqueue for a drill.

    Raises:
        AbsentError: the service has no such plan, or several and none was named.
    """
    try:
        chosen = site.estate.drill(service, plan)
    except UnknownNameError as error:
        raise AbsentError(error.message, hint=error.hint) from error
    named = chosen.name if chosen.name in site.estate.drills else ""
    return RunRequest(service=service.name, kind=RunKind.DRILL, plan=named, requested_by=principal.account)


def restore_run(service: Service, principal: Principal, to: datetime | None) -> RunRequest:
    """Return what to enqueue for an isolated restore; without an instant to the latest position."""
    return RunRequest(
        service=service.name,
        kind=RunKind.RESTORE,
        requested_by=principal.account,
        parameters={"to": LATEST if to is None else to_iso(to)},
    )


def enqueue(site: Site, wanted: RunRequest, transaction: Transaction) -> str:
    """Put a run into the queue and return its id.

    Raises:
        BusyError: the catalogue has one in its place.
    """
    run = site.queue.enqueue(wanted, session=transaction)
    if run is None:
        raise BusyError(f"there is a {wanted.kind.value} of {wanted.service} in its place already")
    return run


def run_url(run: str) -> str:
    """Return where a run is read."""
    return f"/api/v1/runs/{run}"


def _enqueue(
    site: Site, principal: Principal, request: Request, key: str | None, body: BaseModel, wanted: RunRequest
) -> Response:
    def work(transaction: Transaction) -> Answered:
        run = enqueue(site, wanted, transaction)
        document = Enqueued(run=run, state=RunState.QUEUED.value)
        return Answered(status=202, body=document.model_dump_json(), headers={"Location": run_url(run)})

    answer, replayed = once(request, site, principal, key, body, work)
    return response_of(answer, replayed=replayed)


_ACCEPTED: Mapping[int | str, dict[str, Any]] = {
    202: {"model": Enqueued, "headers": {"Location": {"description": "the run", "schema": {"type": "string"}}}}
}
STARTING = (
    Route(
        name="api.backups.start",
        method="POST",
        path="/api/v1/services/{service}/backups",
        endpoint=start_backup,
        status=202,
        in_schema=True,
        responses=_ACCEPTED,
    ),
    Route(
        name="api.drills.start",
        method="POST",
        path="/api/v1/services/{service}/drills",
        endpoint=start_drill,
        status=202,
        in_schema=True,
        responses=_ACCEPTED,
    ),
    Route(
        name="api.restores.start",
        method="POST",
        path="/api/v1/services/{service}/restores",
        endpoint=start_restore,
        status=202,
        in_schema=True,
        responses=_ACCEPTED,
    ),
)
