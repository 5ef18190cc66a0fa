"""Schedulers: each slot is a run or a missed slot, once, whoever looks and whenever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunInfo, Runs
from drservice.catalogue.timetables import ScheduleKey, hold
from drservice.clock import SystemClock
from drservice.errors import CatalogueUnreachableError
from drservice.jobs.queue import Queue, queues_for
from drservice.model.calendar import Calendar, Window
from drservice.model.estate import (
    CatchUp,
    Estate,
    FilesKind,
    FilesSettings,
    PostgresSettings,
    RepositorySettings,
    Schedules,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.runs import RunKind, RunState
from drservice.model.schedule import Cron
from drservice.node.scheduler import Missed, Scheduler
from tests.doubles.estate import wait_for

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = Cron.parse("30 2 * * *")
QUARTER_HOURLY = Cron.parse("*/15 * * * *")


def an_estate(
    *names: str, backup: Cron | None = NIGHTLY, calendar: Calendar | None = None, **schedule: object
) -> Estate:
    plant = calendar or Calendar(name="plant", zone=BERLIN)
    database = PostgresSettings(name=ComponentName("database"), dsn="", node="db1")
    documents = FilesSettings(
        name=ComponentName("documents"), kind=FilesKind.ODOO_FILESTORE, path=Path("/nowhere"), node="app1"
    )
    services = {
        ServiceName(name): Service(
            name=ServiceName(name),
            components={database.name: database, documents.name: documents},
            calendar="plant",
            schedule=Schedules(backup=backup, **schedule),  # type: ignore[arg-type]  # by name
        )
        for name in names or ("erp",)
    }
    return Estate(
        source=Path("/nowhere"),
        state_dir=Path("/nowhere"),
        repository=RepositorySettings(url=""),
        services=services,
        calendars={"plant": plant},
    )


def with_catch_up(estate: Estate, policy: CatchUp) -> Estate:
    return replace(estate, services={k: replace(s, catch_up=policy) for k, s in estate.services.items()})


class Time:
    """The catalogue's clock as a row that a test sets."""

    def __init__(self, database: Database, now: datetime) -> None:
        self._database = database
        with database.connection() as connection:
            connection.execute(text("CREATE TABLE test_clock (now timestamptz NOT NULL)"))
            connection.execute(text("INSERT INTO test_clock VALUES (:now)"), {"now": now})
            connection.execute(
                text(
                    "CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
                    " AS 'SELECT now FROM test_clock'"
                )
            )
        self.now = now

    def set(self, now: datetime) -> None:
        with self._database.connection() as connection:
            connection.execute(text("UPDATE test_clock SET now = :now"), {"now": now})
        self.now = now

    def move(self, **by: float) -> None:
        self.set(self.now + timedelta(**by))


def a_scheduler(database: Database, estate: Estate) -> tuple[Scheduler, list[Missed]]:
    missed: list[Missed] = []
    scheduler = Scheduler(database, estate=estate, clock=SystemClock(), missed=lambda found, _: missed.append(found))
    return scheduler, missed


def runs_of(database: Database, state: RunState | None = None, kind: RunKind = RunKind.BACKUP) -> list[RunInfo]:
    return sorted(Runs(database).list(kind=kind, state=state, limit=10_000), key=lambda run: run.id)


def slots_of(database: Database, state: RunState = RunState.QUEUED) -> list[datetime]:
    return sorted(run.scheduled_for for run in runs_of(database, state) if run.scheduled_for is not None)


@pytest.fixture
def time(database: Database) -> Time:
    return Time(database, datetime(2026, 10, 23, 12, 0, tzinfo=UTC))


def test_three_schedulers_over_days_with_a_repeated_hour_lose_and_double_no_slot(
    database: Database, time: Time
) -> None:
    estate = an_estate("erp", "crm", backup=QUARTER_HOURLY, verify=NIGHTLY)
    time.set(datetime(2026, 10, 24, 12, 0, tzinfo=UTC))
    begin, end = time.now, time.now + timedelta(hours=40)
    stop = threading.Event()
    failures: list[BaseException] = []

    def tick(seed: int) -> None:
        chance = random.Random(seed)
        scheduler, _ = a_scheduler(database, estate)
        try:
            while not stop.is_set():
                scheduler.tick()
                stop.wait(chance.uniform(0, 0.02))
        except BaseException as error:  # noqa: BLE001 - told by the test below
            failures.append(error)

    threads = [threading.Thread(target=tick, args=(seed,)) for seed in range(3)]
    first, _ = a_scheduler(database, estate)
    first.tick()
    for thread in threads:
        thread.start()
    while time.now < end:
        time.move(minutes=4)
        while first.tick() < 1:
            pass  # another is carrying one out: time stands still until it has, as nobody holds one for minutes
    stop.set()
    for thread in threads:
        thread.join()
    first.tick()
    assert not failures
    expected = list(QUARTER_HOURLY.slots_between(BERLIN, after=begin, until=end))
    assert len(expected) == 40 * 4, "elapsed time: the repeated hour has its slots twice"
    for name in ("erp", "crm"):
        got = [run.scheduled_for for run in runs_of(database) if run.service == name]
        assert got == expected
    nights = Counter(run.scheduled_for for run in runs_of(database, kind=RunKind.VERIFY))
    assert sorted(slot for slot in nights if slot) == list(NIGHTLY.slots_between(BERLIN, after=begin, until=end))
    assert set(nights.values()) == {2}, "one for each service"
    assert not runs_of(database, RunState.MISSED)


def test_a_night_that_a_zone_skips_an_hour_in_has_its_backup(database: Database, time: Time) -> None:
    time.set(datetime(2027, 3, 27, 12, 0, tzinfo=UTC))
    scheduler, _ = a_scheduler(database, an_estate())
    for _ in range(2 * 24 * 4):
        scheduler.tick()
        time.move(minutes=4 if time.now.minute % 15 else 11)
    slots = slots_of(database)
    assert datetime(2027, 3, 28, 1, 0, tzinfo=UTC) in slots, (
        "02:30 does not exist; the first instant after the gap does"
    )
    assert len(slots) == len(set(slots))


@pytest.mark.usefixtures("time")
def test_a_new_schedule_misses_nothing_of_the_time_before_it(database: Database) -> None:
    scheduler, missed = a_scheduler(database, an_estate())
    scheduler.tick()
    assert not runs_of(database)
    assert not missed


def test_slots_of_a_dark_week_are_recorded_as_missed_and_caught_up_once(database: Database, time: Time) -> None:
    a_scheduler(database, an_estate())[0].tick()
    time.move(days=7)
    scheduler, missed = a_scheduler(database, an_estate())
    other, _ = a_scheduler(database, an_estate())
    scheduler.tick()
    other.tick()
    lost = runs_of(database, RunState.MISSED)
    (catching_up,) = runs_of(database, RunState.QUEUED)
    assert len(lost) == 7
    assert {run.caught_up_by for run in lost} == {catching_up.id}
    assert catching_up.scheduled_for is None
    assert [found.caught_up_by for found in missed] == [catching_up.id]


def test_by_policy_missed_slots_are_recorded_and_nothing_is_caught_up(database: Database, time: Time) -> None:
    estate = with_catch_up(an_estate(), CatchUp.SKIP)
    a_scheduler(database, estate)[0].tick()
    time.move(days=3)
    scheduler, missed = a_scheduler(database, estate)
    scheduler.tick()
    assert len(runs_of(database, RunState.MISSED)) == 3
    assert not runs_of(database, RunState.QUEUED)
    assert [len(found.slots) for found in missed] == [3]


def test_a_catalogue_that_is_away_for_a_minute_loses_no_slot(database: Database, time: Time) -> None:
    time.set(datetime(2026, 10, 24, 0, 29, 50, tzinfo=UTC))
    scheduler, _ = a_scheduler(database, an_estate())
    scheduler.tick()
    real = scheduler._database
    scheduler._database = Database("postgresql://nobody@/nothing?host=/nonexistent")
    with pytest.raises(CatalogueUnreachableError):
        scheduler.tick()
    time.move(seconds=60)
    scheduler._database = real
    scheduler.tick()
    assert slots_of(database) == [datetime(2026, 10, 24, 0, 30, tzinfo=UTC)]


def test_a_clock_that_is_set_back_runs_no_slot_twice(database: Database, time: Time) -> None:
    scheduler, _ = a_scheduler(database, an_estate(backup=QUARTER_HOURLY))
    scheduler.tick()
    time.move(minutes=15)
    scheduler.tick()
    time.move(hours=-1)
    for _ in range(16):
        scheduler.tick()
        time.move(minutes=5)
    slots = slots_of(database)
    assert len(slots) == len(set(slots)) == 2


def test_heavy_work_waits_for_the_end_of_a_window_and_then_gets_its_job(database: Database, time: Time) -> None:
    calendar = Calendar(name="plant", zone=BERLIN, avoid=(Window.parse("01:00-04:00"),))
    estate = an_estate(calendar=calendar)
    scheduler, _ = a_scheduler(database, estate)
    scheduler.tick()
    queue, runs = Queue(database), Runs(database)
    # There has to be a result already: without any nothing waits.
    time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))
    scheduler.tick()
    (first,) = runs_of(database)
    assert first.parameters["throttled"] is True
    job = queue.take(queues_for("db1", can_read=False))
    assert job is not None
    claim = runs.claim(first.id, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    runs.finish(claim, RunState.SUCCEEDED)
    queue.done(job)
    time.set(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    scheduler.tick()
    second = runs_of(database)[-1]
    assert second.parameters["not_before"] == "2026-10-25T03:00:00.000000Z", "the hour from 2 to 3 is twice in it"
    queue.look_after()
    assert queue.take(queues_for("db1", can_read=False)) is None
    time.set(datetime(2026, 10, 25, 3, 0, tzinfo=UTC))
    queue.look_after()
    taken = queue.take(queues_for("db1", can_read=False))
    assert taken is not None
    assert taken.run == second.id


def test_a_changed_schedule_misses_nothing_that_its_new_text_names_in_the_past(database: Database, time: Time) -> None:
    scheduler, missed = a_scheduler(database, an_estate())
    scheduler.tick()
    time.move(minutes=9)
    scheduler.replace(an_estate("erp", "crm", backup=Cron.parse("*/2 * * * *")))
    scheduler.tick()
    assert not runs_of(database)
    time.move(minutes=2)
    scheduler.tick()
    assert len(runs_of(database)) == 2
    assert not missed


def test_document_passes_come_one_at_a_time_and_never_pile_up(database: Database, time: Time) -> None:
    estate = an_estate(backup=None, documents_every=timedelta(seconds=30))
    scheduler, missed = a_scheduler(database, estate)
    for _ in range(20):
        scheduler.tick()
        time.move(seconds=30)
    (waiting,) = runs_of(database, kind=RunKind.DOCUMENTS)
    assert waiting.host == "app1"
    Runs(database).cancel(waiting.id, "ops")
    time.move(hours=3)
    scheduler.tick()
    assert len(runs_of(database, RunState.QUEUED, RunKind.DOCUMENTS)) == 1
    assert not missed


def test_one_schedule_that_cannot_be_carried_out_keeps_no_other_from_its_slot(
    database: Database, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, _ = a_scheduler(database, an_estate("bad", "good"))
    scheduler.tick()
    judge = scheduler._judge

    def broken(key: object) -> None:
        if getattr(key, "service", "") == "bad":
            raise ZeroDivisionError
        judge(key)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(scheduler, "_judge", broken)
    time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))
    scheduler.tick()
    assert [run.service for run in runs_of(database)] == ["good"]


def test_the_alarm_rings_when_a_slot_comes(database: Database) -> None:
    # By the real clock; a cron has minutes, so the passes over documents stand in for it.
    estate = an_estate(backup=None, documents_every=timedelta(seconds=1))
    scheduler, _ = a_scheduler(database, estate)
    scheduler.start()
    try:
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        while not runs_of(database, kind=RunKind.DOCUMENTS):
            assert datetime.now(UTC) < deadline
    finally:
        scheduler.stop()
    (run,) = runs_of(database, kind=RunKind.DOCUMENTS)
    assert run.scheduled_for is not None
    assert run.requested_at - run.scheduled_for < timedelta(seconds=0.5)


def test_a_scheduler_that_is_stopped_in_the_middle_of_a_look_ends_when_the_look_does(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, _ = a_scheduler(database, an_estate())
    begun, go_on = threading.Event(), threading.Event()

    def slow(*given: object) -> None:
        del given
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(scheduler, "_carry_on", slow)
    scheduler.start()
    assert begun.wait(10)
    ending = threading.Thread(target=scheduler.stop, daemon=True)
    ending.start()
    ending.join(0.3)
    assert ending.is_alive(), "it waits for the look"
    go_on.set()
    ending.join(10)
    assert not ending.is_alive()


def test_a_scheduler_that_is_woken_in_the_middle_of_a_look_looks_again_at_once(
    database: Database, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, _ = a_scheduler(database, an_estate())
    scheduler.tick()
    look_at, looking, go_on = scheduler._look_at, threading.Event(), threading.Event()

    def slow(key: ScheduleKey, until: datetime | None, now: datetime) -> None:
        looking.set()
        assert go_on.wait(10)
        look_at(key, until, now)

    monkeypatch.setattr(scheduler, "_look_at", slow)
    scheduler.start()
    try:
        assert looking.wait(10)
        time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))  # after the look has read what time it is
        scheduler.wake()
        threading.Event().wait(0.3)  # the alarm rings meanwhile
        go_on.set()
        wait_for(lambda: len(runs_of(database)) == 1, "the slot", 10)
    finally:
        scheduler.stop()


def test_a_schedule_that_another_node_carries_out_is_not_waited_for_and_looked_at_again_if_that_node_fails(
    database: Database, time: Time
) -> None:
    scheduler, _ = a_scheduler(database, an_estate("crm", "erp"))
    scheduler.tick()
    time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))
    with database.session() as session:
        assert hold(session, ScheduleKey(service="crm", kind="backup")).is_ours
        assert scheduler.tick() < 1, "it comes back soon"
        assert [run.service for run in runs_of(database)] == ["erp"], "it did not wait for the other"
        session.rollback()  # the other fails, and nothing of what it did is there
    time.move(seconds=1)
    scheduler.tick()
    assert sorted(run.service for run in runs_of(database)) == ["crm", "erp"]


def test_what_another_node_has_carried_out_costs_no_transaction(database: Database, time: Time) -> None:
    first, _ = a_scheduler(database, an_estate())
    second, _ = a_scheduler(database, an_estate())
    first.tick()
    second.tick()
    time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))
    first.tick()
    before = settled_rows(database)
    second.tick()
    assert settled_rows(database) == before
    assert len(runs_of(database)) == 1


def test_schedules_that_have_no_slot_for_long_are_carried_on_together_and_those_with_one_are_not(
    database: Database, time: Time
) -> None:
    names = [f"s{number}" for number in range(5)]
    scheduler, _ = a_scheduler(database, an_estate(*names))
    scheduler.tick()
    time.move(minutes=11)
    with database.session() as session:
        assert hold(session, ScheduleKey(service="s4", kind="backup")).is_ours
        scheduler.tick()
    rows = {row[2]: (row[0], row[-1]) for row in settled_rows(database)}
    assert len({rows[name] for name in names[:4]}) == 1, "one transaction, one instant"
    assert {rows[name][1] for name in names[:4]} == {time.now}
    assert rows["s4"][1] == time.now - timedelta(minutes=11), "somebody else has it"
    time.set(datetime(2026, 10, 24, 0, 30, tzinfo=UTC))
    scheduler.tick()
    assert {run.service for run in runs_of(database)} == set(names)


def settled_rows(database: Database) -> list[tuple[object, ...]]:
    """Return the rows with the transaction that wrote each."""
    with database.connection() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT xmin::text, xmax::text, * FROM timetable"))]
