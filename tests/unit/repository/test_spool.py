"""Bytes on disk that are looked at as if they were in memory."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.errors import StreamError
from drservice.repository.spool import Spools


def resident_kb() -> int:
    text = Path("/proc/self/smaps").read_text()
    found, is_ours = 0, False
    for line in text.splitlines():
        word = line.split()[0]
        if not word.endswith(":"):
            is_ours = "/spool-" in line
        elif is_ours and word == "Rss:":
            found += int(line.split()[1])
    return found


def descriptors(folder: Path) -> int:
    """Count those of files of a folder, also without a name: what else this process has open comes and goes."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith(f"{folder}/")
    return found


def test_what_was_written_is_there_again_after_its_pages_were_let_go_of(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "made" / "spool")
    view = spools.make(3 << 20)
    assert bytes(view[:10]) == bytes(10)
    content = os.urandom(3 << 20)
    view[:] = content
    assert resident_kb() >= 3 << 10
    spools.release()
    assert resident_kb() < 1 << 10
    assert view == content


def test_the_file_has_no_name_and_goes_with_the_last_who_looks_at_it(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    view = spools.make(1 << 20)[:10]
    assert list(tmp_path.iterdir()) == []
    assert descriptors(tmp_path) == 1
    del view
    gc.collect()
    assert descriptors(tmp_path) == 0
    spools.release()


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StreamError, match="no room for 64 MB") as found:
        Spools(tmp_path).make(64 << 20)
    assert "below state_dir" in found.value.hint
    assert list(tmp_path.iterdir()) == []
