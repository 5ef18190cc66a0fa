"""What every notifier promises, on each of them: taken or an error, in bounded time, and no word of the URL."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.errors import NotifyDeliveryError
from drservice.model.estate import NotifyKind
from drservice.notify.apprise import AppriseNotifier
from drservice.notify.interface import Notice, Notifier, Severity
from tests.doubles.notifiers import Behaviour, HookServer, RecordingNotifier

CANARY = "CANARY7f3a"
DEADLINE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    notifier: Notifier
    behave: Callable[[Behaviour], None]
    heard: Callable[[], list[tuple[str, str]]]


@pytest.fixture(params=["apprise", "recording"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "recording":
        double = RecordingNotifier()
        yield Subject(notifier=double, behave=double.behave, heard=double.heard)
        return
    with HookServer() as hook:
        (tmp_path / "url").write_text(hook.url(CANARY))
        notifier = AppriseNotifier(
            name="ops", reference=f"file:{tmp_path / 'url'}", deadline=timedelta(seconds=DEADLINE_SECONDS)
        )
        yield Subject(notifier=notifier, behave=hook.behave, heard=hook.heard)


def notice(event: str = "run:1", *, title: str = "backup failed", body: str = "the disk is full") -> Notice:
    return Notice(
        event=event,
        kind=NotifyKind.FAILURE,
        severity=Severity.TECHNICAL,
        service="erp",
        title=title,
        body=body,
        next_command="drservice backup erp",
    )


def test_what_is_told_arrives_whole(subject: Subject) -> None:
    told = notice(title="Sicherung ✗ <b>", body='one "1"\n<script>&amp; {{ 2 }}\n\\n three')
    subject.notifier.send(told)
    assert subject.heard() == [(told.subject(), told.text())]


@pytest.mark.parametrize("behaviour", [Behaviour.REFUSE, Behaviour.HANG, Behaviour.DRIP, Behaviour.REDIRECT])
def test_what_is_not_taken_is_an_error_in_bounded_time_that_tells_nothing_of_the_url(
    subject: Subject, behaviour: Behaviour
) -> None:
    subject.behave(behaviour)
    began = time.monotonic()
    with pytest.raises(NotifyDeliveryError) as caught:
        subject.notifier.send(notice())
    assert time.monotonic() - began < DEADLINE_SECONDS + 5
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.hint
    assert CANARY not in shown
    assert "127.0.0.1" not in shown
    assert subject.heard() == []


def test_a_place_that_comes_back_is_told(subject: Subject) -> None:
    subject.behave(Behaviour.REFUSE)
    with pytest.raises(NotifyDeliveryError):
        subject.notifier.send(notice())
    subject.behave(Behaviour.TAKE)
    subject.notifier.send(notice())
    assert len(subject.heard()) == 1


def test_several_may_be_told_at_once(subject: Subject) -> None:
    threads = [threading.Thread(target=subject.notifier.send, args=(notice(title=f"no {n}"),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(title for title, _ in subject.heard()) == [f"[technical] erp: no {n}" for n in range(4)]
