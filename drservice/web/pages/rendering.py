"""Renders templates: everything that is shown passes through here and cannot break out of its place.

Markup is escaped always, control characters and marks that turn the direction of text become visible escapes, and a
name that a template does not get is an error instead of nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from drservice.clock import to_iso
from drservice.errors import DrError, NotSignedInError
from drservice.evidence.reporttext import neutralise
from drservice.web.auth.identity import Principal
from drservice.web.auth.permissions import Permission

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def page(request: Request, template: str, context: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
    """Render a page or a fragment for whoever asks."""
    principal: Principal | None = getattr(request.state, "principal", None)
    shared = {
        "principal": principal,
        "csrf": principal.csrf if principal else None,
        "key": secrets.token_urlsafe(16),
        "path": request.url.path,
        "may": {permission.name.lower(): bool(principal and principal.may(permission)) for permission in Permission},
    }
    return HTMLResponse(environment().get_template(template).render({**shared, **context}), status)


def error_page(request: Request, error: DrError, status: HTTPStatus, headers: Mapping[str, str]) -> Response:
    """Render an error; who is not signed in is taken to where one signs in, and back afterwards."""
    if isinstance(error, NotSignedInError) and request.url.path not in {"/sign-in", "/"}:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        target = f"/sign-in?next={quote(here, safe='/')}" if request.method == "GET" else "/sign-in"
        if request.headers.get("hx-request") == "true":
            return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
        return RedirectResponse(target, HTTPStatus.SEE_OTHER)
    if isinstance(error, NotSignedInError):
        return RedirectResponse("/sign-in", HTTPStatus.SEE_OTHER)
    answer = page(request, "error.html", {"error": error, "status": status}, status=int(status))
    answer.headers.update(dict(headers))
    return answer


@cache
def environment() -> Environment:
    """Return the templates' environment."""
    made = Environment(
        loader=PackageLoader("drservice.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    made.filters.update(duration=duration, amount=amount, iso=to_iso, utc=utc, age=age)
    return made


def duration(value: timedelta | float | None) -> str:
    """Write a duration with its largest unit and the one after it."""
    if value is None:
        return "unknown"
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 1:
        return f"{round(seconds * 1000)} ms" if seconds > 0 else "0 s"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break  # 6 h and 14 s are 6 h
    return " ".join(parts[:2])


def age(instant: datetime, now: datetime) -> str:
    """Write how long ago an instant was, or how far ahead it is."""
    passed = now - instant
    return f"in {duration(-passed)}" if passed < timedelta(0) else f"{duration(passed)} ago"


def utc(instant: datetime) -> str:
    """Write an instant for people, in UTC (scripts show it in the viewer's zone)."""
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def amount(value: float | None) -> str:
    """Write an amount of bytes."""
    if value is None:
        return "unknown"
    size, unit = float(value), 0
    while size >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_BYTE_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_BYTE_UNITS[unit]}"


def _plain(value: object) -> object:
    """Return what a template may show of a value."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return neutralise(value)
