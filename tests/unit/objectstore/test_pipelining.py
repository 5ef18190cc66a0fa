"""Uploads beside their caller: bounded, told in order, and no failure is passed over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from drservice.errors import StoreFullError
from drservice.objectstore.pipelining import Pipeline

PATIENCE = 10.0


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def pipeline(told: list[int]) -> Iterator[Pipeline[int]]:
    made: Pipeline[int] = Pipeline(width=2, on_done=told.append, name="test")
    yield made
    made.close()


def test_calls_overlap_and_one_more_than_the_width_waits(pipeline: Pipeline[int], told: list[int]) -> None:
    both = threading.Barrier(2)
    go_on = threading.Event()
    begun: list[int] = []

    def together(number: int) -> Callable[[], int]:
        def call() -> int:
            begun.append(number)
            both.wait(PATIENCE)  # breaks unless two run at the same time
            go_on.wait(PATIENCE)
            return number

        return call

    pipeline.add(together(1))
    pipeline.add(together(2))
    third = threading.Thread(target=lambda: pipeline.add(lambda: 3))
    third.start()
    third.join(0.05)
    assert third.is_alive(), "a third body would be one more in memory"
    assert sorted(begun) == [1, 2]
    assert told == []
    go_on.set()
    third.join(PATIENCE)
    pipeline.flush()
    assert told == [1, 2, 3]


def test_what_was_done_is_told_in_order_though_it_ended_out_of_order(pipeline: Pipeline[int], told: list[int]) -> None:
    second_done = threading.Event()

    def slow() -> int:
        second_done.wait(PATIENCE)
        return 1

    def quick() -> int:
        second_done.set()
        return 2

    pipeline.add(slow)
    pipeline.add(quick)
    pipeline.flush()
    assert told == [1, 2]


def test_a_failure_comes_up_at_the_next_call_and_at_every_one_after_it(
    pipeline: Pipeline[int], told: list[int]
) -> None:
    other_runs = threading.Event()

    def fail() -> int:
        other_runs.wait(PATIENCE)
        raise StoreFullError("no room")

    def succeed() -> int:
        other_runs.set()
        return 2

    begun: list[int] = []

    def never() -> int:
        begun.append(3)
        return 3

    pipeline.add(fail)
    pipeline.add(succeed)
    for _ in range(2):
        with pytest.raises(StoreFullError, match="no room"):
            pipeline.add(never)
        with pytest.raises(StoreFullError, match="no room"):
            pipeline.flush()
    assert begun == [], "nothing is begun behind a failure"
    assert told == [2], "what was stored all the same is told: the next run can use it"


def test_closing_waits_for_what_is_under_way_and_tells_nobody(told: list[int]) -> None:
    pipeline: Pipeline[int] = Pipeline(width=1, on_done=told.append, name="test")
    ended: list[int] = []
    go_on = threading.Event()

    def call() -> int:
        go_on.wait(PATIENCE)
        ended.append(1)
        return 1

    pipeline.add(call)
    go_on.set()
    pipeline.close()
    assert ended == [1]
    assert told == []
