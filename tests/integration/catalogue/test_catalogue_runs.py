"""Runs in a real PostgreSQL: slots, epochs, leases, events."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from drservice.catalogue.database import Database
from drservice.catalogue.runs import CHANNEL, Claim, RunRequest, Runs
from drservice.model.runs import RunKind, RunState
from tests.doubles.catalogue import set_clock

SLOT = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
NOON = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)


@pytest.fixture
def runs(database: Database) -> Runs:
    return Runs(database)


def nightly(service: str = "erp", slot: datetime | None = SLOT, host: str | None = None) -> RunRequest:
    return RunRequest(service=service, kind=RunKind.BACKUP, requested_by="schedule", scheduled_for=slot, host=host)


def queued(runs: Runs, host: str | None = None) -> str:
    run = runs.request(nightly(slot=None, host=host))
    assert run is not None
    return run


def claimed(runs: Runs, run: str, host: str = "db1") -> Claim:
    claim = runs.claim(run, host=host, lease=LEASE)
    assert claim is not None
    return claim


def state_of(runs: Runs, run: str) -> RunState:
    info = runs.get(run)
    assert info is not None
    return info.state


def test_two_sessions_at_once_make_one_run_of_a_slot(database: Database, runs: Runs) -> None:
    with database.session() as first:
        won = runs.request(nightly(), session=first)
        assert won is not None
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(runs.request, nightly())
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            for _ in range(2000):  # the second one is inside its INSERT before the first commits
                with database.session() as observer:
                    if observer.execute(waiting).scalar_one():
                        break
            else:
                pytest.fail("the second session does not wait for the first")
            first.commit()
            assert second.result(30) is None
    assert [run.id for run in runs.list()] == [won]


def test_a_slot_of_a_session_that_rolls_back_is_free_again(database: Database, runs: Runs) -> None:
    with database.session() as session:
        assert runs.request(nightly(), session=session) is not None
        session.rollback()
    assert runs.list() == []
    assert runs.request(nightly()) is not None


def test_many_nodes_that_tick_at_once_make_one_run_per_slot(runs: Runs) -> None:
    slots = [SLOT + timedelta(hours=hour) for hour in range(10)]
    start = threading.Barrier(8)

    def tick() -> list[str | None]:
        start.wait()
        return [runs.request(nightly(slot=slot)) for slot in slots]

    with ThreadPoolExecutor(8) as pool:
        made = [run for node in [pool.submit(tick) for _ in range(8)] for run in node.result(60)]
    assert len([run for run in made if run is not None]) == len(slots)
    assert {run.scheduled_for for run in runs.list()} == set(slots)


def test_slots_differ_by_service_kind_and_plan_and_a_request_without_slot_is_always_new(runs: Runs) -> None:
    assert runs.request(nightly("erp")) is not None
    assert runs.request(nightly("shop")) is not None
    drill = RunRequest(service="erp", kind=RunKind.DRILL, plan="q", requested_by="schedule", scheduled_for=SLOT)
    assert runs.request(drill) is not None
    assert runs.request(drill) is None
    assert runs.request(nightly(slot=None)) is not None
    assert runs.request(nightly(slot=None)) is not None


def test_a_slot_without_a_zone_is_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match="time zone"):
        runs.request(nightly(slot=datetime(2026, 3, 29, 1, 0)))  # noqa: DTZ001 - what the test is about


def test_a_missed_slot_is_not_run_but_may_be_caught_up_once(runs: Runs) -> None:
    missed = runs.missed("erp", RunKind.BACKUP, "", SLOT, "no host was up")
    assert missed is not None
    assert runs.missed("erp", RunKind.BACKUP, "", SLOT, "again") is None
    assert runs.request(nightly()) is None
    assert runs.claim(missed, host="db1", lease=LEASE) is None
    instead = queued(runs)
    assert runs.caught_up(missed, instead)
    assert not runs.caught_up(missed, queued(runs))
    assert not runs.caught_up(instead, missed)
    info = runs.get(missed)
    assert info is not None
    assert (info.state, info.result, info.caught_up_by) == (RunState.MISSED, {"reason": "no host was up"}, instead)
    assert info.ended_at is not None


def test_a_run_is_claimed_once_and_only_by_its_host(runs: Runs) -> None:
    run = queued(runs, host="db1")
    assert runs.claim(run, host="db2", lease=LEASE) is None
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: runs.claim(run, host="db1", lease=LEASE), range(8)))
    assert [claim for claim in claims if claim] == [Claim(run=run, epoch=1)]
    info = runs.get(run)
    assert info is not None
    assert (info.state, info.claimed_by, info.epoch) == (RunState.RUNNING, "db1", 1)


def test_an_old_epoch_changes_no_row(database: Database, runs: Runs) -> None:
    run = queued(runs)
    set_clock(database, NOON)
    old = claimed(runs, run, "db1")
    set_clock(database, NOON + LEASE + timedelta(seconds=1))
    assert runs.reap() == [run]
    new = claimed(runs, run, "db2")
    assert new.epoch == old.epoch + 1
    before = (runs.get(run), runs.events(run))
    assert not runs.renew(old, LEASE)
    assert not runs.event(old, "step", {"step": "upload"})
    assert not runs.progress(old, {"done": 1})
    assert not runs.release(old, "drain")
    assert not runs.finish(old, RunState.SUCCEEDED, result={"by": "db1"})
    assert runs.cancel_requested(old) is None
    assert (runs.get(run), runs.events(run)) == before
    assert runs.renew(new, LEASE)
    assert runs.event(new, "step", {"step": "upload"})
    assert runs.progress(new, {"done": 1})
    assert runs.finish(new, RunState.SUCCEEDED, result={"by": "db2"})
    info = runs.get(run)
    assert info is not None
    assert (info.state, info.result, info.error, info.progress) == (
        RunState.SUCCEEDED,
        {"by": "db2"},
        None,
        {"done": 1},
    )


def test_a_host_that_wakes_between_reaping_and_the_next_claim_changes_no_row(database: Database, runs: Runs) -> None:
    set_clock(database, NOON)
    run = queued(runs)
    old = claimed(runs, run)
    set_clock(database, NOON + timedelta(hours=1))
    runs.reap()
    before = (runs.get(run), runs.events(run))
    assert not runs.renew(old, LEASE)
    assert not runs.finish(old, RunState.SUCCEEDED)
    assert not runs.event(old, "note", {})
    assert (runs.get(run), runs.events(run)) == before


def test_a_run_that_ended_stays_as_it_ended(runs: Runs) -> None:
    claim = claimed(runs, queued(runs))
    assert runs.finish(claim, RunState.FAILED, error={"code": "DR110"})
    assert not runs.finish(claim, RunState.SUCCEEDED)
    assert not runs.renew(claim, LEASE)
    assert runs.claim(claim.run, host="db1", lease=LEASE) is None
    assert runs.cancel(claim.run, "anna") is RunState.FAILED
    assert state_of(runs, claim.run) is RunState.FAILED
    with pytest.raises(ValueError, match="does not end"):
        runs.finish(claim, RunState.QUEUED)
    with pytest.raises(ValueError, match="from running to missed"):
        runs.finish(claim, RunState.MISSED)


def test_a_lease_ends_by_the_clock_of_the_database(database: Database, runs: Runs) -> None:
    set_clock(database, NOON)
    kept, lost = claimed(runs, queued(runs)), claimed(runs, queued(runs))
    set_clock(database, NOON + LEASE)
    assert runs.reap() == []
    assert runs.renew(kept, LEASE)
    set_clock(database, NOON + LEASE + timedelta(microseconds=1))
    assert runs.reap() == [lost.run]
    assert runs.reap() == []
    assert state_of(runs, kept.run) is RunState.RUNNING
    info = runs.get(lost.run)
    assert info is not None
    assert (info.state, info.claimed_by, info.lease_until) == (RunState.QUEUED, None, None)
    assert runs.events(lost.run)[-1].data == {"state": "queued", "reason": "lease lost", "host": "db1"}


def test_reapers_at_the_same_time_take_a_run_once(database: Database, runs: Runs) -> None:
    set_clock(database, NOON)
    lost = [claimed(runs, queued(runs)).run for _ in range(20)]
    set_clock(database, NOON + timedelta(hours=1))
    with ThreadPoolExecutor(4) as pool:
        reaped = [run for found in pool.map(lambda _: runs.reap(), range(4)) for run in found]
    assert sorted(reaped) == sorted(lost)


def test_a_run_that_keeps_losing_its_hosts_fails_loudly(database: Database) -> None:
    runs = Runs(database, most_claims=2)
    run = queued(runs)
    for attempt in range(2):
        set_clock(database, NOON + timedelta(hours=attempt))
        claimed(runs, run)
        set_clock(database, NOON + timedelta(hours=attempt, minutes=30))
        assert runs.reap() == ([run] if attempt == 0 else [])
    info = runs.get(run)
    assert info is not None
    assert info.state is RunState.FAILED
    assert info.ended_at is not None
    assert info.error is not None
    assert info.error["code"] == "DR924"
    assert "claim 2" in info.error["message"]


def test_a_queued_run_is_cancelled_at_once(runs: Runs) -> None:
    run = queued(runs)
    assert runs.cancel(run, "anna") is RunState.CANCELLED
    assert runs.claim(run, host="db1", lease=LEASE) is None
    assert runs.events(run)[-1].data == {"state": "cancelled", "by": "anna"}
    assert runs.cancel("01ARZ3NDEKTSV4RRFFQ69G5FAV", "anna") is None


def test_a_running_run_is_ended_by_its_host_when_somebody_wants_that(runs: Runs) -> None:
    claim = claimed(runs, queued(runs))
    assert runs.cancel_requested(claim) is None
    assert runs.cancel(claim.run, "anna") is RunState.RUNNING
    assert runs.cancel(claim.run, "ben") is RunState.RUNNING
    assert runs.cancel_requested(claim) == "anna"
    assert runs.renew(claim, LEASE)
    assert runs.finish(claim, RunState.CANCELLED)
    assert [event.data for event in runs.events(claim.run)][-2:] == [
        {"cancel_requested_by": "anna"},
        {"state": "cancelled"},
    ]


def test_a_cancelled_run_whose_host_is_gone_is_not_run_again(database: Database, runs: Runs) -> None:
    set_clock(database, NOON)
    claim = claimed(runs, queued(runs))
    runs.cancel(claim.run, "anna")
    set_clock(database, NOON + timedelta(hours=1))
    assert runs.reap() == []
    assert state_of(runs, claim.run) is RunState.CANCELLED


def test_a_draining_host_gives_its_run_back_under_the_next_epoch(runs: Runs) -> None:
    first = claimed(runs, queued(runs))
    assert runs.release(first, "the host drains")
    assert not runs.finish(first, RunState.SUCCEEDED)
    assert claimed(runs, first.run, "db2").epoch == 2


def test_a_queued_run_that_nobody_can_take_fails_with_its_reason(runs: Runs) -> None:
    run = queued(runs)
    assert runs.refuse(run, {"code": "DR103", "message": "no such service"})
    assert not runs.refuse(run, {"code": "DR103"})
    info = runs.get(run)
    assert info is not None
    assert (info.state, info.error) == (RunState.FAILED, {"code": "DR103", "message": "no such service"})


def test_events_written_at_once_are_numbered_without_gap_or_double(runs: Runs) -> None:
    claim = claimed(runs, queued(runs))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: runs.event(claim, "note", {"number": number}), range(80)))
    events = runs.events(claim.run)
    assert [event.number for event in events] == list(range(1, 83))
    assert {event.data["number"] for event in events[2:]} == set(range(80))
    assert [event.number for event in runs.events(claim.run, after=80)] == [81, 82]


def test_each_event_and_progress_is_heard_by_whoever_listens(database: Database, runs: Runs) -> None:
    with database.listening(CHANNEL) as heard:
        assert heard.wait(0.0) == []
        run = queued(runs)
        assert heard.wait(10) == [run]
        claim = claimed(runs, run)
        assert heard.wait(10) == [run]
        runs.progress(claim, {"done": 1, "total": 3})
        assert heard.wait(10) == [run]
        assert not runs.progress(Claim(run=run, epoch=7), {"done": 9})
        assert heard.wait(0.1) == []


def test_pages_of_runs_go_on_where_the_last_one_ended(runs: Runs) -> None:
    made = [queued(runs) for _ in range(7)]
    other = runs.request(nightly("shop"))
    claimed(runs, made[3])
    first = runs.list(service="erp", limit=4)
    second = runs.list(service="erp", limit=4, before=first[-1].id)
    assert {run.id for run in (*first, *second)} == set(made)
    assert [run.id for run in first] == sorted((run.id for run in first), reverse=True)
    assert [run.id for run in runs.list(state=RunState.RUNNING)] == [made[3]]
    assert [run.id for run in runs.list(service="shop", kind=RunKind.BACKUP)] == [other]
    assert runs.list(kind=RunKind.DRILL) == []
    assert runs.get("01ARZ3NDEKTSV4RRFFQ69G5FAV") is None


def test_texts_that_postgresql_has_no_place_for_are_stored_readably(database: Database, runs: Runs) -> None:
    claim = claimed(runs, queued(runs))
    assert runs.event(claim, "note", {"file": "a\0b", "half\ud800": ["\udc00", "\U0001f600", None, 1]})
    assert runs.finish(claim, RunState.FAILED, error={"message": "cannot read a\0b"})
    assert runs.events(claim.run)[-2].data == {
        "file": "a\ufffdb",
        "half\ufffd": ["\ufffd", "\U0001f600", None, 1],
    }
    info = runs.get(claim.run)
    assert info is not None
    assert info.error == {"message": "cannot read a\ufffdb"}
    assert runs.get("no\0run") is None
    assert runs.list(service="no\0service") == []
    with database.session() as session:
        unset = text("SELECT result IS NULL AND parameters = '{}'::jsonb FROM run")
        assert session.execute(unset).scalar_one()
