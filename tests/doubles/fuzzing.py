"""Sends what the API's description allows and what it forbids, and judges the answers: never a 5xx, always a problem.

    fuzzed = fuzz(website, "api.runs.list", GenerationMode.NEGATIVE, roles=("viewer",), examples=40)

Operations that open a repository are left out (:data:`STORE`): there is none here, and a store that is away is a 5xx
honestly.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import openapi
from schemathesis.generation import GenerationMode

from drservice.catalogue.runs import RunRequest
from drservice.model.runs import RunKind
from drservice.web.app import ROUTES
from drservice.web.auth.permissions import GRANTS, Role
from drservice.web.auth.permissions import ROUTES as RULES
from tests.doubles.website import URL, Website, csrf, tell_environment

STORE = {"api.evidence.bundle", "api.evidence.verify", "api.gate.ask"}
OPERATIONS = sorted(route.name for route in ROUTES if route.in_schema and route.name not in STORE)
_FORBIDDEN = {"host", "cookie", "authorization", "content-length", "transfer-encoding", "connection"}


@dataclass(kw_only=True)
class Fuzzed:
    """What an operation answered."""

    operation: str
    path: str
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(website: Website, operation_id: str, mode: GenerationMode, *, roles: tuple[str, ...], examples: int) -> Fuzzed:
    """Send examples of one operation as somebody with these roles (none: as nobody); failures are gathered."""
    run = website.site.queue.enqueue(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="somebody"))
    assert run is not None
    if operation_id == "api.runs.events":  # a stream is over when its run is
        website.site.runs.cancel(run, "somebody")
    client = website.client(raises=False)
    word = ""
    if roles:
        signed_in = website.browser(f"fuzzer-{secrets.token_hex(4)}", *roles)
        client.headers["Origin"], client.cookies, word = URL, signed_in.cookies, csrf(signed_in)
    document = website.client(website.token("viewer")).get("/api/v1/openapi.json").json()
    schema: Any = openapi.from_dict(document)
    operation = next(
        found.ok() for found in schema.get_all_operations() if found.ok().definition.raw["operationId"] == operation_id
    )
    valid = mode is GenerationMode.POSITIVE
    environment = tell_environment(website.site.database)
    existing = {"service": "erp", "run": run, "environment": environment, "entry": 1} if valid else {}
    named = {name: value for name, value in existing.items() if f"{{{name}}}" in operation.path}
    fuzzed = Fuzzed(operation=operation_id, path=f"{operation.method.upper()} {operation.path}")
    allowed = any(Role(role) in GRANTS[RULES[operation_id].permission] for role in roles)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, **({"path_parameters": named} if named else {})))
    def send(case: Any) -> None:
        answer = _send(client, case, valid=valid, word=word)
        fuzzed.cases += 1
        fuzzed.statuses[answer.status_code] += 1
        problem = _problem(answer, allowed=allowed)
        if problem is not None:
            fuzzed.failures.append(f"{answer.request.method} {answer.request.url}: {problem}")

    send()
    return fuzzed


def _send(client: httpx.Client, case: Any, *, valid: bool, word: str) -> httpx.Response:
    given_ = case.as_transport_kwargs(base_url="https://testserver")
    headers = {
        name: value
        for name, value in (given_.get("headers") or {}).items()
        if name.lower() not in _FORBIDDEN and str(value).isascii() and str(value).isprintable()
    }
    headers |= {"X-CSRF-Token": word} | ({"Idempotency-Key": secrets.token_hex(8)} if valid else {})
    body = given_.get("json")
    content = given_.get("data") if body is None else json.dumps(body).encode()
    return client.request(
        given_["method"],
        given_["url"],
        params=given_.get("params"),
        headers=headers | ({"Content-Type": "application/json"} if content is not None else {}),
        content=content if isinstance(content, (bytes, str)) else None,
    )


def _problem(answer: httpx.Response, *, allowed: bool) -> str | None:
    """Return what is wrong with an answer."""
    if answer.status_code >= 500:
        return f"{answer.status_code} {answer.text[:500]}"
    if answer.status_code < 400:
        return None if allowed else f"{answer.status_code} for somebody who may not"
    if answer.headers.get("content-type") != "application/problem+json":
        return f"{answer.status_code} is no problem document: {answer.headers.get('content-type')}"
    if not str(answer.json().get("code", "")).startswith("DR"):
        return f"{answer.status_code} has no code: {answer.text[:500]}"
    return None
