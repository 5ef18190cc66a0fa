"""Puts the application together: every route behind the guard, every error as a problem or a page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata, resources
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from drservice.errors import AbsentError, DrError, InvalidRequestError
from drservice.web.api import API
from drservice.web.api.openapi import describe, served_schema
from drservice.web.auth.permissions import require_complete
from drservice.web.frontdoor import FrontDoor
from drservice.web.guard import GuardedRoute
from drservice.web.health import HEALTH
from drservice.web.metrics import EXPOSITION
from drservice.web.pages import PAGES
from drservice.web.pages.rendering import error_page
from drservice.web.problems import MEDIA_TYPE, mistakes_of, problem, status_of
from drservice.web.routes import Route
from drservice.web.site import Site

MOST_BODY_BYTES = 64 * 1024
ROUTES: tuple[Route, ...] = (*HEALTH, *EXPOSITION, *API, *PAGES)
"""Everything that is served, beside the description of the API and the files of the pages."""


def make_app(site: Site, *, routes: Sequence[Route] = ROUTES) -> ASGIApp:
    """Return the application.

    Raises:
        UnguardedRouteError: a route is missing in the table of permissions, or the table knows one that is not served.
    """
    app = FastAPI(
        title="drservice",
        version=metadata.version("drservice"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        max_body_size=MOST_BODY_BYTES,
        redirect_slashes=False,
    )
    app.state.site = site
    app.router.route_class = GuardedRoute
    for route in (*routes, served_schema()):
        route.add_to(app)
    app.mount("/static", StaticFiles(directory=_static()), name="static")
    describe(app)
    app.add_exception_handler(DrError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    require_complete(_names(app.routes))
    return FrontDoor(app, site)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    site.live.start()
    try:
        yield
    finally:
        site.live.close()
        await run_in_threadpool(site.live.join)


def _names(routes: Iterable[BaseRoute]) -> Iterable[str]:
    """Yield the name of every route; one that is neither guarded nor our mount of files has none that is known."""
    for route in routes:
        if isinstance(route, GuardedRoute) or (isinstance(route, Mount) and isinstance(route.app, StaticFiles)):
            yield route.name or "a route without a name"
        else:
            yield f"{type(route).__name__} {getattr(route, 'path', '')}"


def _static() -> Path:
    return Path(str(resources.files("drservice.web").joinpath("static")))


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DrError), "registered for these only"
    return await _answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for these only"
    mistakes = mistakes_of(error.errors())
    return await _answer(request, InvalidRequestError("the request is not as it should be"), mistakes)


async def _http_error(request: Request, error: Exception) -> Response:
    """Translate what the framework refuses by itself: unknown paths, other methods, bodies that are too long."""
    assert isinstance(error, HTTPException), "registered for these only"
    if error.status_code == 404:
        return await _answer(request, AbsentError("there is nothing at this address"))
    refused = InvalidRequestError(str(error.detail))
    return await _answer(request, refused, status=error.status_code, headers=error.headers or {})


async def _answer(
    request: Request,
    error: DrError,
    mistakes: Sequence[str] = (),
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    code = type(status_of(error))(status) if status is not None else status_of(error)
    extra = dict(headers or {})
    if code == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="drservice"'
    if code == 429:
        extra["Retry-After"] = "5"
    if not _wants_page(request):
        return JSONResponse(problem(error, code, mistakes=mistakes), code, extra, MEDIA_TYPE)
    return error_page(request, error, code, extra)


def _wants_page(request: Request) -> bool:
    """Tell whether an error is for people."""
    machine = request.url.path.startswith("/api/") or request.url.path in {
        route.path for route in (*HEALTH, *EXPOSITION)
    }
    return not machine and "json" not in request.headers.get("accept", "")
