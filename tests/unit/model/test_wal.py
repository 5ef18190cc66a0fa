"""Positions, file names and histories of the WAL; the segment size is never assumed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.model.wal import (
    HistoryEntry,
    Lsn,
    Timeline,
    WalFileKind,
    WalFileName,
    parse_history,
    segment_begin,
    segment_name,
    segment_number,
    segments_between,
    timeline_path,
)

POSITIONS = st.integers(0, 2**64 - 1)
SIZES = st.sampled_from([1 << 20, 16 << 20, 64 << 20, 1 << 30])


@given(POSITIONS)
def test_a_position_comes_back_from_its_text(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == Lsn(value)


@pytest.mark.parametrize(("text", "value"), [("0/0", 0), ("16/B374D848", 0x16B374D848), (" 0/3000028 ", 0x3000028)])
def test_positions_are_written_as_postgresql_writes_them(text: str, value: int) -> None:
    assert Lsn.parse(text).value == value
    assert str(Lsn(value)) == text.strip()


@pytest.mark.parametrize("text", ["", "0", "/", "0/", "/0", "x/0", "0/123456789", "123456789/0", "latest", "-1/0"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Lsn.parse(text)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_positions_have_64_bits(value: int) -> None:
    with pytest.raises(ValueError, match="no WAL position"):
        Lsn(value)


@given(POSITIONS, SIZES, st.integers(1, 2**32 - 1))
def test_the_segment_of_a_position_is_found_by_name_and_number(value: int, size: int, timeline: int) -> None:
    number = Lsn(value).segment_number(size)
    name = segment_name(Timeline(timeline), number, size)
    assert WalFileName.parse(name).kind is WalFileKind.SEGMENT
    assert WalFileName.parse(name).timeline == timeline
    assert segment_number(name, size) == number
    assert segment_begin(number, size).value <= value < segment_begin(number, size).value + size


@given(st.integers(0, 2**40), st.integers(0, 2**24), SIZES)
def test_segments_between_hold_every_byte_and_no_more(begin: int, length: int, size: int) -> None:
    found = segments_between(Lsn(begin), Lsn(begin + length), size)
    assert found[0] == begin // size
    assert found[-1] == max(begin, begin + length - 1) // size
    assert len(found) >= 1


def test_a_backup_that_ends_on_a_boundary_does_not_need_the_next_segment() -> None:
    assert list(segments_between(Lsn.parse("0/2000028"), Lsn.parse("0/3000000"), 16 << 20)) == [2]
    assert list(segments_between(Lsn.parse("0/2000028"), Lsn.parse("0/3000001"), 16 << 20)) == [2, 3]


@pytest.mark.parametrize(
    ("name", "kind", "timeline"),
    [
        ("0000000A00000000000000FF", WalFileKind.SEGMENT, 10),
        ("0000000A.history", WalFileKind.HISTORY, 10),
        ("000000010000000000000002.partial", WalFileKind.PARTIAL, 1),
        ("000000010000000000000002.00000028.backup", WalFileKind.BACKUP, 1),
    ],
)
def test_every_kind_of_file_is_told_by_its_name(name: str, kind: WalFileKind, timeline: int) -> None:
    parsed = WalFileName.parse(name)
    assert (parsed.kind, parsed.timeline) == (kind, timeline)


@pytest.mark.parametrize(
    "name",
    ["", "00000001000000000000000", "0000000100000000000000020", "00000001000000000000000g", "0000000a00000000000000ff",
     "../000000010000000000000002", "000000010000000000000002\n", "00000001.history.x", "RECOVERYXLOG",
     "000000010000000000000002.r01ARZ3NDEKTSV4RRFFQ69G5FAV"],
)  # fmt: skip
def test_what_is_no_wal_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no WAL file name"):
        WalFileName.parse(name)


def test_a_history_lists_the_ancestors_oldest_first() -> None:
    text = "# comment\n1\t0/3000100\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01\n"
    assert parse_history(text) == (
        HistoryEntry(timeline=Timeline(1), end=Lsn.parse("0/3000100")),
        HistoryEntry(timeline=Timeline(2), end=Lsn.parse("0/5000000")),
    )


@pytest.mark.parametrize("text", ["x", "1 nowhere", "2\t0/5\tx\n1\t0/3\tx", "1\t0/3\tx\n1\t0/5\tx"])
def test_a_history_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_history(text)


def test_a_path_follows_the_history_without_holes() -> None:
    path = timeline_path(Timeline(3), parse_history("1\t0/300\tx\n2\t0/500\tx"))
    assert [(span.timeline, str(span.begin), str(span.end) if span.end else None) for span in path] == [
        (1, "0/0", "0/300"),
        (2, "0/300", "0/500"),
        (3, "0/500", None),
    ]
