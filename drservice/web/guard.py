"""Stands before every route: who asks, may they, do they come from here, and not too often.

The guard runs before a request is parsed, so a stranger learns nothing from how a request is refused. It is part of the
route class: a route cannot be added without it, and it refuses a route that the table of permissions does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from drservice.errors import AbsentError, InvalidRequestError, TooManyRequestsError, UnguardedRouteError
from drservice.model.ids import is_name
from drservice.web.auth.identity import SESSION_COOKIE, Principal, require_csrf, require_same_site
from drservice.web.auth.permissions import ROUTES, Permission
from drservice.web.site import Site, site_of

CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
_MOST_FIELDS = 50
_FORM = "application/x-www-form-urlencoded"


class GuardedRoute(APIRoute):
    """A route whose handler runs after the guard only."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler behind its guard."""
        handle = super().get_route_handler()
        name = self.name

        async def guarded(request: Request) -> Response:
            await guard(request, name)
            return await handle(request)

        return guarded


async def guard(request: Request, route: str) -> None:
    """Let a request pass to a route, with its principal in ``request.state.principal``.

    Raises:
        NotSignedInError, ForbiddenError, CrossSiteError, TooManyRequestsError, AbsentError: it may not.
        UnguardedRouteError: the table of permissions does not know the route.
    """
    rule = ROUTES.get(route)
    if rule is None:
        raise UnguardedRouteError(f"nobody has said who may use {route}")
    if rule.permission is Permission.PUBLIC:
        _require_same_site(request)
        return
    site = site_of(request)
    principal = await run_in_threadpool(authenticate, site, request)
    request.state.principal = principal
    wait = site.accounts.take(principal.account)
    if wait > 0:
        raise TooManyRequestsError(
            f"{principal.account} asks too often", hint=f"Wait for {wait:.0f} s (Retry-After) before the next request."
        )
    if principal.csrf is not None:
        _require_same_site(request)
        require_csrf(principal, request.method, await _csrf_of(request))
    principal.require(rule.permission)
    service = request.path_params.get("service")
    if isinstance(service, str):
        if not is_name(service):
            raise AbsentError("there is no such service")
        request.state.service = service
        principal.require_service(service)


def authenticate(site: Site, request: Request) -> Principal:
    """Return who asks, as of now.

    Raises:
        NotSignedInError: nobody that is known.
    """
    return site.identity.principal(
        authorization=request.headers.get("authorization"), cookie=request.cookies.get(SESSION_COOKIE)
    )


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        InvalidRequestError: the body is none.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise InvalidRequestError("the request holds no form")
    try:
        text = (await request.body()).decode("utf-8")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"))
    except ValueError as error:
        raise InvalidRequestError("the form cannot be read") from error


async def _csrf_of(request: Request) -> str | None:
    given = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith(_FORM):
        given = (await form_of(request)).get(CSRF_FIELD)
    return given


def _require_same_site(request: Request) -> None:
    headers = request.headers
    require_same_site(
        request.method,
        host=headers.get("host"),
        origin=headers.get("origin"),
        fetch_site=headers.get("sec-fetch-site"),
        public=site_of(request).estate.web.public_url,
    )
