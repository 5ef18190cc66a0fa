"""What a data directory alone has is moved out of it, or copied where that is another file system, and kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from drservice.operations import asidefolder
from drservice.operations.asidefolder import AsideFolder, Left, copied_bytes

SEGMENT, LAST = "000000010000000000000003", "000000010000000000000004"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "pg_wal" / "archive_status").mkdir(parents=True)
    for name in (SEGMENT, LAST):
        (data / "pg_wal" / name).write_text(f"bytes of {name}")
    (data / "pg_wal" / "planted").symlink_to("/etc/passwd")
    (data / "postgresql.conf").write_text("of today")
    (data / "log").mkdir()
    (data / "log" / "server.log").write_text("what happened")
    (data / "base").mkdir()
    return data


@pytest.fixture
def aside(tmp_path: Path) -> AsideFolder:
    (tmp_path / "aside").mkdir()
    (tmp_path / "note").touch()
    return AsideFolder(path=tmp_path / "aside", note=tmp_path / "note", account=None)


def test_whatever_is_not_data_is_moved_and_a_later_attempts_is_left_alone(directory: Path, aside: AsideFolder) -> None:
    aside.take_from(directory)
    assert names(aside.path) == ["log", "pg_wal", "postgresql.conf"]
    assert names(directory) == ["base"]
    (directory / "pg_wal").mkdir()
    (directory / "pg_wal" / "attempt").touch()
    for name in ("postgresql.conf", "conf.d"):
        (directory / name).write_text("of the snapshot")
    aside.take_from(directory)
    assert not (aside.wal / "attempt").exists()
    assert (aside.path / "postgresql.conf").read_text() == "of today"
    assert (directory / "conf.d").exists(), "production did not have it"


def test_the_wal_goes_last_so_that_one_who_was_killed_goes_on_moving(
    directory: Path, aside: AsideFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def renaming(source: Any, target: Any, **named: Any) -> None:
        if source == "pg_wal":
            raise KeyboardInterrupt
        rename(source, target, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", renaming)
        with pytest.raises(KeyboardInterrupt):
            aside.take_from(directory)
    assert names(aside.path) == ["log", "postgresql.conf"]
    aside.take_from(directory)
    assert names(aside.path) == ["log", "pg_wal", "postgresql.conf"]


def test_on_another_file_system_they_are_copied_whole_or_not_at_all(
    directory: Path, aside: AsideFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def renaming(source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        if src_dir_fd != dst_dir_fd:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", renaming)
    (aside.path / ".pg_wal.new").mkdir()  # of an attempt that was killed while it copied
    (aside.path / ".pg_wal.new" / "half").touch()
    aside.take_from(directory)
    assert names(aside.wal) == [SEGMENT, LAST, "archive_status", "planted"], "nothing of the killed attempt"
    assert (aside.wal / "planted").is_symlink(), "a link is never followed"
    assert (aside.path / "log" / "server.log").read_text() == "what happened"
    assert (aside.wal / LAST).read_text() == f"bytes of {LAST}"
    assert (aside.path / "postgresql.conf").read_text() == "of today"


def test_what_is_in_no_archive_is_kept_under_the_name_it_is_to_be_archived_by_and_what_is_foreign_stays(
    directory: Path, aside: AsideFolder
) -> None:
    (directory / "pg_wal" / f"{SEGMENT}.saved").touch()
    (directory / "pg_wal" / "mine").mkdir()
    for name in ("xlogtemp.12", "RECOVERYXLOG", "00000002.history"):
        (directory / "pg_wal" / name).touch()
    aside.take_from(directory)
    left = aside.tidy(keep={f"{LAST}.partial"})
    assert left.unsaved == (f"{LAST}.partial",)
    assert left.foreign == (f"{SEGMENT}.saved", "mine", "planted")
    assert names(aside.wal) == [f"{SEGMENT}.saved", f"{LAST}.partial", "mine", "planted"]
    assert not aside.note.exists()


def test_without_anything_left_the_wal_folder_goes(directory: Path, aside: AsideFolder) -> None:
    (directory / "pg_wal" / "planted").unlink()
    aside.take_from(directory)
    assert aside.tidy(keep=frozenset()) == Left(unsaved=(), foreign=())
    assert names(aside.path) == ["log", "postgresql.conf"]


def test_one_who_was_killed_while_tidying_up_leaves_nothing_to_go_on_with(
    directory: Path, aside: AsideFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next restore, weeks later, would take this folder for its own and leave today's configuration out."""

    def die(_: Path, keep: object) -> None:
        del keep
        raise KeyboardInterrupt

    aside.take_from(directory)
    monkeypatch.setattr(asidefolder, "_remove_archived", die)
    with pytest.raises(KeyboardInterrupt):
        aside.tidy(keep=frozenset())
    assert not aside.note.exists()


def test_a_copy_counts_as_room_and_a_rename_does_not(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copied_bytes(directory) == 0
    monkeypatch.setattr(asidefolder, "_is_mount", lambda _: True)
    (directory / "base" / "16384").write_bytes(bytes(100_000))
    expected = 2 * len(f"bytes of {SEGMENT}") + len("of today") + len("what happened") + len("/etc/passwd")
    assert copied_bytes(directory) == expected


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
