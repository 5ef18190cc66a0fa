"""Working time: time zones, holidays, named periods, and the windows in which heavy work is avoided.

What is promised:

* A window is one stretch of time: from the first moment at which the clock on the wall shows its beginning or more to
  the last moment at which it shows less than its end. Over an hour that a zone repeats it therefore covers both passes,
  and a time that a zone skips counts as the first instant after the gap.
* A window that ends at or before its beginning runs over midnight and belongs to the day on which it begins.
* A holiday counts as a Sunday for windows: ``Mon-Fri`` leaves it out, ``Sun`` covers it. Schedules are not windows:
  a nightly backup also runs on a holiday.
"""

from __future__ import annotations

import calendar as months
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

from drservice.model.ids import is_name

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of ``date.weekday``."""
_DAY = timedelta(days=1)
_MOMENT = timedelta(seconds=1)
_HORIZON_DAYS = 62
"""Windows that follow each other without a break for longer than this are taken to have no end."""
_SUNDAY = 6
_TIMES = re.compile(r"([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})")
_SOME_DAYS = re.compile(r"(first|last) ([0-9]{1,2}) days?")


class DuringAvoid(Enum):
    """What happens to heavy work that falls into a window."""

    DELAY = "delay"
    """It starts when the window ends, unless an objective would break; then it starts throttled."""
    THROTTLE = "throttle"
    """It starts at once, with less of the machine."""


def is_skipped(zone: ZoneInfo, local: datetime) -> bool:
    """Tell whether a time without a zone is one that clocks in ``zone`` never show."""
    return not _shows(zone, local.replace(tzinfo=zone).astimezone(UTC), local)


def first_instant(zone: ZoneInfo, local: datetime) -> datetime:
    """Return the first instant (UTC) at which clocks in ``zone`` show ``local`` or, in a gap, a later time."""
    instant = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    return instant if _shows(zone, instant, local) else _end_of_gap(zone, local)


def last_instant(zone: ZoneInfo, local: datetime) -> datetime:
    """Return the last instant (UTC) at which clocks in ``zone`` come to ``local``; in a gap, its end."""
    instant = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return instant if _shows(zone, instant, local) else _end_of_gap(zone, local)


def _end_before(zone: ZoneInfo, local: datetime) -> datetime:
    """Return the end of the last moment at which clocks show less than ``local``.

    That is not the last ``local``: clocks that go back to 02:00 show it twice, and nothing before it after the first.
    Windows and changes of offset begin and end on whole seconds.
    """
    before = local - _MOMENT
    return _end_of_gap(zone, before) if is_skipped(zone, before) else last_instant(zone, before) + _MOMENT


def _shows(zone: ZoneInfo, instant: datetime, local: datetime) -> bool:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0) == local


def _end_of_gap(zone: ZoneInfo, local: datetime) -> datetime:
    """Find the change of offset: PEP 495 puts a skipped time before it with fold 1 and after it with fold 0."""
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    after = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySpan:
    """Days from one to another, both included."""

    first: date
    last: date

    def covers(self, day: date) -> bool:
        """Tell whether ``day`` is one of them."""
        return self.first <= day <= self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthDays:
    """The first or the last days of each month."""

    from_end: bool
    count: int

    def covers(self, day: date) -> bool:
        """Tell whether ``day`` is one of them."""
        if not self.from_end:
            return day.day <= self.count
        return day.day > months.monthrange(day.year, day.month)[1] - self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPeriod:
    """Days with a name, such as ``month-close``."""

    text: str
    parts: tuple[DaySpan | MonthDays, ...]

    @classmethod
    def parse(cls, text: str) -> NamedPeriod:
        """Read ``first 2 days``, ``last 3 days``, ``2026-12-21 to 2027-01-06`` or several with ``and`` between.

        Raises:
            ValueError: with what was expected.
        """
        return cls(text=text, parts=tuple(_parse_days(part.strip()) for part in text.split(" and ")))

    def covers(self, day: date) -> bool:
        """Tell whether ``day`` belongs to it."""
        return any(part.covers(day) for part in self.parts)


def _parse_days(text: str) -> DaySpan | MonthDays:
    if match := _SOME_DAYS.fullmatch(text):
        count = int(match[2])
        if not 1 <= count <= 31:
            raise ValueError(f"a month has no {match[1]} {count} days; expected 1 to 31")
        return MonthDays(from_end=match[1] == "last", count=count)
    first, _, last = text.partition(" to ")
    try:
        span = DaySpan(first=date.fromisoformat(first), last=date.fromisoformat(last or first))
    except ValueError:
        raise ValueError(
            "expected `first N days`, `last N days`, a day, `DAY to DAY` (YYYY-MM-DD), or several with `and` between"
        ) from None
    if span.last < span.first:
        raise ValueError(f"the period {first} to {last} runs backward")
    return span


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A weekly time, or a time on the days of a named period."""

    text: str
    weekdays: frozenset[int]
    """As ``date.weekday``; empty if ``period`` is set."""
    period: str | None
    begin: time
    end: time
    """``00:00`` is the end of the day."""

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read ``Mon-Fri 05:30-22:30``, ``Sat,Sun``, ``22:00-06:00``, ``month-close`` or ``month-close 08:00-18:00``.

        Raises:
            ValueError: with what was expected.
        """
        words = text.split()
        times = _TIMES.fullmatch(words[-1]) if words else None
        days = words[:-1] if times else words
        if not words or len(days) > 1:
            raise ValueError("expected days, times or both, such as `Mon-Fri 05:30-22:30`, `Sun` or `22:00-06:00`")
        weekdays, period = _parse_weekdays(days[0]) if days else (frozenset(range(7)), None)
        begin, end = (_parse_time(times[1]), _parse_time(times[2], end=True)) if times else (time(), time())
        if times and begin == end and begin != time():
            raise ValueError("the window begins and ends at the same time; leave the times out for whole days")
        return cls(text=text, weekdays=weekdays, period=period, begin=begin, end=end)

    def stretch(self, zone: ZoneInfo, day: date) -> tuple[datetime, datetime]:
        """Return its first instant on ``day`` and the first instant after it."""
        last_day = day if self.end > self.begin else day + _DAY
        return (
            first_instant(zone, datetime.combine(day, self.begin)),
            _end_before(zone, datetime.combine(last_day, self.end)),
        )


def _parse_time(text: str, *, end: bool = False) -> time:
    if end and text == "24:00":
        return time()
    try:
        return time.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text} is no time of a day; expected 00:00 to 23:59, or 24:00 as an end") from None


def _parse_weekdays(text: str) -> tuple[frozenset[int], str | None]:
    """Return the days of ``Mon-Wed,Fri``, or the name of a period; ``Fri-Mon`` runs over the end of the week."""
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
            if is_name(text) and not found:
                return frozenset(), text
            raise ValueError(f"{ascii(part)[1:-1][:40]} is no day; expected Mon, Tue, Wed, Thu, Fri, Sat or Sun")
        begin = WEEKDAYS.index(first)
        length = (WEEKDAYS.index(last) - begin) % 7 if dash else 0
        found |= {(begin + step) % 7 for step in range(length + 1)}
    return frozenset(found), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoidance:
    """A moment lies in a window: which one, and when windows no longer hold."""

    window: str
    until: datetime | None
    """UTC; ``None`` if windows follow each other without a foreseeable end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """The working time of a plant."""

    name: str
    zone: ZoneInfo
    holidays: frozenset[date] = frozenset()
    avoid: tuple[Window, ...] = ()
    during_avoid: DuringAvoid = DuringAvoid.DELAY
    periods: Mapping[str, NamedPeriod] = field(default_factory=dict)

    def weekday(self, day: date) -> int:
        """Return the day of the week as ``date.weekday``; a holiday is a Sunday."""
        return _SUNDAY if day in self.holidays else day.weekday()

    def periods_at(self, instant: datetime) -> tuple[str, ...]:
        """Return the named periods that ``instant`` lies in."""
        day = instant.astimezone(self.zone).date()
        return tuple(name for name, period in self.periods.items() if period.covers(day))

    def avoidance(self, instant: datetime) -> Avoidance | None:
        """Return the window that ``instant`` lies in and when the last of adjoining windows ends; ``None`` if free."""
        found = self._window_over(instant)
        if found is None:
            return None
        window, until = found
        horizon = instant + _HORIZON_DAYS * _DAY
        while following := self._window_over(until):
            until = following[1]
            if until > horizon:
                return Avoidance(window=window.text, until=None)
        return Avoidance(window=window.text, until=until)

    def stretches(self, first: date, last: date) -> Iterator[tuple[Window, datetime, datetime]]:
        """Yield each window that begins on the days ``first`` to ``last`` with its beginning and its end (UTC)."""
        for window in self.avoid:
            day = first
            while day <= last:
                if self._holds_on(window, day):
                    yield (window, *window.stretch(self.zone, day))
                day += _DAY

    def _holds_on(self, window: Window, day: date) -> bool:
        if window.period is None:
            return self.weekday(day) in window.weekdays
        return self.periods[window.period].covers(day)

    def _window_over(self, instant: datetime) -> tuple[Window, datetime] | None:
        """Return the window over an instant that ends last. Its day may be two back: midnight and a skipped day."""
        today = instant.astimezone(self.zone).date()
        over = [
            (window, end)
            for window, begin, end in self.stretches(today - 2 * _DAY, today + _DAY)
            if begin <= instant < end
        ]
        return max(over, key=lambda item: item[1], default=None)


UTC_CALENDAR = Calendar(name="", zone=ZoneInfo("UTC"))
"""Of a service that names none: UTC, no holidays, no windows."""
