"""What a backup uses again is locked as long as what it adds, once per generation, or nothing is committed."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import StoreDeniedError
from drservice.model.storing import LockMode, LockSettings
from drservice.objectstore.interface import Body
from drservice.objectstore.memory import MemoryStore
from drservice.repository.changes import ChangeRule
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import Heard, Site, noise
from tests.doubles.stores import Fault, FaultyStore, RecordingStore

LOCK = LockSettings(mode=LockMode.COMPLIANCE, days=30)
DAY = 86_400.0
COMMITTED = ("packs/", "nodes/", "snapshots/")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock=clock, lock=LOCK)


@pytest.fixture
def site(tmp_path: Path, memory: MemoryStore) -> Site:
    made = Site.create(tmp_path, store=memory)
    made.write({"base/1": noise(300_000, 1), "base/2": noise(300_000, 2)})
    return made


def in_use(site: Site) -> list[str]:
    """Return what the newest snapshot needs: its packs, keys, its own object and the repository's files."""
    record = site.repository().snapshots(site.scope).records[-1]
    snapshot = site.repository().open_snapshot(site.scope, record.id)
    packs = [*snapshot.packs.data, *snapshot.packs.nodes]
    names = {use.name for use in packs}
    keys = {str(use.key_id) for use in packs}
    return [
        key
        for key in site.keys("")
        if key.rsplit("/", 1)[-1] in names
        or key.endswith(str(record.id))
        or (key.startswith("keys/") and key.split("/")[2] in keys)
        or key == "drservice-repository.json"
    ]


def shortest(site: Site, memory: MemoryStore) -> datetime:
    ends = [memory.locked_until(key) for key in in_use(site)]
    assert len(ends) >= 5
    known = [end for end in ends if end is not None]
    assert len(known) == len(ends), "something of it is not locked"
    return min(known)


def extended(site: Site, memory: MemoryStore) -> Counter[str]:
    recording = RecordingStore(memory)
    site.capture(store=recording)
    kinds = [
        key.split("/")[3] if key.startswith("s/") else key.split("/")[0]
        for name, key in recording.calls
        if name == "extend_lock"
    ]
    return Counter(kinds)


def test_what_is_stored_is_locked_and_holds_are_not(site: Site, memory: MemoryStore, clock: ManualClock) -> None:
    site.capture()
    assert shortest(site, memory) >= clock.now() + timedelta(days=30)
    holds = site.keys("hold/")
    assert holds
    assert [memory.locked_until(key) for key in holds] == [None] * len(holds)
    with pytest.raises(StoreDeniedError, match="locked until"):
        memory.delete(in_use(site)[0])


def test_packs_used_again_are_extended_once_per_generation(site: Site, memory: MemoryStore, clock: ManualClock) -> None:
    site.capture()
    for day in range(1, 25):
        clock.pass_seconds(DAY)
        site.write({"base/2": noise(300_000, 100 + day)})
        site.write({"base/1": noise(300_000, 1)})
        site.capture()
        assert shortest(site, memory) >= clock.now() + timedelta(days=30), f"short on day {day}"


def test_between_generations_nothing_is_extended(site: Site, memory: MemoryStore, clock: ManualClock) -> None:
    site.capture()
    requests = []
    for _ in range(20):
        clock.pass_seconds(DAY)
        requests.append(sum(extended(site, memory).values()))
    assert sum(1 for count in requests if count) == 2, requests
    assert all(count <= 10 for count in requests), "one request for each pack, key and file of the repository"


def test_keys_and_the_repositorys_own_file_are_extended_with_the_packs(
    site: Site, memory: MemoryStore, clock: ManualClock
) -> None:
    site.capture()
    clock.pass_seconds(11 * DAY)
    kinds = extended(site, memory)
    assert set(kinds) - {"nodes"} == {"packs", "keys", "drservice-repository.json", "RESTORE.md", "restore.py"}


def test_what_a_run_stored_before_the_end_of_a_generation_is_locked_as_long_as_its_snapshot(
    site: Site, memory: MemoryStore, clock: ManualClock
) -> None:
    clock.jump(-(clock.now().timestamp() % (10 * DAY)) + 10 * DAY - 60)
    before = LOCK.generation_end(clock.now())
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        clock.pass_seconds(3 * DAY)
        site.commit(writer)
    assert LOCK.generation_end(clock.now()) > before, "no generation ended: nothing was tested"
    assert shortest(site, memory) == LOCK.generation_end(clock.now())
    assert not extended(site, memory), "and the next run knows it"


def test_a_runs_key_is_no_younger_than_what_is_remembered_of_the_run(
    site: Site, memory: MemoryStore, clock: ManualClock
) -> None:
    clock.jump(-(clock.now().timestamp() % (10 * DAY)) + 10 * DAY - 60)

    class Slow(RecordingStore):
        def create(self, key: str, body: Body) -> None:
            super().create(key, body)
            if key.startswith("keys/"):
                clock.pass_seconds(DAY)

    site.capture(store=Slow(memory))
    assert shortest(site, memory) >= clock.now() + timedelta(days=30)


def test_the_first_backup_locks_the_repositorys_own_files(site: Site, memory: MemoryStore, clock: ManualClock) -> None:
    clock.pass_seconds(29 * DAY)
    site.capture()
    assert shortest(site, memory) >= clock.now() + timedelta(days=30)


def test_a_host_that_may_not_extend_commits_nothing(site: Site, memory: MemoryStore, clock: ManualClock) -> None:
    site.capture()
    clock.pass_seconds(11 * DAY)
    before = site.keys("s/erp/database/snapshots/")
    refusing = FaultyStore(memory, Fault(at=1, operations={"extend_lock"}, error=StoreDeniedError, times=1000))
    with refusing, pytest.raises(StoreDeniedError, match="extend_lock"):
        site.capture(store=refusing)
    assert site.keys("s/erp/database/snapshots/") == before
    site.capture()
    assert shortest(site, memory) >= clock.now() + timedelta(days=30)


def test_packs_of_a_killed_run_are_extended_however_young_the_cache_is(
    site: Site, memory: MemoryStore, clock: ManualClock
) -> None:
    site.write({"base/3": noise(40 << 20, 3)})
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
    clock.pass_seconds(11 * DAY)
    kinds = extended(site, memory)
    assert kinds["packs"] >= 1
    assert shortest(site, memory) >= clock.now() + timedelta(days=30)


def test_a_longer_or_harder_lock_in_the_configuration_reaches_what_is_there(
    site: Site, memory: MemoryStore, clock: ManualClock
) -> None:
    site.capture()
    for lock in (LockSettings(mode=LockMode.COMPLIANCE, days=90), LockSettings(mode=LockMode.GOVERNANCE, days=90)):
        memory._capabilities = type(memory._capabilities)(
            create_mode=memory.capabilities.create_mode, versioned=False, writable=True, lock=lock
        )
        assert extended(site, memory)["packs"] >= 1
        assert shortest(site, memory) >= clock.now() + timedelta(days=90)
        assert not extended(site, memory), "and only once"


def test_a_store_without_locks_is_not_asked_for_any(tmp_path: Path) -> None:
    plain = MemoryStore()
    site = Site.create(tmp_path, store=plain)
    site.write({"base/1": noise(300_000, 1)})
    site.capture()
    assert not extended(site, plain)
