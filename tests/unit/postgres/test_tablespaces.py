"""Extra tablespaces: what a snapshot says of them, and which folders a restore is given (trap T10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drservice.components.postgres.tablespaces import (
    InsideOf,
    Moved,
    OutsideOf,
    choose_folders,
    oid_of,
    parse_map,
    require_room,
    write_map,
)
from drservice.errors import FormatError, RecoveryError, TargetDirectoryError, UsageError
from drservice.repository.nodes import Entry, EntryKind


def test_t10_a_map_is_read_as_postgresql_writes_it() -> None:
    raw = b"16385 /disk/a b\n16386 /odd\\\nline\\\\end\\\r\n16387 pg_tblspc/16387\n"
    places = parse_map(raw)
    assert places == {16385: "/disk/a b", 16386: "/odd\nline\\end\r"}, "16387 is in place"
    assert parse_map(write_map(places)) == places
    assert parse_map(b"") == {}


@pytest.mark.parametrize("raw", [b"16385\n", b"x /a\n", b"16385 /a", b"16385 /a\n\n16386 /b\n", b"99999999999 /a\n"])
def test_t10_a_map_that_cannot_be_read_is_an_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_map(raw)


@pytest.mark.parametrize(
    ("path", "oid"),
    [
        (b"pg_tblspc/16385", 16385),
        (b"pg_tblspc/16385/PG_15_202209061/5/1", 16385),
        (b"pg_tblspc", None),
        (b"pg_tblspc/16385x/1", None),
        (b"mine/pg_tblspc/16385", None),
    ],
)
def test_a_path_tells_its_tablespace(path: bytes, oid: int | None) -> None:
    assert oid_of(path) == oid


def choose(asked: dict[str, Path], target: Path | None = None) -> tuple[Moved, ...]:
    return choose_folders(asked, oids=[16385, 16386], locations={16385: "/disk/sales"}, target=target)


def test_a_tablespace_is_named_by_its_location_or_its_oid(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    moved = choose({"/disk/sales/": tmp_path / "new", "16386": tmp_path / "empty"}, tmp_path / "target")
    assert [(item.oid, item.location, item.folder) for item in moved] == [
        (16385, "/disk/sales", tmp_path / "new"),
        (16386, "", tmp_path / "empty"),
    ]


@pytest.mark.parametrize("old", ["/disk/sale", "16387", "sales", "", "in place"])
def test_a_tablespace_that_the_snapshot_does_not_have_is_refused_with_those_it_has(old: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        choose({old: tmp_path / "new"})
    assert "16385 (/disk/sales), 16386 (in place)" in (caught.value.hint or "")


def test_one_tablespace_cannot_have_two_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two places"):
        choose({"16385": tmp_path / "a", "/disk/sales": tmp_path / "b"})


@pytest.mark.parametrize("case", ["same", "inside", "in-target", "around-target", "by-link", "full", "link", "file"])
def test_folders_that_are_taken_or_lie_in_each_other_are_refused_and_nothing_is_made(case: str, tmp_path: Path) -> None:
    target, one, two = tmp_path / "x" / "target", tmp_path / "one", tmp_path / "two"
    two.mkdir()
    match case:
        case "same":
            two = one
        case "inside":
            two = one / "deeper"
        case "in-target":
            two = target / "pg_tblspc" / "16386"
        case "around-target":
            two = tmp_path / "x"
        case "by-link":
            (tmp_path / "door").symlink_to(target.parent)
            two = tmp_path / "door" / "target" / "inside"
        case "full":
            (two / "PG_15_202209061").mkdir()
        case "link":
            two = tmp_path / "link"
            two.symlink_to(tmp_path / "two")
        case _:
            two = tmp_path / "file"
            two.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetDirectoryError):
        choose({"16385": one, "16386": two}, target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("new", ["relative", "/srv/../etc"])
def test_a_place_that_is_not_absolute_is_refused(new: str) -> None:
    with pytest.raises(UsageError, match="absolute"):
        choose({"16385": Path(new)})


ENTRIES = [
    Entry(path=b"pg_tblspc", kind=EntryKind.DIRECTORY, mode=0o700),
    Entry(path=b"pg_tblspc/16385", kind=EntryKind.DIRECTORY, mode=0o700),
    Entry(path=b"pg_tblspc/16385/PG_15_1", kind=EntryKind.DIRECTORY, mode=0o700),
    Entry(path=b"pg_tblspc/16385/PG_15_1/1", kind=EntryKind.FILE, mode=0o600, size=1 << 60),
    Entry(path=b"pg_tblspc/163859", kind=EntryKind.DIRECTORY, mode=0o700),
    Entry(path=b"pg_tblspc/163859/2", kind=EntryKind.FILE, mode=0o600, size=5),
]


def test_a_moved_tablespace_is_a_link_outside_and_begins_at_its_folder_inside(tmp_path: Path) -> None:
    moved = Moved(oid=16385, location="/disk/sales", folder=tmp_path / "new")
    outside = list(OutsideOf(moved=(moved,))(iter(ENTRIES)))
    assert [(entry.path, entry.kind) for entry in outside] == [
        (b"pg_tblspc", EntryKind.DIRECTORY),
        (b"pg_tblspc/16385", EntryKind.LINK),
        (b"pg_tblspc/163859", EntryKind.DIRECTORY),
        (b"pg_tblspc/163859/2", EntryKind.FILE),
    ]
    assert outside[1].target == str(tmp_path / "new").encode()
    assert [entry.path for entry in InsideOf(oid=16385)(iter(ENTRIES))] == [b"PG_15_1", b"PG_15_1/1"]


class Reader:
    def entries(self) -> Iterator[Entry]:
        return iter(ENTRIES)


def test_a_tablespace_that_does_not_fit_is_refused_with_the_bytes_it_needs(tmp_path: Path) -> None:
    reader: Any = Reader()
    with pytest.raises(RecoveryError, match=f"{1 << 60:,} are needed"):
        require_room(reader, None, [Moved(oid=16385, location="", folder=tmp_path / "a" / "b")])
    require_room(reader, None, [Moved(oid=163859, location="", folder=tmp_path / "a" / "b")])
    with pytest.raises(RecoveryError, match=f"{(1 << 60) + 5:,} are needed"):  # on one file system they add up
        require_room(reader, tmp_path, [Moved(oid=163859, location="", folder=tmp_path / "a" / "b")])
    assert not (tmp_path / "a").exists()
