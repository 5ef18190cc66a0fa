"""``Idempotency-Key``: a POST that is sent twice is done once.

The key belongs to the account. Work and answer are one transaction of the catalogue, so the second request gets the
first answer, also if the process died in between or both came at the same moment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Annotated

from fastapi import Header, Request, Response
from pydantic import BaseModel

from drservice.catalogue.requests import Answered, Transaction
from drservice.errors import IdempotencyKeyError, IdempotencyReuseError
from drservice.web.auth.identity import Principal
from drservice.web.site import Site

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Required. 1 to 64 letters, digits, - or _; repeat a request with the key of its first try.",
    ),
]


def once(
    request: Request,
    site: Site,
    principal: Principal,
    key: str | None,
    body: BaseModel | None,
    work: Callable[[Transaction], Answered],
) -> tuple[Answered, bool]:
    """Do ``work`` once and return its answer, with whether it was given before.

    Raises:
        IdempotencyKeyError: the key is missing or none.
        IdempotencyReuseError: it was used for another request.
    """
    if key is None or not _KEY.match(key):
        raise IdempotencyKeyError("the request has no Idempotency-Key that can be used")
    content = body.model_dump_json() if body is not None else ""
    asked = f"{request.method} {request.url.path}\n{content}"
    found = site.requests.once(principal.account, key, hashlib.sha256(asked.encode()).hexdigest(), work)
    if found is None:
        raise IdempotencyReuseError("this Idempotency-Key was used for another request")
    return found


def response_of(answer: Answered, *, replayed: bool) -> Response:
    """Return an answer over HTTP; a repeated one says so."""
    headers = dict(answer.headers)
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(answer.body, answer.status, headers, "application/json")
