"""The estate that ``load.py`` lives a day through, and the slots it has to have: counted minute by minute.

Nothing of drservice is used here. A schedule is a set of minutes and hours; its cron text goes into the configuration,
and the slots come from a walk over every minute of the day that asks the time zone what the clock on the wall shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

HOSTS = ("alpha", "beta", "gamma")
STEP_MINUTES = 5
"""All schedules name multiples of it: so many instants of a day are lived through."""
REAL = 8
"""Services whose backups and verifications are real processes over real folders."""
ZONES: Mapping[str, str] = {
    "berlin": "Europe/Berlin",
    "london": "Europe/London",
    "kolkata": "Asia/Kolkata",
    "toledo": "America/New_York",
}
AVOIDED: Sequence[tuple[time, time]] = ((time(8, 0), time(9, 30)), (time(20, 0), time(21, 15)))
"""Of the calendar ``shifts`` (Europe/Berlin)."""
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Minutes and hours at which something starts; ``hours=None``: every hour, in both passes of a repeated one."""

    minutes: frozenset[int]
    hours: frozenset[int] | None

    @property
    def cron(self) -> str:
        """Return it as the configuration says it."""
        minutes = ",".join(map(str, sorted(self.minutes)))
        hours = "*" if self.hours is None else ",".join(map(str, sorted(self.hours)))
        return f"{minutes} {hours} * * *"

    def has(self, local: datetime) -> bool:
        """Tell whether a minute on the wall is a slot; of a time shown twice the first is (docs/calendars.md)."""
        if local.minute not in self.minutes:
            return False
        return self.hours is None or (local.hour in self.hours and local.fold == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedService:
    """One service: where its disks are, by which calendar, and what starts when."""

    name: str
    host: str | None
    calendar: str
    schedules: Mapping[str, Schedule]
    """By kind of run."""
    is_real: bool = False

    @property
    def zone(self) -> ZoneInfo:
        """Return the zone of its calendar."""
        return ZoneInfo(ZONES.get(self.calendar, "Europe/Berlin"))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Slot:
    """One slot, and from when on its run may start."""

    at: datetime
    service: str
    kind: str
    not_before: datetime = field(compare=False)


def plan_services(count: int) -> list[PlannedService]:
    """Return the services: a fifth quarter-hourly, three tenths hourly, a tenth around shifts, the rest nightly."""
    return [_service(number, count) for number in range(count)]


def _service(number: int, count: int) -> PlannedService:
    zones = sorted(ZONES)
    calendar = zones[number % len(zones)]
    offset = number * STEP_MINUTES % 60
    host = (*HOSTS, None)[number // len(zones) % 4]
    name = f"s{number:03d}"
    if number < count // 5:
        minutes = frozenset((offset + quarter) % 60 for quarter in (0, 15, 30, 45))
        return PlannedService(
            name=name, host=host, calendar=calendar, schedules={"backup": Schedule(minutes=minutes, hours=None)}
        )
    if number < count // 2:
        is_real = number - count // 5 < REAL
        schedules = {"backup": Schedule(minutes=frozenset({offset}), hours=None)}
        if is_real:
            schedules["verify"] = Schedule(minutes=frozenset({(offset + 30) % 60}), hours=frozenset({4}))
        return PlannedService(name=name, host=host, calendar=calendar, schedules=schedules, is_real=is_real)
    if number < count * 6 // 10:
        four_hourly = Schedule(minutes=frozenset({offset % 30}), hours=frozenset(range(0, 24, 4)))
        return PlannedService(name=name, host=host, calendar="shifts", schedules={"backup": four_hourly})
    night = Schedule(minutes=frozenset({offset}), hours=frozenset({number % 6}))
    morning = Schedule(minutes=frozenset({(offset + 25) % 60}), hours=frozenset({6 + number % 3}))
    schedules = {"backup": night, "verify": morning}
    if number % 4 == 0:
        schedules["drill"] = Schedule(minutes=frozenset({(offset + 40) % 60}), hours=frozenset({10}))
    return PlannedService(name=name, host=host, calendar=calendar, schedules=schedules)


def slots_between(service: PlannedService, after: datetime, until: datetime) -> Iterator[Slot]:
    """Yield the slots of a service after an instant up to and with another, minute by minute."""
    minute = after.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
    while minute <= until:
        local = minute.astimezone(service.zone)
        for kind, schedule in service.schedules.items():
            if schedule.has(local):
                yield Slot(at=minute, service=service.name, kind=kind, not_before=_begins(service, minute, after))
        minute += _MINUTE


def _begins(service: PlannedService, slot: datetime, after: datetime) -> datetime:
    """Return from when on a run may start: after the shift it falls into, once there is a result to wait with."""
    if service.calendar != "shifts" or slot - after < timedelta(hours=4):
        return slot
    local = slot.astimezone(service.zone)
    for begin, end in AVOIDED:
        if begin <= local.time() < end:
            return datetime.combine(local.date(), end, tzinfo=service.zone).astimezone(UTC)
    return slot


def configuration(
    services: Sequence[PlannedService], *, base: str, catalogue: str, recipient: str, runs: int, lease: str
) -> dict[str, Any]:
    """Return the configuration of the estate (JSON is YAML)."""
    calendars: dict[str, Any] = {name: {"timezone": zone} for name, zone in ZONES.items()}
    avoid = [f"{begin:%H:%M}-{end:%H:%M}" for begin, end in AVOIDED]
    calendars["shifts"] = {"timezone": "Europe/Berlin", "avoid": avoid}
    return {
        "version": 1,
        "state_dir": f"{base}/state",
        "catalogue": catalogue,
        "repository": {
            "url": f"file://{base}/repository",
            "recipients": [recipient],
            "identity": f"file:{base}/identity.age",
        },
        "node": {"runs": runs, "lease": lease, "drain": "10s"},
        "calendars": calendars,
        "services": {service.name: _document(service, base) for service in services},
    }


def _document(service: PlannedService, base: str) -> dict[str, Any]:
    placed = {} if service.host is None else {"node": service.host}
    if service.is_real:
        components = {"files": {"kind": "directory", "path": f"{base}/folders/{service.name}", **placed}}
    else:
        components = {"database": {"kind": "postgres", "dsn": "host=/nowhere", "method": "pg_basebackup", **placed}}
    return {
        "calendar": service.calendar,
        "components": components,
        "objectives": {"rpo": "48h"},
        "schedule": {kind: schedule.cron for kind, schedule in service.schedules.items()},
    }
