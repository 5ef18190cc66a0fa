"""A defect in one look at a slot, or in one beat, ends neither watch nor heartbeat, and leaves no old answer."""

from __future__ import annotations

import threading

import pytest

from drservice.clock import SystemClock
from drservice.operations import walheartbeat, walwatch
from drservice.operations.walheartbeat import Heartbeat
from drservice.operations.walwatch import SlotWatch


class Breaking:
    """Stands for ``connect``: it breaks in a way that nobody has foreseen, and tells how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.again = threading.Event()

    def __call__(self, *_: object, **__: object) -> None:
        self.asked += 1
        if self.asked > 1:
            self.again.set()
        raise ValueError("a shape that nobody expected")


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Breaking:
    made = Breaking()
    monkeypatch.setattr(walwatch, "connect", made)
    monkeypatch.setattr(walheartbeat, "connect", made)
    monkeypatch.setattr(walwatch, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(walheartbeat, "_FIRST_PAUSE_SECONDS", 0.01)
    return made


def test_a_watch_goes_on_after_a_defect_and_claims_nothing(breaking: Breaking) -> None:
    with SlotWatch("host=/nowhere", "drservice_erp_database", clock=SystemClock()) as watch:
        assert breaking.again.wait(5)
        assert watch.facts is None


def test_a_heartbeat_goes_on_after_a_defect_and_says_why_there_is_none(breaking: Breaking) -> None:
    heartbeat = Heartbeat("host=/nowhere", seconds=0.01)
    heartbeat.start()
    try:
        assert breaking.again.wait(5)
        assert "nobody expected" in heartbeat.problem
    finally:
        heartbeat.stop()
