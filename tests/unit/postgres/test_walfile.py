"""WAL files against their first page, without a server."""

from __future__ import annotations

import struct

import pytest

from drservice.components.postgres import walfile
from drservice.errors import ForeignSegmentError
from drservice.model.ids import SystemId
from drservice.model.wal import HistoryEntry, Lsn, Timeline

MEGABYTE = 1 << 20
NAME = "000000030000000200000005"


def head(
    *,
    magic: int = 0xD110,
    flags: int = 2,
    timeline: int = 3,
    address: int = (2 << 32) + 5 * 16 * MEGABYTE,
    system_id: int = 7,
    segment: int = 16 * MEGABYTE,
    block: int = 8192,
) -> bytes:
    return struct.pack("<HHIQI4xQII", magic, flags, timeline, address, 0, system_id, segment, block)


def check(raw: bytes, name: str = NAME, length: int = 16 * MEGABYTE) -> walfile.SegmentFacts:
    facts = walfile.check_wal_file(name, raw, length, expected_system_id=SystemId("7"))
    assert isinstance(facts, walfile.SegmentFacts)
    return facts


@pytest.mark.parametrize(
    ("magic", "major"), [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)]
)
def test_t17_each_supported_version_is_known_by_its_magic(magic: int, major: int) -> None:
    facts = check(head(magic=magic))
    assert (facts.major, facts.timeline, facts.system_id) == (major, 3, "7")
    assert facts.begin == Lsn((2 << 32) + 5 * 16 * MEGABYTE)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (head(magic=0xD101), "magic is 0xD101"),
        (bytes(40), "magic is 0x0000"),
        (b"", "no WAL page header"),
        (head(flags=0), "long header"),
        (head(flags=0x12), "long header"),
        (head(system_id=8), "identifier 8, expected is 7"),
        (head(address=4096), "the name says 2/5000000"),
        (head(timeline=4), "timeline 4, the name says 3"),
        (head(timeline=0), "timeline 0"),
        (head(segment=MEGABYTE), "a segment of this cluster has 1048576"),
        (head(segment=3 * MEGABYTE), "segment size of 3145728"),
        (head(block=1000), "WAL page of 1000"),
    ],
)
def test_t17_every_lie_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(ForeignSegmentError, match=message):
        check(raw)


@pytest.mark.parametrize("length", [0, 16 * MEGABYTE - 1, 16 * MEGABYTE + 1])
def test_t28_only_the_exact_segment_size_will_do(length: int) -> None:
    with pytest.raises(ForeignSegmentError, match=f"it has {length} bytes"):
        check(head(), length=length)


def test_t17_a_name_that_cannot_exist_with_this_segment_size_is_refused() -> None:
    with pytest.raises(ForeignSegmentError, match="no such name exists"):
        check(head(), name="000000030000000200000100")


@pytest.mark.parametrize("segment", [1 << shift for shift in range(20, 31)])
def test_every_segment_size_from_1_to_1024_mb_is_understood(segment: int) -> None:
    name = f"{3:08X}{2:08X}{(1 << 32) // segment - 1:08X}"
    raw = head(segment=segment, address=(3 << 32) - segment)
    assert check(raw, name=name, length=segment).segment_bytes == segment


@pytest.mark.parametrize("name", ["", "x", "000000030000000200000005.tmp", "RECOVERYXLOG", "../etc/passwd"])
def test_t16_other_names_are_refused(name: str) -> None:
    with pytest.raises(ForeignSegmentError, match="no WAL file name"):
        check(head(), name=name)


def test_an_ancestors_page_is_believed_only_where_the_timeline_begins() -> None:
    begin = Lsn((2 << 32) + 5 * 16 * MEGABYTE)
    inside = (
        HistoryEntry(timeline=Timeline(1), end=Lsn(500)),
        HistoryEntry(timeline=Timeline(2), end=begin + 1000),
    )
    walfile.require_ancestry(check(head(timeline=2)), inside)
    walfile.require_ancestry(check(head(timeline=3)), inside)
    for entries in (
        (HistoryEntry(timeline=Timeline(2), end=begin),),  # began at the segment's first byte
        (HistoryEntry(timeline=Timeline(2), end=begin + 16 * MEGABYTE),),  # begins later
        (HistoryEntry(timeline=Timeline(1), end=begin + 1000),),  # another ancestor
    ):
        with pytest.raises(ForeignSegmentError, match="does not place there"):
            walfile.require_ancestry(check(head(timeline=2)), entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no ancestor"),
        (b"1\tnonsense\n", "not a line"),
        (b"3\t0/5000000\tx\n", "as an ancestor of 3"),
        (b"1\t0/5000000\tx\n2\t0/4000000\tx\n", "go backward"),
        (b"\x00" * 100, "not a line"),
    ],
)
def test_t19_a_history_file_that_makes_no_sense_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ForeignSegmentError, match=message):
        walfile.check_wal_file("00000003.history", content, len(content))


def test_t19_small_files_must_be_read_whole_and_be_small() -> None:
    good = b"1\t0/5000000\tno recovery target specified\n"
    assert isinstance(walfile.check_wal_file("00000003.history", good, len(good)), walfile.HistoryFacts)
    with pytest.raises(ForeignSegmentError, match="could be read"):
        walfile.check_wal_file("00000003.history", good, len(good) + 1)
    with pytest.raises(ForeignSegmentError, match="too many"):
        walfile.check_wal_file("00000003.history", good, 2 << 20)
    with pytest.raises(ForeignSegmentError, match="does not begin like"):
        walfile.check_wal_file(f"{NAME}.00000028.backup", b"hello\n", 6)
