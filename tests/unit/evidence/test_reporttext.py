"""Text in reports: hostile text shows itself, numbers have units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from drservice.evidence.reporttext import MAX_TEXT, count_of, format_instant, format_ms, neutralise


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("line\u2028break", r"line\u2028break"),
        ("\x85\x9b", r"\x85\x9b"),
        ("lone \ud800", r"lone \ud800"),
        ("private \ue000", r"private \ue000"),
        ("blank\u3164", r"blank\u3164"),
    ],
)
def test_what_would_hide_or_act_is_written_as_an_escape(hostile: str, shown: str) -> None:
    assert neutralise(hostile) == shown


def test_letters_of_every_script_stay() -> None:
    text = "Größe, Прага, 東京, שלום"
    assert neutralise(text) == text


def test_a_letter_with_its_accent_stays_and_a_tower_of_marks_does_not() -> None:
    assert neutralise("e\u0301") == "\u00e9"
    assert neutralise("a" + "\u0316" * 50).count("\u0316") == 2


def test_long_text_says_how_much_of_it_is_not_shown() -> None:
    shown = neutralise("x" * (MAX_TEXT + 1234))
    assert shown.startswith("x" * MAX_TEXT)
    assert shown.endswith("[1,234 more characters]")
    assert neutralise("x" * MAX_TEXT) == "x" * MAX_TEXT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (4250, "4.3 s"),
        (59_949, "59.9 s"),
        (59_950, "1 min"),
        (372_000, "6 min 12 s"),
        (3_600_000, "1 h"),
        (90_000_000, "1 d 1 h"),
        (-1500, "-1.5 s"),
    ],
)
def test_durations_have_their_two_largest_units(value: int | None, text: str) -> None:
    assert format_ms(value) == text


def test_instants_are_told_in_utc_wherever_they_come_from() -> None:
    elsewhere = datetime(2026, 3, 1, 1, 30, 0, 250_000, tzinfo=timezone(timedelta(hours=2)))
    assert format_instant(elsewhere) == "2026-02-28 23:30:00 UTC"
    assert format_instant(elsewhere, exact=True) == "2026-02-28 23:30:00.250 UTC"
    assert format_instant(None) == "-"
    assert format_instant(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01 00:00:00 UTC"


def test_counts_have_a_singular() -> None:
    assert (count_of(1, "drill"), count_of(1200, "entry", "entries")) == ("1 drill", "1,200 entries")
