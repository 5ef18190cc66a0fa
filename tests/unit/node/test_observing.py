"""What the catalogue is told of a run: in order, bounded, and again after it was away."""

from __future__ import annotations

from typing import Any, cast

import pytest

from drservice.catalogue.runs import Claim, Runs
from drservice.errors import CatalogueUnreachableError
from drservice.node.assignment import Advanced, Noted, Step
from drservice.node.observing import RunObserver
from tests.doubles.clock import ManualClock

CLAIM = Claim(run="01M8CBE1QJPD3SPTMEFD0XFRVJ", epoch=1)


class Told:
    """Stands for the catalogue: keeps what it was told, is away or disowns the claim on demand."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.newest: dict[str, Any] = {}
        self.is_away = False
        self.is_ours = True

    def event(self, claim: Claim, kind: str, data: dict[str, Any]) -> bool:
        assert claim == CLAIM
        self._answer()
        if self.is_ours:
            self.events.append((kind, data))
        return self.is_ours

    def progress(self, claim: Claim, document: dict[str, Any]) -> bool:
        assert claim == CLAIM
        self._answer()
        self.newest = document
        return self.is_ours

    def _answer(self) -> None:
        if self.is_away:
            raise CatalogueUnreachableError("away")


def an_observer() -> tuple[RunObserver, Told, ManualClock]:
    told, clock = Told(), ManualClock()
    return RunObserver(cast("Runs", told), CLAIM, clock), told, clock


def test_steps_and_notes_are_told_in_order_and_progress_has_rate_and_rest() -> None:
    observer, told, clock = an_observer()
    observer.hear(Step(name="read", total=100, unit="bytes"))
    observer.hear(Noted("one file vanished"))
    clock.pass_seconds(10)
    observer.hear(Advanced(50))
    assert observer.write()
    assert [kind for kind, _ in told.events] == ["step", "note"]
    assert told.newest == {"step": "read", "done": 50, "total": 100, "unit": "bytes", "rate": 5.0, "eta_seconds": 10.0}


def test_nothing_new_is_not_written_again() -> None:
    observer, told, _ = an_observer()
    observer.hear(Step(name="read", total=None, unit="items"))
    observer.write()
    told.newest = {}
    assert observer.write()
    assert told.newest == {}


def test_what_was_not_taken_is_told_once_when_the_catalogue_is_back() -> None:
    observer, told, _ = an_observer()
    observer.hear(Step(name="read", total=None, unit="bytes"))
    observer.hear(Noted("first"))
    told.is_away = True
    with pytest.raises(CatalogueUnreachableError):
        observer.write()
    told.is_away = False
    observer.write()
    observer.write()
    assert [data.get("text") for kind, data in told.events if kind == "note"] == ["first"]
    assert told.newest["step"] == "read"


def test_progress_that_was_not_taken_is_told_again() -> None:
    observer, told, _ = an_observer()
    observer.hear(Step(name="read", total=None, unit="bytes"))
    observer.write()
    observer.hear(Advanced(7))
    told.is_away = True
    with pytest.raises(CatalogueUnreachableError):
        observer.write()
    told.is_away = False
    observer.write()
    assert told.newest["done"] == 7


def test_a_run_that_is_not_ours_any_more_is_noticed() -> None:
    observer, told, _ = an_observer()
    observer.hear(Noted("late"))
    told.is_ours = False
    assert not observer.write()


def test_memory_is_bounded_and_what_is_dropped_is_said() -> None:
    observer, told, _ = an_observer()
    for number in range(3000):
        observer.hear(Noted(f"note {number}"))
    observer.write()
    assert len(told.events) == 1001
    assert told.events[-1][1]["text"] == "2000 steps and notes are not told"
