from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from drservice.model.schedule import Cron


@pytest.mark.parametrize(
    "text", ["*/5 * * * *", "0 1 * * MON-FRI", "0 0 1 jan,jul *", "0 6 1 1,4,7,10 *", "5-50/5 * * * 7"]
)
def test_a_cron_expression_is_accepted(text: str) -> None:
    assert Cron.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "* * * *",
        "60 * * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "x * * * *",
        "1, * * * *",
        "@daily",
        "1-2-3 * * * *",
        "*/ * * * *",
        "٣ * * * *",
        "0 1 30 2 *",
        "0 1 31 2,4,6,9,11 *",
    ],
)
def test_what_is_no_cron_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|runs backward|never happen"):
        Cron.parse(text)


def slots(text: str, zone: str, after: datetime, count: int) -> list[str]:
    found = Cron.parse(text).next_slots(ZoneInfo(zone), after=after, count=count)
    return [slot.isoformat(timespec="minutes").replace("+00:00", "Z") for slot in found]


def test_a_slot_in_a_repeated_hour_happens_once_at_the_first_pass() -> None:
    after = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert slots("30 2 * * *", "Europe/Berlin", after, 2) == ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]


def test_a_slot_that_was_had_in_the_first_pass_does_not_come_again_in_the_second() -> None:
    between = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 the second time
    assert slots("30 2 * * *", "Europe/Berlin", between, 1) == ["2026-10-26T01:30Z"]


def test_a_slot_in_a_gap_happens_at_its_end() -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert slots("30 2 * * *", "Europe/Berlin", after, 2) == ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]
    assert slots("10,20,50 2 * * *", "America/New_York", datetime(2026, 3, 8, tzinfo=UTC), 2) == [
        "2026-03-08T07:00Z",
        "2026-03-09T06:10Z",
    ], "several slots in one gap are one"


def test_half_an_hour_is_a_gap_as_well() -> None:
    after = datetime(2026, 10, 3, tzinfo=UTC)
    assert slots("15 2 * * *", "Australia/Lord_Howe", after, 2) == ["2026-10-03T15:30Z", "2026-10-04T15:15Z"]


def test_a_schedule_for_every_hour_goes_by_elapsed_time() -> None:
    back, forward = datetime(2026, 10, 24, 23, tzinfo=UTC), datetime(2026, 3, 28, 23, 30, tzinfo=UTC)
    hourly = ["2026-10-25T00:00Z", "2026-10-25T01:00Z", "2026-10-25T02:00Z"]
    assert slots("0 * * * *", "Europe/Berlin", back, 3) == hourly
    assert slots("0 0-23 * * *", "Europe/Berlin", back, 3) == hourly
    assert slots("30 * * * *", "Europe/Berlin", forward, 2) == ["2026-03-29T00:30Z", "2026-03-29T01:30Z"]


def test_the_days_of_month_and_week_are_joined_as_in_crontab() -> None:
    after = datetime(2026, 11, 1, tzinfo=UTC)
    assert slots("0 6 13 * 5", "UTC", after, 3) == ["2026-11-06T06:00Z", "2026-11-13T06:00Z", "2026-11-20T06:00Z"]
    assert slots("0 6 */13 * 5", "UTC", after, 2) == ["2026-11-27T06:00Z", "2027-01-01T06:00Z"], "1, 14, 27 and Friday"
    assert slots("0 6 * * 7", "UTC", after, 1) == slots("0 6 * * sun", "UTC", after, 1) == ["2026-11-01T06:00Z"]


def test_a_leap_day_is_found_over_eight_years() -> None:
    assert slots("0 0 29 2 *", "UTC", datetime(2096, 3, 1, tzinfo=UTC), 1) == ["2104-02-29T00:00Z"]


def test_a_slot_belongs_to_the_stretch_that_it_ends() -> None:
    cron, slot = Cron.parse("0 1 * * *"), datetime(2026, 11, 26, 1, tzinfo=UTC)
    utc, minute = ZoneInfo("UTC"), timedelta(minutes=1)
    assert list(cron.slots_between(utc, after=slot - minute, until=slot)) == [slot]
    assert list(cron.slots_between(utc, after=slot, until=slot + minute)) == []
    assert cron.next_slot(utc, after=slot) == slot + timedelta(days=1)
