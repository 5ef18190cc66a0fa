from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from drservice.model.calendar import UTC_CALENDAR, Calendar, DuringAvoid, Window
from drservice.model.due import StartKind, decide_start, next_due, promised_age
from drservice.model.estate import FilesKind, FilesSettings, Objectives, PostgresSettings, Schedules, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.runs import RunKind
from drservice.model.schedule import Cron
from drservice.model.timetable import Planned

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SHIFT = Calendar(name="plant-a", zone=ZoneInfo("UTC"), avoid=(Window.parse("Mon-Fri 05:30-22:30"),))
THURSDAY = datetime(2026, 11, 26, tzinfo=UTC)
LABELS = FilesSettings(name=ComponentName("labels"), kind=FilesKind.DIRECTORY, path=Path("/srv/labels"))
DATABASE = PostgresSettings(name=ComponentName("database"), dsn="host=db1")


def planned(cron: str, calendar: Calendar = SHIFT, *, rpo: timedelta | None = None) -> Planned:
    service = Service(name=ServiceName("labels"), objectives=Objectives(rpo=rpo), components={LABELS.name: LABELS})
    return Planned(service=service, kind=RunKind.BACKUP, plan="", cron=Cron.parse(cron), calendar=calendar)


def test_outside_of_windows_work_begins() -> None:
    now = THURSDAY.replace(hour=1)
    start = decide_start(planned("0 1 * * *"), now=now, slot=now, last_done=now - DAY)
    assert (start.kind, start.at) == (StartKind.NOW, now)


def test_in_a_window_work_waits_for_its_end() -> None:
    now = THURSDAY.replace(hour=6)
    start = decide_start(planned("0 6 * * *"), now=now, slot=now, last_done=now - DAY)
    assert (start.kind, start.at) == (StartKind.DELAYED, THURSDAY.replace(hour=22, minute=30))
    assert start.reason == "Mon-Fri 05:30-22:30 of calendar plant-a until 2026-11-26T22:30:00Z"


def test_no_window_swallows_the_next_slot() -> None:
    now = THURSDAY.replace(hour=6)
    start = decide_start(planned("0 6,12 * * *"), now=now, slot=now, last_done=now - DAY)
    assert (start.kind, start.at) == (StartKind.THROTTLED, now)
    assert "the next slot comes at 2026-11-26T12:00" in start.reason


def test_no_window_breaks_an_objective() -> None:
    now = THURSDAY.replace(hour=6)
    tight, loose = (planned("0 6 * * *", rpo=rpo) for rpo in (12 * HOUR, 48 * HOUR))
    start = decide_start(tight, now=now, slot=now, last_done=now - HOUR)
    assert start.kind is StartKind.THROTTLED
    assert "the objective breaks at 2026-11-26T17:00" in start.reason
    assert decide_start(loose, now=now, slot=now, last_done=now - HOUR).kind is StartKind.DELAYED


def test_the_time_that_work_takes_counts() -> None:
    now = THURSDAY.replace(hour=6)
    work = planned("0 6 * * *")
    assert decide_start(work, now=now, slot=now, last_done=now - DAY, expected=7 * HOUR).kind is StartKind.DELAYED
    assert decide_start(work, now=now, slot=now, last_done=now - DAY, expected=8 * HOUR).kind is StartKind.THROTTLED


def test_what_has_no_result_at_all_waits_for_nothing() -> None:
    now = THURSDAY.replace(hour=6)
    start = decide_start(planned("0 6 * * *"), now=now, slot=now, last_done=None)
    assert (start.kind, start.at) == (StartKind.THROTTLED, now)


def test_a_calendar_may_throttle_instead_of_delaying() -> None:
    now = THURSDAY.replace(hour=6)
    calendar = replace(SHIFT, during_avoid=DuringAvoid.THROTTLE)
    start = decide_start(planned("0 6 * * *", calendar), now=now, slot=now, last_done=now - DAY)
    assert (start.kind, start.at) == (StartKind.THROTTLED, now)


def test_windows_without_end_never_stop_work_for_good() -> None:
    now = THURSDAY.replace(hour=6)
    calendar = replace(SHIFT, avoid=(Window.parse("Mon-Sun"),))
    start = decide_start(planned("0 6 1 1 *", calendar), now=now, slot=now, last_done=now - DAY)
    assert start.kind is StartKind.THROTTLED
    assert "no time without a window" in start.reason


def test_a_nightly_backup_is_due_a_grace_after_its_slot() -> None:
    work = planned("0 1 * * *", UTC_CALENDAR)
    due = next_due(work, last_done=THURSDAY.replace(hour=1, minute=20), since=THURSDAY - 90 * DAY)
    assert (due.slot, due.at) == (THURSDAY + DAY + HOUR, THURSDAY + DAY + 5 * HOUR)
    assert not due.is_overdue(due.at)
    assert due.is_overdue(due.at + timedelta(microseconds=1))


def test_what_was_never_done_is_due_from_when_it_was_first_asked_for() -> None:
    work = planned("0 1 * * *", UTC_CALENDAR)
    assert next_due(work, last_done=None, since=THURSDAY + 2 * HOUR).slot == THURSDAY + DAY + HOUR


def test_grace_never_reaches_beyond_the_next_slot() -> None:
    work = planned("*/15 * * * *", UTC_CALENDAR)
    due = next_due(work, last_done=THURSDAY + timedelta(minutes=1), since=THURSDAY)
    assert (due.slot, due.at) == (THURSDAY + timedelta(minutes=15), THURSDAY + timedelta(minutes=30))


def test_what_a_window_delays_is_not_overdue_meanwhile() -> None:
    due = next_due(planned("0 6 * * *"), last_done=THURSDAY - 2 * HOUR, since=THURSDAY)
    assert (due.slot, due.at) == (THURSDAY.replace(hour=6), THURSDAY.replace(hour=22, minute=30) + 4 * HOUR)
    assert "begins when Mon-Fri 05:30-22:30" in due.reason


def test_an_objective_may_come_before_the_schedule() -> None:
    due = next_due(planned("0 1 * * 0", rpo=DAY), last_done=THURSDAY, since=THURSDAY - 90 * DAY)
    assert (due.slot, due.at) == (None, THURSDAY + DAY)


def test_a_grace_of_one_s_own() -> None:
    work = planned("0 1 * * *", UTC_CALENDAR)
    work = replace(work, service=replace(work.service, schedule=Schedules(grace=HOUR)))
    assert next_due(work, last_done=THURSDAY.replace(hour=2), since=THURSDAY).at == THURSDAY + DAY + 2 * HOUR


def test_only_what_ships_no_wal_depends_on_the_age_of_its_backup() -> None:
    objectives = Objectives(rpo=HOUR, documents_rpo=timedelta(minutes=1))
    folders = Service(name=ServiceName("labels"), objectives=objectives, components={LABELS.name: LABELS})
    cluster = replace(folders, components={DATABASE.name: DATABASE, LABELS.name: LABELS})
    assert promised_age(folders, RunKind.BACKUP) == HOUR
    assert promised_age(cluster, RunKind.BACKUP) is None
    assert promised_age(cluster, RunKind.DOCUMENTS) == timedelta(minutes=1)
    assert promised_age(folders, RunKind.DRILL) is None
