"""Which databases a copy holds, read from files that are made here as ``bufpage.h`` and ``pg_database.h`` have them."""

from __future__ import annotations

import struct

import pytest

from drservice.components.postgres.controlfile import crc32c
from drservice.components.postgres.databases import (
    Selection,
    UnknownDatabase,
    database_file,
    database_of,
    database_of_relation,
    database_rows,
    select_database,
)
from drservice.errors import FormatError

_REPLACED = 0x0100  # HEAP_XMIN_COMMITTED; nothing is said of xmax
_INVALID = 0x0800


def row(oid: int, name: str, *, template: bool = False, major: int = 15, xmax: int = 0, mask: int = _INVALID) -> bytes:
    """Return a version of a row of ``pg_database``."""
    flag = 204 if major < 15 else 77
    data = bytearray(flag + 40)
    struct.pack_into("<I64s", data, 0, oid, name.encode())
    data[flag] = template
    header = struct.pack("<III6xHHB", 700, xmax, 0, 18, mask, 32) + bytes(9)
    return header + bytes(data)


def page(*items: bytes, states: tuple[int, ...] = ()) -> bytes:
    """Return a heap page with these items, normal ones unless ``states`` says something else."""
    content = bytearray(8192)
    upper = 8192
    for number, item in enumerate(items):
        upper -= -(-len(item) // 8) * 8
        content[upper : upper + len(item)] = item
        state = states[number] if states else 1
        struct.pack_into("<I", content, 24 + 4 * number, upper | state << 15 | len(item) << 17)
    struct.pack_into("<HHH", content, 12, 24 + 4 * len(items), upper, 8192)
    return bytes(content)


def filenode_map(*mappings: tuple[int, int], size: int = 512) -> bytes:
    """Return the bytes of ``pg_filenode.map``."""
    content = bytearray(size)
    struct.pack_into("<II", content, 0, 0x592717, len(mappings))
    for number, pair in enumerate(mappings):
        struct.pack_into("<II", content, 8 + 8 * number, *pair)
    offset = {512: 504, 524: 520}[size]
    struct.pack_into("<I", content, offset, crc32c(bytes(content[:offset])))
    return bytes(content)


@pytest.mark.parametrize("size", [512, 524])
def test_the_map_names_the_file_of_pg_database(size: int) -> None:
    assert database_file(filenode_map((1260, 1260), (1262, 17001), size=size)) == b"global/17001"


@pytest.mark.parametrize(
    "content",
    [b"", bytes(512), filenode_map((1260, 1)), filenode_map((1262, 5))[:-8] + b"x" * 8, filenode_map((1262, 5)) + b"x"],
    ids=["empty", "zeros", "without it", "changed", "longer"],
)
def test_a_map_that_is_not_whole_is_refused_never_guessed_at(content: bytes) -> None:
    if content == filenode_map((1262, 5))[:-8] + b"x" * 8:
        content = b"y" + content[1:]  # the last bytes are padding up to version 15
    with pytest.raises(FormatError):
        database_file(content)


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18])
def test_rows_are_read_in_the_layout_of_their_version(major: int) -> None:
    content = page(row(1, "template1", template=True, major=major), row(16384, "plänt", major=major))
    rows = database_rows(content, block_bytes=8192, major=major)
    assert [(item.oid, item.name, item.is_template, item.is_newest) for item in rows] == [
        (1, "template1", True, True),
        (16384, "plänt", False, True),
    ]


def test_a_version_that_was_replaced_is_read_and_told_apart() -> None:
    old, new = row(16384, "old", xmax=800, mask=_REPLACED), row(16384, "new")
    rows = database_rows(page(old, new), block_bytes=8192, major=15)
    assert [(item.name, item.is_newest) for item in rows] == [("old", False), ("new", True)]
    locked = row(16384, "locked", xmax=800, mask=0x0080)
    assert database_rows(page(locked), block_bytes=8192, major=15)[0].is_newest


@pytest.mark.parametrize(
    "content",
    [bytes(8192), b"\xff" * 8192, page(row(16384, "dead"), states=(3,)), page(b"short"), page(bytes(200)), bytes(100)],
    ids=["zeros", "ones", "dead item", "short item", "no row", "part of a page"],
)
def test_what_is_no_row_is_passed_over(content: bytes) -> None:
    assert database_rows(content, block_bytes=8192, major=15) == []


@pytest.mark.parametrize(
    ("path", "database"),
    [
        (b"base/16384/1259", 16384),
        (b"base/16384/PG_VERSION", 16384),
        (b"pg_tblspc/16400/PG_15_202209061/16384/1259", 16384),
        (b"base/pgsql_tmp/x", None),
        (b"base/16384", None),
        (b"global/1262", None),
        (b"pg_xact/0000", None),
        (b"x/base/16384/1", None),
        (b"postgresql.conf", None),
    ],
)
def test_a_file_belongs_to_the_database_whose_folder_it_is_in(path: bytes, database: int | None) -> None:
    assert database_of(path) == database


def test_relations_in_messages_belong_to_a_database_or_to_all() -> None:
    assert database_of_relation("base/16385/16431") == 16385
    assert database_of_relation("base/16385/16431_vm") == 16385
    assert database_of_relation("pg_tblspc/16400/PG_15_202209061/16385/1") == 16385
    assert database_of_relation("global/1262") is None


ROWS = database_rows(
    page(
        row(1, "template1", template=True),
        row(4, "template0", template=True),
        row(5, "postgres"),
        row(16384, "plant"),
        row(16385, "warehouse"),
        row(16386, "model", template=True),
        row(16387, "before", xmax=9, mask=_REPLACED),
        row(16387, "after"),
        row(16388, "gone"),
    ),
    block_bytes=8192,
    major=15,
)
PRESENT = frozenset({1, 4, 5, 16384, 16385, 16386, 16387, 16999})


def chosen(name: str) -> Selection:
    found = select_database(ROWS, name, present=PRESENT)
    assert isinstance(found, Selection)
    return found


def test_the_one_and_the_built_in_ones_are_kept_and_the_others_named() -> None:
    found = chosen("plant")
    assert found.kept == {1, 4, 5, 16384, 16386}
    assert found.candidates == found.holders == {16384}
    assert found.left_out == ("after", "warehouse", "OID 16999")
    assert found.wants(b"base/16384/1")
    assert found.wants(b"global/1262")
    assert found.wants(b"pg_xact/0000")
    assert not found.wants(b"base/16385/1")
    assert not found.wants(b"pg_tblspc/9/PG_15_1/16387/2")
    assert not found.wants(b"base/16999/1"), "what nobody knows is not the one"


def test_an_earlier_name_finds_the_files_but_holds_nothing() -> None:
    found = chosen("before")
    assert found.candidates == {16387}
    assert found.holders == frozenset()


def test_a_name_without_files_is_unknown_and_the_others_are_listed() -> None:
    for name in ("gone", "nothing", ""):
        found = select_database(ROWS, name, present=PRESENT)
        assert isinstance(found, UnknownDatabase)
        assert found.known == ("after", "model", "plant", "postgres", "template0", "template1", "warehouse")
