"""Turns what pydantic found into problems a person can act on: place, path, what was expected.

Values are repeated only by the parsers in ``scalars`` that know theirs to be no secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from pydantic_core import ErrorDetails

from drservice.settings.positions import Document, Path, Plain, Problem, format_path
from drservice.settings.schema import Configuration

_FIXED = {
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (`name: ...`)",
    "model_type": "a mapping (`key: value`)",
    "model_attributes_type": "a mapping (`key: value`)",
}

_SENTENCES = {
    "literal_error": "expected {expected}",
    "union_tag_invalid": "expected one of the kinds {expected_tags}",
    "union_tag_not_found": "`kind` is required here, such as `kind: postgres`",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "too_short": "expected at least {min_length} entry",
    "string_too_short": "expected text that is not empty",
}


def explain(errors: Sequence[ErrorDetails], document: Document) -> list[Problem]:
    """Return one problem for each of pydantic's errors."""
    schema = Configuration.model_json_schema()
    return [_explain_one(error, document, schema) for error in errors]


def known_keys(schema: Mapping[str, object], loc: Sequence[int | str]) -> list[str]:
    """Return the settings that exist at a location of the JSON Schema."""
    node = _resolve(schema, schema)
    for part in loc:
        node = _resolve(_step(node, part), schema)
    properties = node.get("properties")
    return list(properties) if isinstance(properties, Mapping) else []


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that ``word`` was most likely meant to be."""
    found = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return found[0] if found else None


def _explain_one(error: ErrorDetails, document: Document, schema: Mapping[str, object]) -> Problem:
    kind, loc = error["type"], error["loc"]
    path, at_key = _locate(error, document.data)
    shown = format_path(path)
    if kind == "extra_forbidden":
        message = _unknown_key(str(loc[-1]), known_keys(schema, loc[:-1]))
        return Problem(mark=document.key_mark(path), path=shown, message=message)
    if kind == "missing":
        mark = document.key_mark(path[:-1])
        return Problem(mark=mark, path=shown, message=f"`{path[-1]}` is required here")
    if kind == "union_tag_invalid":
        path = (*path, "kind")
    mark = document.key_mark(path) if at_key else document.value_mark(path)
    return Problem(mark=mark, path=format_path(path), message=_expectation(error, path))


def _expectation(error: ErrorDetails, path: Path) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _FIXED:
        return f"expected {_FIXED[kind]}, not {_describe(error['input'])}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error" and path == ("version",):
        return "expected version 1, the only one this program reads"
    sentence = _SENTENCES.get(kind)
    return sentence.format(**context) if sentence is not None else error["msg"]


def _describe(value: object) -> str:
    if value is None:
        return "nothing (fill it in or remove the key)"
    if isinstance(value, bool):
        return "true or false (put text in quotes)"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def _unknown_key(key: str, known: Sequence[str]) -> str:
    meant = nearest(key, known)
    if meant is not None:
        return f"there is no such setting; did you mean `{meant}`?"
    return f"there is no such setting; known here: {', '.join(known) or 'none'}"


def _locate(error: ErrorDetails, data: Plain) -> tuple[Path, bool]:
    """Map pydantic's location to the file's path, leaving out the tags of unions.

    Returns:
        the path, and whether the key rather than the value is at fault.
    """
    path: list[str | int] = []
    current: Plain = data
    tag_seen = False
    for index, part in enumerate(error["loc"]):
        if part == "[key]":
            return tuple(path), True
        at_component = len(path) == 4 and path[0] == "services" and path[2] == "components"
        if at_component and not tag_seen and isinstance(current, dict) and current.get("kind") == part:
            tag_seen = True
        elif _has(current, part):
            path.append(part)
            current = _get(current, part)
        elif error["type"] == "missing" and index == len(error["loc"]) - 1:
            path.append(part)
    return tuple(path), False


def _has(data: Plain, part: int | str) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _get(data: Plain, part: int | str) -> Plain:
    if isinstance(data, dict):
        return data[str(part)]
    assert isinstance(data, list)
    return data[int(part)]


def _step(node: Mapping[str, object], part: int | str) -> Mapping[str, object]:
    properties = _mapping(node.get("properties"))
    if part in properties:
        return _mapping(properties[str(part)])
    discriminator = _mapping(node.get("discriminator"))
    if discriminator:
        return {"$ref": _mapping(discriminator["mapping"]).get(str(part), "")}
    patterns = _mapping(node.get("patternProperties"))
    if patterns:
        return _mapping(next(iter(patterns.values())))
    for holder in ("additionalProperties", "items"):
        if isinstance(node.get(holder), Mapping):
            return _mapping(node[holder])
    return {}


def _resolve(node: Mapping[str, object], schema: Mapping[str, object]) -> Mapping[str, object]:
    """Follow references, and take the one alternative that is not null."""
    reference = node.get("$ref")
    if isinstance(reference, str):
        definitions = _mapping(schema.get("$defs"))
        return _resolve(_mapping(definitions.get(reference.rpartition("/")[2])), schema)
    alternatives = node.get("anyOf")
    if isinstance(alternatives, list):
        return _resolve(next(item for item in alternatives if item != {"type": "null"}), schema)
    return node


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
