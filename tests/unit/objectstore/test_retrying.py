from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from drservice.errors import ObjectExistsError, ObjectNotFoundError, StoreDeniedError, StoreUnreachableError
from drservice.objectstore.memory import MemoryStore
from drservice.objectstore.retrying import RetryBudget, RetryingStore
from tests.doubles.stores import Fault, FaultyStore, RecordingStore, When


class FakeClock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def retrying(inner: FaultyStore | RecordingStore, clock: FakeClock, seconds: float = 60) -> RetryingStore:
    return RetryingStore(inner, budget=RetryBudget(total_seconds=seconds), clock=clock)


def test_a_passing_fault_is_waited_out() -> None:
    clock = FakeClock()
    with FaultyStore(MemoryStore(), Fault(at=1, times=3)) as faulty:
        retrying(faulty, clock).create("k", b"x")
        assert faulty.fired == 3
    assert len(clock.slept) == 3


def test_the_budget_ends_in_an_error_that_names_operation_attempts_and_last_error() -> None:
    clock = FakeClock()
    faulty = FaultyStore(MemoryStore(), Fault(at=1, times=10_000))
    with pytest.raises(StoreUnreachableError, match=r"read k in memory after \d+ attempts.*injected before"):
        retrying(faulty, clock, 60).read("k")
    assert 3 < faulty.calls < 1000
    assert clock.monotonic() <= 60


def test_an_answer_is_never_asked_again() -> None:
    for error in (StoreDeniedError, ObjectNotFoundError):
        clock = FakeClock()
        faulty = FaultyStore(MemoryStore(), Fault(at=1, times=9, error=error))
        with pytest.raises(error):
            retrying(faulty, clock).read("k")
        assert (faulty.calls, clock.slept) == (1, [])


def test_a_lost_reply_to_our_own_create_is_success() -> None:
    memory = MemoryStore()
    with FaultyStore(memory, Fault(at=1, operations={"create"}, when=When.AFTER)) as faulty:
        retrying(faulty, FakeClock()).create("k", [b"o", b"urs"])
    assert memory.read("k") == b"ours"


def test_a_lost_request_and_another_winner_is_exists() -> None:
    memory = MemoryStore()
    memory.create("k", b"theirs")
    with (
        FaultyStore(memory, Fault(at=1, operations={"create"})) as faulty,
        pytest.raises(ObjectExistsError),
    ):
        retrying(faulty, FakeClock()).create("k", b"ours..")
    assert memory.read("k") == b"theirs"


def test_exists_at_the_first_try_is_exists_even_for_the_same_bytes() -> None:
    memory = MemoryStore()
    memory.create("k", b"same")
    recording = RecordingStore(memory)
    with pytest.raises(ObjectExistsError):
        retrying(recording, FakeClock()).create("k", b"same")
    assert recording.calls == [("create", "k")]


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_cut_listing_goes_on_behind_its_last_key(when: When, at: int) -> None:
    memory = MemoryStore()
    keys = [f"k/{number:03d}" for number in range(10)]
    for key in keys:
        memory.create(key, key.encode())
    with FaultyStore(memory, Fault(at=1, times=at, operations={"list"}, when=when)) as faulty:
        assert [info.key for info in retrying(faulty, FakeClock()).list("k/")] == keys


@pytest.mark.parametrize("when", When)
def test_cut_versions_go_on_without_repeating(when: When) -> None:
    memory = MemoryStore(versioned=True)
    for body in (b"1", b"2", None, b"3"):
        memory.plant_version("k", body)
    with FaultyStore(memory, Fault(at=1, times=2, operations={"read_versions"}, when=when)) as faulty:
        assert list(retrying(faulty, FakeClock()).read_versions("k")) == [b"1", b"2", b"3"]
