"""Every object store there is, each in every way it can work, for one suite of claims."""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice.objectstore import opening
from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import Capabilities, CreateMode, ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.objectstore.metered import MeteredStore
from drservice.objectstore.paced import PacedStore
from drservice.objectstore.retrying import RetryBudget, RetryingStore
from drservice.objectstore.s3 import S3Store
from tests.ceph.cluster import Buckets
from tests.ceph.cluster import folder as ceph_folder
from tests.ceph.cluster import running as running_ceph
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, S3Server, moto_server, rclone_server
from tests.doubles.stores import (
    FaultyStore,
    MissingStore,
    RecordingStore,
    SlowStore,
    StaleListStore,
    bit_flipping_store,
    truncating_store,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A store under test.

    Args:
        store: the store.
        plant: puts an object there behind its back, as another program would.
        mode: how it is expected to make ``create`` exclusive.
        reopen: opens the same place once more, as a second writer would.
    """

    store: ObjectStore
    plant: Callable[[str, bytes], None]
    mode: CreateMode
    reopen: Callable[[], ObjectStore]


_MOTO = {
    "moto-conditional": (MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN, CreateMode.CONDITIONAL),
    "moto-conditional-versioned": (
        MotoBehaviour.CONDITIONAL,
        MotoBuckets.VERSIONED,
        CreateMode.CONDITIONAL,
    ),
    "moto-first-version-wins": (
        MotoBehaviour.IGNORES_CONDITIONS,
        MotoBuckets.VERSIONED,
        CreateMode.FIRST_VERSION_WINS,
    ),
    "moto-single-writer": (
        MotoBehaviour.IGNORES_CONDITIONS,
        MotoBuckets.PLAIN,
        CreateMode.SINGLE_WRITER,
    ),
}

_WRAPPERS: dict[str, Callable[[ObjectStore], ObjectStore]] = {
    "retrying": RetryingStore,
    "metered": MeteredStore,
    "paced": functools.partial(PacedStore, bytes_per_second=10**10),
    "faulty": FaultyStore,
    "slow": lambda inner: SlowStore(inner, wait=lambda _: None),
    "stale-list": StaleListStore,
    "recording": RecordingStore,
    "truncating": lambda inner: truncating_store(inner, chooses=lambda _: False),
    "bit-flipping": lambda inner: bit_flipping_store(inner, chooses=lambda _: False),
    "missing": lambda inner: MissingStore(inner, chooses=lambda _: False),
}

_CEPH = {
    "ceph-plain": (Buckets.PLAIN, CreateMode.CONDITIONAL),
    "ceph-versioned": (Buckets.VERSIONED, CreateMode.FIRST_VERSION_WINS),
    "ceph-locking": (Buckets.LOCKING, CreateMode.FIRST_VERSION_WINS),
}
"""Where `make test-ceph` says that a gateway may be started; locks are tried in tests/ceph."""

STORES = ("directory", "memory", *_MOTO, "rclone", *_WRAPPERS, *(_CEPH if ceph_folder() is not None else ()))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """Each server once per file, started when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def server(name: str) -> S3Server:
            if name == "rclone":
                return stack.enter_context(rclone_server(tmp_path_factory.mktemp("rclone") / "buckets"))
            if name in _CEPH:
                return running_ceph().server(_CEPH[name][0])
            behaviour, buckets, _ = _MOTO[name]
            return stack.enter_context(moto_server(behaviour, buckets))

        yield server


@pytest.fixture(params=STORES)
def subject(request: pytest.FixtureRequest, tmp_path: Path, servers: Callable[[str], S3Server]) -> Iterator[Subject]:
    """Each store in turn, empty."""
    name = request.param
    if name == "directory":
        root = tmp_path / "repository"
        root.mkdir()
        yield Subject(
            store=DirectoryStore(root),
            plant=lambda key, body: _plant_file(root / key, body),
            mode=CreateMode.CONDITIONAL,
            reopen=lambda: DirectoryStore(root),
        )
    elif name == "memory" or name in _WRAPPERS:
        memory = MemoryStore()
        store = _WRAPPERS[name](memory) if name in _WRAPPERS else memory
        yield Subject(store=store, plant=memory.plant_version, mode=CreateMode.CONDITIONAL, reopen=lambda: store)
    else:
        mode, versioned = _expected(name)
        settle = 0.3 if name == "rclone" else 0.0  # it may show planted files a moment later
        yield from _s3_subject(servers(name), tmp_path, mode=mode, versioned=versioned, settle=settle)


def _expected(name: str) -> tuple[CreateMode, bool]:
    """Return how a bucket makes ``create`` exclusive, and whether it keeps versions."""
    if name in _CEPH:
        return _CEPH[name][1], _CEPH[name][0] is not Buckets.PLAIN
    if name in _MOTO:
        return _MOTO[name][2], _MOTO[name][1] is MotoBuckets.VERSIONED
    return CreateMode.SINGLE_WRITER, False


def _s3_subject(
    server: S3Server, tmp_path: Path, *, mode: CreateMode, versioned: bool, settle: float
) -> Iterator[Subject]:
    bucket = f"b-{uuid.uuid4().hex}"
    location = opening._s3_location(server.url_for(bucket, "some/prefix"))
    # What open_store finds out by its probe is claimed in test_objectstore_opening.py.
    capabilities = Capabilities(create_mode=mode, versioned=versioned, writable=True)
    stores: list[ObjectStore] = []

    def reopen() -> ObjectStore:
        store = S3Store(location, capabilities=capabilities, lock_folder=tmp_path / "locks")
        stores.append(RetryingStore(store, budget=RetryBudget(total_seconds=10)))
        return stores[-1]

    def plant(key: str, body: bytes) -> None:
        server.plant(bucket, f"some/prefix/{key}", body)
        if settle and key.endswith("~last"):
            time.sleep(settle)

    with server.credentials():
        yield Subject(store=reopen(), plant=plant, mode=mode, reopen=reopen)
        for store in stores:
            store.close()


def _plant_file(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
