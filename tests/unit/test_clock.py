"""Times are aware and in UTC, written in one way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.clock import SystemClock, from_iso, to_iso


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 1, 1)), st.integers(-14, 14))  # noqa: DTZ001 - hypothesis wants naive limits
def test_an_instant_comes_back_whatever_its_zone(naive: datetime, hours: int) -> None:
    instant = naive.replace(tzinfo=timezone(timedelta(hours=hours)))
    text = to_iso(instant)
    assert from_iso(text) == instant
    assert text.endswith("Z")
    assert len(text) == len("2026-01-01T00:00:00.000000Z")


def test_text_sorts_like_time() -> None:
    instants = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=n * 999_999) for n in range(50)]
    assert [to_iso(one) for one in instants] == sorted(to_iso(one) for one in instants)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        to_iso(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(ValueError, match="no time zone"):
        from_iso("2026-01-01T00:00:00")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "1767225600"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_iso(text)


def test_offsets_are_understood() -> None:
    assert from_iso("2026-01-01T02:00:00+02:00") == datetime(2026, 1, 1, tzinfo=UTC)


def test_the_system_clock_is_aware_and_moves() -> None:
    clock = SystemClock()
    began, mark = clock.now(), clock.monotonic()
    clock.sleep(0.01)
    assert began.tzinfo is UTC
    assert clock.now() > began
    assert clock.monotonic() - mark >= 0.01
