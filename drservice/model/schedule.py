"""Schedules: cron expressions of five fields and the slots (instants) that they name in a time zone.

The rules:

* Fields are minute, hour, day of the month, month and day of the week (0 and 7 are Sunday); ``*``, lists, ranges,
  steps and English short names. If neither day field begins with ``*``, a day that one of them names is enough
  (crontab(5)); otherwise both have to name it.
* A schedule names times on the wall of its zone. A time that a zone shows twice is one slot: the first pass. A time
  that a zone skips is a slot at the first instant after the gap, together with a slot that is there already.
* A schedule for every hour is about elapsed time, not about times on the wall: it has slots in both passes of a
  repeated hour and none for a skipped one, so that runs each quarter of an hour stay a quarter of an hour apart.
* Slots are aware UTC instants in rising order, each once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from drservice.model.calendar import first_instant, is_skipped, last_instant

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_LONGEST_FOLD = timedelta(hours=3)
_LAST_YEAR = 9990


@dataclass(frozen=True, slots=True)
class _FieldRule:
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()

    def number(self, text: str) -> int | None:
        """Return the number or the word's place, if it is one of this field."""
        if text.isascii() and text.isdigit() and len(text) <= 2:
            value = int(text)
        elif text.lower() in self.words:
            value = self.words.index(text.lower()) + (1 if self.words is _MONTHS else 0)
        else:
            return None
        return value if self.low <= value <= self.high else None


_FIELDS = (
    _FieldRule("minute", 0, 59),
    _FieldRule("hour", 0, 23),
    _FieldRule("day of the month", 1, 31),
    _FieldRule("month", 1, 12, _MONTHS),
    _FieldRule("day of the week", 0, 7, _DAYS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A cron expression."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday, as in crontab(5)."""
    either_day: bool
    """Whether a day that one of the day fields names is enough."""

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Read a cron expression.

        Raises:
            ValueError: it is none, or it names a day that no month has; with what was expected.
        """
        fields = text.split()
        if len(fields) != len(_FIELDS):
            raise ValueError(
                f"expected a cron expression of 5 fields such as `0 1 * * *`, not {len(fields)} in {_shown(text)}"
            )
        minutes, hours, days, months, weekdays = (
            _parse_field(value, rule) for value, rule in zip(fields, _FIELDS, strict=True)
        )
        either_day = not fields[2].startswith("*") and not fields[4].startswith("*")
        if not either_day and not any(min(days) <= _LONGEST_MONTH[month - 1] for month in months):
            raise ValueError(f"no month of {_shown(fields[3])} has the day {_shown(fields[2])}: it would never happen")
        return cls(
            text=text,
            minutes=tuple(sorted(minutes)),
            hours=tuple(sorted(hours)),
            days=days,
            months=months,
            weekdays=frozenset(number % 7 for number in weekdays),
            either_day=either_day,
        )

    @property
    def is_every_hour(self) -> bool:
        """Whether it is about elapsed time: it names every hour of the day."""
        return len(self.hours) == 24

    def names(self, day: date) -> bool:
        """Tell whether there are slots on ``day``."""
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_month or by_week if self.either_day else by_month and by_week

    def slots(self, zone: ZoneInfo, *, after: datetime) -> Iterator[datetime]:
        """Yield every slot after an instant, without end (until the year 9990)."""
        last = after.astimezone(UTC)
        day = after.astimezone(zone).date() - _DAY  # a repeated hour may reach back over midnight
        begin = _midnight(zone, day)
        waiting: list[datetime] = []  # slots of a day that come after the next one has begun
        while day.year < _LAST_YEAR:
            named = self.names(day)
            if not named and day.month not in self.months:
                day = _last_of_month(day)
            following = _midnight(zone, day + _DAY)
            found = self._slots_on(zone, day, begin=begin, following=following, after=last) if named else iter(())
            late: list[datetime] = []
            for slot in heapq.merge(waiting, found):
                if slot >= following:
                    late.append(slot)
                elif slot > last:
                    last = slot
                    yield slot
            waiting, begin, day = late, following, day + _DAY

    def slots_between(self, zone: ZoneInfo, *, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the slots after one instant up to and with another."""
        return takewhile(lambda slot: slot <= until, self.slots(zone, after=after))

    def next_slots(self, zone: ZoneInfo, *, after: datetime, count: int) -> tuple[datetime, ...]:
        """Return the next slots after an instant."""
        return tuple(islice(self.slots(zone, after=after), count))

    def next_slot(self, zone: ZoneInfo, *, after: datetime) -> datetime:
        """Return the first slot after an instant."""
        return next(self.slots(zone, after=after))

    def _slots_on(
        self, zone: ZoneInfo, day: date, *, begin: datetime, following: datetime, after: datetime
    ) -> Iterator[datetime]:
        """Yield the slots of a day in order; on a day like any other only those after an instant, without the zone."""
        if not _is_plain(zone, begin, following):
            yield from sorted(self._irregular_slots_on(zone, day))
            return
        first = max(0, (after - begin) // _MINUTE + 1)
        for hour in self.hours:
            if hour * 60 + 59 >= first:
                yield from (
                    begin + (hour * 60 + minute) * _MINUTE for minute in self.minutes if hour * 60 + minute >= first
                )

    def _irregular_slots_on(self, zone: ZoneInfo, day: date) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                local = datetime.combine(day, time(hour, minute))
                if not self.is_every_hour:
                    yield first_instant(zone, local)
                elif not is_skipped(zone, local):
                    yield first_instant(zone, local)
                    yield last_instant(zone, local)


def _midnight(zone: ZoneInfo, day: date) -> datetime:
    return first_instant(zone, datetime.combine(day, time()))


def _is_plain(zone: ZoneInfo, begin: datetime, following: datetime) -> bool:
    """Tell whether clocks neither change on a day nor so soon after it that they go back into it."""
    offsets = {instant.astimezone(zone).utcoffset() for instant in (begin, following, following + _LONGEST_FOLD)}
    return following - begin == _DAY and len(offsets) == 1


def _parse_field(value: str, rule: _FieldRule) -> frozenset[int]:
    return frozenset(number for part in value.split(",") for number in _parse_part(part, rule))


def _parse_part(part: str, rule: _FieldRule) -> range:
    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and 1 <= int(step) <= rule.high):
        raise ValueError(f"the {rule.name} field has the step {_shown(step)}; expected 1 to {rule.high}")
    if span == "*":
        high = 6 if rule.words is _DAYS else rule.high  # 7 is Sunday again
        return range(rule.low, high + 1, int(step or 1))
    first_text, dash, last_text = span.partition("-")
    first = rule.number(first_text)
    last = rule.number(last_text) if dash else first
    if first is None or last is None:
        raise ValueError(f"the {rule.name} field has {_shown(part)}; expected *, or {rule.low} to {rule.high}")
    if last < first:
        raise ValueError(f"the {rule.name} field has the range {_shown(part)}, which runs backward")
    if slash and not dash:
        last = rule.high
    return range(first, last + 1, int(step or 1))


def _last_of_month(day: date) -> date:
    return (day.replace(day=28) + 4 * _DAY).replace(day=1) - _DAY


def _shown(text: str) -> str:
    """Quote what was found, shortened; control characters become escapes."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
