"""What a schema-driven fuzzer sends to every operation of the API is answered, and never with a 5xx.

`make fuzz` sends more, as every role, and writes docs/fuzz.md.
"""

from __future__ import annotations

import pytest
from schemathesis.generation import GenerationMode

from drservice.catalogue.reading import Reading, RecordInfo
from drservice.web.auth.identity import Principal
from drservice.web.auth.permissions import Permission
from tests.doubles.fuzzing import OPERATIONS, STORE, fuzz
from tests.doubles.website import ROLES, Website

EXAMPLES = 20


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
    fuzzed = fuzz(website, operation_id, mode, roles=ROLES, examples=EXAMPLES)
    assert fuzzed.failures == []
    # Only ids of tokens and environments are nobody's here: else what is valid has to get through at least once.
    is_nobodys = "{token}" in fuzzed.path or "{environment}" in fuzzed.path
    assert mode is GenerationMode.NEGATIVE or is_nobodys or min(fuzzed.statuses) < 300


def all_may(principal: Principal, permission: Permission) -> bool:
    del principal, permission
    return True


def fails(reading: Reading, **wanted: object) -> list[RecordInfo]:
    del reading, wanted
    raise ZeroDivisionError


def test_the_fuzzer_sees_a_5xx_and_a_good_answer_to_somebody_who_may_not(
    website: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    website.fill()
    seen = fuzz(website, "api.evidence.list", GenerationMode.POSITIVE, roles=("viewer",), examples=2)
    assert seen.failures == []
    assert set(seen.statuses) == {403}
    monkeypatch.setattr(Principal, "may", all_may)
    seen = fuzz(website, "api.evidence.list", GenerationMode.POSITIVE, roles=("viewer",), examples=2)
    assert "for somebody who may not" in seen.failures[0]
    monkeypatch.setattr(Reading, "records", fails)
    seen = fuzz(website, "api.evidence.list", GenerationMode.POSITIVE, roles=("auditor",), examples=2)
    assert seen.failures[0].partition(": ")[2].startswith("500")
