"""Which week the demo plays: seven nights that ended today, and what is special about some of them. Pure.

The rules of schedules and calendars are the product's; here is only said which days are used, and what both
configurations say about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Europe/Berlin")
NIGHTS = 7
BACKUP_AT = time(1, 0)
KEPT_FREE_UNTIL = time(4, 0)
POWER_BACK_AT = time(6, 30)
DRILL_AT = time(9, 0)
LOSS_AT = time(12, 0)
HOST = "production"
RECOVERY_HOST = "recovery-site"

_SETTLED = timedelta(hours=10)
"""The last night and its morning lie behind this machine's clock."""
_SUNDAY = 6
_CRON_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeekPlan:
    """Seven days in the plant's zone; a backup is due in each night."""

    days: tuple[date, ...]
    fault: date
    """Before its backup the node is killed; it comes back in the morning."""
    loss: date
    """At noon the catalogue is destroyed."""
    holiday: date
    """A working day otherwise."""
    drill: date

    @property
    def begins(self) -> datetime:
        """When the node is started for the first time: the evening before the first night."""
        return at(self.days[0], time(0, 0)) - timedelta(hours=6)

    def slot(self, day: date) -> datetime:
        """When the backup of a night is due."""
        return at(day, BACKUP_AT)

    def waits(self, day: date) -> bool:
        """Whether the calendar has the backup wait: on Sundays and holidays, but never for a service's first result."""
        is_first = day in {self.days[0], self.loss + timedelta(days=1)}
        return (day.weekday() == _SUNDAY or day == self.holiday) and not is_first


def at(day: date, clock: time) -> datetime:
    """Return an instant of a day in the plant's zone, in UTC."""
    return datetime.combine(day, clock, ZONE).astimezone(UTC)


def plan_week(now: datetime) -> WeekPlan:
    """Choose the week that ended before ``now``, and its days: none of the special ones is a Sunday."""
    last = (now - _SETTLED).astimezone(ZONE).date()
    days = tuple(last - timedelta(days=NIGHTS - 1 - number) for number in range(NIGHTS))
    fault = _first_working_day(days[1:])
    loss = fault + timedelta(days=1)
    holiday = _first_working_day(tuple(day for day in days if day > loss + timedelta(days=1)))
    drill = next(day for day in reversed(days) if day != holiday)
    return WeekPlan(days=days, fault=fault, loss=loss, holiday=holiday, drill=drill)


def _first_working_day(days: tuple[date, ...]) -> date:
    return next(day for day in days if day.weekday() != _SUNDAY)


def schedule_text(plan: WeekPlan) -> str:
    """Return what the service says about its schedule."""
    day = _CRON_DAYS[plan.drill.weekday()]
    return f"""\
    calendar: plant
    schedule:
      backup: "{BACKUP_AT.minute} {BACKUP_AT.hour} * * *"
      verify: "{DRILL_AT.minute} {DRILL_AT.hour} * * {day}"
      drill: "{DRILL_AT.minute} {DRILL_AT.hour} * * {day}"
    catch_up: run-once
"""


def control_plane_text(plan: WeekPlan, *, catalogue: str, on_call: str, web_port: int) -> str:
    """Return the sections of calendar, people and machinery."""
    return f"""\
catalogue: "{catalogue}"
calendars:
  plant:
    timezone: {ZONE.key}
    holidays: [{plan.holiday}]                          # counts as a Sunday
    avoid: ["Sun 00:00-{KEPT_FREE_UNTIL:%H:%M}"]                     # the line is serviced: heavy work waits
notify: [{{name: on-call, url: "{on_call}"}}]
web: {{listen: "127.0.0.1:{web_port}"}}
node: {{lease: 8s, drain: 20s}}
"""
