"""Stores that are away, noisy, read-only or weak: bounded time, never wrong bytes, never a false success."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.errors import (
    DrError,
    ExitStatus,
    ObjectStoreError,
    StoreDeniedError,
    StoreUnreachableError,
)
from drservice.model.storing import NO_SETTINGS, StoreSettings
from drservice.objectstore.interface import CreateMode, ObjectStore
from drservice.objectstore.opening import open_store, open_store_readonly
from drservice.objectstore.retrying import RetryBudget
from drservice.repository.walarchive import PutOutcome
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, S3Server, free_port, moto_server, rclone_server
from tests.faults.faultproxy import Behaviour, FaultProxy, black_hole, fault_proxy
from tests.faults.world import LATEST, PREFIX, Site, World, at_time

BUDGET = RetryBudget(total_seconds=20, first_wait_seconds=0.002, longest_wait_seconds=0.01)
ALL_IDS = list(range(1, 501))


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as server, server.credentials():
        yield server


@pytest.fixture(scope="module")
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as made:
        yield made


@dataclass(kw_only=True)
class Bucket:
    """A copy of a site's repository in a bucket, reached through the proxy."""

    site: Site
    name: str
    url: str


def upload(server: S3Server, site: Site, name: str) -> None:
    """Put all objects of a site into a bucket, behind every store's back."""
    server.make_bucket(name)
    for path in site.objects():
        server.plant(name, site.key_of(path), path.read_bytes())


@pytest.fixture
def bucket(moto: S3Server, proxy: FaultProxy, site: Site) -> Bucket:
    name = f"b-{uuid.uuid4().hex}"
    upload(moto, site, name)
    proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
    url = moto.url_for(name).replace(moto.endpoint.rsplit(":", 1)[1], proxy.endpoint.rsplit(":", 1)[1])
    site.opener = lambda: open_store(url, lock_dir=site.state_dir / "run", budget=BUDGET)
    site.open_store().close()  # probed now, so that faults meet the work and not the probe
    return Bucket(site=site, name=name, url=url)


def storm(refusals: int) -> Callable[[str, str, int], Behaviour]:
    """Answer 503 to the first requests for each object and listing."""
    seen: Counter[tuple[str, str]] = Counter()

    def decide(method: str, path: str, _number: int) -> Behaviour:
        seen[method, path] += 1
        return Behaviour.UNAVAILABLE if seen[method, path] <= refusals else Behaviour.PASS

    return decide


def test_a_storm_of_503_is_waited_out_by_backup_push_and_restore(bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.reset(storm(2))
    bucket.site.backup()
    assert bucket.site.restored_ids(LATEST)[:500] == ALL_IDS
    assert proxy.did[Behaviour.UNAVAILABLE] > 30
    proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
    bucket.site.require_sound(snapshots=3)


@pytest.mark.long
def test_a_storm_that_does_not_pass_ends_within_the_budget_and_leaves_nothing_visible(
    bucket: Bucket, proxy: FaultProxy
) -> None:
    site = bucket.site
    budget = RetryBudget(total_seconds=1.5, first_wait_seconds=0.05, longest_wait_seconds=0.2)
    store = open_store(bucket.url, lock_dir=site.state_dir / "run", budget=budget)
    repository = site.repository(store)
    proxy.reset(lambda method, _path, _number: Behaviour.UNAVAILABLE if method == "PUT" else Behaviour.PASS)
    began = time.monotonic()
    with pytest.raises(StoreUnreachableError) as caught:
        site.backup(repository=repository, archive=False)
    assert time.monotonic() - began < 15
    assert caught.value.exit_status is ExitStatus.UNREACHABLE
    assert "attempts" in caught.value.message
    proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


def test_lost_replies_after_successful_puts_are_resolved_by_comparing(
    world: World, bucket: Bucket, proxy: FaultProxy
) -> None:
    site = bucket.site
    seen: set[str] = set()

    def first_put_of_each(method: str, path: str, _number: int) -> Behaviour:
        if method != "PUT" or path in seen:
            return Behaviour.PASS
        seen.add(path)
        return Behaviour.LOSE_REPLY

    proxy.reset(first_put_of_each)
    result = site.backup()
    assert proxy.did[Behaviour.LOSE_REPLY] >= 4  # hold, key, tree, snapshot at least
    assert site.push(site.spool / world.tail[0]).outcome is PutOutcome.ALREADY_THERE
    proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
    assert result.record.id in {record.id for record in site.snapshots()}
    site.require_sound(snapshots=3)
    assert site.restored_ids(at_time(world.late)) == list(range(1, 401))


def test_cut_answers_never_become_short_data(world: World, bucket: Bucket, proxy: FaultProxy) -> None:
    seen: set[str] = set()

    def first_get_of_each(method: str, path: str, _number: int) -> Behaviour:
        if method != "GET" or path in seen:
            return Behaviour.PASS
        seen.add(path)
        return Behaviour.CUT_ANSWER

    proxy.reset(first_get_of_each)
    assert bucket.site.restored_ids(at_time(world.late)) == list(range(1, 401))
    assert proxy.did[Behaviour.CUT_ANSWER] > 10
    # An object that is always cut: an error, never a restore.
    proxy.reset(lambda _method, path, _number: Behaviour.CUT_ANSWER if "/packs/" in path else Behaviour.PASS)
    budget = RetryBudget(total_seconds=1, first_wait_seconds=0.05, longest_wait_seconds=0.2)
    store = open_store(bucket.url, lock_dir=bucket.site.state_dir / "run", budget=budget)
    with pytest.raises(StoreUnreachableError):
        bucket.site.restore(LATEST, repository=bucket.site.repository(store))
    bucket.site.require_not_restored()


@pytest.mark.long
def test_listings_beyond_one_page_are_complete(
    moto: S3Server, bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = bucket.site
    for number in range(60):
        moto.plant(bucket.name, f"{PREFIX}/packs/00/foreign-{number:04d}", b"x")
    monkeypatch.setattr(proxy, "page_keys", 50)
    monkeypatch.setattr(proxy, "pages", 0)
    result = site.backup()
    source = result.record.source_bytes
    assert result.record.stored_bytes < source / 20, "packs behind the first page were not seen"
    assert site.restored_ids(LATEST)[:500] == ALL_IDS
    site.require_sound(snapshots=3)
    assert proxy.pages > 3, "every listing fitted onto one page: nothing was tested"


def test_credentials_that_may_only_read_restore_and_refuse_to_back_up(
    world: World, bucket: Bucket, proxy: FaultProxy
) -> None:
    site = bucket.site
    for memory in (site.state_dir / "run").glob("probe-*.json"):
        memory.unlink()
    proxy.reset(lambda method, _path, _number: Behaviour.DENIED if method in {"PUT", "DELETE"} else Behaviour.PASS)
    store = site.open_store()
    assert not store.capabilities.writable
    with pytest.raises(StoreDeniedError) as caught:
        site.backup(repository=site.repository(store))
    assert caught.value.exit_status is ExitStatus.NOT_AUTHORISED
    assert proxy.did[Behaviour.DENIED] > 0
    assert site.restored_ids(at_time(world.late)) == list(range(1, 401))
    with pytest.raises(StoreDeniedError):
        site.push(site.spool / world.tail[0], open_store_readonly(bucket.url, lock_dir=site.state_dir / "run"))
    site.require_sound(snapshots=2)


# --- away -------------------------------------------------------------------------------------------------


def opened_at(
    endpoint: str, site: Site, *, budget_seconds: float, settings: StoreSettings = NO_SETTINGS
) -> ObjectStore:
    return open_store(
        f"s3://bucket/prefix?region=us-east-1&endpoint={endpoint}",
        lock_dir=site.state_dir / "run",
        settings=settings,
        budget=RetryBudget(total_seconds=budget_seconds, first_wait_seconds=0.05, longest_wait_seconds=0.2),
    )


def test_a_closed_endpoint_is_unreachable_within_the_budget(moto: S3Server, site: Site) -> None:
    assert moto.environment  # credentials are set
    began = time.monotonic()
    with pytest.raises(StoreUnreachableError) as caught:
        opened_at(f"http://127.0.0.1:{free_port()}", site, budget_seconds=1)
    assert time.monotonic() - began < 10
    assert caught.value.exit_status is ExitStatus.UNREACHABLE


def test_a_black_hole_is_unreachable_in_bounded_time(moto: S3Server, site: Site) -> None:
    assert moto.environment
    began = time.monotonic()
    with black_hole() as endpoint, pytest.raises(StoreUnreachableError) as caught:
        opened_at(endpoint, site, budget_seconds=2, settings=StoreSettings(read_timeout=timedelta(seconds=1)))
    took = time.monotonic() - began
    assert 1 <= took < 15
    said = re.search(r"after ([0-9]+) attempts in ([0-9]+) s", caught.value.message)
    assert said is not None, "how long it was tried in all"
    assert abs(int(said[2]) - took) < 2


def test_a_store_that_goes_away_in_the_middle_leaves_nothing_visible(bucket: Bucket, proxy: FaultProxy) -> None:
    site = bucket.site
    budget = RetryBudget(total_seconds=1, first_wait_seconds=0.05, longest_wait_seconds=0.2)
    store = open_store(bucket.url, lock_dir=site.state_dir / "run", budget=budget)
    repository = site.repository(store)
    away = [False]

    def from_the_first_pack_on(method: str, path: str, _number: int) -> Behaviour:
        away[0] = away[0] or (method == "PUT" and "/packs/" in path)
        return Behaviour.LOSE_REPLY if away[0] and method == "PUT" else Behaviour.PASS

    proxy.reset(from_the_first_pack_on)
    with pytest.raises((StoreUnreachableError, ObjectStoreError)):
        site.backup(repository=repository, archive=False)
    assert proxy.did[Behaviour.LOSE_REPLY] > 0
    proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


# --- weak -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone") / "buckets") as server, server.credentials():
        yield server


def test_a_store_without_conditional_create_works_and_says_that_it_is_weak(
    world: World, rclone: S3Server, site: Site
) -> None:
    upload(rclone, site, "weak")
    time.sleep(0.3)  # planted files show a moment later
    url = rclone.url_for("weak")
    site.opener = lambda: open_store(url, lock_dir=site.state_dir / "run", budget=BUDGET)
    store = site.open_store()
    assert store.capabilities.create_mode is CreateMode.SINGLE_WRITER
    assert store.capabilities.warnings
    store.close()
    site.backup()
    assert site.push(site.spool / world.tail[0]).outcome is PutOutcome.ALREADY_THERE
    assert site.restored_ids(at_time(world.late)) == list(range(1, 401))
    site.require_sound(snapshots=3)


# --- a directory ------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_mounted_is_unreachable(site: Site) -> None:
    os.rename(site.repository_dir, site.root / "elsewhere")  # noqa: PTH104 - as umount would
    with pytest.raises(StoreUnreachableError) as caught:
        site.backup()
    assert caught.value.exit_status is ExitStatus.UNREACHABLE
    with pytest.raises(DrError):
        site.restore(LATEST)
    assert not site.repository_dir.exists(), "an unmounted repository must not be made anew beside the real one"
    os.rename(site.root / "elsewhere", site.repository_dir)  # noqa: PTH104 - as above
    site.require_sound(snapshots=2)


def test_a_directory_opened_for_reading_restores_and_refuses_to_back_up(site: Site) -> None:
    url = site.repository_dir.as_uri()
    lock_dir: Path = site.state_dir / "run"
    with pytest.raises(StoreDeniedError) as caught:
        site.backup(open_store_readonly(url, lock_dir=lock_dir))
    assert caught.value.exit_status is ExitStatus.NOT_AUTHORISED
    assert site.restored_ids(LATEST, open_store_readonly(url, lock_dir=lock_dir)) == ALL_IDS
    site.require_sound(snapshots=2)
