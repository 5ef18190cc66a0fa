"""Faults on the way to people: a place that rejects for hours, and a deliverer that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.catalogue.database import Database
from drservice.model.estate import NotifyKind, NotifyPlace
from drservice.notify.apprise import places
from drservice.notify.interface import Notice, Severity
from drservice.notify.outbox import Backlog, Delivered, Outbox
from tests.doubles.catalogue import CatalogueServer, set_clock
from tests.doubles.notifiers import Behaviour, HookServer

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOTICE = Notice(
    event="run:1",
    kind=NotifyKind.FAILURE,
    severity=Severity.BUSINESS_CRITICAL,
    service="erp",
    title="backup failed",
    body="the disk is full",
    next_command="drservice backup erp",
)
DELIVERER = """
import sys
from drservice.catalogue.database import Database
from drservice.model.estate import NotifyPlace
from drservice.notify.apprise import places
from drservice.notify.outbox import Outbox
Outbox(Database(sys.argv[1]), places([NotifyPlace(name="ops", url=sys.argv[2])])).deliver()
"""


@pytest.fixture(scope="module")
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


@pytest.fixture
def database(catalogues: CatalogueServer) -> Database:
    return catalogues.database()


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with HookServer() as server:
        yield server


@pytest.fixture
def reference(hook: HookServer, tmp_path: Path) -> str:
    (tmp_path / "url").write_text(hook.url("x"))
    return f"file:{tmp_path / 'url'}"


def outbox_of(database: Database, reference: str) -> Outbox:
    return Outbox(database, places([NotifyPlace(name="ops", url=reference)]))


def test_a_place_that_rejects_for_hours_is_told_once_when_it_takes_again(
    database: Database, hook: HookServer, reference: str
) -> None:
    outbox = outbox_of(database, reference)
    set_clock(database, NOON)
    outbox.tell(NOTICE)
    hook.behave(Behaviour.REFUSE)
    # From 30 s doubled to an hour: the tries fall on these minutes after noon.
    tries = [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5]
    for minutes in tries:
        set_clock(database, NOON + timedelta(minutes=minutes))
        assert outbox.deliver() == Delivered(postponed=1)
        assert outbox.deliver() == Delivered()
    assert len(hook.requests) == len(tries), "it fired"
    assert outbox.backlog() == Backlog(waiting=1, oldest=NOON, given_up=0)
    hook.behave(Behaviour.TAKE)
    set_clock(database, NOON + timedelta(minutes=123.5))
    assert outbox.deliver() == Delivered(taken=1)
    assert hook.heard() == [(NOTICE.subject(), NOTICE.text())]


def test_a_deliverer_that_is_killed_in_a_delivery_leaves_the_notice_to_the_next(
    database: Database, hook: HookServer, reference: str
) -> None:
    outbox = outbox_of(database, reference)
    outbox.tell(NOTICE)
    begun = threading.Event()
    hook.during(begun.set)
    hook.behave(Behaviour.HANG)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    doomed = subprocess.Popen([sys.executable, "-c", DELIVERER, database.url, reference], env=environment)
    assert begun.wait(30), "it was in the middle of a delivery"
    assert outbox.deliver() == Delivered(), "it holds the message"
    doomed.send_signal(signal.SIGKILL)
    assert doomed.wait() == -signal.SIGKILL
    hook.behave(Behaviour.TAKE)
    deadline = time.monotonic() + 20
    while outbox.deliver() != Delivered(taken=1):
        assert time.monotonic() < deadline, "the database has noticed that its client is gone"
        time.sleep(0.1)
    assert hook.heard() == [(NOTICE.subject(), NOTICE.text())]
    assert outbox.backlog() == Backlog(waiting=0, oldest=None, given_up=0)
