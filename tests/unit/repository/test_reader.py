"""A pack is the bytes whose hash is its name: what lies on top of them on a versioned store changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.errors import DamagedObjectError, DrError
from drservice.objectstore.memory import MemoryStore
from drservice.repository import reader as reading
from drservice.repository.reader import load_pack, version_of_pack
from drservice.repository.verify import Depth, Verified, verify_component
from tests.doubles.repositories import CHUNK, Site, flipped, noise
from tests.doubles.stores import RecordingStore

DATA = "s/erp/database/packs/"
NODES = "s/erp/database/nodes/"
OVERWRITE: dict[str, Callable[[bytes], bytes]] = {
    "ransom": lambda _: b"pay us",
    "same length": lambda data: bytes(len(data)),
    "other key id": flipped(20),
    "other salt": flipped(50),
    "one bit of a record": flipped(300),
    "cut off": lambda data: data[: len(data) // 2],
}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(versioned=True)


@pytest.fixture
def site(tmp_path: Path, store: MemoryStore) -> Site:
    """Two snapshots; of the pack of the first, the second uses little: it is read by ranges."""
    made = Site.create(tmp_path, store=store)
    made.write({"base/1": noise(8 * CHUNK), "base/2": noise(CHUNK, 1), "base/small": b"few bytes"})
    made.capture()
    made.write({"base/1": noise(8 * CHUNK, 2)})
    made.capture()
    made.put_wal("000000010000000000000002", noise(5000))
    return made


def verified(site: Site, depth: Depth = Depth.DATA) -> Verified:
    return verify_component(
        site.repository(), site.scope, depth=depth, percent=100, chosen=lambda *_: True, advance=lambda _: None
    )


@pytest.mark.parametrize("kind", [DATA, NODES])
@pytest.mark.parametrize("how", OVERWRITE)
def test_an_overwritten_pack_is_read_from_the_version_that_has_its_hash(
    site: Site, store: MemoryStore, tmp_path: Path, how: str, kind: str
) -> None:
    for key in site.keys(kind):
        store.plant_version(key, OVERWRITE[how](store.read(key)))
        store.plant_version(key, None)
    for number, record in enumerate(site.repository().snapshots(site.scope).records):
        restored = site.restore(record.id, tmp_path / str(number))
        assert restored["base/1"] == noise(8 * CHUNK, 2 * number)
        assert restored["base/2"] == noise(CHUNK, 1)
        reader = site.repository().reader(site.scope, record.id)
        [small] = [entry for entry in reader.entries() if entry.path == b"base/2"]
        assert reader.read_file(small) == noise(CHUNK, 1)
    for depth in Depth:
        assert verified(site, depth).findings == []


def test_another_good_pack_on_top_is_not_the_pack(site: Site, store: MemoryStore, tmp_path: Path) -> None:
    for kind in (DATA, NODES):
        keys = site.keys(kind)
        bodies = [store.read(key) for key in keys]
        assert len(bodies) > 1
        for number, key in enumerate(keys):
            store.plant_version(key, bodies[number - 1])
    for number, record in enumerate(site.repository().snapshots(site.scope).records):
        assert site.restore(record.id, tmp_path / str(number))["base/1"] == noise(8 * CHUNK, 2 * number)
    assert verified(site).findings == []


def test_the_pack_is_found_above_what_was_planted_first(site: Site, store: MemoryStore, tmp_path: Path) -> None:
    for key in [*site.keys(DATA), *site.keys(NODES)]:
        body = store.read(key)
        store.delete(key)
        store.plant_version(key, b"first")
        store.plant_version(key, body)
        store.plant_version(key, b"last")
    for number, record in enumerate(site.repository().snapshots(site.scope).records):
        assert site.restore(record.id, tmp_path / str(number))["base/2"] == noise(CHUNK, 1)
    for depth in Depth:
        assert verified(site, depth).findings == []


@pytest.mark.parametrize("kind", [DATA, NODES])
def test_a_pack_that_no_version_holds_is_damaged(site: Site, store: MemoryStore, tmp_path: Path, kind: str) -> None:
    for key in site.keys(kind):
        body = store.read(key)
        store.delete(key)
        store.plant_version(key, flipped(300)(body))
        store.plant_version(key, b"last")
    record = site.repository().snapshots(site.scope).records[0]
    with pytest.raises(DrError) as caught:
        site.restore(record.id, tmp_path / "out")
    assert caught.value.exit_status == DamagedObjectError.exit_status
    assert verified(site).findings
    if kind == NODES:
        name = bytes.fromhex(site.keys(NODES)[0].rsplit("/", 1)[-1])
        with pytest.raises(DamagedObjectError, match="hash"):
            load_pack(store, name, kind="nodes", scope=site.scope, keyring=site.repository().keyring)


def test_a_store_without_versions_is_not_asked_again() -> None:
    store = RecordingStore(MemoryStore())
    store.create("k", b"body")
    assert version_of_pack(store, "k", b"no such hash") is None
    assert store.count("read_versions") == 0


@pytest.mark.parametrize("room", [0, reading._NODE_PACKS_BYTES])
def test_packs_of_nodes_are_kept_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """What refers to nodes is stored after them, in a pack of its own; a random key says how many levels there are."""
    monkeypatch.setattr(reading, "_NODE_PACKS_BYTES", room)
    site = Site.create(tmp_path)
    site.write({f"many/{number:04}": b"%d" % number for number in range(600)})
    opened = site.repository().reader(site.scope, site.capture().id)
    assert sum(entry.path.startswith(b"many/") for entry in opened.entries()) == 600
    levels = sum(1 for _ in site.store.list(NODES))
    assert levels >= 2
    assert len(opened._node_packs) == (levels if room else 1)
