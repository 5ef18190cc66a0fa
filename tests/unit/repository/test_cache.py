"""The cache only saves work: damaged, foreign or missing, it costs a full upload and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from drservice.repository.cache import SnapshotCache
from drservice.repository.changes import ChangeRule
from tests.doubles.repositories import CHUNK, Site, content_of, noise

PACKS = "s/erp/database/packs/"


@pytest.fixture
def files(site: Site) -> dict[str, bytes]:
    made = {"base/1": noise(3 * CHUNK), "base/2": noise(CHUNK, 1), "PG_VERSION": b"15\n"}
    site.write(made)
    return made


def cache_of(site: Site) -> Path:
    return site.state_dir / "cache/erp/database.sqlite"


def test_a_second_snapshot_of_the_same_files_stores_no_data(site: Site, files: dict[str, bytes]) -> None:
    first = site.capture()
    packs = site.keys(PACKS)
    second = site.capture()
    assert first.stored_bytes > 4 * CHUNK
    assert site.keys(PACKS) == packs
    assert second.stored_bytes < 1000, "nodes with new times of reading, and nothing else"
    assert files


@pytest.mark.parametrize("damage", ["empty", "text", "half", "removed", "no tables"])
def test_a_damaged_cache_costs_a_full_upload(site: Site, files: dict[str, bytes], tmp_path: Path, damage: str) -> None:
    first = site.capture()
    path = cache_of(site)
    if damage == "removed":
        path.unlink()
    elif damage == "no tables":
        path.unlink()
        sqlite3.connect(path).close()
    else:
        path.write_bytes({"empty": b"", "text": b"no database" * 100, "half": path.read_bytes()[: 4096 + 100]}[damage])
    second = site.capture(rule=ChangeRule.IDENTITY)
    assert second.stored_bytes > 0.9 * first.stored_bytes
    assert second.read_bytes == first.read_bytes
    assert site.restore(second.id, tmp_path / "out") == files
    assert site.capture().stored_bytes < 1000, "the cache was made anew"


def test_a_cache_with_damage_in_its_depth_costs_what_it_held_and_no_more(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    site.write({f"many/{number:04}": b"%d" % number for number in range(500)})
    site.capture()
    path = cache_of(site)
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    assert pages > 12
    for page in range(4, pages):
        data[page * 4096 : page * 4096 + 64] = bytes(range(64))
    path.write_bytes(data)
    second = site.capture(rule=ChangeRule.IDENTITY)
    assert site.restore(second.id, tmp_path / "out").items() >= files.items()
    packs = site.keys(PACKS)
    site.capture()
    assert site.keys(PACKS) == packs


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_in_the_cache_never_reaches_a_snapshot(site: Site, tmp_path: Path, seed: int) -> None:
    site.write({f"many/{number:04}": noise(200, number) for number in range(60)})
    site.capture()
    path = cache_of(site)
    data = bytearray(path.read_bytes())
    step = len(data) // 40
    for at in range(4096 + seed * 37, len(data), step):
        data[at] ^= 1 << (seed % 8)
    path.write_bytes(data)
    second = site.capture(rule=ChangeRule.IDENTITY)
    assert site.restore(second.id, tmp_path / "out") == content_of(site.source)


def test_the_cache_of_another_repository_is_not_used(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    other = Site.create(tmp_path / "other")
    cache_of(other).parent.mkdir(parents=True)
    cache_of(other).write_bytes(cache_of(site).read_bytes())
    other.write(files)
    record = other.capture(rule=ChangeRule.IDENTITY)
    assert record.stored_bytes > 4 * CHUNK
    assert record.previous is None
    assert other.restore(record.id, tmp_path / "out") == files


def test_a_run_that_was_not_committed_leaves_the_old_cache(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    before = cache_of(site).read_bytes()
    with pytest.raises(KeyboardInterrupt), site.writing():
        raise KeyboardInterrupt
    assert cache_of(site).read_bytes() == before
    assert [path.name for path in sorted(cache_of(site).parent.iterdir())] == ["database.sqlite", "database.sums"]
    assert files


def test_a_cache_of_another_component_is_not_opened(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    identity = {"repository": str(site.repository().id), "service": "erp", "component": "database"}
    opened = SnapshotCache.open(cache_of(site), identity=identity)
    assert opened is not None
    opened.close()
    for name in identity:
        assert SnapshotCache.open(cache_of(site), identity={**identity, name: "other"}) is None
    assert files
