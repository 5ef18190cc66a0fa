"""What an answer is worth: expectations, baselines, and how they are written down."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.model.checks import Baseline, CheckState, Expectation, join_columns
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn

PASSED, FAILED, UNVERIFIED = CheckState.PASSED, CheckState.FAILED, CheckState.UNVERIFIED


@pytest.mark.parametrize(
    ("expect", "value", "state"),
    [
        ("= 0", "0", PASSED),
        ("= 0", 0, PASSED),
        ("= 0", "0.00", PASSED),
        ("= 0", "1", FAILED),
        ("= 0", "", FAILED),
        ("= draft", "draft", PASSED),
        ("= draft", "Draft", FAILED),
        ("= two words", "two words", PASSED),
        ("!= 0", "1", PASSED),
        ("!= 0", "0.0", FAILED),
        (">= 10", "10", PASSED),
        (">= 10", "9.999999999999999999999", FAILED),
        (">=10", Decimal(11), PASSED),
        ("<= 1.5", "1.5", PASSED),
        ("<= 1.5", "1.6", FAILED),
        ("> -1", "0", PASSED),
        ("> 0", "0", FAILED),
        ("< 1e3", "999", PASSED),
        ("< 1", "1", FAILED),
        (">= 1", "NaN", UNVERIFIED),
        (">= 1", "Infinity", UNVERIFIED),
        (">= 1", "many", UNVERIFIED),
        (">= 1", "1_0", UNVERIFIED),
        ("= 90071992547409930", "90071992547409931", FAILED),
    ],
)
def test_an_answer_is_compared_as_a_decimal_or_letter_by_letter(
    expect: str, value: str | int | Decimal, state: CheckState
) -> None:
    found, detail = Expectation.parse(expect).judge(value)
    assert found is state
    assert "expected" in detail


@pytest.mark.parametrize(
    ("expect", "value", "baseline", "state"),
    [
        ("unchanged", "12 | 7.50", "12 | 7.50", PASSED),
        ("unchanged", "7.5", "7.50", PASSED),
        ("unchanged", "11", "12", FAILED),
        ("unchanged", "12", None, UNVERIFIED),
        ("within 1% of baseline", "99", "100", PASSED),
        ("within 1% of baseline", "101", "100", PASSED),
        ("within 1% of baseline", "98.99", "100", FAILED),
        ("within 0.5% of baseline", "-100.5", "-100", PASSED),
        ("within 0.5% of baseline", "-100.6", "-100", FAILED),
        ("within 50% of baseline", "0", "0", PASSED),
        ("within 50% of baseline", "1", "0", FAILED),
        ("within 1% of baseline", "x", "100", UNVERIFIED),
        ("within 1% of baseline", "100", "x", UNVERIFIED),
        ("within 1% of baseline", "100", None, UNVERIFIED),
    ],
)
def test_an_answer_is_compared_with_what_production_said(
    expect: str, value: str, baseline: str | None, state: CheckState
) -> None:
    assert Expectation.parse(expect).judge(value, baseline)[0] is state


@pytest.mark.parametrize(
    "expect", ["= 0", "!= 0", ">= 0", "<= 0", "> 0", "< 0", "= NULL", "unchanged", "within 9% of baseline"]
)
def test_null_never_passes(expect: str) -> None:
    assert Expectation.parse(expect).judge(None, "0")[0] is UNVERIFIED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "== 0",
        "=",
        ">= many",
        "< ",
        "within 1 of baseline",
        "within -1% of baseline",
        "Unchanged",
        "=> 1",
        "<> 1",
    ],
)
def test_what_is_no_expectation_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Expectation.parse(text)


@pytest.mark.parametrize(
    "text", ["= 0", "!= a b", ">= 1", "<= 1", "> 1", "< 1", "unchanged", "within 1.5% of baseline"]
)
def test_an_expectation_is_written_as_it_is_read(text: str) -> None:
    assert str(Expectation.parse(text)) == text
    assert Expectation.parse(str(Expectation.parse(text))) == Expectation.parse(text)


def test_only_comparisons_with_production_need_a_baseline() -> None:
    assert [
        Expectation.parse(text).needs_baseline for text in ("= 0", ">= 1", "unchanged", "within 1% of baseline")
    ] == [
        False,
        False,
        True,
        True,
    ]


def test_a_hostile_answer_is_shown_short_and_escaped() -> None:
    _, detail = Expectation.parse("= 0").judge("\x1b[31m" + "x" * 10_000)
    assert "\x1b" not in detail
    assert len(detail) < 200


def test_columns_are_joined_without_ambiguity_and_null_is_no_answer() -> None:
    assert join_columns(["12"]) == "12"
    assert join_columns(["12", "7.50"]) == "12 | 7.50"
    assert join_columns(["a | b", "c"]) != join_columns(["a", "b | c"])
    assert join_columns(["12", None]) is None
    assert join_columns([]) is None


@given(st.lists(st.text("a| "), min_size=2, max_size=3), st.lists(st.text("a| "), min_size=2, max_size=3))
def test_different_rows_never_join_to_the_same_text(one: list[str], other: list[str]) -> None:
    if one != other:
        assert join_columns(one) != join_columns(other)


BASELINE = Baseline(
    measured_at=datetime(2026, 11, 26, 10, 0, tzinfo=UTC),
    lsn=Lsn.parse("1/2A0"),
    snapshot_xmin=(1 << 40) + 7,
    system_id=SystemId("18446744073709551615"),
    values={"posted": "12 | 7.50"},
    problems={"moves": "permission denied"},
)


def test_a_baseline_survives_canonical_json() -> None:
    assert Baseline.from_json(parse_canonical(canonical_bytes(BASELINE.as_json()))) == BASELINE


@pytest.mark.parametrize(
    "change",
    [
        {"lsn": "nowhere"},
        {"snapshot_xmin": "-1"},
        {"snapshot_xmin": "18446744073709551616"},
        {"snapshot_xmin": 7},
        {"values": ["12"]},
        {"values": {"posted": 12}},
        {"measured_at": "2026-11-26T10:00:00"},
        {"more": "than known"},
    ],
)
def test_a_baseline_that_is_none_is_refused(change: dict[str, Json]) -> None:
    data = BASELINE.as_json()
    assert isinstance(data, dict)
    with pytest.raises(ValueError):
        Baseline.from_json({**data, **change})


def test_a_question_that_production_could_not_answer_has_a_reason() -> None:
    assert BASELINE.value("posted").value == "12 | 7.50"
    assert BASELINE.value("moves").problem == "permission denied"
    assert BASELINE.value("never asked").value is None
    assert BASELINE.value("never asked").problem
