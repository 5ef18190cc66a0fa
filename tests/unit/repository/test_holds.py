"""Holds follow each other for as long as work lasts, and end with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.model.retentionstock import BACKUP_HOLD, LONG_BACKUP_HOLD, Hold
from drservice.objectstore.memory import MemoryStore
from drservice.operations.holding import held
from drservice.operations.progress import SilentProgress
from drservice.repository.holds import HoldKeeper, live_holds
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import Site
from tests.doubles.stores import Fault, FaultyStore

HOUR = 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def site(tmp_path: Path, clock: ManualClock) -> Site:
    made = Site.create(tmp_path, store=MemoryStore(clock=clock))
    made.clock = clock
    return made


@pytest.fixture
def keeper(site: Site, clock: ManualClock) -> Iterator[HoldKeeper]:
    made = keeper_of(site, clock)
    yield made
    made.close()


def keeper_of(site: Site, clock: ManualClock, *, look_seconds: float = HOUR) -> HoldKeeper:
    return HoldKeeper(
        site.store,
        site.host,
        site.scope,
        purpose=BACKUP_HOLD,
        then=LONG_BACKUP_HOLD,
        clock=clock,
        look_seconds=look_seconds,
    )


def live(site: Site, clock: ManualClock) -> tuple[Hold, ...]:
    repository = site.repository()
    return live_holds(
        site.store, trust=repository.trust, repository=repository.id, service=site.scope.service, now=clock.now()
    )


def test_work_of_a_week_is_held_all_the_time(site: Site, clock: ManualClock, keeper: HoldKeeper) -> None:
    for hour in range(0, 24 * 7, 6):
        assert live(site, clock), f"nothing is held after {hour} hours"
        if hour > 12:
            assert any(hold.keeps_everything for hold in live(site, clock)), (
                "a later hold began later: it must keep all"
            )
        clock.pass_seconds(6 * HOUR)
        keeper.look()
    keeper.close()
    assert site.keys("hold/") == [keeper.first]
    assert live(site, clock) == ()


def test_short_work_places_one_hold(site: Site, clock: ManualClock, keeper: HoldKeeper) -> None:
    clock.pass_seconds(11.9 * HOUR)
    keeper.look()
    assert site.keys("hold/") == [keeper.first]


def test_a_clock_that_is_set_back_does_not_keep_a_hold_from_its_renewal(
    site: Site, clock: ManualClock, keeper: HoldKeeper
) -> None:
    clock.pass_seconds(13 * HOUR)
    clock.jump(-10 * HOUR)
    keeper.look()
    assert len(site.keys("hold/")) == 2


def test_a_hold_that_cannot_be_placed_is_tried_again(site: Site, clock: ManualClock) -> None:
    memory = site.store
    site.store = FaultyStore(memory, Fault(at=2, operations={"create"}))
    keeper = keeper_of(site, clock)
    clock.pass_seconds(13 * HOUR)
    keeper.look()
    site.store.assert_fired()
    assert len(site.keys("hold/")) == 1
    keeper.look()
    assert len(site.keys("hold/")) == 2
    keeper.close()


def test_the_thread_looks_by_itself(site: Site, clock: ManualClock) -> None:
    keeper = keeper_of(site, clock, look_seconds=0.005)
    clock.pass_seconds(13 * HOUR)
    deadline = time.monotonic() + 10
    while len(site.keys("hold/")) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(site.keys("hold/")) == 2
    keeper.close()


def test_a_backup_and_a_restore_keep_their_holds_and_a_restore_leaves_none(
    site: Site, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HoldKeeper.__init__, "__kwdefaults__", {"look_seconds": 0.005})

    def wait_for(count: int) -> None:
        clock.pass_seconds(13 * HOUR)
        deadline = time.monotonic() + 10
        while len(site.keys("hold/")) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(site.keys("hold/")) == count

    with site.writing():
        wait_for(2)
    assert len(site.keys("hold/")) == 1
    with held(site.repository(), site.scope, clock=clock, progress=SilentProgress()):
        assert len(site.keys("hold/")) == 2
        wait_for(3)
    assert len(site.keys("hold/")) == 1, "what is left is the first of the backup"
