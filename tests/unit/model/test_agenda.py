"""One rule for what is overdue: by the newest result that counts, whatever a scheduler did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from drservice.model.agenda import Agenda, Results, due_of, judge, next_of
from drservice.model.estate import DrillPlan, Estate, RepositorySettings, Schedules, Service
from drservice.model.ids import ServiceName
from drservice.model.schedule import Cron

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BACKUP, VERIFY, DRILL = ("backup", ""), ("verify", ""), ("drill", "erp-latest")


def agenda(*drills: DrillPlan, drill: str | None = "0 6 * * 0") -> Agenda:
    service = Service(
        name=ServiceName("erp"),
        schedule=Schedules(
            backup=Cron.parse("0 1 * * *"),
            verify=Cron.parse("30 3 * * *"),
            drill=Cron.parse(drill) if drill else None,
        ),
    )
    return Agenda(
        Estate(
            source=Path("drservice.yaml"),
            state_dir=Path("state"),
            repository=RepositorySettings(url="file:///repository"),
            services={service.name: service},
            drills={plan.name: plan for plan in drills},
        )
    )


def overdue(made: Agenda, results: Results) -> list[str]:
    return [item.what for item in made.overdue("erp", results, NOW)]


FRESH = Results(done={BACKUP: NOW - 10 * HOUR, VERIFY: NOW - 8 * HOUR, DRILL: NOW - 3 * DAY})


def test_fresh_results_are_not_overdue() -> None:
    assert overdue(agenda(), FRESH) == []


def test_a_result_that_is_older_than_its_schedule_allows_is_overdue_longest_first() -> None:
    old = Results(done={BACKUP: NOW - 2 * DAY, VERIFY: NOW - 3 * DAY, DRILL: NOW - 10 * DAY})
    assert overdue(agenda(), old) == ["drill erp-latest", "verify", "backup"]


def test_a_point_counts_whoever_made_it_and_the_newest_counts() -> None:
    by_hand = Results(done={**FRESH.done, BACKUP: NOW - 5 * DAY}, backed_up_at=NOW - HOUR)
    assert overdue(agenda(), by_hand) == []
    assert overdue(agenda(), Results(done=FRESH.done, backed_up_at=NOW - 5 * DAY)) == []


def test_a_passed_drill_counts_where_only_one_drill_is_scheduled() -> None:
    results = Results(
        done={BACKUP: NOW - HOUR, VERIFY: NOW - HOUR}, since={DRILL: NOW - 30 * DAY}, drilled_at=NOW - DAY
    )
    assert overdue(agenda(), results) == []
    plans = [DrillPlan(name=name, service=ServiceName("erp")) for name in ("monthly", "yearly")]
    several = Results(done=results.done, since={("drill", "yearly"): NOW - 30 * DAY}, drilled_at=NOW - DAY)
    assert overdue(agenda(*plans), several) == ["drill yearly"]


def test_without_a_result_it_counts_from_when_it_was_first_wanted_and_before_that_nothing_is_due() -> None:
    assert overdue(agenda(), Results()) == []
    assert list(agenda().dues("erp", Results())) == []
    wanted = Results(since={BACKUP: NOW - 2 * DAY, VERIFY: NOW - HOUR})
    assert overdue(agenda(), wanted) == ["backup"]
    assert agenda().overdue("erp", wanted, NOW)[0].last_done is None


def test_what_is_remembered_is_what_would_be_worked_out_anew() -> None:
    made = agenda()
    for hours in range(0, 24 * 14, 5):
        results = Results(done={BACKUP: NOW + hours * HOUR}, since={VERIFY: NOW + hours * HOUR})
        for planned, due in made.dues("erp", results):
            assert due == due_of(planned, results, is_only=True, by=judge)
        for planned in made.planned("erp"):
            at = NOW + hours * HOUR
            assert made.next_slot(planned, at) == planned.next_slots(after=at, count=1)[0]
            assert made.next_slots(planned, at, 3) == planned.next_slots(after=at, count=3)
            assert made.next_slot(planned, at - DAY) == planned.next_slots(after=at - DAY, count=1)[0]


def test_the_next_slot_of_a_service_is_the_first_of_all_its_schedules() -> None:
    planned, at = next_of(agenda(), ["erp", "nobody"], NOW)["erp"]
    assert (planned.kind.value, at) == ("backup", datetime(2026, 11, 27, 1, tzinfo=UTC))
    assert "nobody" not in next_of(agenda(), ["nobody"], NOW)
