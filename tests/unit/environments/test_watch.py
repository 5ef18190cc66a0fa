"""What is counted, what is not, and which bound is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from drservice.environments.limits import LimitKind
from drservice.environments.watch import Bounds, Noted, Watch, bytes_on_disk, read_noted

FAR = 1e12
KIB = 1 << 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("keeper", "data"):
        (tmp_path / name).mkdir()
    return tmp_path


def bounds(root: Path, *, disk_bytes: int | None = None, reserve_bytes: int | None = 0, ends_at: float = FAR) -> Bounds:
    return Bounds(
        memory_bytes=None, cpu_seconds=None, disk_bytes=disk_bytes, reserve_bytes=reserve_bytes, ends_at=ends_at,
        folders={"data": str(root / "data"), "gone": str(root / "gone")},
    )  # fmt: skip


def test_nothing_is_broken_when_nothing_is_bounded(root: Path) -> None:
    assert Watch(root, bounds(root)).look() is None
    assert read_noted(root / "keeper") == Noted(peak_memory_bytes=0, cpu_ms=0)


def test_the_end_of_the_lifetime_is_named(root: Path) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert Watch(root, bounds(root, ends_at=now + 60)).look() is None
    broken = Watch(root, bounds(root, ends_at=now)).look()
    assert broken is not None
    assert broken.limit is LimitKind.LIFETIME


def test_too_little_free_space_is_named_with_both_numbers(root: Path) -> None:
    broken = Watch(root, bounds(root, reserve_bytes=1 << 60)).look()
    assert broken is not None
    assert broken.limit is LimitKind.SPACE
    assert f"{1 << 60} must stay free" in broken.detail
    assert "file system of data" in broken.detail


def test_a_walk_that_is_not_done_goes_on_at_the_next_look(root: Path) -> None:
    for number in range(64):
        (root / "data" / str(number)).write_bytes(b"x" * 4 * KIB)
    watch = Watch(root, bounds(root, disk_bytes=63 * 4 * KIB))
    found = [watch.look() for _ in range(2)]
    deadline = time.monotonic() + 5
    while found[-1] is None and time.monotonic() < deadline:
        time.sleep(0.1)
        found.append(watch.look())
    assert found[-1] is not None
    assert found[-1].limit is LimitKind.DISK


def test_what_was_used_before_a_restart_is_added_to(root: Path) -> None:
    first = Watch(root, bounds(root))
    first.note(cpu_ms=700)
    second = Watch(root, bounds(root))
    second.note(cpu_ms=200)
    assert read_noted(root / "keeper") == Noted(peak_memory_bytes=0, cpu_ms=900)


def test_a_damaged_note_is_an_error_and_a_missing_one_is_none(root: Path) -> None:
    assert read_noted(root / "keeper") is None
    for text in ("{", '{"cpu": 1}'):
        (root / "keeper" / "usage.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"usage\.json|Expecting"):
            read_noted(root / "keeper")


def test_bytes_on_disk_follow_no_link_and_count_no_holes(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "big").write_bytes(b"x" * 1024 * KIB)
    data = root / "data"
    (data / "link").symlink_to(elsewhere)
    (data / "deep").mkdir()
    (data / "deep" / "file").write_bytes(b"x" * 64 * KIB)
    with (data / "sparse").open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 30)
    counted = bytes_on_disk(data)
    assert counted is not None
    assert 64 * KIB <= counted < 256 * KIB
    assert bytes_on_disk(data / "link") is None
    assert bytes_on_disk(root / "gone") is None
