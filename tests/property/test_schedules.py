"""Slots and windows against a clock on the wall that is read minute by minute, around each kind of change of offset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from hypothesis import example, given, settings
from hypothesis import strategies as st

from drservice.model.calendar import Calendar, Window
from drservice.model.schedule import Cron

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
CHANGES = (
    ("UTC", date(2026, 3, 1)),
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),  # half an hour
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("Antarctica/Troll", date(2026, 3, 29)),  # two hours
    ("Antarctica/Troll", date(2026, 10, 25)),
    ("Asia/Beirut", date(2024, 3, 31)),  # midnight does not exist
    ("America/Havana", date(2024, 11, 3)),  # midnight comes twice
    ("America/St_Johns", date(2010, 11, 7)),  # one minute after midnight, back into the day before
    ("Pacific/Apia", date(2011, 12, 30)),  # a day that does not exist
)


@dataclass(frozen=True)
class Wall:
    """What the clock on the wall shows, minute by minute."""

    zone: ZoneInfo
    minutes: tuple[datetime, ...]

    @classmethod
    def around(cls, zone: ZoneInfo, day: date, *, days: int) -> Wall:
        begin = datetime.combine(day - days * DAY, time(), tzinfo=UTC)
        return cls(zone, tuple(begin + number * MINUTE for number in range(2 * days * 1440)))

    def shown(self) -> Iterator[tuple[datetime, datetime]]:
        for instant in self.minutes:
            yield instant, instant.astimezone(self.zone).replace(tzinfo=None)


@dataclass(frozen=True)
class Wanted:
    """A cron expression as the sets that it stands for, which the oracle compares with."""

    minutes: frozenset[int]
    hours: frozenset[int] | None
    days: frozenset[int] | None
    weekdays: frozenset[int] | None

    @property
    def text(self) -> str:
        def field(values: frozenset[int] | None) -> str:
            return "*" if values is None else ",".join(map(str, sorted(values)))

        return f"{field(self.minutes)} {field(self.hours)} {field(self.days)} * {field(self.weekdays)}"

    def names(self, shown: datetime) -> bool:
        by_month = self.days is None or shown.day in self.days
        by_week = self.weekdays is None or shown.isoweekday() % 7 in self.weekdays
        either = self.days is not None and self.weekdays is not None
        return (
            shown.minute in self.minutes
            and (self.hours is None or shown.hour in self.hours)
            and (by_month or by_week if either else by_month and by_week)
        )


def slots_by_looking(wanted: Wanted, wall: Wall) -> list[datetime]:
    """The documented rules, read off the wall."""
    found: list[datetime] = []
    seen: set[datetime] = set()
    before: datetime | None = None
    for instant, shown in wall.shown():
        elapsed = wanted.hours is None
        is_slot = wanted.names(shown) and (elapsed or shown not in seen)
        if before is not None and not elapsed:
            skipped = before + MINUTE
            while skipped < shown and not is_slot:
                is_slot = wanted.names(skipped) and skipped not in seen
                skipped += MINUTE
        if is_slot:
            found.append(instant)
        seen.add(shown)
        before = shown
    return found


def some(low: int, high: int, most: int) -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.integers(low, high), min_size=1, max_size=most)


CRONS = st.builds(
    Wanted,
    minutes=some(0, 59, 4),
    hours=st.none() | some(0, 4, 3) | some(0, 23, 5),
    days=st.none() | some(1, 31, 8),
    weekdays=st.none() | some(0, 6, 3),
)
NIGHTLY = Wanted(frozenset({30}), frozenset({2}), None, None)
QUARTERS = Wanted(frozenset({0, 15, 30, 45}), None, None, None)


@settings(max_examples=150, deadline=None)
@given(change=st.sampled_from(CHANGES), wanted=CRONS, start=st.integers(0, 2 * 1440))
@example(change=CHANGES[1], wanted=NIGHTLY, start=0)
@example(change=CHANGES[2], wanted=NIGHTLY, start=0)
@example(change=CHANGES[2], wanted=QUARTERS, start=0)
@example(change=CHANGES[5], wanted=QUARTERS, start=0)
@example(change=CHANGES[11], wanted=QUARTERS, start=0)
@example(change=CHANGES[12], wanted=NIGHTLY, start=0)
@example(change=CHANGES[11], wanted=QUARTERS, start=2 * 1440 + 150)  # on the next day, before it falls back
def test_slots_are_what_the_wall_shows(change: tuple[str, date], wanted: Wanted, start: int) -> None:
    zone = ZoneInfo(change[0])
    wall = Wall.around(zone, change[1], days=3)
    after, until = wall.minutes[1440] + start * MINUTE, wall.minutes[-1]
    expected = [slot for slot in slots_by_looking(wanted, wall) if after < slot <= until]
    cron = Cron.parse(wanted.text)
    assert list(cron.slots_between(zone, after=after, until=until)) == expected
    assert list(cron.next_slots(zone, after=after, count=len(expected))) == expected


@settings(max_examples=100, deadline=None)
@given(change=st.sampled_from(CHANGES), wanted=CRONS, cuts=st.lists(st.integers(0, 4 * 1440), max_size=4))
def test_stretches_of_time_that_meet_neither_lose_a_slot_nor_have_one_twice(
    change: tuple[str, date], wanted: Wanted, cuts: list[int]
) -> None:
    zone, cron = ZoneInfo(change[0]), Cron.parse(wanted.text)
    begin = datetime.combine(change[1] - 2 * DAY, time(), tzinfo=UTC)
    edges = [begin, *sorted(begin + cut * MINUTE for cut in cuts), begin + 4 * DAY]
    pieces = [
        slot
        for after, until in itertools.pairwise(edges)
        for slot in cron.slots_between(zone, after=after, until=until)
    ]
    assert pieces == list(cron.slots_between(zone, after=edges[0], until=edges[-1]))
    assert pieces == sorted(set(pieces))


TIMES = st.builds(time, st.integers(0, 23), st.sampled_from((0, 1, 15, 30, 45)))


@dataclass(frozen=True)
class WantedWindow:
    """A window as what it stands for."""

    weekdays: frozenset[int]
    begin: time
    end: time

    @property
    def text(self) -> str:
        names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
        return f"{','.join(names[day] for day in sorted(self.weekdays))} {self.begin:%H:%M}-{self.end:%H:%M}"


WINDOWS = st.builds(WantedWindow, weekdays=some(0, 6, 7), begin=TIMES, end=TIMES).filter(
    lambda window: window.begin != window.end
)


def avoided_by_looking(window: WantedWindow, wall: Wall, holidays: frozenset[date]) -> set[datetime]:
    """From the first minute that shows the beginning or more to the last that shows less than the end."""
    avoided: set[datetime] = set()
    shown = list(wall.shown())
    days = {moment.date() for _, moment in shown}
    for day in days | {day + DAY for day in days} | {day - DAY for day in days}:  # and days that do not exist
        if (6 if day in holidays else day.weekday()) not in window.weekdays:
            continue
        begin = datetime.combine(day, window.begin)
        end = datetime.combine(day if window.end > window.begin else day + DAY, window.end)
        first = next((instant for instant, moment in shown if moment >= begin), None)
        last = next((instant for instant, moment in reversed(shown) if moment < end), None)
        if first is not None and last is not None:
            avoided |= {instant for instant, _ in shown if first <= instant <= last}
    return avoided


@settings(max_examples=60, deadline=None)
@given(
    change=st.sampled_from(CHANGES),
    windows=st.lists(WINDOWS, min_size=1, max_size=2),
    holiday=st.integers(-1, 1),
    asked=st.lists(st.integers(2 * 1440, 4 * 1440), min_size=1, max_size=20),
)
@example(change=CHANGES[2], windows=[WantedWindow(frozenset({6}), time(1), time(2, 30))], holiday=0, asked=[4320])
@example(change=CHANGES[2], windows=[WantedWindow(frozenset({6}), time(1), time(2))], holiday=0, asked=[4319, 4320])
@example(change=CHANGES[1], windows=[WantedWindow(frozenset({6}), time(1), time(3))], holiday=0, asked=[4320 + 30])
def test_windows_hold_while_the_wall_shows_them(
    change: tuple[str, date], windows: list[WantedWindow], holiday: int, asked: list[int]
) -> None:
    zone = ZoneInfo(change[0])
    holidays = frozenset({change[1] + holiday * DAY})
    calendar = Calendar(
        name="p", zone=zone, holidays=holidays, avoid=tuple(Window.parse(window.text) for window in windows)
    )
    wall = Wall.around(zone, change[1], days=5)
    avoided = set().union(*(avoided_by_looking(window, wall, holidays) for window in windows))
    begin = datetime.combine(change[1] - 3 * DAY, time(), tzinfo=UTC)
    for minutes in asked:
        instant = begin + minutes * MINUTE
        found = calendar.avoidance(instant)
        assert (found is not None) == (instant in avoided)
        free = instant
        while free in avoided:
            free += MINUTE
        if found is not None and free < wall.minutes[-1] - 2 * DAY:
            assert found.until == free
