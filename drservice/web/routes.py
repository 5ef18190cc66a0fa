"""How a module of endpoints names what it serves: plain values, put into the application in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route. Its name is its entry in the table of permissions."""

    name: str
    method: str
    path: str
    endpoint: Callable[..., Any]
    status: int = 200
    kind: type[Response] = JSONResponse
    """The class of a good answer."""
    in_schema: bool = False
    summary: str = ""
    responses: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    """Further answers, for the schema."""

    def add_to(self, app: FastAPI) -> None:
        """Serve it."""
        app.add_api_route(
            self.path,
            self.endpoint,
            methods=[self.method],
            name=self.name,
            status_code=self.status,
            response_class=self.kind,
            include_in_schema=self.in_schema,
            summary=self.summary or None,
            operation_id=self.name,
            responses=dict(self.responses),
        )
