"""The OpenAPI description of the API: what FastAPI derives, with what all routes have in common."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from drservice.web.problems import MEDIA_TYPE
from drservice.web.routes import Route
from drservice.web.schemas import Problem

_REFUSALS = {
    "400": "The Idempotency-Key is missing or none",
    "401": "Nobody is signed in, or the token is good for nothing",
    "403": "Not with these roles, or not from here",
    "404": "There is no such thing in scope",
    "409": "It has ended, or something is in the way",
    "412": "It has changed since it was read",
    "422": "The request makes no sense, or its key was used for another one",
    "429": "Too often; see Retry-After",
    "503": "The catalogue or the store does not answer",
}
_ALWAYS = ("401", "403", "422", "429", "503")
_DESCRIPTION = (
    "Errors are problem documents (RFC 9457) with a stable `code`. Lists are read page by page with `next`. Long work "
    "answers 202 with the run in `Location`; `/runs/{run}/events` follows it. Pages and API read the catalogue only."
)


def describe(app: FastAPI) -> None:
    """Make the application describe itself."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's documented way to extend its schema


def served_schema() -> Route:
    """Return the route that serves the description."""

    def openapi(request: Request) -> JSONResponse:
        return JSONResponse(request.app.openapi())

    return Route(name="openapi", method="GET", path="/api/v1/openapi.json", endpoint=openapi)


def _schema(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, openapi_version="3.1.0", description=_DESCRIPTION, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            wanted = {*_ALWAYS}
            if "{" in path:
                wanted.add("404")
            if method != "get":
                wanted |= {"400", "404", "409", "412"}
            if path.startswith("/api/v1/evidence/"):
                wanted |= {"404", "409"}
            operation["responses"].update(
                {
                    status: {
                        "description": _REFUSALS[status],
                        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                    }
                    for status in sorted(wanted)
                }
            )
    return document
