from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from drservice.model.calendar import UTC_CALENDAR, Calendar, NamedPeriod, Window, first_instant, last_instant

BERLIN = ZoneInfo("Europe/Berlin")


def plant(*avoid: str, holidays: tuple[date, ...] = (), **periods: str) -> Calendar:
    return Calendar(
        name="plant-a",
        zone=BERLIN,
        holidays=frozenset(holidays),
        avoid=tuple(Window.parse(text) for text in avoid),
        periods={name.replace("_", "-"): NamedPeriod.parse(text) for name, text in periods.items()},
    )


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).astimezone(UTC)


def until(calendar: Calendar, text: str) -> datetime | None:
    avoidance = calendar.avoidance(berlin(text))
    assert avoidance is not None
    return avoidance.until


def test_a_shift_holds_from_its_beginning_until_before_its_end() -> None:
    calendar = plant("Mon-Fri 05:30-22:30")
    assert calendar.avoidance(berlin("2026-11-26 05:29:59")) is None
    assert until(calendar, "2026-11-26 05:30") == berlin("2026-11-26 22:30")
    assert until(calendar, "2026-11-26 22:29:59") == berlin("2026-11-26 22:30")
    assert calendar.avoidance(berlin("2026-11-26 22:30")) is None
    assert calendar.avoidance(berlin("2026-11-28 12:00")) is None, "a Saturday"


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    calendar = plant("Fri 22:00-06:00")
    assert until(calendar, "2026-11-28 05:59") == berlin("2026-11-28 06:00")
    assert calendar.avoidance(berlin("2026-11-27 05:59")) is None


def test_windows_that_meet_are_one() -> None:
    calendar = plant("Fri 14:00-22:00", "Fri 21:00-06:00", "Sat", "Sun 00:00-12:00")
    assert until(calendar, "2026-11-27 15:00") == berlin("2026-11-29 12:00")


def test_windows_without_end_are_told_as_such() -> None:
    avoidance = plant("Mon-Sun").avoidance(berlin("2026-11-27 15:00"))
    assert avoidance is not None
    assert (avoidance.window, avoidance.until) == ("Mon-Sun", None)


def test_a_holiday_is_a_sunday() -> None:
    thursday = date(2026, 12, 24)
    calendar = plant("Mon-Fri 05:30-22:30", "Sun 08:00-10:00", holidays=(thursday,))
    assert calendar.avoidance(berlin("2026-12-24 12:00")) is None
    assert until(calendar, "2026-12-24 09:00") == berlin("2026-12-24 10:00")
    assert until(calendar, "2026-12-23 12:00") == berlin("2026-12-23 22:30")


def test_a_window_covers_both_passes_of_a_repeated_hour() -> None:
    calendar = plant("Sun 01:00-02:30")
    ends = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)  # 02:30 the second time
    assert until(calendar, "2026-10-25 01:00") == ends
    assert calendar.avoidance(ends - timedelta(minutes=45)) is not None, "02:45 the first time"


def test_a_window_that_ends_when_clocks_go_back_to_its_end_ends_at_the_first_pass() -> None:
    assert until(plant("Sun 01:00-02:00"), "2026-10-25 01:30") == datetime(2026, 10, 25, 0, tzinfo=UTC)
    assert until(plant("Sun 01:00-03:00"), "2026-10-25 01:30") == datetime(2026, 10, 25, 2, tzinfo=UTC)


def test_a_window_that_begins_or_ends_in_a_gap_does_so_at_its_end() -> None:
    gap_ends = datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert until(plant("Sun 01:00-02:30"), "2026-03-29 01:30") == gap_ends
    assert plant("Sun 02:30-05:00").avoidance(gap_ends - timedelta(seconds=1)) is None
    assert plant("Sun 02:30-05:00").avoidance(gap_ends) is not None


def test_a_period_in_place_of_days() -> None:
    calendar = plant("month-close 06:00-20:00", month_close="last 2 days and first 1 day")
    for day in ("2027-02-27", "2027-02-28", "2027-03-01"):
        assert until(calendar, f"{day} 12:00") == berlin(f"{day} 20:00")
        assert calendar.periods_at(berlin(f"{day} 00:00")) == ("month-close",)
    for day in ("2027-02-26", "2027-03-02"):
        assert calendar.avoidance(berlin(f"{day} 12:00")) is None
        assert calendar.periods_at(berlin(f"{day} 23:59")) == ()


def test_a_period_from_one_day_to_another_holds_whole_days() -> None:
    calendar = plant("shutdown", shutdown="2026-12-21 to 2027-01-03")
    assert until(calendar, "2026-12-21 00:00") == berlin("2027-01-04 00:00")
    assert calendar.avoidance(berlin("2026-12-20 23:59")) is None


@pytest.mark.parametrize(
    ("text", "days", "period"),
    [
        ("Mon-Fri 05:30-22:30", {0, 1, 2, 3, 4}, None),
        ("mon,WED 05:30-22:30", {0, 2}, None),
        ("Fri-Mon", {4, 5, 6, 0}, None),
        ("Sat,Sun", {5, 6}, None),
        ("22:00-06:00", set(range(7)), None),
        ("00:00-24:00", set(range(7)), None),
        ("month-close", set(), "month-close"),
        ("sun-break 08:00-18:00", set(), "sun-break"),
    ],
)
def test_a_window_is_read(text: str, days: set[int], period: str | None) -> None:
    window = Window.parse(text)
    assert window.weekdays == days
    assert window.period == period


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mon Fri",
        "Mon-Fri 5:30-22:30",
        "Mon-Fri 05:30",
        "05:30-05:30",
        "05:30-25:00",
        "24:00-06:00",
        "Mon,Feiertag",
        "Mon-Fri 05:30-22:30 06:00-07:00",
        "Mon-Fri\x1b[2J",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|at the same time"):
        Window.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "sometimes", "first 0 days", "last 32 days", "2026-13-01", "2026-12-24 to 2026-12-01", "first 2 days and"],
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|backward"):
        NamedPeriod.parse(text)


def test_times_of_a_day_that_does_not_exist_are_the_next_day() -> None:
    apia = ZoneInfo("Pacific/Apia")
    noon = datetime.combine(date(2011, 12, 30), time(12))
    assert first_instant(apia, noon) == last_instant(apia, noon) == datetime(2011, 12, 30, 10, tzinfo=UTC)


def test_who_names_no_calendar_is_never_held_back() -> None:
    assert UTC_CALENDAR.avoidance(berlin("2026-11-26 12:00")) is None
