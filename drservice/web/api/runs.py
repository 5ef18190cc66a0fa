"""Runs: listed, read, followed live, cancelled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from drservice.catalogue.requests import Answered, Transaction
from drservice.catalogue.runs import EventInfo, RunInfo
from drservice.errors import AbsentError, OverError, StaleError
from drservice.model.runs import RunKind, RunState
from drservice.web.api.idempotency import Key, once, response_of
from drservice.web.api.services import Limit, conditional
from drservice.web.auth.identity import Principal
from drservice.web.auth.permissions import Permission
from drservice.web.routes import Route
from drservice.web.schemas import (
    EventDocument,
    EventPage,
    KindName,
    Name,
    RunDocument,
    RunPage,
    StateName,
    Ulid,
)
from drservice.web.site import Here, Site, TheRun, Who, etag_of

_EVENTS_AT_ONCE = 200
_PERMISSIONS = {RunKind.RESTORE: Permission.RESTORE, RunKind.DESTROY: Permission.DESTROY}
_NUMBER = re.compile(r"[0-9]{1,15}\Z")


def list_runs(
    site: Here,
    principal: Who,
    service: Name | None = None,
    kind: KindName | None = None,
    state: StateName | None = None,
    before: Annotated[Ulid | None, Query(description="`next` of the page before")] = None,
    limit: Limit = 50,
) -> RunPage:
    """List runs of the services in scope, newest request first."""
    found = site.runs.list(
        service=service,
        services=sorted(principal.services) if principal.services else None,
        kind=RunKind(kind) if kind else None,
        state=RunState(state) if state else None,
        before=before,
        limit=limit + 1,
    )
    return RunPage(
        items=[run_document(run) for run in found[:limit]],
        next=found[limit - 1].id if len(found) > limit else None,
    )


def get_run(run: TheRun, request: Request) -> Response:
    """Return one run, with an ETag that cancelling may name."""
    return conditional(request, run_etag(run), run_document(run).model_dump(mode="json"))


def get_log(
    run: TheRun,
    site: Here,
    after: Annotated[int, Query(ge=0, le=10**15, description="the number of the last event that is known")] = 0,
) -> EventPage:
    """Return the events of a run, for who cannot follow the stream."""
    events = site.runs.events(run.id, after, limit=_EVENTS_AT_ONCE)
    return EventPage(
        items=[event_document(event) for event in events],
        over=run.state.is_over and len(events) < _EVENTS_AT_ONCE,
    )


async def follow(
    run: TheRun,
    site: Here,
    principal: Who,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    after: Annotated[int, Query(ge=0, le=10**15)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Follow a run: its events by number, its progress in between, and ``end`` after the last.

    A client that comes back with ``Last-Event-ID`` misses nothing and gets nothing twice. The stream ends when the
    token or session does.
    """
    number = int(last_event_id) if last_event_id and _NUMBER.match(last_event_id) else after
    progress = ""
    believed_until = 0.0
    clock = asyncio.get_running_loop().time
    with site.live.watching(run.id, principal) as changed:
        while not site.live.closing:
            changed.clear()
            if clock() >= believed_until:
                viewer, believed_until = await site.live.still(principal)
                if viewer is None or not viewer.may(Permission.SEE) or not viewer.sees(run.service):
                    return
            seen = await site.live.look(run.id, number)
            for event in seen.events:
                number = event.number
                yield ServerSentEvent(raw_data=event.text, event=event.kind, id=str(number))
            if seen.run is None:
                return
            if seen.progress and seen.progress != progress:
                progress = seen.progress
                yield ServerSentEvent(raw_data=progress, event="progress")
            if seen.events:
                continue  # there may be more
            if seen.run.state.is_over:
                yield ServerSentEvent(data={"state": seen.run.state.value}, event="end")
                return
            try:
                await asyncio.wait_for(changed.wait(), max(0.0, believed_until - clock()))
            except TimeoutError:
                continue


def cancel_run(
    run: TheRun,
    site: Here,
    principal: Who,
    request: Request,
    key: Key = None,
    if_match: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """Cancel a run: at once while it waits; a running one is ended by its host."""

    def work(_: Transaction) -> Answered:
        return Answered(
            status=200, body=run_document(cancel(site, principal, run, if_match=if_match)).model_dump_json()
        )

    answer, replayed = once(request, site, principal, key, None, work)
    return response_of(answer, replayed=replayed)


def cancel(site: Site, principal: Principal, run: RunInfo, *, if_match: str | None) -> RunInfo:
    """Cancel a run and return it as it is then.

    Raises:
        ForbiddenError: the principal may not start runs of this kind.
        StaleError: it is no longer what ``if_match`` names.
        OverError: it has ended.
    """
    principal.require(permission_for(run.kind))
    if if_match not in {None, "*", run_etag(run)}:
        raise StaleError(f"run {run.id} is {run.state.value} now")
    state = site.runs.cancel(run.id, principal.account)
    if state not in {RunState.CANCELLED, RunState.RUNNING} or run.state.is_over:
        raise OverError(f"run {run.id} has ended already")
    found = site.runs.get(run.id)
    if found is None:
        raise AbsentError(f"there is no run {run.id}")
    return found


def permission_for(kind: RunKind) -> Permission:
    """Return what somebody needs to start a run of a kind, and to cancel it."""
    return _PERMISSIONS.get(kind, Permission.OPERATE)


def run_etag(run: RunInfo) -> str:
    """Return the ETag of a run: it changes with its state, not with each bit of progress."""
    return etag_of(run.id, run.state, run.epoch, run.cancel_requested_by, run.caught_up_by)


def run_document(run: RunInfo) -> RunDocument:
    """Return a run as the API tells it."""
    return RunDocument(
        id=run.id,
        service=run.service,
        kind=run.kind.value,
        plan=run.plan,
        state=run.state.value,
        scheduled_for=run.scheduled_for,
        requested_by=run.requested_by,
        requested_at=run.requested_at,
        host=run.host,
        claimed_by=run.claimed_by,
        epoch=run.epoch,
        started_at=run.started_at,
        ended_at=run.ended_at,
        cancel_requested_by=run.cancel_requested_by,
        parameters=run.parameters,
        progress=run.progress,
        result=run.result,
        error=run.error,
        caught_up_by=run.caught_up_by,
    )


def event_document(event: EventInfo) -> EventDocument:
    """Return an event as the API tells it."""
    return EventDocument(number=event.number, at=event.at, kind=event.kind, data=event.data)


RUNS = (
    Route(name="api.runs.list", method="GET", path="/api/v1/runs", endpoint=list_runs, in_schema=True),
    Route(
        name="api.runs.get",
        method="GET",
        path="/api/v1/runs/{run}",
        endpoint=get_run,
        in_schema=True,
        responses={200: {"model": RunDocument}, 304: {"description": "Not Modified"}},
    ),
    Route(name="api.runs.log", method="GET", path="/api/v1/runs/{run}/log", endpoint=get_log, in_schema=True),
    Route(
        name="api.runs.events",
        method="GET",
        path="/api/v1/runs/{run}/events",
        endpoint=follow,
        kind=EventSourceResponse,
        in_schema=True,
    ),
    Route(
        name="api.runs.cancel",
        method="POST",
        path="/api/v1/runs/{run}/cancel",
        endpoint=cancel_run,
        in_schema=True,
        responses={200: {"model": RunDocument}},
    ),
)
