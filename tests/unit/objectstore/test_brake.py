"""How far calls hold back when a store asks for it."""

from __future__ import annotations

import pytest

from drservice.errors import StoreThrottledError, StoreUnreachableError
from drservice.objectstore.memory import MemoryStore
from drservice.objectstore.retrying import Brake, RetryBudget, RetryingStore
from tests.doubles.clock import ManualClock
from tests.doubles.stores import Fault, FaultyStore

BUDGET = RetryBudget(total_seconds=60, first_wait_seconds=0.5, longest_wait_seconds=4)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def brake(clock: ManualClock) -> Brake:
    return Brake(BUDGET, clock=clock, description="memory")


def test_each_refusal_doubles_the_wait_up_to_the_longest_and_answers_halve_it(brake: Brake) -> None:
    waits = []
    for _ in range(5):
        brake.press()
        waits.append(brake.seconds)
    assert waits == [0.5, 1, 2, 4, 4]
    for _ in range(4):
        brake.release()
        waits.append(brake.seconds)
    assert waits[5:] == [2, 1, 0.5, 0.25]
    brake.release()
    assert brake.seconds > 0
    for _ in range(3):
        brake.release()
    assert brake.seconds == 0


def test_a_call_waits_a_random_part_and_none_without_a_refusal(brake: Brake, clock: ManualClock) -> None:
    brake.wait()
    assert clock.slept == []
    for _ in range(4):
        brake.press()
    for _ in range(50):
        brake.wait()
    assert all(0 <= seconds <= 4 for seconds in clock.slept)
    assert len(set(clock.slept)) > 40, "hosts that lost the store together do not come back together"


def test_it_is_told_once_in_half_a_minute(brake: Brake, clock: ManualClock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(10):
        brake.press()
    assert capsys.readouterr().err.count("slow down") == 1
    clock.pass_seconds(31)
    brake.press()
    assert capsys.readouterr().err.count("slow down") == 1


def test_one_call_that_is_refused_slows_down_the_others(clock: ManualClock) -> None:
    fault = Fault(at=1, operations={"create"}, error=StoreThrottledError, times=3)
    with FaultyStore(MemoryStore(), fault) as faulty:
        store = RetryingStore(faulty, budget=BUDGET, clock=clock)
        store.create("a", b"1")
        clock.slept.clear()
        store.read("a")
        assert len(clock.slept) == 1


def test_any_other_fault_slows_down_nobody_else(clock: ManualClock) -> None:
    with FaultyStore(MemoryStore(), Fault(at=1, operations={"create"}, error=StoreUnreachableError)) as faulty:
        store = RetryingStore(faulty, budget=BUDGET, clock=clock)
        store.create("a", b"1")
        clock.slept.clear()
        store.read("a")
        assert clock.slept == []
