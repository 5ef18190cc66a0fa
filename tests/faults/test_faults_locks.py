"""Buckets that lock, or should: what is not locked is not written, and no snapshot outlives what it needs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeKey, s3_backends

from drservice.clock import Clock
from drservice.errors import ExitStatus, StoreDeniedError, StoreThrottledError
from drservice.model.storing import NO_SETTINGS, LockMode, LockSettings, ObjectKind, StoreSettings
from drservice.objectstore.interface import Capabilities, CreateMode, ObjectStore
from drservice.objectstore.opening import _s3_location, open_store, open_store_readonly
from drservice.objectstore.retrying import RetryBudget, RetryingStore
from drservice.objectstore.s3 import S3Store
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import Site, noise
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, S3Server, moto_server
from tests.faults.faultproxy import Behaviour, FaultProxy, fault_proxy

BUDGET = RetryBudget(total_seconds=10, first_wait_seconds=0.01, longest_wait_seconds=0.05)
TEN_DAYS = StoreSettings(lock=LockSettings(mode=LockMode.COMPLIANCE, days=10))
FIFTY_DAYS = StoreSettings(lock=LockSettings(mode=LockMode.COMPLIANCE, days=50))
SNAPSHOTS = "s/erp/database/snapshots/"


def let_pass(_method: str, _path: str, _number: int) -> Behaviour:
    return Behaviour.PASS


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.LOCKING) as server, server.credentials():
        yield server


@pytest.fixture(scope="module")
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as made:
        yield made


class Bucket:
    """A locking bucket behind the proxy."""

    def __init__(self, moto: S3Server, proxy: FaultProxy, folder: Path) -> None:
        self.name = f"b-{uuid.uuid4().hex}"
        proxy.reset(let_pass)
        self.url = moto.url_for(self.name, "p").replace(moto.endpoint[-5:], proxy.endpoint[-5:])
        self.folder = folder
        self._opened: list[ObjectStore] = []

    def probed(self, settings: StoreSettings = NO_SETTINGS) -> ObjectStore:
        store = open_store(self.url, lock_dir=self.folder / "run", settings=settings, budget=BUDGET)
        self._opened.append(store)
        return store

    def open(self, settings: StoreSettings, *, budget: RetryBudget = BUDGET, clock: Clock | None = None) -> ObjectStore:
        """Open the bucket as a probe would, which is claimed above all in tests/contract, without its seconds."""
        capabilities = Capabilities(
            create_mode=CreateMode.CONDITIONAL, versioned=True, writable=True, lock=settings.lock
        )
        location = _s3_location(self.url, settings)
        store = S3Store(location, capabilities=capabilities, lock_folder=self.folder / "run", clock=clock)
        self._opened.append(RetryingStore(store, budget=budget))
        return self._opened[-1]

    def versions(self) -> list[FakeKey]:
        bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.name]
        return [key for name in bucket.keys for key in bucket.keys.getlist(name) if isinstance(key, FakeKey)]

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture
def bucket(moto: S3Server, proxy: FaultProxy, tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(moto, proxy, tmp_path)
    yield made
    made.close()


def backed_up(bucket: Bucket, settings: StoreSettings) -> Site:
    """A repository with one snapshot."""
    site = Site.create(bucket.folder / "site", store=bucket.open(settings))
    site.write({"base/1": noise(200_000, 1)})
    site.capture()
    return site


def refusing(part: str) -> Callable[[str, str, int], Behaviour]:
    """Deny every PUT whose address has this in it."""

    def decide(method: str, path: str, _number: int) -> Behaviour:
        return Behaviour.DENIED if method == "PUT" and part in path else Behaviour.PASS

    return decide


def test_every_object_is_stored_with_its_lock_and_its_storage_class(bucket: Bucket) -> None:
    classes = {ObjectKind.PACKS: "STANDARD_IA", ObjectKind.SNAPSHOTS: "ONEZONE_IA"}
    backed_up(bucket, StoreSettings(lock=TEN_DAYS.lock, storage_classes=classes))
    now = datetime.now(UTC)
    kinds = set()
    for version in bucket.versions():
        kind = version.name.removeprefix("p/").split("/")[3 if version.name.startswith("p/s/") else 0]
        if kind in {"hold", "probe"}:
            assert version.lock_mode is None
            continue
        kinds.add(kind)
        assert version.lock_mode == "COMPLIANCE", version.name
        until = datetime.fromisoformat(str(version.lock_until))
        assert timedelta(days=10) - timedelta(minutes=5) <= until - now <= timedelta(days=20), version.name
        expected = {"packs": "STANDARD_IA", "snapshots": "ONEZONE_IA"}.get(kind, "STANDARD")
        assert version.storage_class == expected, version.name
    assert {"packs", "nodes", "snapshots", "keys", "drservice-repository.json"} <= kinds


def test_a_host_whose_clock_is_years_behind_locks_as_long_as_any_other(bucket: Bucket) -> None:
    behind = ManualClock(datetime(2020, 1, 1, tzinfo=UTC))
    bucket.open(TEN_DAYS, clock=behind).create("k", b"body")
    behind.pass_seconds(86_400)
    ends = [datetime.fromisoformat(str(version.lock_until)) for version in bucket.versions()]
    assert len(ends) == 1
    assert ends[0] >= datetime.now(UTC) + timedelta(days=10) - timedelta(minutes=5)


def test_a_host_without_the_right_to_extend_locks_says_so_before_it_commits(bucket: Bucket, proxy: FaultProxy) -> None:
    site = backed_up(bucket, TEN_DAYS)
    proxy.reset(refusing("retention"))
    site.write({"base/2": noise(200_000, 2)})
    longer = bucket.open(FIFTY_DAYS)
    with pytest.raises(StoreDeniedError) as caught:
        site.capture(store=longer)
    assert proxy.did[Behaviour.DENIED] >= 1
    assert caught.value.exit_status is ExitStatus.NOT_AUTHORISED
    assert "s3:PutObjectRetention" in caught.value.hint
    assert len(site.keys(SNAPSHOTS)) == 1, "nothing was committed"
    proxy.reset(let_pass)
    record = site.capture(store=longer)
    assert site.restore(record.id, bucket.folder / "out")["base/2"] == noise(200_000, 2)


def test_a_lock_that_is_longer_already_is_no_refusal(bucket: Bucket, proxy: FaultProxy) -> None:
    """Stores answer 403 to a date that would shorten a lock: another host may have asked for more."""
    site = backed_up(bucket, FIFTY_DAYS)
    proxy.reset(refusing("retention"))
    store = bucket.open(TEN_DAYS)
    key = site.keys("s/erp/database/packs/")[0]
    store.extend_lock(key, datetime.now(UTC) + timedelta(days=30))
    assert proxy.did[Behaviour.DENIED] == 1
    with pytest.raises(StoreDeniedError):
        store.extend_lock(key, datetime.now(UTC) + timedelta(days=90))


def test_a_bucket_that_keeps_no_locks_is_read_and_not_written_when_locks_are_configured(
    tmp_path: Path,
) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.VERSIONED) as moto, moto.credentials():
        url = moto.url_for("bucket", "p")
        plain = open_store(url, lock_dir=tmp_path / "run", budget=BUDGET)
        site = Site.create(tmp_path / "site", store=plain)
        site.write({"base/1": noise(200_000, 1)})
        record = site.capture()
        before = site.keys("")
        store = open_store(url, lock_dir=tmp_path / "run", settings=TEN_DAYS, budget=BUDGET)
        with pytest.raises(StoreDeniedError) as caught:
            site.capture(store=store)
        assert "the bucket has none" in caught.value.hint
        assert [key for key in site.keys("") if not key.startswith("probe/")] == before
        assert site.restore(record.id, tmp_path / "out", store=store)["base/1"] == noise(200_000, 1)
        store.close()
        plain.close()


def test_a_bucket_of_another_account_is_refused_and_nothing_is_written(
    moto: S3Server, proxy: FaultProxy, bucket: Bucket
) -> None:
    """moto passes over the header, as Ceph does: the access list is compared."""
    acl = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket.name].acl
    assert acl is not None
    owner = acl.grants[0].grantees[0].id
    bucket.probed(StoreSettings(bucket_owner=owner, lock=TEN_DAYS.lock))
    proxy.reset(let_pass)
    for opener in (open_store, open_store_readonly):
        with pytest.raises(StoreDeniedError, match=f"belongs to {owner}, not to 999988887777"):
            opener(
                bucket.url,
                lock_dir=bucket.folder / "other",
                settings=StoreSettings(bucket_owner="999988887777"),
                budget=BUDGET,
            )
    assert moto.environment
    assert proxy.requests >= 4


def test_a_store_that_refuses_the_owner_is_told_as_that(bucket: Bucket, proxy: FaultProxy) -> None:
    """As Amazon S3 does: 403 to every request that names another account."""
    proxy.reset(lambda _method, _path, _number: Behaviour.DENIED if proxy.owner else Behaviour.PASS)
    with pytest.raises(StoreDeniedError, match="does not belong to 999988887777") as caught:
        bucket.probed(StoreSettings(bucket_owner="999988887777"))
    assert proxy.did[Behaviour.DENIED] == 1
    assert caught.value.exit_status is ExitStatus.NOT_AUTHORISED


def test_a_reply_lost_behind_a_put_makes_no_second_version(bucket: Bucket, proxy: FaultProxy) -> None:
    site = backed_up(bucket, TEN_DAYS)
    lost: set[str] = set()

    def first_put_of_each(method: str, path: str, _number: int) -> Behaviour:
        if method != "PUT" or path in lost:
            return Behaviour.PASS
        lost.add(path)
        return Behaviour.LOSE_REPLY

    proxy.reset(first_put_of_each)
    site.write({"base/2": noise(200_000, 2)})
    site.capture()
    assert proxy.did[Behaviour.LOSE_REPLY] >= 4
    names = [version.name for version in bucket.versions() if "/probe/" not in version.name]
    assert len(names) == len(set(names)), "each object is there once"


def test_a_storm_of_slow_down_slows_down_everything_and_is_told(
    bucket: Bucket, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    store = bucket.open(TEN_DAYS)
    answered = [0]

    def every_other(_method: str, _path: str, number: int) -> Behaviour:
        answered[0] = number
        return Behaviour.UNAVAILABLE if number <= 12 else Behaviour.PASS

    proxy.reset(every_other)
    store.create("k", b"body")
    assert proxy.did[Behaviour.UNAVAILABLE] == 12
    assert "slow down" in capsys.readouterr().err
    proxy.reset(lambda _method, _path, _number: Behaviour.UNAVAILABLE)
    short = bucket.open(
        TEN_DAYS, budget=RetryBudget(total_seconds=0.5, first_wait_seconds=0.05, longest_wait_seconds=0.1)
    )
    with pytest.raises(StoreThrottledError, match=r"gave up .* attempts"):
        short.create("other", b"body")
