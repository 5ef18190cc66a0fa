"""What a data directory alone has is moved out of it, or copied where that is another file system, and kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from drservice.operations.asidefolder import AsideFolder

SEGMENT, LAST = "000000010000000000000003", "000000010000000000000004"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "pg_wal" / "archive_status").mkdir(parents=True)
    for name in (SEGMENT, LAST):
        (data / "pg_wal" / name).write_text(f"bytes of {name}")
    (data / "pg_wal" / "planted").symlink_to("/etc/passwd")
    (data / "postgresql.conf").write_text("of today")
    return data


@pytest.fixture
def aside(tmp_path: Path) -> AsideFolder:
    (tmp_path / "aside").mkdir()
    (tmp_path / "note").touch()
    return AsideFolder(path=tmp_path / "aside", note=tmp_path / "note", account=None)


def test_wal_and_configuration_are_moved_and_a_later_attempts_wal_is_left_alone(
    directory: Path, aside: AsideFolder
) -> None:
    aside.take_from(directory)
    assert names(aside.path) == ["pg_wal", "postgresql.conf"]
    assert not (directory / "pg_wal").exists()
    (directory / "pg_wal").mkdir()
    (directory / "pg_wal" / "attempt").touch()
    (directory / "postgresql.conf").write_text("of the snapshot")
    aside.take_from(directory)
    assert not (aside.wal / "attempt").exists()
    assert (aside.path / "postgresql.conf").read_text() == "of today"


def test_on_another_file_system_they_are_copied_whole_or_not_at_all(
    directory: Path, aside: AsideFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def renaming(source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        if src_dir_fd != dst_dir_fd:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", renaming)
    (aside.path / "pg_wal.new").mkdir()  # of an attempt that was killed while it copied
    (aside.path / "pg_wal.new" / "half").touch()
    aside.take_from(directory)
    assert names(aside.wal) == [SEGMENT, LAST], "no link is copied, and nothing of the killed attempt"
    assert (aside.wal / LAST).read_text() == f"bytes of {LAST}"
    assert (aside.path / "postgresql.conf").read_text() == "of today"


def test_what_is_in_no_archive_is_kept_under_the_name_it_is_to_be_archived_by(
    directory: Path, aside: AsideFolder
) -> None:
    aside.take_from(directory)
    assert aside.tidy(keep={f"{LAST}.partial"}) == (f"{LAST}.partial",)
    assert names(aside.wal) == [f"{LAST}.partial"]
    assert not aside.note.exists()


def test_without_anything_left_the_wal_folder_goes(directory: Path, aside: AsideFolder) -> None:
    aside.take_from(directory)
    assert aside.tidy(keep=frozenset()) == ()
    assert names(aside.path) == ["postgresql.conf"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
