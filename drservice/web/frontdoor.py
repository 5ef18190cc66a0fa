"""The outermost layer: limits per address, security headers, the access log, and the last catch.

A request of a logged route is put on record before its answer begins. If that cannot be done the answer is 503: an
access that leaves no trace is not given. (What the request has changed stays; it was written to the same catalogue.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drservice import telemetry
from drservice.catalogue.requests import AccessEntry
from drservice.errors import CatalogueUnreachableError, DrError, TooManyRequestsError
from drservice.web.auth.permissions import ROUTES
from drservice.web.problems import MEDIA_TYPE, problem, status_of
from drservice.web.site import Site

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=()"),
    (b"strict-transport-security", b"max-age=31536000"),
)
"""On every answer. Browsers ignore Strict-Transport-Security on plain HTTP."""
_PRIVATE = (b"cache-control", b"no-store")


class FrontDoor:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app = app
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (lifespan messages pass through)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(self.site, scope, send)
        wait = self.site.addresses.take(_address(scope))
        if wait > 0:
            error = TooManyRequestsError(f"too many requests from {_address(scope)}")
            await answer.refuse(error, ((b"retry-after", str(int(wait) + 1).encode()),))
            return
        try:
            await self.app(scope, receive, answer.send)
        except CatalogueUnreachableError as error:
            if answer.begun:
                raise
            await answer.refuse(error)
        except Exception as error:
            telemetry.warning("a request failed", route=_route(scope), error=f"{type(error).__name__}: {error}")
            if answer.begun:
                raise
            await answer.refuse(DrError("internal error", hint="The log of the web process says more."))


class _Answer:
    """Sends one answer with its headers, after the request is on record."""

    def __init__(self, site: Site, scope: Scope, send: Send) -> None:
        self._site, self._scope, self._send = site, scope, send
        self.begun = False
        """Whether something was sent that cannot be taken back."""
        self._refused = False
        """Whether what the application sends is thrown away."""

    async def send(self, message: Message) -> None:
        """Send what the application sends."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            try:
                await self._log(message["status"])
            except CatalogueUnreachableError as error:
                telemetry.warning("an access is not on record", route=_route(self._scope), status=message["status"])
                if message["status"] != HTTPStatus.SERVICE_UNAVAILABLE:
                    self._refused = True
                    await self.refuse(error)
                    return
            given = {name.lower() for name, _ in message["headers"]}
            wanted = (*HEADERS, _PRIVATE)
            message["headers"] = [*message["headers"], *(item for item in wanted if item[0] not in given)]
            self.begun = True
        await self._send(message)

    async def refuse(self, error: DrError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with a problem, without asking the application (and without the catalogue, which may be away)."""
        status = status_of(error)
        body = json.dumps(problem(error, status)).encode()
        self.begun = True
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": int(status),
            "headers": [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                *headers,
                *HEADERS,
                _PRIVATE,
            ],
        }
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def _log(self, status: int) -> None:
        route = _route(self._scope)
        rule = ROUTES.get(route)
        if rule is not None and not rule.logged:
            return
        state = self._scope.get("state") or {}
        principal = state.get("principal")
        entry = AccessEntry(
            account=principal.account if principal else state.get("account"),
            token=principal.token if principal else None,
            address=_address(self._scope),
            method=self._scope["method"][:16],
            route=route,
            service=state.get("service"),
            status=status,
        )
        await run_in_threadpool(self._site.requests.log, entry)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "name", None) or "none")


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def client_address(request: Request) -> str:
    """Return the address a request comes from (behind a proxy: what uvicorn believes of X-Forwarded-For)."""
    return _address(request.scope)
