"""What a schema-driven fuzzer sends to every operation of the API is answered, and never with a 5xx.

Operations that open a repository are left out: there is none here, and a store that is away is a 5xx honestly.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import openapi
from schemathesis.generation import GenerationMode

from drservice.catalogue.runs import RunRequest
from drservice.model.runs import RunKind
from drservice.web.app import ROUTES
from tests.doubles.website import Website, csrf, tell_environment

EXAMPLES = 40
STORE = {"api.evidence.bundle", "api.evidence.verify", "api.gate.ask"}
OPERATIONS = sorted(route.name for route in ROUTES if route.in_schema and route.name not in STORE)
FORBIDDEN = {"host", "cookie", "authorization", "content-length", "transfer-encoding", "connection"}


def test_the_description_is_openapi_3_1_and_names_every_operation(website: Website) -> None:
    document = website.client(website.token("viewer")).get("/api/v1/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    named = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    assert named == set(OPERATIONS) | STORE
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            refusals = {status for status in operation["responses"] if status.startswith(("4", "5"))}
            assert {"401", "403", "422", "429", "503"} <= refusals, (method, path)
            if method == "post":
                assert "Idempotency-Key" in {item["name"] for item in operation["parameters"]}, path


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_whatever_is_sent_there_is_no_5xx(website: Website, operation_id: str, mode: GenerationMode) -> None:
    website.fill()
    run = website.site.queue.enqueue(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="somebody"))
    assert run is not None
    if operation_id == "api.runs.events":  # a stream is over when its run is
        website.site.runs.cancel(run, "somebody")
    browser = website.browser("all", "viewer", "auditor", "operator", "restorer", "admin")
    word = csrf(browser)
    schema: Any = openapi.from_dict(browser.get("/api/v1/openapi.json").json())
    operation = next(
        found.ok() for found in schema.get_all_operations() if found.ok().definition.raw["operationId"] == operation_id
    )

    valid = mode is GenerationMode.POSITIVE
    environment = tell_environment(website.site.database)
    existing = {"service": "erp", "run": run, "environment": environment, "entry": 1} if valid else {}
    named = {name: value for name, value in existing.items() if f"{{{name}}}" in operation.path}
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, **({"path_parameters": named} if named else {})))
    def send(case: Any) -> None:
        given_ = case.as_transport_kwargs(base_url="https://testserver")
        headers = {
            name: value
            for name, value in (given_.get("headers") or {}).items()
            if name.lower() not in FORBIDDEN and str(value).isascii() and str(value).isprintable()
        }
        headers |= {"X-CSRF-Token": word} | ({"Idempotency-Key": secrets.token_hex(8)} if valid else {})
        body = given_.get("json")
        content = given_.get("data") if body is None else json.dumps(body).encode()
        answer = browser.request(
            given_["method"],
            given_["url"],
            params=given_.get("params"),
            headers=headers | ({"Content-Type": "application/json"} if content is not None else {}),
            content=content if isinstance(content, (bytes, str)) else None,
        )
        assert answer.status_code < 500, answer.text
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"].startswith("DR")

    send()
    # Only ids of tokens are nobody's here: everything else that is valid has to get through at least once.
    assert not valid or "{token}" in operation.path or min(statuses) < 300
