"""The demo's judgement of its week: whatever did not happen as the story says is found and told."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta

import pytest

from drservice.cli.demofacts import KnownFacts, LossFacts, NightFacts, NoticeFacts, ScheduledFacts, WeekFacts
from drservice.cli.demoplan import NIGHTS, WeekPlan, plan_week
from drservice.cli.demoweekreport import week_document, week_picture, week_problems, week_rows
from drservice.clock import to_iso
from drservice.model.runs import RunState

PLAN = plan_week(datetime(2026, 11, 26, 18, tzinfo=UTC))
KNOWN = KnownFacts(
    points=frozenset({("P0", "complete"), ("P1", "complete")}),
    windows=frozenset({("database", 1, 16)}),
    reaches=64,
    records=frozenset({(0, "a"), (1, "b")}),
    runs=4,
)
EMPTY = KnownFacts(points=frozenset(), windows=frozenset(), reaches=0, records=frozenset(), runs=0)


def night(plan: WeekPlan, day: date) -> NightFacts:
    number = plan.days.index(day)
    slot = plan.slot(day)
    waits = slot + timedelta(hours=3) if plan.waits(day) else None
    return NightFacts(
        day=day,
        slot=slot,
        state=RunState.MISSED if day == plan.fault else RunState.SUCCEEDED,
        run=f"R{number}",
        run_state=RunState.SUCCEEDED,
        started_at=(waits or slot) + timedelta(seconds=2),
        not_before=waits,
        point=f"P{number}",
        stored_bytes=100 if number == 0 else 5,
        seconds=1.0,
    )


def week(plan: WeekPlan = PLAN) -> WeekFacts:
    nights = tuple(night(plan, day) for day in plan.days)
    missed = next(each for each in nights if each.day == plan.fault)
    done = ScheduledFacts(
        slot=plan.slot(plan.drill),
        run="D",
        state=RunState.SUCCEEDED,
        host="recovery-site",
        verdict="passed",
        seconds=3.0,
    )
    return WeekFacts(
        holiday=plan.holiday,
        fault=plan.fault,
        loss_on=plan.loss,
        drill_on=plan.drill,
        expected_to_wait=frozenset(day for day in plan.days if plan.waits(day)),
        nights=nights,
        verification=dataclasses.replace(done, verdict=None),
        drill=done,
        messages=(
            NoticeFacts(
                title=f"erp: backup: a slot missed, the last {to_iso(missed.slot)}", text=f"Run {missed.run} makes up."
            ),
        ),
        loss=LossFacts(before=KNOWN, empty=EMPTY, after=KNOWN, was_gone=True, seconds=2.0),
        points=frozenset(f"P{number}" for number in range(NIGHTS)),
        first_stored_bytes=100,
        seconds=40.0,
    )


def changed(day: date, **change: object) -> dict[str, object]:
    return {
        "nights": tuple(
            dataclasses.replace(each, **change) if each.day == day else each  # type: ignore[arg-type]  # named by cases
            for each in week().nights
        )
    }


def lost(**change: object) -> dict[str, object]:
    return {"loss": dataclasses.replace(week().loss, **change)}  # type: ignore[arg-type]  # the cases name their fields


@pytest.mark.parametrize("hours", range(0, 24 * 9, 5))
def test_every_week_has_a_fault_then_a_loss_then_a_holiday_that_waits_and_a_drill(hours: int) -> None:
    now = datetime(2026, 10, 20, tzinfo=UTC) + timedelta(hours=hours)  # over the end of summer time
    plan = plan_week(now)
    assert len(plan.days) == NIGHTS
    assert plan.fault < plan.loss < min(plan.holiday, plan.drill)
    assert plan.holiday != plan.drill
    assert plan.waits(plan.holiday)
    assert not plan.waits(plan.fault)
    assert plan.begins < plan.slot(plan.days[0])
    assert plan.slot(plan.days[-1]) + timedelta(hours=8) < now
    assert tuple(week_problems(week(plan))) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(PLAN.days[0], run_state=RunState.FAILED), "ended as failed"),
        (changed(PLAN.days[0], state=RunState.MISSED), "although a node was there"),
        (changed(PLAN.days[0], not_before=PLAN.slot(PLAN.days[0])), "without a reason"),
        (changed(PLAN.holiday, not_before=None), "did not wait"),
        (changed(PLAN.holiday, started_at=PLAN.slot(PLAN.holiday)), "did not wait"),
        (changed(PLAN.fault, state=RunState.SUCCEEDED), "does not count as missed"),
        (changed(PLAN.days[3], point="P0"), "7 nights have 6 recovery points"),
        ({"points": frozenset(f"P{number}" for number in range(6))}, "does not know 1 recovery points"),
        ({"messages": ()}, "nobody was told"),
        ({"messages": (NoticeFacts(title="erp: something else", text="R1"),)}, "messages that arrived: 1"),
        (
            {"messages": (dataclasses.replace(week().messages[0], text="Nothing makes up for it."),)},
            "does not name the run",
        ),
        ({"verification": dataclasses.replace(week().verification, state=RunState.FAILED)}, "verification ended"),
        ({"drill": dataclasses.replace(week().drill, verdict="failed")}, "did not pass: failed"),
        ({"drill": dataclasses.replace(week().drill, host="production")}, "not by the recovery site"),
        (lost(was_gone=False), "was not destroyed"),
        (lost(empty=dataclasses.replace(EMPTY, runs=1)), "was not empty"),
        (lost(after=dataclasses.replace(KNOWN, points=frozenset({("P0", "complete")}))), "1 recovery points are not"),
        (lost(after=dataclasses.replace(KNOWN, records=frozenset({(0, "a"), (1, "z")}))), "1 records are not"),
        (lost(after=dataclasses.replace(KNOWN, windows=frozenset())), "1 stretches of WAL are not"),
        (lost(after=dataclasses.replace(KNOWN, reaches=63)), "ends earlier"),
        (lost(before=EMPTY, after=EMPTY), "proves nothing about rebuild"),
    ],
)
def test_each_problem_of_the_week_is_told(change: dict[str, object], words: str) -> None:
    seen = dataclasses.replace(week(), **change)  # type: ignore[arg-type]  # the cases name their fields
    (problem,) = week_problems(seen)
    assert words in problem


def test_a_slot_that_nothing_made_up_for_is_a_problem_and_not_caught_up() -> None:
    seen = dataclasses.replace(week(), **changed(PLAN.fault, run_state=RunState.MISSED, point=None))  # type: ignore[arg-type]  # named above
    assert len(tuple(week_problems(seen))) == 2
    document = week_document(seen)["caught_up"]
    assert isinstance(document, dict)
    assert document["done"] is False


def test_the_picture_says_in_words_what_each_night_was() -> None:
    told = ["".join(part if isinstance(part, str) else part.text for part in line) for line in week_picture(week())]
    assert told[0].split() == [
        "Fri",
        "20",
        "Sat",
        "21",
        "Sun",
        "22",
        "Mon",
        "23",
        "Tue",
        "24",
        "Wed",
        "25",
        "Thu",
        "26",
    ]
    assert told[1].split() == ["01:00", "ok", "MISSED", "ok", "ok", "ok", "ok", "ok"]
    assert told[2].split() == ["began", "01:00", "01:00", "04:00", "01:00", "04:00", "01:00", "01:00"]
    assert told[3].split() == ["day", "-", "-", "Sunday", "-", "holiday", "-", "-"]
    assert told[4].split() == ["then", "-", "caught", "up", "rebuilt", "-", "-", "-", "drill", "ok"]
    assert max(len(line) for line in told) <= 80


def test_the_picture_does_not_call_well_what_went_wrong() -> None:
    seen = dataclasses.replace(
        week(),
        **changed(PLAN.fault, run_state=RunState.FAILED),  # type: ignore[arg-type]  # named above
        loss=dataclasses.replace(week().loss, after=EMPTY),
        drill=dataclasses.replace(week().drill, verdict="failed"),
    )
    told = "".join(str(line) for line in week_picture(seen))
    for words in ("LOST", "INCOMPL.", "DRILL!"):
        assert words in told
    assert ("missed slots caught up, and on-call told", "1", "0") in week_rows(seen)


def test_a_story_without_the_week_says_null_for_all_of_it() -> None:
    assert set(week_document(None)) >= {"nights", "notified", "caught_up", "holiday", "rebuilt"}
    assert set(week_document(None).values()) == {None}
    assert set(week_document(None)) == set(week_document(week()))
