"""The feeder's side treats the folder as hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.environments.exchange import HEARTBEAT, RESTORE_COMMAND, Exchange, fetch_script
from drservice.errors import DamagedObjectError, EnvironmentFailedError

SEGMENT = "000000010000000000000003"
OTHER = "000000010000000000000004"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "wal"
    path.mkdir()
    return path


@pytest.fixture
def exchange(folder: Path) -> Iterator[Exchange]:
    with Exchange(folder) as opened:
        yield opened


def test_a_question_is_reported_once_and_in_order(exchange: Exchange, folder: Path) -> None:
    (folder / f"{OTHER}.want").touch()
    (folder / f"{SEGMENT}.want").touch()
    assert exchange.requests() == [SEGMENT, OTHER]
    assert exchange.requests() == []


@pytest.mark.parametrize("name", ["x.want", "..want", ".want", "passwd.want", "0000.history.want"])
def test_a_question_for_no_wal_file_is_ignored(exchange: Exchange, folder: Path, name: str) -> None:
    (folder / name).touch()
    assert exchange.requests() == []


def test_a_question_that_is_a_link_a_folder_or_a_pipe_is_ignored(exchange: Exchange, folder: Path) -> None:
    (folder / f"{SEGMENT}.want").symlink_to("/etc/passwd")
    (folder / f"{OTHER}.want").mkdir()
    os.mkfifo(folder / "00000002.history.want")
    assert exchange.requests() == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", HEARTBEAT, f"{SEGMENT}.want", f"{SEGMENT}\n"])
def test_only_wal_files_are_served(exchange: Exchange, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no WAL file name"):
        exchange.serve(name, b"")
    with pytest.raises(ValueError, match="no WAL file name"):
        exchange.absent(name)
    with pytest.raises(ValueError, match="no WAL file name"):
        exchange.refuse(name, "")
    assert list(folder.iterdir()) == []


def test_a_served_file_is_readable_whole_and_without_leftovers(
    exchange: Exchange, folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"wal" * 100_000)
    assert not exchange.has(SEGMENT)
    exchange.serve(SEGMENT, source)
    exchange.serve(OTHER, b"bytes")
    assert exchange.has(SEGMENT)
    assert (folder / SEGMENT).read_bytes() == source.read_bytes()
    assert (folder / SEGMENT).stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in folder.iterdir()) == [SEGMENT, OTHER]
    exchange.forget(SEGMENT)
    exchange.forget(SEGMENT)
    assert not exchange.has(SEGMENT)


def test_a_file_that_comes_in_pieces_is_there_once_the_last_one_was_right(exchange: Exchange, folder: Path) -> None:
    def pieces(problem: Exception | None) -> Iterator[bytes | memoryview]:
        yield b"first"
        assert not exchange.has(SEGMENT)
        yield memoryview(b"second")
        if problem is not None:
            raise problem

    with pytest.raises(DamagedObjectError):
        exchange.serve(SEGMENT, pieces(DamagedObjectError("not what was pushed")))
    assert list(folder.iterdir()) == []
    exchange.serve(SEGMENT, pieces(None))
    assert (folder / SEGMENT).read_bytes() == b"firstsecond"


def test_a_link_in_the_way_is_replaced_not_followed(exchange: Exchange, folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in (SEGMENT, f"{OTHER}.absent", f"{OTHER}.refused", HEARTBEAT):
        (folder / name).symlink_to(victim)
    assert not exchange.has(SEGMENT)
    exchange.serve(SEGMENT, b"x")
    exchange.absent(OTHER)
    exchange.refuse(OTHER, "reason")
    exchange.beat()
    assert victim.read_bytes() == b"precious"
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_folder_in_the_way_is_an_error_that_leaves_nothing(exchange: Exchange, folder: Path) -> None:
    (folder / SEGMENT).mkdir()
    with pytest.raises(EnvironmentFailedError, match=SEGMENT):
        exchange.serve(SEGMENT, b"x")
    assert [path.name for path in folder.iterdir()] == [SEGMENT]


def test_clearing_follows_no_link(exchange: Exchange, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(elsewhere)
    (folder / f"{SEGMENT}.absent").touch()
    exchange.clear()
    assert list(folder.iterdir()) == []
    assert (elsewhere / "kept").exists()


def test_a_folder_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(EnvironmentFailedError):
        Exchange(tmp_path / "link")


def test_the_script_quotes_its_folder() -> None:
    assert "folder='/a b'\n" in fetch_script(folder="/a b")
    assert "@" not in fetch_script()


def test_only_44_becomes_1() -> None:
    assert RESTORE_COMMAND.endswith("case $s in 0) exit 0;; 44) exit 1;; *) exit 127;; esac")
