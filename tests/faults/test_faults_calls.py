"""The store failing at the Nth call, for every N: a clean error, a whole snapshot or none, and the next run is fine."""

from __future__ import annotations

import itertools
from typing import NoReturn

import pytest

from drservice.errors import DrError, StoreFullError, StoreUnreachableError
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.walarchive import PutOutcome
from tests.doubles.stores import When
from tests.faults.doomed import WITHOUT_WAITING
from tests.faults.triggers import TriggerStore
from tests.faults.world import LATEST, Site, World, empty


def faulty(site: Site, at: int, when: When, *, error: type[DrError] = StoreUnreachableError) -> TriggerStore:
    """A store whose call number ``at`` fails."""

    def fail(key: str) -> NoReturn:
        raise error(f"injected at call {at} for {key}")

    return TriggerStore(DirectoryStore(site.repository_dir), fail, operations=WITHOUT_WAITING, at=at, when=when)


def every_backup(site: Site, when: When, *, step: int) -> int:
    """Fail each ``step``-th call of a backup in turn until one run has fewer calls; return how many failed."""
    failed = 0
    for at in itertools.count(1, step):
        before = len(site.snapshots())
        store = faulty(site, at, when, error=StoreFullError if at % 2 else StoreUnreachableError)
        try:
            site.backup(store)
        except DrError:
            assert store.fired == 1
            failed += 1
        visible = len(site.snapshots()) - before
        if store.fired == 0:
            assert visible == 1
            return failed
        assert visible in (0, 1)
        site.require_sound(snapshots=before + visible)
        # The next run is fine, and learns of the key that this one left: otherwise each would have a call more to fail.
        site.backup()
    raise AssertionError


def every_restore(site: Site, when: When, *, step: int) -> int:
    """The same for restores: either everything is proven, or it fails and leaves no environment."""
    undisturbed = site.restore(LATEST)
    empty(site.target_dir)
    failed = 0
    for at in itertools.count(1, step):
        store = faulty(site, at, when)
        try:
            result = site.restore(LATEST, store)
        except DrError:
            assert store.fired == 1
            failed += 1
        else:  # what was read ahead and not asked for may fail; nothing else
            assert result.reached.lsn == undisturbed.reached.lsn
            assert result.planned.unreadable == ()
        site.require_no_environment()
        empty(site.target_dir)
        if store.fired == 0:
            return failed
        site.give_back_timelines()
    raise AssertionError


@pytest.mark.parametrize("when", When)
def test_a_backup_whose_store_fails_at_some_call_leaves_a_whole_snapshot_or_none(site: Site, when: When) -> None:
    assert every_backup(site, when, step=4) > 2
    assert site.restored_ids(LATEST)[:500] == list(range(1, 501))


@pytest.mark.parametrize("when", When)
def test_a_restore_whose_store_fails_at_some_call_fails_as_a_whole(site: Site, when: When) -> None:
    assert every_restore(site, when, step=7) >= 3
    site.require_sound(snapshots=2)


def test_no_answer_about_one_snapshot_is_no_reason_to_take_another(site: Site) -> None:
    def fail(key: str) -> NoReturn:
        raise StoreUnreachableError(f"injected for {key}")

    store = TriggerStore(DirectoryStore(site.repository_dir), fail, operations=["read"], part="/snapshots/", at=2)
    with store, pytest.raises(StoreUnreachableError):
        site.restore(LATEST, store)
    assert not site.target_dir.exists()


@pytest.mark.long
@pytest.mark.parametrize("when", When)
def test_a_backup_whose_store_fails_at_every_single_call(site: Site, when: When) -> None:
    assert every_backup(site, when, step=1) > 10
    assert site.restored_ids(LATEST)[:500] == list(range(1, 501))


@pytest.mark.long
@pytest.mark.parametrize("when", When)
def test_a_restore_whose_store_fails_at_every_single_call(site: Site, when: When) -> None:
    assert every_restore(site, when, step=1) > 10
    site.require_sound(snapshots=2)


@pytest.mark.parametrize("when", When)
def test_a_push_whose_store_fails_at_any_call_is_never_taken_for_durable(world: World, site: Site, when: When) -> None:
    name = world.tail[-1]
    failed = 0
    for at in itertools.count(1):
        for path in site.objects(name):
            path.unlink()
        store = faulty(site, at, when)
        try:
            site.push(site.spool / name, store)
        except DrError:
            failed += 1
        else:
            assert site.objects(name), "success without the segment"
        if store.fired == 0:
            break
        assert site.push(site.spool / name).outcome in PutOutcome
        site.require_sound(snapshots=2)
    assert failed >= 2
