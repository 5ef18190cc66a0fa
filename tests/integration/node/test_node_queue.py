"""The queue agrees with the runs, whatever is lost between them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunRequest, Runs
from drservice.jobs.queue import CHANNEL, Job, Queue, queues_for
from drservice.model.runs import RunKind, RunState

SLOT = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)


def a_request(service: str = "erp", kind: RunKind = RunKind.BACKUP, **changes: object) -> RunRequest:
    return RunRequest(service=service, kind=kind, requested_by="schedule", **changes)  # type: ignore[arg-type]  # named


def jobs_in(database: Database) -> int:
    with database.connection() as connection:
        return int(connection.execute(text("SELECT count(*) FROM procrastinate_jobs")).scalar_one())


def take(queue: Queue, host: str = "db1", *, can_read: bool = True) -> Job:
    job = queue.take(queues_for(host, can_read=can_read))
    assert job is not None
    return job


def test_a_slot_is_queued_once_by_ten_schedulers_at_the_same_moment(database: Database) -> None:
    barrier = threading.Barrier(10)
    answers: list[str | None] = []

    def schedule() -> None:
        barrier.wait()
        answers.append(Queue(database).enqueue(a_request(scheduled_for=SLOT)))

    threads = [threading.Thread(target=schedule) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([answer for answer in answers if answer is not None]) == 1
    assert jobs_in(database) == 1


def test_a_run_and_its_job_are_there_both_or_neither(database: Database) -> None:
    queue = Queue(database)

    def fail() -> None:
        with database.session() as session:
            assert queue.enqueue(a_request(scheduled_for=SLOT), session=session) is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert jobs_in(database) == 0
    assert not Runs(database).list()


def test_making_the_tables_again_changes_nothing(database: Database) -> None:
    queue = Queue(database)
    queue.enqueue(a_request())
    queue.install()
    assert jobs_in(database) == 1


def test_runs_of_one_service_do_not_overlap_and_other_services_go_on(database: Database) -> None:
    queue = Queue(database)
    first, _, other = (queue.enqueue(a_request(name)) for name in ("erp", "erp", "crm"))
    job = take(queue)
    assert job.run == first
    assert take(queue).run == other
    assert queue.take(queues_for("db1", can_read=True)) is None
    queue.done(job)
    assert queue.take(queues_for("db1", can_read=True)) is not None


def test_a_restore_waits_for_no_other_run_of_its_service(database: Database) -> None:
    queue = Queue(database)
    queue.enqueue(a_request())
    take(queue)
    restore = queue.enqueue(a_request(kind=RunKind.RESTORE))
    assert take(queue).run == restore


def test_a_host_takes_only_what_is_for_it(database: Database) -> None:
    queue = Queue(database)
    mine = queue.enqueue(a_request("erp", host="db1"))
    queue.enqueue(a_request("crm", kind=RunKind.DRILL))
    assert queue.take(queues_for("db2", can_read=False)) is None
    assert take(queue, "db1", can_read=False).run == mine
    assert queue.take(queues_for("db1", can_read=False)) is None
    assert queue.take(queues_for("db2", can_read=True)) is not None


def test_a_drill_that_nobody_can_take_holds_back_no_backup(database: Database) -> None:
    queue = Queue(database)
    queue.enqueue(a_request(kind=RunKind.DRILL))
    backup = queue.enqueue(a_request())
    assert take(queue, can_read=False).run == backup


def test_a_waiting_run_without_a_job_gets_one(database: Database) -> None:
    run = Runs(database).request(a_request())
    queue = Queue(database)
    assert queue.look_after() == []
    assert take(queue).run == run


def test_a_job_of_a_run_that_is_over_is_forgotten(database: Database) -> None:
    queue, runs = Queue(database), Runs(database)
    run = queue.enqueue(a_request())
    assert run is not None
    take(queue)
    runs.cancel(run, "ops")
    queue.look_after()
    assert jobs_in(database) == 0


def test_a_run_whose_lease_ended_is_in_the_queue_again_and_its_service_free(database: Database) -> None:
    queue, runs = Queue(database), Runs(database)
    run = queue.enqueue(a_request())
    assert run is not None
    old = take(queue)
    claim = runs.claim(run, host="db1", lease=timedelta(seconds=-1))
    assert claim is not None
    assert queue.look_after() == [run]
    again = take(queue)
    assert (again.run, again.id != old.id) == (run, True)
    second = runs.claim(run, host="db2", lease=LEASE)
    assert second is not None
    assert second.epoch == claim.epoch + 1
    assert not runs.finish(claim, RunState.SUCCEEDED)
    queue.done(old)  # the old host tidies up late: the new one keeps its job
    assert queue.take(queues_for("db3", can_read=True)) is None


def test_a_job_that_was_taken_and_never_claimed_is_given_to_somebody_else(database: Database) -> None:
    queue = Queue(database)
    run = queue.enqueue(a_request())
    old = take(queue)
    queue.look_after()
    assert queue.take(queues_for("db1", can_read=True)) is None, "its taker still has time"
    with database.connection() as connection:
        connection.execute(text("UPDATE procrastinate_events SET at = at - interval '31 seconds'"))
    queue.look_after()
    assert take(queue).run == run
    assert old.run == run


def test_a_run_that_its_host_gives_back_is_taken_at_once(database: Database) -> None:
    queue, runs = Queue(database), Runs(database)
    run = queue.enqueue(a_request())
    assert run is not None
    job = take(queue)
    claim = runs.claim(run, host="db1", lease=LEASE)
    assert claim is not None
    with database.session() as session:
        assert runs.release(claim, "the host drains", session=session)
        queue.give_back(job, session=session)
    assert take(queue).run == run


def test_only_one_process_looks_after_the_queue_at_a_time(database: Database) -> None:
    with database.connection() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x64726C65616465})
        assert Queue(database).look_after() is None
    assert Queue(database).look_after() == []


def test_a_node_hears_of_a_new_run_and_of_a_service_that_became_free(database: Database) -> None:
    queue = Queue(database)
    with database.listening(CHANNEL) as heard:
        queue.enqueue(a_request())
        assert heard.wait(5)
        job = take(queue)
        queue.done(job)
        assert heard.wait(5)
