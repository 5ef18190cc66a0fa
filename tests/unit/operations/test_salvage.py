"""Which files of pg_wal are salvaged, and under which name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from drservice.errors import WalError
from drservice.model.ids import SystemId
from drservice.operations.salvage import find_salvageable

SYSTEM_ID = SystemId("7300000000000000001")
SIZE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive_status").mkdir()
    return tmp_path


def name_of(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{number:08X}"


def segment(folder: Path, number: int, *, timeline: int = 1, holds: int | None = None, mark: str = "") -> str:
    """Make a segment; ``holds``: the number whose bytes it really has, as a recycled one does."""
    name = name_of(number, timeline)
    position = (number if holds is None else holds) * SIZE
    head = struct.pack("<HHIQI4xQII", 0xD110, 2, timeline, position, 0, int(SYSTEM_ID), SIZE, 8192)
    (folder / name).write_bytes(head.ljust(SIZE, b"\0"))
    if mark:
        (folder / "archive_status" / f"{name}.{mark}").touch()
    return name


def found(folder: Path, *archived: str, oldest: int = 0) -> list[tuple[str, str]]:
    items = find_salvageable(
        folder, archived=dict.fromkeys(archived), system_id=SYSTEM_ID, segment_bytes=SIZE, oldest_needed=oldest
    )
    return [(item.file, item.name.name) for item in items]


def test_whole_segments_keep_their_names_and_the_one_being_written_is_partial(folder: Path) -> None:
    done = segment(folder, 3, mark="done")
    ready, whole, current = segment(folder, 4, mark="ready"), segment(folder, 5), segment(folder, 6)
    segment(folder, 7, holds=2)  # recycled: a name to come, bytes of the past
    assert found(folder, done) == [(ready, ready), (whole, whole), (current, f"{current}.partial")]


def test_a_segment_that_the_server_marked_is_whole_although_none_follows(folder: Path) -> None:
    last = segment(folder, 4, mark="ready")
    assert found(folder) == [(last, last)]


def test_a_mark_alone_proves_nothing_and_an_archived_one_without_it_is_compared(folder: Path) -> None:
    lost, unmarked, archived = segment(folder, 3, mark="done"), segment(folder, 4), segment(folder, 5, mark="done")
    assert found(folder, unmarked, archived) == [(lost, lost), (unmarked, unmarked)]


def test_the_last_segment_of_every_timeline_is_judged_by_itself_and_histories_go_first(folder: Path) -> None:
    left, new, current = segment(folder, 4), segment(folder, 4, timeline=2), segment(folder, 5, timeline=2)
    (folder / "00000002.history").write_text("1\t0/480000\tno recovery target specified\n")
    assert found(folder) == [
        ("00000002.history", "00000002.history"),
        (left, f"{left}.partial"),
        (new, new),
        (current, f"{current}.partial"),
    ]
    history = ("00000002.history", "00000002.history")
    assert history in found(folder, "00000002.history"), "of which copy it is archived is not known by its name"
    (folder / "archive_status" / "00000002.history.done").touch()
    assert history not in found(folder, "00000002.history")


def test_what_serves_no_snapshot_or_is_no_wal_of_this_cluster_is_left_out(folder: Path) -> None:
    segment(folder, 2)
    kept = segment(folder, 3, mark="ready")
    (folder / name_of(9)).write_bytes(b"another cluster's".ljust(SIZE, b"\0"))
    (folder / name_of(8)).symlink_to("/etc/passwd")
    (folder / "xlogtemp.12").write_bytes(b"x")
    assert found(folder, oldest=3) == [(kept, kept)]


def test_a_folder_that_cannot_be_read_is_an_error_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "pg_wal").symlink_to(tmp_path / "real")
    for path in (tmp_path / "nothing", tmp_path / "pg_wal"):
        with pytest.raises(WalError, match="cannot read"):
            found(path)


def test_a_damaged_segment_that_the_server_has_ready_is_named_and_a_recycled_one_is_not(folder: Path) -> None:
    damaged = segment(folder, 4, mark="ready")
    (folder / damaged).write_bytes(bytes(SIZE))
    (folder / name_of(5)).write_bytes(bytes(SIZE))
    assert found(folder) == [(damaged, damaged)]
