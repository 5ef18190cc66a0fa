"""What is put on record: bounded, whole milliseconds, and never faster than it was."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.canonical import canonical_bytes
from drservice.errors import ReplayError
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.operations.filesrestore import DocumentCounts
from drservice.operations.phases import PHASES
from drservice.operations.records import (
    bounded,
    check_fields,
    document_fields,
    error_fields,
    listing_artefact,
    milliseconds,
    promised_ms,
    recovery_fields,
    texts,
)


@given(st.floats(min_value=0, max_value=1e7))
def test_a_record_never_says_faster_than_it_was(seconds: float) -> None:
    found = milliseconds(seconds)
    assert found is not None
    assert found - 1 < seconds * 1000 <= found


def test_what_was_not_measured_is_not_zero() -> None:
    assert milliseconds(None) is None
    assert promised_ms(None) is None
    assert (milliseconds(-0.5), milliseconds(0.0001), milliseconds(1.5)) == (0, 1, 1500)
    assert promised_ms(timedelta(minutes=2)) == 120_000


@given(st.text(max_size=2000))
def test_a_text_is_bounded_and_a_cut_is_visible(text: str) -> None:
    found = bounded(text, 100)
    assert len(found) <= 100
    assert found == text or found.endswith(" [shortened]")


def test_what_is_no_unicode_is_spelt_out() -> None:
    assert bounded("name \udcff") == "name \\udcff"


def test_a_list_of_texts_counts_what_it_leaves_out() -> None:
    assert texts(["a", "b"]) == ["a", "b"]
    found = texts(f"reason {number}" for number in range(40))
    assert (len(found), found[-1]) == (25, "and 16 more")


@pytest.mark.parametrize("phases", [None, dict.fromkeys(PHASES, 0.25)])
def test_a_recovery_that_did_not_end_has_no_phases(phases: dict[str, float] | None) -> None:
    fields = recovery_fields(
        point=None,
        snapshots=[("database", "S1")],
        phases=phases,
        rto_seconds=1.0,
        documents=None,
        isolation=(),
        environment=("E1", "sandbox"),
        error=None,
    )
    assert fields["phases_ms"] == (None if phases is None else dict.fromkeys(PHASES, 250))
    assert (fields["rto_ms"], fields["documents"], fields["error"]) == (1000, None, None)
    assert fields["environment"] == {"id": "E1", "kind": "sandbox"}
    canonical_bytes(fields)


def test_documents_are_counted_each_for_itself() -> None:
    counts = DocumentCounts(expected=5, missing=1) + DocumentCounts(expected=2, corrupt=1, extra=3)
    assert document_fields(counts) == {
        "expected": 7,
        "missing": 1,
        "corrupt": 1,
        "extra": 3,
        "missing_in_production": 0,
    }
    assert document_fields(None) is None


def test_checks_and_errors_are_bounded_too() -> None:
    result = CheckResult(
        name="business:x",
        state=CheckState.FAILED,
        severity=Severity.CRITICAL,
        detail="d" * 5000,
        seconds=0.0012,
        owner=None,
    )
    (fields,) = check_fields([result])
    assert isinstance(fields, dict)
    assert (fields["state"], fields["duration_ms"], fields["owner"]) == ("failed", 2, None)
    assert len(str(fields["detail"])) == 240
    error = error_fields(ReplayError("m" * 5000))
    assert error is not None
    assert (error["code"], len(str(error["message"]))) == ("DR312", 400)


def test_equal_lists_give_equal_artefacts() -> None:
    assert listing_artefact({"missing": ["b", "a"]}) == listing_artefact({"missing": iter(["a", "b"])})
    assert listing_artefact({"missing": ["a"]}) != listing_artefact({"corrupt": ["a"]})
