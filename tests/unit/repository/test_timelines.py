"""Timeline numbers are taken once, whoever asks at the same time (trap T34)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from drservice.errors import StoreUnreachableError
from drservice.model.wal import Timeline
from drservice.repository import layout
from drservice.repository.timelines import take_timeline, taken_timelines
from tests.doubles.repositories import SYSTEM_ID, Site
from tests.doubles.stores import Fault, FaultyStore


def take(site: Site, above: int, store: object = None) -> Timeline:
    repository = site.repository()
    return take_timeline(
        repository.store if store is None else store,  # type: ignore[arg-type]  # a double of the store
        repository.host_key,
        site.scope,
        SYSTEM_ID,
        above=Timeline(above),
        clock=site.clock,
    )


def test_each_number_is_given_once_and_lies_above_what_is_known(site: Site) -> None:
    assert [take(site, 1), take(site, 1), take(site, 7), take(site, 1)] == [2, 3, 8, 9]
    assert taken_timelines(site.repository().store, site.scope, SYSTEM_ID) == {2, 3, 8, 9}


def test_restores_that_ask_at_once_get_different_numbers(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: take(site, 1), range(8)))
    assert sorted(found) == list(range(2, 10))


def test_what_somebody_placed_there_takes_at_most_a_number(site: Site) -> None:
    prefix = layout.timeline_prefix(site.scope.service, site.scope.component, SYSTEM_ID)
    for name in ("00000005", "FFFFFFFF", "nonsense", "00000006/below"):
        site.store.create(f"{prefix}{name}", [b"garbage"])
    assert take(site, 1) == 6


def test_a_number_that_is_not_known_to_be_taken_is_not_given(site: Site) -> None:
    store = FaultyStore(site.repository().store, Fault(at=1, operations={"create"}))
    with pytest.raises(StoreUnreachableError):
        take(site, 1, store)
