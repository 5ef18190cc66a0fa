"""The outbox on a real catalogue: told once to each place, tried again with patience, and loud when it gives up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.tables import Message
from drservice.errors import CatalogueUnreachableError
from drservice.model.estate import NotifyKind
from drservice.notify.apprise import AppriseNotifier
from drservice.notify.interface import Notice, Place, Severity
from drservice.notify.outbox import Backlog, Delivered, Outbox, Patience
from drservice.telemetry import Form
from tests.doubles.catalogue import CatalogueServer, set_clock
from tests.doubles.notifiers import Behaviour, HookServer, RecordingNotifier

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALL = frozenset(NotifyKind)
CANARY = "CANARY7f3a"


def notice(
    event: str = "run:1", *, kind: NotifyKind = NotifyKind.FAILURE, title: str = "backup failed", body: str = "full"
) -> Notice:
    return Notice(
        event=event,
        kind=kind,
        severity=Severity.BUSINESS_CRITICAL,
        service="erp",
        title=title,
        body=body,
        next_command="drservice backup erp",
    )


def place(notifier: RecordingNotifier, name: str = "ops", on: frozenset[NotifyKind] = ALL) -> Place:
    return Place(name=name, on=on, notifier=notifier)


def rows(database: Database) -> list[Message]:
    with database.session() as session:
        return list(session.scalars(select(Message).order_by(Message.id)))


def test_a_notice_arrives_as_it_was_told(database: Database) -> None:
    ops = RecordingNotifier()
    outbox = Outbox(database, [place(ops)])
    told = notice()
    assert outbox.tell(told) == 1
    assert outbox.deliver() == Delivered(taken=1)
    assert ops.told == [told]
    assert outbox.backlog() == Backlog(waiting=0, oldest=None, given_up=0)


def test_an_event_is_told_to_each_place_once(database: Database) -> None:
    ops, cio = RecordingNotifier(), RecordingNotifier()
    outbox = Outbox(database, [place(ops), place(cio, "cio")])
    assert outbox.tell(notice()) == 2
    assert outbox.tell(notice(title="the same event in other words")) == 0
    outbox.deliver()
    assert outbox.tell(notice()) == 0
    assert outbox.deliver() == Delivered()
    assert [len(ops.told), len(cio.told)] == [1, 1]
    assert outbox.tell(notice("run:2")) == 2


def test_two_that_tell_the_same_event_at_once_make_one_message(database: Database) -> None:
    outbox = Outbox(database, [place(RecordingNotifier())])
    barrier = threading.Barrier(8)
    made: list[int] = []

    def tell() -> None:
        barrier.wait()
        made.append(outbox.tell(notice()))

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0] * 7 + [1]


def test_a_place_hears_only_what_it_wants_to(database: Database) -> None:
    ops, cio = RecordingNotifier(), RecordingNotifier()
    outbox = Outbox(database, [place(ops), place(cio, "cio", frozenset({NotifyKind.OBJECTIVE}))])
    assert outbox.tell(notice(kind=NotifyKind.OVERDUE)) == 1
    assert outbox.tell(notice("run:2", kind=NotifyKind.OBJECTIVE)) == 2
    outbox.deliver()
    assert [told.kind for told in cio.told] == [NotifyKind.OBJECTIVE]
    assert len(ops.told) == 2


def test_what_is_told_in_a_transaction_that_fails_was_never_told(database: Database) -> None:
    outbox = Outbox(database, [place(RecordingNotifier())])

    def tell_and_fail() -> None:
        with database.session() as session:
            assert outbox.tell(notice(), session=session) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tell_and_fail()
    assert rows(database) == []


@pytest.mark.parametrize("deliverers", [2, 6])
def test_any_number_of_deliverers_deliver_each_message_once(database: Database, deliverers: int) -> None:
    ops = RecordingNotifier()
    inside = threading.Barrier(deliverers, timeout=20)
    met = threading.Event()

    def meet(_: Notice) -> None:
        # Each of them is inside a delivery at the same moment, once.
        if not met.is_set():
            inside.wait()
            met.set()

    ops.during(meet)
    outboxes = [Outbox(database, [place(ops)]) for _ in range(deliverers)]
    for number in range(20):
        outboxes[0].tell(notice(f"run:{number}"))
    counted: list[int] = []
    threads = [threading.Thread(target=lambda box=box: counted.append(box.deliver().taken)) for box in outboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met.is_set()
    assert sum(counted) == 20
    assert sorted(told.event for told in ops.told) == sorted(f"run:{number}" for number in range(20))


def test_a_row_that_somebody_holds_is_left_to_him(database: Database) -> None:
    ops = RecordingNotifier()
    outbox = Outbox(database, [place(ops)])
    outbox.tell(notice())
    with database.session() as session:
        session.execute(select(Message.id).with_for_update())
        assert outbox.deliver() == Delivered()
    assert ops.told == []
    assert outbox.deliver() == Delivered(taken=1)


def test_a_place_is_asked_again_later_and_later_and_at_last_given_up(database: Database) -> None:
    ops = RecordingNotifier()
    ops.behave(Behaviour.REFUSE)
    patience = Patience(first=timedelta(seconds=30), longest=timedelta(seconds=100), attempts=5)
    outbox = Outbox(database, [place(ops)], patience=patience)
    set_clock(database, NOON)
    outbox.tell(notice())
    now = NOON
    for wait in (30, 60, 100, 100):
        assert outbox.deliver() == Delivered(postponed=1)
        assert rows(database)[0].next_attempt_at == now + timedelta(seconds=wait)
        set_clock(database, now + timedelta(seconds=wait, microseconds=-1))
        assert outbox.deliver() == Delivered()
        now += timedelta(seconds=wait)
        set_clock(database, now)
    assert outbox.deliver() == Delivered(given_up=1)
    row = rows(database)[0]
    assert (row.attempts, row.given_up_at, row.last_error) == (5, now, "the double refuses")
    set_clock(database, now + timedelta(days=365))
    assert outbox.deliver() == Delivered()
    assert outbox.backlog() == Backlog(waiting=0, oldest=None, given_up=1)


def test_patience_lasts_a_day_and_never_overflows() -> None:
    waits = [Patience().after(attempts) for attempts in range(1, 31)]
    assert waits[-1] is None
    total = sum((wait for wait in waits if wait is not None), timedelta())
    assert timedelta(hours=22) < total < timedelta(hours=26)
    assert Patience(attempts=10_000).after(9_999) == timedelta(hours=1)


def test_a_place_that_comes_back_is_told_what_waited(database: Database) -> None:
    ops = RecordingNotifier()
    ops.behave(Behaviour.REFUSE)
    outbox = Outbox(database, [place(ops)])
    set_clock(database, NOON)
    outbox.tell(notice())
    outbox.deliver()
    assert outbox.backlog() == Backlog(waiting=1, oldest=NOON, given_up=0)
    ops.behave(Behaviour.TAKE)
    set_clock(database, NOON + timedelta(seconds=30))
    assert outbox.deliver() == Delivered(taken=1)
    row = rows(database)[0]
    assert (row.attempts, row.last_error, row.delivered_at) == (2, None, NOON + timedelta(seconds=30))


def give_up(database: Database, places: list[Place]) -> Outbox:
    """Tell the places of ``run:1`` with no patience and deliver."""
    outbox = Outbox(database, places, patience=Patience(attempts=1))
    outbox.tell(notice())
    outbox.deliver()
    return outbox


def test_giving_up_is_told_to_every_other_place_whatever_it_listens_to(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, other = RecordingNotifier(), RecordingNotifier()
    broken.behave(Behaviour.REFUSE)
    telemetry.configure(form=Form.JSON)
    try:
        give_up(database, [place(broken), place(other, "cio", frozenset({NotifyKind.OBJECTIVE}))])
    finally:
        telemetry.configure()
    (told,) = other.told
    assert told.title == "not told to ops: backup failed"
    assert "the double refuses" in told.body
    assert told.body.endswith("full")
    assert told.next_command == "drservice backup erp"
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["level"], line["place"]) == ("notice given up", "error", "ops")


def test_two_places_that_are_both_away_do_not_tell_each_other_for_ever(database: Database) -> None:
    one, two = RecordingNotifier(), RecordingNotifier()
    for notifier in (one, two):
        notifier.behave(Behaviour.REFUSE)
    outbox = give_up(database, [place(one, "one"), place(two, "two")])
    for _ in range(5):
        outbox.deliver()
    assert len(rows(database)) == 4
    assert all(row.given_up_at is not None for row in rows(database))


def test_a_place_that_fails_does_not_keep_the_others_waiting(database: Database) -> None:
    slow, ops = RecordingNotifier(), RecordingNotifier()
    slow.behave(Behaviour.REFUSE)
    asked: list[str] = []
    slow.during(lambda told: asked.append(told.event))
    outbox = Outbox(database, [place(slow, "a-slow"), place(ops)])
    for number in range(10):
        outbox.tell(notice(f"run:{number}"))
    assert outbox.deliver() == Delivered(taken=10, postponed=1)
    assert len(asked) == 1


def test_a_message_that_breaks_its_notifier_neither_stops_the_others_nor_shows_the_error(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def send(self, _: Notice) -> None:
            raise RuntimeError(f"json://user:{CANARY}@host")

    ops = RecordingNotifier()
    outbox = Outbox(database, [Place(name="a-broken", on=ALL, notifier=Broken()), place(ops)])
    outbox.tell(notice())
    assert outbox.deliver() == Delivered(taken=1, postponed=1)
    errors = [row.last_error for row in rows(database) if row.place == "a-broken"]
    assert errors == ["telling a-broken broke with RuntimeError"]
    assert CANARY not in capsys.readouterr().err


def test_a_message_to_a_place_that_nobody_configures_any_more_waits_and_is_then_given_up(database: Database) -> None:
    old, new = RecordingNotifier(), RecordingNotifier()
    Outbox(database, [place(old, "old")]).tell(notice())
    changed = Outbox(database, [place(new, "new")], patience=Patience(attempts=2))
    set_clock(database, datetime(2100, 1, 1, tzinfo=UTC))
    assert changed.deliver() == Delivered(postponed=1)
    set_clock(database, datetime(2100, 1, 2, tzinfo=UTC))
    assert changed.deliver() == Delivered(taken=1, given_up=1)
    assert [told.title for told in new.told] == ["not told to old: backup failed"]
    assert old.told == []


def test_names_that_are_no_text_are_told_all_the_same(database: Database) -> None:
    ops = RecordingNotifier()
    outbox = Outbox(database, [place(ops)])
    outbox.tell(notice(title="file \udcff\0\x1b[31m", body="'; drop table message; --\n\ud800"))
    assert outbox.deliver() == Delivered(taken=1)
    subject, body = ops.heard()[0]
    assert subject == "[business-critical] erp: file \\udcff\\x00 [31m"
    assert body.startswith("'; drop table message; --\n\\ud800")


def test_at_most_so_many_are_delivered_in_one_go(database: Database) -> None:
    ops = RecordingNotifier()
    outbox = Outbox(database, [place(ops)])
    for number in range(5):
        outbox.tell(notice(f"run:{number}"))
    assert outbox.deliver(limit=3) == Delivered(taken=3)
    assert outbox.backlog().waiting == 2


def test_a_deliverer_that_dies_after_the_place_answered_leaves_the_message_to_the_next(
    catalogues: CatalogueServer, database: Database
) -> None:
    ops = RecordingNotifier()

    def kill(_: Notice) -> None:
        catalogues.cluster.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [database.url.split("/")[3].split("?")[0]],
        )

    ops.during(kill)
    outbox = Outbox(database, [place(ops)])
    outbox.tell(notice())
    with pytest.raises(CatalogueUnreachableError):
        outbox.deliver()
    assert len(ops.told) == 1, "the place has heard it"
    ops.during(lambda _: None)
    assert outbox.deliver() == Delivered(taken=1)
    assert len(ops.told) == 2, "twice rather than not at all"


def test_over_a_real_place_nothing_of_its_url_reaches_the_catalogue(
    database: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "url"
    with HookServer() as hook:
        secret.write_text(hook.url(CANARY))
        notifier = AppriseNotifier(name="ops", reference=f"file:{secret}", deadline=timedelta(seconds=2))
        outbox = Outbox(database, [Place(name="ops", on=ALL, notifier=notifier)])
        outbox.tell(notice())
        told: list[Callable[[], object]] = [
            lambda: hook.behave(Behaviour.REFUSE),
            lambda: hook.behave(Behaviour.HANG),
            lambda: secret.write_text(f"slack://{CANARY}"),
            lambda: secret.write_text(f"https://{CANARY}"),
            secret.unlink,
        ]
        reasons = []
        for act in told:
            act()
            assert outbox.deliver() == Delivered(postponed=1)
            reasons.append(rows(database)[0].last_error)
            with database.session() as session:
                session.execute(update(Message).values(next_attempt_at=func.drservice_now()))
        secret.write_text(hook.url(CANARY))
        hook.behave(Behaviour.TAKE)
        assert outbox.deliver() == Delivered(taken=1)
        assert hook.heard() == [(notice().subject(), notice().text())]
    assert len(set(reasons)) == 5, reasons
    with database.session() as session:
        dump = "".join(session.scalars(text("SELECT message::text FROM message")))
    out, err = capfd.readouterr()
    assert CANARY not in "".join([dump, out, err, *map(str, reasons)])
