"""What a changed file would change: schedules with their next slots, and above all what it takes away.

A change *weakens* if afterwards less is protected, proved, kept or promised: something is no longer captured, a
schedule ends (or that of retention begins), retention gets shorter, an objective gets looser. Whether a schedule that
stays is denser or thinner is shown by its slots and left to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from drservice.model.estate import (
    ComponentSettings,
    Estate,
    FilesSettings,
    GitSettings,
    Objectives,
    RedisRestore,
    RedisSettings,
    Service,
)
from drservice.model.preview import SchedulePreview, preview
from drservice.model.retention import RetentionPolicy
from drservice.model.runs import RunKind
from drservice.model.timetable import Planned, timetable
from drservice.settings.loading import LoadedConfiguration
from drservice.settings.positions import Plain

_BY_SCHEDULES = re.compile(r"services\.[^.]+\.schedule\.(backup|verify|drill|retention)|drills\.[^.]+\.schedule")
_WHOLE = re.compile(r"(services\.[^.]+\.components\.[^.]+|services\.[^.]+|calendars\.[^.]+|drills\.[^.]+)(\.|$)")
_OBJECTIVES = ("rpo", "rto", "documents_rpo")
_PERIODS = ("within", "daily", "weekly", "monthly", "yearly")


class ChangeKind(Enum):
    """What happens to something that is declared."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleChange:
    """What happens to one schedule."""

    service: str
    run: RunKind
    plan: str
    kind: ChangeKind
    before: SchedulePreview | None
    after: SchedulePreview | None

    @property
    def weakens(self) -> bool:
        """Whether something is no longer done, or what expires begins to be deleted."""
        return self.kind is (ChangeKind.ADDED if self.run is RunKind.RETENTION else ChangeKind.REMOVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprotected:
    """Something that is captured and would not be any more."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """A setting whose value in force changes; ``None`` = not said."""

    path: str
    before: Plain
    after: Plain
    weakens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything that one file would change of another."""

    schedules: tuple[ScheduleChange, ...]
    unprotected: tuple[Unprotected, ...]
    retention: tuple[SettingChange, ...]
    objectives: tuple[SettingChange, ...]
    calendars: tuple[SettingChange, ...]
    settings: tuple[SettingChange, ...]
    """Everything else, in the order of the schema."""

    @property
    def weakens(self) -> bool:
        """Whether less would be protected, proved, kept or promised."""
        ended = any(change.weakens for change in self.schedules)
        weaker = any(change.weakens for change in (*self.retention, *self.objectives))
        return bool(self.unprotected) or ended or weaker

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        found = (self.schedules, self.unprotected, self.retention, self.objectives, self.calendars, self.settings)
        return not any(found)


def compare(before: LoadedConfiguration, after: LoadedConfiguration, *, now: datetime) -> Changes:
    """Return what would change if ``after`` took the place of ``before``.

    Args:
        before: the file in force.
        after: the changed file.
        now: slots are shown and periods are compared from here.
    """
    weaker = {*_weaker_retention(before.estate, after.estate, now), *_weaker_objectives(before.estate, after.estate)}
    changed = [
        SettingChange(path=path, before=old, after=new, weakens=path in weaker)
        for path, old, new in _values(before, after)
    ]

    def under(pattern: str) -> tuple[SettingChange, ...]:
        return tuple(change for change in changed if re.match(pattern, change.path))

    retention = under(r"services\.[^.]+\.retention\.")
    objectives = under(r"services\.[^.]+\.objectives\.")
    calendars = under(r"calendars\.")
    told = {id(change) for change in (*retention, *objectives, *calendars)}
    return Changes(
        schedules=tuple(_schedules(before.estate, after.estate, now)),
        unprotected=tuple(_unprotected(before.estate, after.estate)),
        retention=retention,
        objectives=objectives,
        calendars=calendars,
        settings=tuple(change for change in changed if id(change) not in told),
    )


def _values(before: LoadedConfiguration, after: LoadedConfiguration) -> Iterator[tuple[str, Plain, Plain]]:
    """Yield each changed value once; a service, component, calendar or drill that comes or goes is one value."""
    old, new = ({value.path: value.value for value in loaded.values_with_origin} for loaded in (before, after))
    old_names, new_names = _names(old), _names(new)
    told: set[str] = set()
    for path in dict.fromkeys((*old, *new)):
        whole = next((name for name in _parents(path) if (name in old_names) != (name in new_names)), None)
        if whole is not None:
            if whole not in told:
                told.add(whole)
                is_there = whole in new_names
                yield whole, None if is_there else "declared", "declared" if is_there else None
        elif not _is_same(old.get(path), new.get(path)) and not _BY_SCHEDULES.fullmatch(path):
            yield path, old.get(path), new.get(path)


def _is_same(old: Plain, new: Plain) -> bool:
    """Tell whether nothing changes; an empty list or mapping gives way to its entries, which tell for themselves."""
    return old == new or (old or None) is (new or None) is None


def _names(values: Mapping[str, Plain]) -> set[str]:
    return {name for path in values for name in _parents(path)}


def _parents(path: str) -> Iterator[str]:
    """Yield the named thing that a setting belongs to, the outermost first."""
    match = _WHOLE.match(path)
    if match is not None:
        outer, dot, rest = match[1].partition(".components.")
        yield outer
        if dot and rest:
            yield match[1]


def _schedules(before: Estate, after: Estate, now: datetime) -> Iterator[ScheduleChange]:
    old, new = ({planned.key: planned for planned in timetable(estate)} for estate in (before, after))
    for key in dict.fromkeys((*old, *new)):
        earlier, later = (_previewed(table.get(key), now) for table in (old, new))
        if _runs_of(earlier) == _runs_of(later):
            continue
        kind = ChangeKind.ADDED if earlier is None else ChangeKind.REMOVED if later is None else ChangeKind.CHANGED
        service, run, plan = key
        yield ScheduleChange(service=service, run=RunKind(run), plan=plan, kind=kind, before=earlier, after=later)


def _runs_of(schedule: SchedulePreview | None) -> object:
    """Return what makes two schedules differ: when runs start, not the words about why."""
    if schedule is None:
        return None
    starts = [(slot.at, slot.start.kind, slot.start.at) for slot in schedule.slots]
    return schedule.cron, schedule.calendar, schedule.timezone, starts


def _previewed(planned: Planned | None, now: datetime) -> SchedulePreview | None:
    return preview(planned, now=now) if planned is not None else None


def _unprotected(before: Estate, after: Estate) -> Iterator[Unprotected]:
    if before.repository.url != after.repository.url:
        reason = f"runs go to another repository; what is in {before.repository.url} is no longer kept up"
        yield Unprotected(path="repository.url", reason=reason)
    for name, old in before.services.items():
        path, new = f"services.{name}", after.services.get(name)
        if new is None:
            yield Unprotected(path=path, reason=f"no longer declared: {', '.join(old.components) or 'no component'}")
            continue
        yield from _unprotected_components(path, old, new)
        if old.schedule.backup is not None and new.schedule.backup is None:
            yield Unprotected(path=f"{path}.schedule.backup", reason="no backup starts by itself any more")


def _unprotected_components(path: str, old: Service, new: Service) -> Iterator[Unprotected]:
    for name, component in old.components.items():
        here, now_there = f"{path}.components.{name}", new.components.get(name)
        if now_there is None:
            yield Unprotected(path=here, reason="no longer declared")
        elif type(now_there) is not type(component):
            yield Unprotected(path=here, reason="it is of another kind; what was captured under this name is not")
        elif (reason := _no_longer_captured(component, now_there)) is not None:
            yield Unprotected(path=here, reason=reason)


def _no_longer_captured(old: ComponentSettings, new: ComponentSettings) -> str | None:
    """Return what of a component that stays is not captured or not restored any more."""
    if isinstance(old, FilesSettings) and isinstance(new, FilesSettings) and old.path != new.path:
        return f"{old.path} is no longer captured, {new.path} is"
    if isinstance(old, GitSettings) and isinstance(new, GitSettings):
        gone = [str(path) for path in old.clones if path not in new.clones]
        return f"no longer captured: {', '.join(gone)}" if gone else None
    if isinstance(old, RedisSettings) and isinstance(new, RedisSettings):
        if old.url != new.url:
            return f"{old.url} is no longer captured, {new.url} is"
        if (old.restore, new.restore) == (RedisRestore.LOAD, RedisRestore.FLUSH):
            return "a restore does not bring its content back any more"
    return None


def _weaker_retention(before: Estate, after: Estate, now: datetime) -> Iterator[str]:
    for name, old, new in _in_both(before, after):
        for field, shorter in _shorter(old.retention, new.retention, now).items():
            if shorter:
                yield f"services.{name}.retention.{field}"


def _shorter(old: RetentionPolicy, new: RetentionPolicy, now: datetime) -> Mapping[str, bool]:
    """Tell for each period whether it keeps less than before. A policy that says nothing keeps everything."""
    if not new.is_set:
        return {}
    found: dict[str, bool] = {}
    for field in _PERIODS:
        earlier, later = getattr(old, field), getattr(new, field)
        if not old.is_set:
            found[field] = later is not None
        else:
            found[field] = earlier is not None and (later is None or later.before(now) > earlier.before(now))
    return found


def _weaker_objectives(before: Estate, after: Estate) -> Iterator[str]:
    for name, old, new in _in_both(before, after):
        for field in _OBJECTIVES:
            if _is_looser(old.objectives, new.objectives, field):
                yield f"services.{name}.objectives.{field}"


def _is_looser(old: Objectives, new: Objectives, field: str) -> bool:
    earlier, later = getattr(old, field), getattr(new, field)
    return earlier is not None and (later is None or later > earlier)


def _in_both(before: Estate, after: Estate) -> Iterator[tuple[str, Service, Service]]:
    for name, old in before.services.items():
        new = after.services.get(name)
        if new is not None:
            yield name, old, new
