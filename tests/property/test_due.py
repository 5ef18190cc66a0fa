"""Whatever the calendar, nothing is delayed into a broken promise, and each slot is judged once."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.model.calendar import Calendar, DuringAvoid, Window
from drservice.model.due import StartKind, decide_start, next_due, promised_age
from drservice.model.estate import CatchUp, FilesKind, FilesSettings, Objectives, Schedules, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.runs import RunKind
from drservice.model.schedule import Cron
from drservice.model.timetable import TOLERANCE, Planned, settle_slots

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
WEEK = datetime(2026, 10, 22, tzinfo=UTC)  # clocks in Berlin go back within it
FILES = FilesSettings(name=ComponentName("files"), kind=FilesKind.DIRECTORY, path=Path("/srv"))
WINDOWS = ("Mon-Fri 05:30-22:30", "22:00-06:00", "Sat,Sun", "Sun 01:00-02:30", "Mon-Sun", "12:00-13:00")
CRONS = ("0 1 * * *", "30 2 * * *", "0 6,12,18 * * *", "*/20 * * * *", "0 9 * * 1-5", "0 12 * * 0")


@st.composite
def schedules(draw: st.DrawFn) -> Planned:
    calendar = Calendar(
        name="p",
        zone=ZoneInfo("Europe/Berlin"),
        avoid=tuple(Window.parse(text) for text in draw(st.lists(st.sampled_from(WINDOWS), max_size=3))),
        during_avoid=draw(st.sampled_from(DuringAvoid)),
    )
    hours = draw(st.none() | st.integers(1, 72))
    service = Service(
        name=ServiceName("labels"),
        objectives=Objectives(rpo=timedelta(hours=hours) if hours is not None else None),
        components={FILES.name: FILES},
        catch_up=draw(st.sampled_from(CatchUp)),
        schedule=Schedules(grace=timedelta(minutes=draw(st.integers(1, 600)))),
    )
    cron = Cron.parse(draw(st.sampled_from(CRONS)))
    return Planned(service=service, kind=RunKind.BACKUP, plan="", cron=cron, calendar=calendar)


INSTANTS = st.integers(0, 7 * 1440).map(lambda minutes: WEEK + minutes * MINUTE)


@settings(max_examples=300, deadline=None)
@given(
    planned=schedules(),
    slot=INSTANTS,
    late=st.integers(0, 600),
    age=st.none() | st.integers(0, 5000),
    takes=st.integers(0, 300),
)
def test_work_waits_only_for_a_window_and_never_beyond_a_promise(
    planned: Planned, slot: datetime, late: int, age: int | None, takes: int
) -> None:
    now, expected = slot + late * MINUTE, takes * MINUTE
    last_done = slot - age * MINUTE if age is not None else None
    start = decide_start(planned, now=now, slot=slot, last_done=last_done, expected=expected)
    assert (start.kind is StartKind.NOW) == (planned.calendar.avoidance(now) is None)
    if start.kind is not StartKind.DELAYED:
        assert start.at == now
        return
    assert start.at > now
    assert planned.calendar.avoidance(start.at) is None
    assert start.at + expected <= planned.cron.next_slot(planned.calendar.zone, after=slot)
    promised = promised_age(planned.service, planned.kind)
    assert last_done is not None
    assert promised is None or start.at + expected <= last_done + promised


@settings(max_examples=200, deadline=None)
@given(planned=schedules(), done=INSTANTS)
def test_what_is_done_in_time_is_never_overdue(planned: Planned, done: datetime) -> None:
    due = next_due(planned, last_done=done, since=WEEK - DAY)
    assert due.at > done
    promised = promised_age(planned.service, planned.kind)
    assert promised is None or due.at <= done + promised
    if due.slot is not None:
        start = decide_start(planned, now=due.slot, slot=due.slot, last_done=done)
        assert due.slot > done
        assert start.at <= due.at <= start.at + planned.service.schedule.grace


@settings(max_examples=150, deadline=None)
@given(planned=schedules(), looks=st.lists(INSTANTS, min_size=1, max_size=60))
def test_each_slot_is_judged_once_however_one_looks(planned: Planned, looks: list[datetime]) -> None:
    edges = [WEEK, *sorted(looks)]
    due: list[datetime] = []
    missed: list[datetime] = []
    for settled, now in itertools.pairwise(edges):
        found = settle_slots(planned, settled=settled, now=now)
        assert all(now - slot <= TOLERANCE for slot in found.due)
        assert all(now - slot > TOLERANCE for slot in found.missed)
        assert found.catches_up == (
            bool(found.missed) and not found.due and planned.service.catch_up is CatchUp.RUN_ONCE
        )
        due += found.due
        missed += found.missed
    every = list(planned.cron.slots_between(planned.calendar.zone, after=WEEK, until=edges[-1]))
    assert sorted(due + missed) == every
