"""What was wrong with the demo's week, and how it is told. Pure: values in, lines or a document out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from drservice.cli.demofacts import KnownFacts, NightFacts, ScheduledFacts, WeekFacts
from drservice.cli.demoplan import BACKUP_AT, RECOVERY_HOST, ZONE
from drservice.cli.formatting import format_seconds
from drservice.cli.output import Colour, Line, Span
from drservice.clock import to_iso
from drservice.model.runs import RunState

_LABEL_COLUMNS = 8
_DAY_COLUMNS = 10
_SUNDAY = 6


def week_problems(week: WeekFacts) -> Iterator[str]:
    """Yield everything of the week that is not as it must be."""
    for night in week.nights:
        yield from _night_problems(week, night)
    if week.missed.state is not RunState.MISSED:
        yield f"the node was killed over the slot of {_named(week.fault)}, and it does not count as missed"
    if not week.notices:
        yield f"nobody was told of the slot that was missed; messages that arrived: {len(week.messages)}"
    elif not any(week.missed.run in notice.text for notice in week.notices):
        yield "the message about the missed slot does not name the run that makes up for it"
    points = {night.point for night in week.nights if night.point is not None}
    if len(points) < len(week.nights):
        yield f"{len(week.nights)} nights have {len(points)} recovery points"
    if not points <= week.points:
        yield f"the catalogue does not know {len(points - week.points)} recovery points of the week"
    if week.verification.state is not RunState.SUCCEEDED:
        yield f"the verification ended as {week.verification.state.value}"
    if (week.drill.state, week.drill.verdict) != (RunState.SUCCEEDED, "passed"):
        yield f"the drill by schedule did not pass: {week.drill.verdict or week.drill.state.value}"
    if week.drill.host != RECOVERY_HOST:
        yield f"the drill by schedule was done by {week.drill.host}, not by the recovery site"
    yield from _loss_problems(week)


def _night_problems(week: WeekFacts, night: NightFacts) -> Iterator[str]:
    day = _named(night.day)
    if night.run_state is not RunState.SUCCEEDED:
        yield f"the backup of {day} ended as {night.run_state.value}"
    if night.state is RunState.MISSED and night.day != week.fault:
        yield f"the slot of {day} was missed although a node was there"
    if night.day in week.expected_to_wait:
        if night.not_before is None or night.started_at is None or night.started_at < night.not_before:
            yield f"the backup of {day} did not wait, although the calendar keeps that time free"
    elif night.not_before is not None:
        yield f"the backup of {day} waited until {to_iso(night.not_before)} without a reason in the calendar"


def _loss_problems(week: WeekFacts) -> Iterator[str]:
    before, empty, after = week.loss.before, week.loss.empty, week.loss.after
    if not week.loss.was_gone:
        yield "the catalogue was not destroyed: its server or its folder was still there"
    if not before.points or not before.records:
        yield "the catalogue knew nothing before it was lost: this run proves nothing about rebuild"
    if empty.points or empty.records or empty.windows or empty.runs:
        yield "the catalogue that was made anew was not empty"
    for what, lost in (
        ("recovery points", before.points - after.points),
        ("records", before.records - after.records),
        ("stretches of WAL", before.windows - after.windows),
    ):
        if lost:
            yield f"{len(lost)} {what} are not in the rebuilt catalogue"
    if after.reaches < before.reaches:
        yield "the WAL in the rebuilt catalogue ends earlier than in the one that was lost"


def week_document(week: WeekFacts | None) -> dict[str, object]:
    """Return the week's part of the JSON document; every field is null if the story was told without it."""
    if week is None:
        return dict.fromkeys(
            (
                "nights",
                "holiday",
                "notified",
                "caught_up",
                "scheduled_drill",
                "scheduled_verification",
                "rebuilt",
                "week_seconds",
            )
        )
    missed = week.missed
    holiday = next((night for night in week.nights if night.day == week.holiday), None)
    loss = week.loss
    return {
        "nights": [_night_document(night) for night in week.nights],
        "holiday": {
            "day": week.holiday.isoformat(),
            "not_before": to_iso(holiday.not_before) if holiday and holiday.not_before else None,
            "started_at": to_iso(holiday.started_at) if holiday and holiday.started_at else None,
        },
        "notified": [{"title": notice.title, "text": notice.text} for notice in week.notices],
        "caught_up": {"slot": to_iso(missed.slot), "run": missed.run, "point": missed.point, "done": missed.caught_up},
        "scheduled_drill": _scheduled_document(week.drill),
        "scheduled_verification": _scheduled_document(week.verification),
        "rebuilt": {
            "points": [len(loss.before.points), len(loss.empty.points), len(loss.after.points)],
            "records": [len(loss.before.records), len(loss.empty.records), len(loss.after.records)],
            "windows": [len(loss.before.windows), len(loss.empty.windows), len(loss.after.windows)],
            "is_complete": is_rebuilt(loss.before, loss.after),
            "seconds": round(loss.seconds, 3),
        },
        "week_seconds": round(week.seconds, 3),
    }


def is_rebuilt(before: KnownFacts, after: KnownFacts) -> bool:
    """Tell whether a catalogue knows everything that the one before it knew and the store holds."""
    return (
        before.points <= after.points
        and before.records <= after.records
        and before.windows <= after.windows
        and before.reaches <= after.reaches
    )


def _night_document(night: NightFacts) -> dict[str, object]:
    return {
        "day": night.day.isoformat(),
        "slot": to_iso(night.slot),
        "state": night.state.value,
        "caught_up": night.caught_up,
        "run": night.run,
        "started_at": to_iso(night.started_at) if night.started_at else None,
        "not_before": to_iso(night.not_before) if night.not_before else None,
        "point": night.point,
        "stored_bytes": night.stored_bytes,
        "seconds": round(night.seconds, 3),
    }


def _scheduled_document(facts: ScheduledFacts) -> dict[str, object]:
    return {
        "slot": to_iso(facts.slot),
        "run": facts.run,
        "state": facts.state.value,
        "host": facts.host,
        "verdict": facts.verdict,
        "seconds": round(facts.seconds, 3),
    }


def week_picture(week: WeekFacts) -> list[Line]:
    """Draw the week: a column for each night, in words, so that it needs no colour."""
    nights = week.nights
    return [
        _row("", [Span(f"{night.day:%a %d}", Colour.STRONG) for night in nights]),
        _row(f"{BACKUP_AT:%H:%M}", [_slot_cell(night) for night in nights]),
        _row("began", [Span(_began(night), Colour.FAINT) for night in nights]),
        _row("day", [Span(_day_word(week, night.day), Colour.FAINT) for night in nights]),
        _row("then", [_event_cell(week, night) for night in nights]),
    ]


def week_rows(week: WeekFacts) -> list[tuple[str, str, str]]:
    """Return the week's rows of the table: what, promised, measured."""
    made = sum(night.run_state is RunState.SUCCEEDED for night in week.nights)
    loss = week.loss
    known = len(loss.before.points & loss.after.points) + len(loss.before.records & loss.after.records)
    return [
        ("nights with a recovery point, by schedule", str(len(week.nights)), str(made)),
        ("missed slots caught up, and on-call told", "1", "1" if week.missed.caught_up and week.notices else "0"),
        (f"drill by schedule ({format_seconds(week.drill.seconds)})", "passed", week.drill.verdict or "FAILED"),
        (
            f"points and records known after rebuild ({format_seconds(loss.seconds)})",
            str(len(loss.before.points) + len(loss.before.records)),
            str(known),
        ),
    ]


def _row(label: str, cells: Sequence[Span]) -> Line:
    parts: list[str | Span] = [f"   {label:<{_LABEL_COLUMNS}}"]
    for cell in cells:
        parts += [cell, " " * (_DAY_COLUMNS - len(cell.text))]
    return tuple(parts[:-1])


def _slot_cell(night: NightFacts) -> Span:
    if night.state is RunState.MISSED:
        return Span("MISSED", Colour.BAD)
    return Span("ok", Colour.GOOD) if night.state is RunState.SUCCEEDED else Span("FAILED", Colour.BAD)


def _began(night: NightFacts) -> str:
    return f"{night.started_at.astimezone(ZONE):%H:%M}" if night.started_at is not None else "never"


def _day_word(week: WeekFacts, day: date) -> str:
    return "holiday" if day == week.holiday else "Sunday" if day.weekday() == _SUNDAY else "-"


def _event_cell(week: WeekFacts, night: NightFacts) -> Span:
    if night.day == week.fault:
        return Span("caught up", Colour.GOOD) if night.caught_up else Span("LOST", Colour.BAD)
    if night.day == week.loss_on:
        is_known = is_rebuilt(week.loss.before, week.loss.after)
        return Span("rebuilt", Colour.GOOD) if is_known else Span("INCOMPL.", Colour.BAD)
    if night.day == week.drill_on:
        return Span("drill ok", Colour.GOOD) if week.drill.verdict == "passed" else Span("DRILL!", Colour.BAD)
    return Span("-", Colour.FAINT)


def _named(day: date) -> str:
    return f"{day:%a %d %b}"
