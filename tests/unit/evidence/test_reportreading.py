"""Statements become typed values, and whatever does not have the agreed shape is told and not passed over."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from drservice.canonical import Json
from drservice.evidence.reportentries import DecodedEntry, DrillEntry, KeyEntry, Unreadable
from drservice.evidence.reportreading import read_entry
from tests.doubles.evidencestory import Story, at, whole_quarter

EXAMPLES = {str(s["predicateType"]).split(":")[3]: s for s in whole_quarter().statements}


def read(statement: dict[str, Json]) -> object:
    return read_entry(DecodedEntry(number=7, statement=statement, signers=("dr1",)))


def fields_of(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name)
            yield from fields_of(item, (*path, name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from fields_of(item, (*path, place))


def place(value: Json, path: tuple[str | int, ...]) -> dict[str | int, Json]:
    for name in path:
        value = value[name]  # type: ignore[index] # the path was made from this very value
    assert isinstance(value, (dict, list))
    return value  # type: ignore[return-value] # a list takes its places the same way


def test_all_kinds_of_entries_are_read() -> None:
    assert set(EXAMPLES) == {"backup", "restore", "drill", "obligation", "approval", "probe", "finding", "key"}
    assert [kind for kind, statement in EXAMPLES.items() if isinstance(read(statement), Unreadable)] == []


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_value_of_another_type_anywhere_raises_nothing(kind: str) -> None:
    """Every field is replaced by nonsense: the answer is a value or ``Unreadable``, never an exception."""
    nonsense: list[Json] = [None, "no such word", -1, 10**30, True, [None], {"a": [1]}, "0001-01-01T00:00:00+23:59"]
    for path in [("predicate",), *(("predicate", *path) for path in fields_of(EXAMPLES[kind]["predicate"]))]:
        for value in nonsense:
            broken = copy.deepcopy(EXAMPLES[kind])
            place(broken, path[:-1])[path[-1]] = value
            read(broken)


USED_ONLY_BY_THE_VERIFIER = {
    "repository", "method", "source_bytes", "read_bytes", "stored_bytes", "files", "start_lsn", "stop_lsn", "timeline",
    "documents_missing",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_missing_field_makes_an_entry_unreadable_and_is_named(kind: str) -> None:
    for path in [("predicate", *path) for path in fields_of(EXAMPLES[kind]["predicate"])]:
        name = str(path[-1])
        if name in USED_ONLY_BY_THE_VERIFIER or "phases_ms" in path[:-1] or (kind, name) == ("backup", "method"):
            continue
        broken = copy.deepcopy(EXAMPLES[kind])
        holder = place(broken, path[:-1])
        del holder[path[-1]]
        answer = read(broken)
        assert isinstance(answer, Unreadable), f"{kind} without {path}"
        assert name in answer.reason


def test_an_unknown_kind_is_unreadable() -> None:
    statement = copy.deepcopy(EXAMPLES["backup"])
    statement["predicateType"] = "urn:drservice:evidence:promise:v1"
    answer = read(statement)
    assert isinstance(answer, Unreadable)
    assert "promise" in answer.reason
    statement["predicateType"] = "urn:drservice:evidence:backup:v2"
    assert isinstance(read(statement), Unreadable)


def test_an_empty_statement_is_unreadable() -> None:
    assert read({}) == Unreadable(number=7, reason="statement.predicateType is missing")


def test_fields_of_a_newer_writer_are_allowed() -> None:
    story = Story()
    story.key(at(0), "dr1", "executor", note="new")
    assert isinstance(read(story.statements[0]), KeyEntry)


def test_a_number_no_reader_of_json_counts_to_is_unreadable() -> None:
    story = Story()
    story.drill(at(0), "erp", 1, 0, rto_ms=2**53)
    assert isinstance(read(story.statements[0]), Unreadable)


def test_a_number_is_not_true() -> None:
    story = Story()
    entry = story.obligation(at(0), "erp", 1)
    story.drill(at(0), "erp", 1, entry, rpo_ms=True)
    assert isinstance(read(story.statements[1]), Unreadable)
    story.drill(at(0), "erp", 1, entry)
    assert isinstance(read(story.statements[2]), DrillEntry)
