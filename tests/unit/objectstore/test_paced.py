"""A store behind a rate: what is moved keeps to it on average, for all threads together."""

from __future__ import annotations

from drservice.objectstore.memory import MemoryStore
from drservice.objectstore.paced import PacedStore
from tests.doubles.clock import ManualClock

RATE = 1000


def test_what_is_sent_and_received_keeps_to_the_rate_and_facts_cost_nothing() -> None:
    clock = ManualClock()
    store = PacedStore(MemoryStore(), bytes_per_second=RATE, clock=clock)
    begun = clock.monotonic()
    for number in range(5):
        store.create(f"k/{number}", b"x" * RATE)
    assert clock.monotonic() - begun == 4, "the fifth begins when four have had their second"
    assert store.read("k/0", offset=0, length=500) == b"x" * 500
    assert clock.monotonic() - begun == 5
    assert len(list(store.list("k/"))) == 5
    assert store.stat("k/1").stored_bytes == RATE
    store.delete("k/1")
    assert clock.monotonic() - begun == 5


def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    clock = ManualClock()
    store = PacedStore(MemoryStore(), bytes_per_second=RATE, clock=clock)
    clock.sleep(100)
    begun = clock.monotonic()
    for number in range(3):
        store.create(f"k/{number}", b"x" * RATE)
    assert clock.monotonic() - begun == 2
