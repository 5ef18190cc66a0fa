"""What may be put on record the auditor's verifier takes: it has the schemas a second time, in its own words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from drservice.evidence import verification

SCHEMAS = Path(verification.__file__).parent / "schemas"
KINDS = sorted(path.stem for path in SCHEMAS.glob("*.json"))
SPELLED = {
    "ulid": "01JZZZZZZZZZZZZZZZZZZZZZZZ",
    "name": "erp",
    "time": "2026-11-27T00:00:00.000000Z",
    "sha256": "0" * 64,
    "lsn": "0/5000028",
    "key": "ed25519:" + "0" * 64,
    "day": "2026-11-27",
    "text": "text",
}
PATTERNS = ("DR999", "0" * 16, "ed25519:" + "0" * 64, "0" * 32, "2026-11-27", "backup", "0" * 64, "erp")


def example(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Return a value of a schema that has every field it may have."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return SPELLED[name] if name in SPELLED else example(definitions[name], definitions)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], definitions)
    if schema.get("type") == "object":
        return {name: example(item, definitions) for name, item in schema["properties"].items()}
    if schema.get("type") == "array":
        return [example(schema["items"], definitions)]
    return plain(schema)


def plain(schema: dict[str, Any]) -> Any:
    """Return a value of a schema that has no parts."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "pattern" in schema:
        return next(text for text in PATTERNS if re.fullmatch(schema["pattern"], text))
    return {"string": "text", "integer": 1, "boolean": True}[schema["type"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_with_every_field_of_its_schema_is_taken_by_the_verifier(kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    predicate = example(schema["properties"]["predicate"], schema["$defs"])
    assert verification._PREDICATES[kind](predicate) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_no_schema_has_is_refused_by_both(kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    predicate = example(schema["properties"]["predicate"], schema["$defs"])
    assert schema["properties"]["predicate"]["additionalProperties"] is False
    assert verification._PREDICATES[kind]({**predicate, "unknown": 1}) == ".unknown"


KINDS_OF_TARGET = ("latest", "consistent", "time", "random")


@pytest.mark.parametrize("target", KINDS_OF_TARGET)
def test_every_kind_of_target_that_an_obligation_may_have_is_known_to_the_verifier(target: str) -> None:
    schema = json.loads((SCHEMAS / "obligation.json").read_text())
    predicate = schema["properties"]["predicate"]
    assert tuple(predicate["properties"]["target"]["properties"]["kind"]["enum"]) == KINDS_OF_TARGET
    obligation = example(predicate, schema["$defs"])
    obligation["target"]["kind"] = target
    assert verification._PREDICATES["obligation"](obligation) is None
