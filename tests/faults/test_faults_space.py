"""Disk full on either side: said with the bytes needed, nothing partial, and it works again once there is space."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.errors import CaptureError, DrError, ExitStatus, RecoveryError, StoreFullError
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.walarchive import PutOutcome
from tests.faults.triggers import TriggerStore
from tests.faults.world import LATEST, Site, World, empty

ALL_IDS = list(range(1, 501))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@contextlib.contextmanager
def small_disk(place: Path, *, kibibytes: int) -> Iterator[None]:
    """Mount a file system of this size at ``place``, with what was there before copied into it."""
    kept = place.with_name(f"{place.name}.kept")
    if place.exists():
        place.rename(kept)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=755", "tmpfs", str(place)], check=True)
    try:
        if kept.exists():
            subprocess.run(["cp", "-a", f"{kept}/.", str(place)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def grow(place: Path) -> None:
    """Give the disk a lot of space."""
    subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)


def fill(place: Path, *, leave_kibibytes: int = 0) -> Path:
    """Use up the space of a disk but for a little, and return the file that does it."""
    filler = place / "filler"
    facts = os.statvfs(place)
    size = facts.f_bavail * facts.f_frsize - (leave_kibibytes << 10)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
    return filler


def used_kibibytes(folder: Path) -> int:
    return int(subprocess.run(["du", "-sk", str(folder)], check=True, capture_output=True).stdout.split()[0])


def test_a_full_store_stops_a_backup_with_nothing_visible_and_it_works_again_after_freeing(site: Site) -> None:
    with small_disk(site.repository_dir, kibibytes=used_kibibytes(site.repository_dir) + 800):
        shutil.rmtree(site.state_dir / "cache")  # so that megabytes have to be stored
        with pytest.raises(StoreFullError) as caught:
            site.backup(archive=False)
        assert caught.value.exit_status is ExitStatus.FAILED
        assert "bytes were needed" in caught.value.message
        site.require_sound(snapshots=2)
        assert site.restored_ids(LATEST) == ALL_IDS
        grow(site.repository_dir)
        site.backup()
        site.require_sound(snapshots=3)


def test_a_full_store_refuses_wal_and_takes_it_after_freeing(world: World, site: Site) -> None:
    name = world.tail[-1]
    site.objects(name)[0].unlink()
    with small_disk(site.repository_dir, kibibytes=used_kibibytes(site.repository_dir) + 800):
        filler = fill(site.repository_dir)
        with pytest.raises(StoreFullError):
            site.push(site.spool / name)
        assert site.objects(name) == []
        filler.unlink()
        assert site.push(site.spool / name).outcome is PutOutcome.STORED
        site.require_sound(snapshots=2)
        assert site.restored_ids(LATEST) == ALL_IDS


def test_a_target_that_is_too_small_is_refused_before_anything_is_written(site: Site) -> None:
    with small_disk(site.target_dir, kibibytes=4096):
        with pytest.raises(RecoveryError) as caught:
            site.restore(LATEST)
        assert "are needed" in caught.value.message
        assert list(site.target_dir.iterdir()) == []
        site.require_not_restored()
        grow(site.target_dir)
        site.restore(LATEST)
        assert (site.target_dir / "global" / "pg_control").exists()


def test_a_target_that_fills_up_while_it_is_written_is_never_taken_for_a_whole_one(site: Site) -> None:
    with small_disk(site.target_dir, kibibytes=128 << 10):
        with (
            TriggerStore(
                DirectoryStore(site.repository_dir),
                lambda _: fill_up(site.target_dir),
                operations=["read"],
                part="/packs/",
                at=2,
            ) as store,
            pytest.raises(RecoveryError) as caught,
        ):
            site.restore(LATEST, store)
        assert "no space left" in caught.value.message
        site.require_not_restored()
        for path in site.target_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        site.restore(LATEST)
        assert (site.target_dir / "global" / "pg_control").exists()


def fill_up(place: Path) -> None:
    fill(place, leave_kibibytes=512)


def test_a_full_state_directory_stops_a_backup_in_words_and_leaves_nothing_visible(site: Site) -> None:
    with small_disk(site.state_dir, kibibytes=used_kibibytes(site.state_dir) + 400):
        filler = fill(site.state_dir, leave_kibibytes=64)
        with pytest.raises(CaptureError) as caught:
            site.backup()
        assert "disk is full" in caught.value.message
        visible = len(site.snapshots())
        site.require_sound(snapshots=visible)
        filler.unlink()
        grow(site.state_dir)
        site.backup()
        site.require_sound(snapshots=visible + 1)


@pytest.mark.long  # the server inside waits 15 s for a sign of life before it gives up
def test_an_environment_without_space_for_wal_never_promotes(site: Site) -> None:
    with small_disk(site.state_dir, kibibytes=used_kibibytes(site.state_dir) + 3000):
        with pytest.raises(DrError):
            site.restore(LATEST)
        site.require_no_environment()
        assert not list((site.target_dir / "pg_wal").glob("00000002*"))
        grow(site.state_dir)
        empty(site.target_dir)
        assert site.restored_ids(LATEST) == ALL_IDS
