"""Breaches in a real catalogue: told once by whichever node looks, again each day, and when they are over."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, insert, select, update

from drservice.catalogue.database import Database
from drservice.catalogue.duties import duty
from drservice.catalogue.tables import Message, Point, Snapshot, WalWindow
from drservice.model.estate import (
    Estate,
    FilesKind,
    FilesSettings,
    NotifyKind,
    Objectives,
    PostgresSettings,
    RepositorySettings,
    Schedules,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.schedule import Cron
from drservice.node.watching import Watcher
from drservice.notify.interface import Notice, Place
from drservice.notify.outbox import Outbox
from tests.doubles.catalogue import set_clock
from tests.doubles.website import ulid

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
MANY = 1000


class Nobody:
    """Is not delivered to in these tests."""

    def send(self, notice: Notice) -> None:
        raise AssertionError(notice)


PLACES = [Place(name="ops", on=frozenset(NotifyKind), notifier=Nobody())]


def service(name: str = "erp") -> Service:
    return Service(
        name=ServiceName(name),
        objectives=Objectives(rpo=timedelta(minutes=5), documents_rpo=timedelta(minutes=5)),
        components={
            ComponentName("database"): PostgresSettings(name=ComponentName("database"), dsn=""),
            ComponentName("documents"): FilesSettings(
                name=ComponentName("documents"), kind=FilesKind.ODOO_FILESTORE, path=Path("/f"), database="plant"
            ),
        },
        schedule=Schedules(
            backup=Cron.parse("0 1 * * *"), verify=Cron.parse("0 3 * * *"), drill=Cron.parse("0 6 * * 0")
        ),
    )


def estate_of(*services: Service) -> Estate:
    return Estate(
        source=Path("/c"),
        state_dir=Path("/s"),
        repository=RepositorySettings(url="file:///r"),
        services={item.name: item for item in services},
    )


def fill(database: Database, names: list[str]) -> None:
    """Let each service have a point and documents of now, and WAL until now."""
    with database.session() as session:
        for number, name in enumerate(names):
            identifier = ulid(NOON, number)
            session.execute(
                insert(Point).values(id=identifier, service=name, created_at=NOON, state="complete", members={})
            )
            session.execute(
                insert(WalWindow).values(
                    service=name, component="database", timeline=1, from_lsn=1, to_lsn=2, from_time=NOON, to_time=NOON
                )
            )
            session.execute(
                insert(Snapshot).values(
                    id=identifier, service=name, component="documents", kind="odoo-filestore", method="local",
                    state="complete", host="a", started_at=NOON, stopped_at=NOON, source_bytes=1, read_bytes=1,
                    stored_bytes=1, files=1, facts={},
                )
            )  # fmt: skip


def told(database: Database) -> list[tuple[str, str]]:
    """Return (kind, title) of every message, in order, without what tells when."""
    with database.session() as session:
        rows = session.execute(select(Message.kind, Message.title).order_by(Message.created_at, Message.event)).all()
    return [(row.kind, row.title.partition(" 2026")[0].partition(" (seen")[0]) for row in rows]


@pytest.fixture
def look(database: Database) -> Callable[..., int]:
    """Look at an instant, as another node each time."""

    def at(instant: datetime, estate: Estate | None = None) -> int:
        set_clock(database, instant)
        return Watcher(database).look(estate or estate_of(service()), Outbox(database, PLACES))

    return at


def arrive(database: Database, until: datetime) -> None:
    with database.session() as session:
        session.execute(update(WalWindow).values(to_time=until))
        session.execute(update(Snapshot).values(started_at=until, stopped_at=until))


def test_a_breach_is_told_once_again_after_a_day_and_when_it_is_over(
    database: Database, look: Callable[..., int]
) -> None:
    fill(database, ["erp"])
    assert look(NOON + timedelta(minutes=14)) == 0
    assert look(NOON + timedelta(minutes=16)) == 2
    assert look(NOON + timedelta(minutes=17)) == 0
    assert look(NOON + timedelta(hours=3)) == 0
    arrive(database, NOON + timedelta(hours=4))
    assert look(NOON + timedelta(hours=4)) == 2
    assert told(database) == [
        ("objective", "documents were last captured at"),
        ("objective", "work since"),
        ("objective", "all clear: documents were last captured at"),
        ("objective", "all clear: work since"),
    ]
    assert look(NOON + timedelta(hours=5)) == 2, "another breach is told anew"
    assert look(NOON + timedelta(hours=29, minutes=1)) > 2, "again, and the night's backup is overdue by then"
    again = [title for _, title in told(database)[6:]]
    assert sum(title.startswith("again") for title in again) == 2


def test_what_is_overdue_is_told_until_there_is_a_result_or_nobody_asks_for_one(
    database: Database, look: Callable[..., int]
) -> None:
    quiet = replace(service(), objectives=Objectives(), schedule=Schedules(backup=Cron.parse("0 1 * * *")))
    fill(database, ["erp"])
    late = datetime(2026, 11, 27, 5, 6, tzinfo=UTC)
    assert look(late - timedelta(minutes=2), estate_of(quiet)) == 0
    assert look(late, estate_of(quiet)) == 1
    with database.session() as session:
        session.execute(
            insert(Point).values(id=ulid(late, 9), service="erp", created_at=late, state="complete", members={})
        )
    assert look(late + timedelta(minutes=1), estate_of(quiet)) == 1
    assert look(late + timedelta(days=1), estate_of(quiet)) == 1
    assert look(late + timedelta(days=1, minutes=2), estate_of(replace(quiet, schedule=Schedules()))) == 1
    assert (
        told(database)
        == [
            ("overdue", "backup is overdue since"),
            ("overdue", "all clear: backup is overdue since"),
        ]
        * 2
    )


def test_nodes_that_look_at_once_tell_a_breach_once(database: Database) -> None:
    fill(database, ["erp"])
    set_clock(database, NOON + timedelta(hours=1))
    watchers = [Watcher(database) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(lambda each: each.look(estate_of(service()), Outbox(database, PLACES)), watchers))
    assert sorted(counts) == [0, 0, 0, 0, 0, 2]
    assert len(told(database)) == 2


def test_many_breaches_at_once_are_one_notice_and_so_are_their_ends(
    database: Database, look: Callable[..., int]
) -> None:
    names = [f"s{number}" for number in range(8)]
    estate = estate_of(*(replace(service(name), schedule=Schedules()) for name in names))
    fill(database, names)
    assert look(NOON + timedelta(hours=1), estate) == 1
    assert look(NOON + timedelta(hours=1, minutes=2), estate) == 0
    assert look(NOON + timedelta(days=1, hours=2), estate) == 1
    arrive(database, NOON + timedelta(days=1, hours=3))
    assert look(NOON + timedelta(days=1, hours=3), estate) == 1
    assert [title for _, title in told(database)] == [
        "16 promises do not hold",
        "again: 16 promises do not hold",
        "all clear: 16 promises do not hold",
    ]
    with database.session() as session:
        body = session.scalars(select(Message.body).order_by(Message.created_at)).first()
    assert body is not None
    assert all(f"{name}: work since" in body for name in names)


def test_a_duty_that_fails_is_done_by_the_next_and_a_clock_that_goes_back_stops_none(database: Database) -> None:
    set_clock(database, NOON)
    with pytest.raises(ZeroDivisionError), duty(database, "sweep", every=timedelta(hours=1)):
        _ = 1 / 0
    with duty(database, "sweep", every=timedelta(hours=1)) as session:
        assert session is not None
        with duty(database, "sweep", every=timedelta(0)) as other:
            assert other is None, "somebody is at it"
    with duty(database, "sweep", every=timedelta(hours=1)) as session:
        assert session is None, "it was done just now"
    set_clock(database, NOON - timedelta(days=1))
    with duty(database, "sweep", every=timedelta(hours=1)) as session:
        assert session is not None


def test_a_look_at_a_thousand_services_costs_little_cpu_and_a_fixed_number_of_queries(database: Database) -> None:
    names = [f"s{number}" for number in range(MANY)]
    fill(database, names)
    estate, outbox, watcher = estate_of(*map(service, names)), Outbox(database, PLACES), Watcher(database)
    set_clock(database, NOON + timedelta(minutes=1))
    watcher.look(estate, outbox)
    set_clock(database, NOON + timedelta(minutes=3))
    queries: list[str] = []
    with database.session() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", lambda *details: queries.append(details[2]))
    gc.disable()  # what a collector has to do with the millions of objects of other tests is not the look's
    try:
        begun = time.thread_time()
        assert watcher.look(estate, outbox) == 0
        spent = time.thread_time() - begun
    finally:
        gc.enable()
    assert 5 <= len(queries) <= 15, queries
    assert spent < 0.6, "of a minute: one percent of a core"
