from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from drservice.model.calendar import UTC_CALENDAR, Calendar
from drservice.model.estate import CatchUp, DrillPlan, Estate, RepositorySettings, Schedules, Service
from drservice.model.ids import ServiceName
from drservice.model.runs import RunKind
from drservice.model.schedule import Cron
from drservice.model.timetable import Planned, drills_without_effect, settle_slots, timetable

ERP = ServiceName("erp")
NIGHTLY, WEEKLY, QUARTERLY = (Cron.parse(text) for text in ("0 1 * * *", "0 5 * * 0", "0 6 1 1,4,7,10 *"))
MONDAY = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def estate(schedule: Schedules, *plans: DrillPlan, calendar: str | None = None) -> Estate:
    return Estate(
        source=Path("/etc/drservice.yaml"),
        state_dir=Path("/var/lib/drservice"),
        repository=RepositorySettings(url="file:///r"),
        services={ERP: Service(name=ERP, schedule=schedule, calendar=calendar)},
        drills={plan.name: plan for plan in plans},
        calendars={"plant-a": Calendar(name="plant-a", zone=ZoneInfo("Europe/Berlin"))},
    )


def planned(policy: CatchUp = CatchUp.RUN_ONCE) -> Planned:
    service = Service(name=ERP, catch_up=policy)
    return Planned(service=service, kind=RunKind.BACKUP, plan="", cron=NIGHTLY, calendar=UTC_CALENDAR)


def test_everything_declared_is_in_the_timetable_by_the_service_s_calendar() -> None:
    plan = DrillPlan(name="quarterly", service=ERP, schedule=QUARTERLY)
    table = timetable(estate(Schedules(backup=NIGHTLY, verify=WEEKLY), plan, calendar="plant-a"))
    assert [entry.key for entry in table] == [
        ("erp", "backup", ""),
        ("erp", "verify", ""),
        ("erp", "drill", "quarterly"),
    ]
    assert {entry.calendar.name for entry in table} == {"plant-a"}
    assert table[0].next_slots(after=MONDAY, count=1) == (datetime(2026, 11, 24, 0, tzinfo=UTC),), "01:00 in Berlin"


def test_a_service_s_drill_schedule_is_for_drills_without_their_own() -> None:
    own = DrillPlan(name="own", service=ERP, schedule=QUARTERLY)
    other = DrillPlan(name="other", service=ERP)
    drills = {entry.plan: entry.cron for entry in timetable(estate(Schedules(drill=WEEKLY), own, other))}
    assert drills == {"own": QUARTERLY, "other": WEEKLY}


def test_a_service_without_drills_recovers_its_latest_position() -> None:
    table = timetable(estate(Schedules(drill=WEEKLY)))
    assert [(entry.plan, entry.cron) for entry in table] == [("erp-latest", WEEKLY)]


def test_a_drill_schedule_that_starts_nothing_is_found() -> None:
    own = DrillPlan(name="own", service=ERP, schedule=QUARTERLY)
    assert [service.name for service in drills_without_effect(estate(Schedules(drill=WEEKLY), own))] == ["erp"]
    assert drills_without_effect(estate(Schedules(drill=QUARTERLY), own)) == (), "it says the same"
    assert drills_without_effect(estate(Schedules(drill=WEEKLY))) == ()


def test_without_schedules_the_timetable_is_empty() -> None:
    assert timetable(estate(Schedules(), DrillPlan(name="by-hand", service=ERP))) == ()


def test_a_slot_that_comes_is_due_and_a_slot_that_was_judged_is_not_judged_again() -> None:
    slot = MONDAY.replace(day=24, hour=1)
    first = settle_slots(planned(), settled=MONDAY, now=slot)
    assert (first.due, first.missed, first.catches_up) == ((slot,), (), False)
    again = settle_slots(planned(), settled=slot, now=slot + timedelta(seconds=30))
    assert (again.due, again.missed) == ((), ())


def test_a_restart_is_no_missed_slot() -> None:
    slot = MONDAY.replace(day=24, hour=1)
    assert settle_slots(planned(), settled=MONDAY, now=slot + timedelta(minutes=5)).due == (slot,)
    assert settle_slots(planned(), settled=MONDAY, now=slot + timedelta(minutes=5, seconds=1)).missed == (slot,)


@pytest.mark.parametrize(("policy", "catches_up"), [(CatchUp.RUN_ONCE, True), (CatchUp.SKIP, False)])
def test_missed_slots_are_all_recorded_and_caught_up_by_one_run_or_none(policy: CatchUp, catches_up: bool) -> None:  # noqa: FBT001 - a parameter of the table above
    settlement = settle_slots(planned(policy), settled=MONDAY, now=MONDAY + 3 * DAY)
    assert settlement.due == ()
    assert [slot.day for slot in settlement.missed] == [24, 25, 26]
    assert settlement.catches_up is catches_up
    assert policy.value in settlement.reason


def test_a_slot_that_is_due_makes_the_run_that_catches_up_needless() -> None:
    settlement = settle_slots(planned(), settled=MONDAY, now=(MONDAY + 3 * DAY).replace(hour=1, minute=2))
    assert [slot.day for slot in settlement.missed] == [24, 25]
    assert [slot.day for slot in settlement.due] == [26]
    assert not settlement.catches_up


def test_a_clock_that_was_set_back_judges_nothing_twice() -> None:
    settlement = settle_slots(planned(), settled=MONDAY, now=MONDAY - 5 * DAY)
    assert (settlement.due, settlement.missed, settlement.catches_up) == ((), (), False)


def test_a_slot_in_a_repeated_hour_is_settled_once_however_often_one_looks() -> None:
    nightly = replace(
        planned(),
        cron=Cron.parse("30 2 * * *"),
        calendar=Calendar(name="plant-a", zone=ZoneInfo("Europe/Berlin")),
    )
    settled = datetime(2026, 10, 24, 23, tzinfo=UTC)
    runs: list[datetime] = []
    for tick in range(1, 300):
        now = datetime(2026, 10, 24, 23, tzinfo=UTC) + timedelta(minutes=tick)
        runs += settle_slots(nightly, settled=settled, now=now).due
        settled = now
    assert runs == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]
