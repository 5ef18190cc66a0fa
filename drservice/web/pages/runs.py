"""Run: its steps and what was told, live; and the list of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BeforeValidator

from drservice.catalogue.runs import EventInfo, RunInfo
from drservice.model.runs import RunKind, RunState
from drservice.web.api.runs import cancel, permission_for
from drservice.web.pages.rendering import amount, page
from drservice.web.pages.signing import Form
from drservice.web.routes import Route
from drservice.web.schemas import KindName, Name, StateName, Ulid
from drservice.web.site import Here, Site, TheRun, Who

_SHOWN = 50
_EVENTS = 1000
_EMPTY = BeforeValidator(lambda value: value or None)
"""A field that was left empty asks for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a run. ``took`` is ``None`` while it is under way."""

    name: str
    began_at: datetime
    took: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line of the log."""

    at: datetime
    kind: str
    text: str


def show(request: Request, run: TheRun, site: Here, principal: Who) -> HTMLResponse:
    """Show a run."""
    return page(request, "run.html", {**_context(site, run), "may_cancel": principal.may(permission_for(run.kind))})


def live(request: Request, run: TheRun, site: Here) -> HTMLResponse:
    """Show the part of a run that changes."""
    return page(request, "run-live.html", _context(site, run))


def list_runs(
    request: Request,
    site: Here,
    principal: Who,
    service: Annotated[Name | None, _EMPTY] = None,
    kind: Annotated[KindName | None, _EMPTY] = None,
    state: Annotated[StateName | None, _EMPTY] = None,
    before: Annotated[Ulid | None, Query()] = None,
) -> HTMLResponse:
    """Show runs, newest first."""
    found = site.runs.list(
        service=service,
        services=sorted(principal.services) if principal.services else None,
        kind=RunKind(kind) if kind else None,
        state=RunState(state) if state else None,
        before=before,
        limit=_SHOWN + 1,
    )
    chosen: dict[str, str | None] = {"service": service, "kind": kind, "state": state}
    context = {
        "now": site.reading.now(),
        "runs": found[:_SHOWN],
        "next": found[_SHOWN - 1].id if len(found) > _SHOWN else None,
        "chosen": chosen,
        "query": {name: value for name, value in chosen.items() if value},
        "kinds": [item.value for item in RunKind],
        "states": [item.value for item in RunState],
    }
    return page(request, "runs.html", context)


def cancel_run(run: TheRun, site: Here, principal: Who, form: Form) -> Response:
    """Cancel a run and show it. Doing it twice changes nothing more."""
    cancel(site, principal, run, if_match=form.get("etag"))
    return RedirectResponse(f"/runs/{run.id}", HTTPStatus.SEE_OTHER)


def steps_of(events: Sequence[EventInfo], ended_at: datetime | None) -> list[Step]:
    """Return the steps of a run; each ends when the next begins, when the run goes back to the queue, or with it."""
    steps: list[Step] = []
    for event in events:
        goes_on = event.kind == "step" or (event.kind == "state" and event.data.get("state") == RunState.QUEUED.value)
        if goes_on and steps and steps[-1].took is None:
            last = steps.pop()
            steps.append(Step(name=last.name, began_at=last.began_at, took=event.at - last.began_at))
        if event.kind == "step":
            steps.append(Step(name=str(event.data.get("name", "a step")), began_at=event.at, took=None))
    if steps and ended_at is not None and steps[-1].took is None:
        last = steps.pop()
        steps.append(Step(name=last.name, began_at=last.began_at, took=ended_at - last.began_at))
    return steps


def notes_of(events: Sequence[EventInfo]) -> list[Note]:
    """Return what was told, in words."""
    return [Note(at=event.at, kind=event.kind, text=_words(event)) for event in events if event.kind != "progress"]


def _words(event: EventInfo) -> str:
    data = dict(event.data)
    first = str(data.pop("state", data.pop("name", data.pop("text", ""))))
    error = data.pop("error", None)
    if isinstance(error, dict):
        data = {"error": f"{error.get('code')}: {error.get('message')}", **data}
    if event.kind == "step":
        total, unit = data.pop("total", None), data.pop("unit", "")
        if isinstance(total, int):
            data["of"] = amount(total) if unit == "bytes" else f"{total} {unit}"
    rest = ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in data.items()
        if value is not None
    )
    return f"{first} ({rest})" if first and rest else first or rest


def _context(site: Site, run: RunInfo) -> dict[str, Any]:
    events = site.runs.events(run.id, limit=_EVENTS)
    result = run.result or {}
    now, steps = site.reading.now(), steps_of(events, run.ended_at)
    return {
        "now": now,
        "run": run,
        "steps": steps,
        "whole": sum((step.took or now - step.began_at for step in steps), timedelta(microseconds=1)),
        "notes": notes_of(events),
        "truncated": len(events) == _EVENTS,
        "share": _share(run),
        "environment": result.get("environment") if isinstance(result.get("environment"), dict) else None,
        "result": json.dumps(run.result, indent=2, ensure_ascii=False, sort_keys=True).splitlines()
        if run.result
        else [],
    }


def _share(run: RunInfo) -> int | None:
    """Return how much of the present step is done, in percent."""
    done, total = run.progress.get("done"), run.progress.get("total")
    if not isinstance(done, (int, float)) or not isinstance(total, (int, float)) or total <= 0:
        return None
    return max(0, min(100, round(done / total * 100)))


RUN_PAGES = (
    Route(name="page.runs", method="GET", path="/runs", endpoint=list_runs, kind=HTMLResponse),
    Route(name="page.run", method="GET", path="/runs/{run}", endpoint=show, kind=HTMLResponse),
    Route(name="page.run.live", method="GET", path="/runs/{run}/live", endpoint=live, kind=HTMLResponse),
    Route(name="page.run.cancel", method="POST", path="/runs/{run}/cancel", endpoint=cancel_run, kind=HTMLResponse),
)
