"""What the catalogue forgets: old runs and their events; nothing that is not over or that schedules are judged by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

from sqlalchemy import insert

from drservice.catalogue.database import Database
from drservice.catalogue.environments import Environments, ToldEnvironment
from drservice.catalogue.history import Forgotten, forget
from drservice.catalogue.runs import Runs
from drservice.catalogue.tables import Run, RunEvent
from drservice.model.estate import HistorySettings
from drservice.model.ids import make_ulid
from drservice.model.runs import RunState
from tests.doubles.catalogue import set_clock

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
KEPT = HistorySettings(runs=timedelta(days=100), events=timedelta(days=10))
DAY = timedelta(days=1)
NUMBERS = count()


def a_run(
    database: Database,
    days: float,
    *,
    state: RunState = RunState.SUCCEEDED,
    kind: str = "backup",
    ended_days: float | None = None,
    plan: str = "",
) -> str:
    """Insert a run that was asked for so many days ago, with two events; return its id."""
    at = NOW - days * DAY
    identifier = make_ulid(at, next(NUMBERS).to_bytes(10, "big"))
    with database.session() as session:
        session.execute(
            insert(Run).values(
                id=identifier, service="erp", kind=kind, plan=plan, state=state.value, requested_by="schedule",
                requested_at=at, parameters={}, epoch=1, progress={},
                ended_at=NOW - (days if ended_days is None else ended_days) * DAY if state.is_over else None,
            )
        )  # fmt: skip
        for number in (1, 2):
            session.execute(insert(RunEvent).values(run=identifier, number=number, epoch=1, kind="note", data={}))
    return identifier


def left(database: Database) -> set[str]:
    return {run.id for run in Runs(database).list(limit=1000)}


def forget_now(database: Database, *, limit: int = 1000) -> Forgotten:
    set_clock(database, NOW)
    with database.session() as session:
        return forget(session, KEPT, limit=limit)


def test_old_runs_go_with_their_events_and_younger_ones_lose_their_events_first(database: Database) -> None:
    old, middle, young = a_run(database, 101), a_run(database, 11), a_run(database, 9)
    gone = forget_now(database)
    assert (gone.runs, gone.events) == (1, 4)
    assert left(database) == {middle, young}
    events = {run: len(Runs(database).events(run)) for run in (old, middle, young)}
    assert events == {old: 0, middle: 0, young: 2}
    assert forget_now(database) == Forgotten(runs=0, events=0)


def test_what_is_not_over_stays_with_its_events_however_old(database: Database) -> None:
    runs = {a_run(database, 500, state=state) for state in (RunState.QUEUED, RunState.RUNNING)}
    runs.add(a_run(database, 500, state=RunState.FAILED, ended_days=5))
    assert forget_now(database) == Forgotten(runs=0, events=0)
    assert left(database) == runs


def test_the_newest_result_of_each_schedule_stays_however_old(database: Database) -> None:
    newest = {
        a_run(database, 400, kind="drill", plan="yearly"),
        a_run(database, 390, kind="drill", plan="yearly", state=RunState.PARTIAL),
        a_run(database, 200),
        a_run(database, 60, kind="documents"),
    }
    a_run(database, 401, kind="drill", plan="yearly")
    a_run(database, 201)
    a_run(database, 150, state=RunState.FAILED)
    a_run(database, 150, state=RunState.MISSED)
    a_run(database, 61, kind="documents")
    assert forget_now(database).runs == 5
    assert left(database) == newest


def test_passes_over_documents_go_when_their_events_do(database: Database) -> None:
    a_run(database, 12, kind="documents")
    young = {a_run(database, 9, kind="documents"), a_run(database, 12, kind="verify")}
    assert forget_now(database).runs == 1
    assert left(database) == young


def test_a_round_is_bounded_and_begins_with_the_oldest(database: Database) -> None:
    runs = [a_run(database, days) for days in (300, 299, 298, 297)]
    assert forget_now(database, limit=2).runs == 2
    assert left(database) == set(runs[2:])
    assert forget_now(database, limit=2).runs == 1, "the last one is the newest result"


def test_environments_whose_host_never_came_back_to_tell_are_forgotten(database: Database) -> None:
    environments = Environments(database)
    for host, days in (("gone", 11), ("away", 9)):
        at = NOW - days * DAY
        environments.tell(
            host,
            [
                ToldEnvironment(
                    id=host, service="erp", purpose="drill", state="running", dsn="", created_at=at, expires_at=at
                )
            ],
        )
    forget_now(database)
    assert [item.host for item in environments.of("erp")] == ["away"]
