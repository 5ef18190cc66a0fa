"""Names of hosts and leases of runs: who holds them, by the catalogue's clock."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from drservice.catalogue.database import Database
from drservice.catalogue.hosts import Hosts
from drservice.catalogue.runs import Claim, RunRequest, Runs
from drservice.catalogue.timetables import ScheduleKey, settle, settled
from drservice.errors import CatalogueUnreachableError, RunCancelledError, RunTakenAwayError
from drservice.jobs.leases import Lease
from drservice.model.runs import RunKind, RunState
from tests.doubles.catalogue import set_clock
from tests.doubles.estate import wait_for

SILENCE = timedelta(seconds=60)
BEGIN = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
SHORT = timedelta(seconds=0.4)


def claimed(database: Database, lease: timedelta = SHORT) -> tuple[Runs, Claim]:
    runs = Runs(database)
    run = runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="ops"))
    assert run is not None
    claim = runs.claim(run, host="db1", lease=lease)
    assert claim is not None
    return runs, claim


def nothing() -> bool:
    return True


def test_a_second_node_with_a_name_is_refused_while_the_first_is_seen(database: Database) -> None:
    hosts = Hosts(database)
    set_clock(database, BEGIN)
    assert hosts.register("db1", "first", "1", silence=SILENCE)
    set_clock(database, BEGIN + timedelta(seconds=59))
    assert not hosts.register("db1", "second", "1", silence=SILENCE)
    assert hosts.seen("db1", "first")
    set_clock(database, BEGIN + timedelta(seconds=118))
    assert not hosts.register("db1", "second", "1", silence=SILENCE)
    set_clock(database, BEGIN + timedelta(seconds=120))
    assert hosts.register("db1", "second", "1", silence=SILENCE)
    assert not hosts.seen("db1", "first"), "the first has lost its name and is told so"


def test_of_ten_nodes_with_a_name_that_start_at_once_one_gets_it(database: Database) -> None:
    hosts = Hosts(database)
    barrier = threading.Barrier(10)
    taken: list[bool] = []

    def start(number: int) -> None:
        barrier.wait()
        taken.append(hosts.register("db1", f"incarnation-{number}", "1", silence=SILENCE))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == 1


def test_a_name_is_free_at_once_when_its_node_has_left_or_is_known_to_be_dead(database: Database) -> None:
    hosts = Hosts(database)
    assert hosts.register("db1", "boot/1:a", "1", silence=SILENCE)
    hosts.leave("db1", "boot/1:a")
    assert not hosts.list()[0].is_held
    assert hosts.register("db1", "boot/1:b", "1", silence=SILENCE)
    assert not hosts.register("db1", "boot/2:c", "1", silence=SILENCE, dead="boot/2:")
    assert hosts.register("db1", "boot/1:c", "1", silence=SILENCE, dead="boot/1:")


def test_a_timetable_never_goes_back(database: Database) -> None:
    key = ScheduleKey(service="erp", kind="backup")
    with database.session() as session:
        settle(session, {key: BEGIN})
        settle(session, {key: BEGIN - timedelta(hours=1)})
        assert settled(session, [key, ScheduleKey(service="erp", kind="verify")]) == {key: BEGIN}


def test_a_lease_is_renewed_while_the_work_goes_on(database: Database) -> None:
    runs, claim = claimed(database)
    with Lease(runs, claim, SHORT, beat=nothing) as lease:
        threading.Event().wait(1.2)  # three leases
        assert runs.reap() == []
        lease.check()
    assert runs.finish(claim, RunState.SUCCEEDED)


def test_work_learns_that_its_run_was_taken_away(database: Database) -> None:
    runs, claim = claimed(database)
    with Lease(runs, claim, SHORT, beat=nothing) as lease:
        with database.connection() as connection:
            connection.execute(text("UPDATE run SET state = 'queued', epoch = epoch + 1"))
        wait_for(lambda: lease.is_lost, "the loss to be noticed", 5)
        with pytest.raises(RunTakenAwayError):
            lease.check()
    assert not runs.finish(claim, RunState.SUCCEEDED)


def test_work_learns_that_somebody_wants_it_to_end(database: Database) -> None:
    runs, claim = claimed(database)
    with Lease(runs, claim, SHORT, beat=nothing) as lease:
        runs.cancel(claim.run, "ops")
        wait_for(lambda: lease.cancelled_by is not None, "the cancellation to be noticed", 5)
        with pytest.raises(RunCancelledError, match="ops"):
            lease.check()


def test_a_catalogue_that_is_away_stops_no_work_and_is_asked_again(database: Database) -> None:
    runs, claim = claimed(database)
    away = threading.Event()
    away.set()

    class Away(Runs):
        def renew(self, claim: Claim, lease: timedelta) -> bool:
            if away.is_set():
                raise CatalogueUnreachableError("it is away")
            return super().renew(claim, lease)

    with Lease(Away(database), claim, SHORT, beat=nothing) as lease:
        threading.Event().wait(0.8)  # by the clock the lease is over
        lease.check()
        away.clear()
        threading.Event().wait(0.4)
        assert runs.reap() == [], "it was renewed on return"
        lease.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_lease_counts_as_its_loss(database: Database) -> None:
    runs, claim = claimed(database)

    def broken() -> bool:
        raise ZeroDivisionError

    with Lease(runs, claim, SHORT, beat=broken) as lease:
        wait_for(lambda: lease.is_lost, "the defect to be noticed", 5)
