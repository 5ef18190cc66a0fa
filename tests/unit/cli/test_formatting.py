from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from drservice.cli.formatting import format_bytes, format_seconds, format_table, format_time, neutralise


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (200 * 1024**2, "200 MiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**6, "5000 EiB"),
    ],
)
def test_sizes_use_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.053, "53 ms"),
        (0.9999, "1 s"),
        (4.25, "4.2 s"),
        (59.97, "1 min"),
        (372, "6 min 12 s"),
        (3600, "1 h"),
        (7380, "2 h 3 min"),
        (273600, "3 d 4 h"),
        (-372, "-6 min 12 s"),
        (timedelta(minutes=30), "30 min"),
    ],
)
def test_durations_show_their_two_largest_units(seconds: float | timedelta, text: str) -> None:
    assert format_seconds(seconds) == text


def test_times_are_shown_in_utc() -> None:
    instant = datetime(2026, 11, 23, 2, 14, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(instant) == "2026-11-23T01:14:00Z"
    assert format_time(datetime(2026, 1, 1, 0, 0, 0, 5, tzinfo=UTC)) == "2026-01-01T00:00:00.000005Z"
    with pytest.raises(ValueError, match="naive"):
        format_time(datetime(2026, 1, 1))  # noqa: DTZ001 - the naive datetime is the point


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("bad\udcff", r"bad\udcff"),
        ("line\u2028sep", r"line\u2028sep"),
        ("\x7f", r"\x7f"),
        ("\u00dcbung \u2713 \u5de5\u5834", "\u00dcbung \u2713 \u5de5\u5834"),
    ],
)
def test_what_could_act_on_a_terminal_is_shown_as_an_escape(hostile: str, shown: str) -> None:
    assert neutralise(hostile) == shown


def test_a_table_stays_aligned_with_wide_and_hostile_cells() -> None:
    lines = format_table(("NAME", "SIZE"), [("\u5de5\u5834", "1"), ("a\x1b[2J", "22")])
    assert lines == ["NAME      SIZE", "\u5de5\u5834      1", r"a\x1b[2J  22"]
