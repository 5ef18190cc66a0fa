"""``drservice config plan``: what a changed file would change, and when everything declared will start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drservice.cli.formatting import format_seconds, format_table, format_time
from drservice.cli.invocation import Invocation
from drservice.cli.output import Colour, Line, Span
from drservice.clock import SystemClock
from drservice.errors import ExitStatus, UsageError
from drservice.model.due import Start, StartKind
from drservice.model.preview import SchedulePreview, preview
from drservice.model.runs import RunKind
from drservice.model.timetable import timetable
from drservice.settings.changes import Changes, ScheduleChange, SettingChange, compare
from drservice.settings.loading import load

if TYPE_CHECKING:
    from drservice.model.estate import Estate
    from drservice.operations.expiring import Expiring

_SCHEDULED_KINDS = (RunKind.BACKUP, RunKind.VERIFY, RunKind.DRILL)


@click.command(
    help="Show what a changed configuration would change: schedules with their next five slots, what becomes"
    " unprotected, retention, objectives, calendars, settings. --against names the changed file, --from the earlier"
    " one; without either, show the next slots of everything declared. --stored also asks the repository what a shorter"
    " retention would let go. Exit status 4 if less would be protected, proved, kept or promised."
)
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="FILE", help="the changed file; --config is in force"
)
@click.option("--from", "earlier", type=click.Path(path_type=Path), metavar="FILE", help="the file in force until now")
@click.option("--stored", is_flag=True, help="ask the repository what a shorter retention would let go")
@click.pass_obj
def plan(invocation: Invocation, against: Path | None, earlier: Path | None, *, stored: bool) -> ExitStatus:
    """Print the changes or the preview."""
    if against is not None and earlier is not None:
        raise UsageError("--against and --from exclude each other", hint="One file is compared with --config.")
    configured = invocation.load()
    now = SystemClock().now().replace(microsecond=0)
    other = against or earlier
    if stored and other is None:
        raise UsageError("--stored needs another file", hint="Name it with --against or --from.")
    if other is None:
        shown = present_preview(configured.estate, now=now)
    else:
        named = load(other.absolute())
        before, after = (configured, named) if against is not None else (named, configured)
        changes = compare(before, after, now=now)
        expiring = _expiring(invocation, before.estate, after.estate, changes) if stored else None
        shown = present_changes(changes, before=before.estate.source, after=after.estate, now=now, expiring=expiring)
    invocation.output.result("config-plan", shown.document, shown.lines)
    return ExitStatus.BREACHED if shown.weakens else ExitStatus.OK


def _expiring(invocation: Invocation, before: Estate, after: Estate, changes: Changes) -> list[Expiring]:
    """Ask the repository in force about each service whose retention gets shorter."""
    from drservice.operations.expiring import newly_expired  # noqa: PLC0415 - a comparison of files opens no store
    from drservice.operations.retention import RetentionContext  # noqa: PLC0415 - the same
    from drservice.wiring.data_plane import open_data_plane  # noqa: PLC0415 - the same
    from drservice.wiring.evidence import open_evidence  # noqa: PLC0415 - the same

    names = {change.path.split(".")[1] for change in changes.retention if change.weakens}
    services = [service for service in before.services.values() if service.name in names]
    if not services:
        return []
    with open_data_plane(before) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = RetentionContext(
            repository=plane.repository,
            evidence=evidence,
            state_dir=before.state_dir,
            clock=plane.clock,
            progress=progress,
        )
        return [newly_expired(context, item, after.services[item.name].retention) for item in services]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is printed: the document or the lines."""

    document: Mapping[str, object]
    lines: tuple[Line, ...]
    weakens: bool


def present_preview(estate: Estate, *, now: datetime) -> Shown:
    """Show when everything declared will start."""
    entries = [(planned, preview(planned, now=now)) for planned in timetable(estate)]
    lines: list[Line] = [f"{estate.source}: {len(entries)} schedules, from {format_time(now)}"]
    for planned, schedule in entries:
        lines += ["", f"{_title(planned.service.name, planned.kind, planned.plan)}: {_told(schedule)}"]
        lines += _slot_table(schedule)
    schedules = [
        {
            "service": planned.service.name,
            "kind": planned.kind,
            "plan": planned.plan or None,
            "change": None,
            "before": None,
            "after": _schedule_document(schedule),
        }
        for planned, schedule in entries
    ]
    nothing = Changes(schedules=(), unprotected=(), retention=(), objectives=(), calendars=(), settings=())
    document = {**_document(nothing, before=None, after=estate, now=now), "schedules": schedules}
    return Shown(document=document, lines=(*lines, *_standing_lines(estate)), weakens=False)


def present_changes(
    changes: Changes, *, before: Path, after: Estate, now: datetime, expiring: Sequence[Expiring] | None = None
) -> Shown:
    """Show what one file would change of another; ``expiring`` is ``None`` if the repository was not asked."""
    lines: list[Line] = [f"{before} -> {after.source}, from {format_time(now)}"]
    if changes.is_empty:
        lines.append("Nothing changes.")
    if changes.unprotected:
        lines += ["", (Span("becomes unprotected", Colour.BAD),)]
        lines += [f"  {item.path}: {item.reason}" for item in changes.unprotected]
    if changes.schedules:
        lines += ["", (Span("schedules", Colour.STRONG),)]
        lines += [line for change in changes.schedules for line in _schedule_lines(change)]
    for title, found, weaker in (
        ("retention", changes.retention, "shorter"),
        ("objectives", changes.objectives, "looser"),
        ("calendars", changes.calendars, ""),
        ("other settings", changes.settings, ""),
    ):
        if found:
            lines += ["", (Span(title, Colour.STRONG),), *_setting_lines(found, weaker)]
        if found is changes.retention:
            lines += [_expiring_line(item) for item in expiring or ()]
    if changes.weakens:
        lines += ["", (Span("Less would be protected, proved, kept or promised than before.", Colour.BAD),)]
    document = {
        **_document(changes, before=before, after=after, now=now),
        "weakens": changes.weakens,
        "expires": _expiring_documents(expiring),
    }
    return Shown(document=document, lines=(*lines, *_standing_lines(after)), weakens=changes.weakens)


def _document(changes: Changes, *, before: Path | None, after: Estate, now: datetime) -> dict[str, object]:
    return {
        "before": before,
        "after": after.source,
        "now": now,
        "weakens": False,
        "schedules": [
            {
                "service": change.service,
                "kind": change.run,
                "plan": change.plan or None,
                "change": change.kind,
                "before": _schedule_document(change.before),
                "after": _schedule_document(change.after),
            }
            for change in changes.schedules
        ],
        "unprotected": [{"path": item.path, "reason": item.reason} for item in changes.unprotected],
        "retention": _setting_documents(changes.retention),
        "objectives": _setting_documents(changes.objectives),
        "expires": None,
        "calendars": _setting_documents(changes.calendars),
        "settings": _setting_documents(changes.settings),
        "not_scheduled": [{"service": service, "kind": kind} for service, kind in _not_scheduled(after)],
        "document_passes": [
            {"service": service.name, "every_seconds": service.schedule.documents_every}
            for service in after.services.values()
            if service.schedule.documents_every is not None
        ],
    }


def _schedule_document(schedule: SchedulePreview | None) -> Mapping[str, object] | None:
    if schedule is None:
        return None
    return {
        "cron": schedule.cron,
        "calendar": schedule.calendar or None,
        "timezone": schedule.timezone,
        "slots": [
            {
                "at": slot.at,
                "local": slot.local.isoformat(),
                "start": {"kind": slot.start.kind, "at": slot.start.at, "reason": slot.start.reason},
            }
            for slot in schedule.slots
        ],
    }


def _setting_documents(changes: Iterable[SettingChange]) -> list[Mapping[str, object]]:
    return [
        {"path": item.path, "before": item.before, "after": item.after, "weakens": item.weakens} for item in changes
    ]


def _expiring_documents(expiring: Sequence[Expiring] | None) -> list[Mapping[str, object]] | None:
    if expiring is None:
        return None
    return [
        {
            "service": item.service,
            "points": list(item.points),
            "snapshots": list(item.snapshots),
            "kept_snapshots": item.kept_snapshots,
        }
        for item in expiring
    ]


def _expiring_line(item: Expiring) -> Line:
    text = (
        f"  {item.service}: {len(item.points)} recovery points and {len(item.snapshots)} snapshots that are kept now"
        f" would expire; {item.kept_snapshots} snapshots would stay"
    )
    return (Span(text, Colour.BAD),) if item.points or item.snapshots else text


def _not_scheduled(estate: Estate) -> Iterator[tuple[str, RunKind]]:
    found = {(planned.service.name, planned.kind) for planned in timetable(estate)}
    for service in estate.services.values():
        yield from ((service.name, kind) for kind in _SCHEDULED_KINDS if (service.name, kind) not in found)


def _standing_lines(estate: Estate) -> Iterator[Line]:
    """Tell what has no slots: passes over documents, and what nothing starts."""
    rows: list[Line] = [
        f"{service.name} documents: every {format_seconds(service.schedule.documents_every)}"
        for service in estate.services.values()
        if service.schedule.documents_every is not None
    ]
    missing: dict[str, list[str]] = {}
    for service, kind in _not_scheduled(estate):
        missing.setdefault(service, []).append(kind.value)
    rows += [f"{service}: nothing starts {' or '.join(kinds)} by itself" for service, kinds in missing.items()]
    if rows:
        yield ""
        yield from rows


def _schedule_lines(change: ScheduleChange) -> Iterator[Line]:
    title = f"  {change.kind.value:8} {_title(change.service, change.run, change.plan)}: "
    if change.after is None:
        assert change.before is not None
        yield f"{title}{_told(change.before)}; it would have come next at {format_time(change.before.slots[0].at)}"
        return
    earlier = f"{_told(change.before)} -> " if change.before is not None else ""
    yield f"{title}{earlier}{_told(change.after)}"
    yield from _slot_table(change.after)


def _setting_lines(changes: Iterable[SettingChange], weaker: str) -> Iterator[Line]:
    for item in changes:
        line = f"  {item.path}: {_value(item.before)} -> {_value(item.after)}"
        yield (line, "  ", Span(weaker, Colour.BAD)) if item.weakens else line


def _value(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _title(service: str, kind: RunKind, plan_name: str) -> str:
    return " ".join(part for part in (service, kind.value, plan_name) if part)


def _told(schedule: SchedulePreview) -> str:
    return f"`{schedule.cron}` in {schedule.timezone}" + (f" ({schedule.calendar})" if schedule.calendar else "")


def _slot_table(schedule: SchedulePreview) -> list[Line]:
    rows = [(f"{slot.local:%a %Y-%m-%d %H:%M %z}", format_time(slot.at), _start(slot.start)) for slot in schedule.slots]
    return [f"    {line}" for line in format_table(("LOCAL", "UTC", "START"), rows)]


def _start(start: Start) -> str:
    match start.kind:
        case StartKind.NOW:
            return "at once"
        case StartKind.DELAYED:
            return f"delayed: {start.reason}"
        case StartKind.THROTTLED:
            return f"throttled: {start.reason}"
