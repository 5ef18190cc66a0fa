"""Telling a WAL file from an impostor by its name, length and first page (traps T16, T17, T19, T28).

A name proves nothing: PostgreSQL recycles segments, so a file may carry the right name and the content of
another place, and two clusters may write into one archive. Every file is therefore compared with its own
first page header (``access/xlog_internal.h``, PostgreSQL 13 to 18, little-endian). Pure: the caller reads.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from drservice.errors import ForeignSegmentError
from drservice.model.ids import SystemId
from drservice.model.wal import (
    HistoryEntry,
    Lsn,
    Timeline,
    WalFileKind,
    WalFileName,
    parse_history,
    segment_begin,
    segment_number,
    timeline_path,
)

HEAD_BYTES = 40
"""How much of a segment's beginning :func:`check_wal_file` needs."""

SMALL_FILE_BYTES = 1 << 20
"""No ``.history`` or ``.backup`` file is longer; for those the whole content is the head."""

_MAJORS = {0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
_LONG_HEADER = 0x0002
_ALL_FLAGS = 0x000F
_LEAST_SEGMENT = 1 << 20
_MOST_SEGMENT = 1 << 30
_BACKUP_START = re.compile(r"START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{24})\)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """What a segment (or ``.partial``) says of itself, all agreeing with its name."""

    name: WalFileName
    system_id: SystemId
    major: int
    """The PostgreSQL major version that wrote it."""
    timeline: Timeline
    """The name's timeline."""
    header_timeline: Timeline
    """The first page's timeline: an ancestor's in the one segment in which a timeline begins."""
    begin: Lsn
    """The position of the first byte."""
    segment_bytes: int
    wal_block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFacts:
    """A ``.history`` file: the ancestors of its timeline, oldest first."""

    name: WalFileName
    entries: tuple[HistoryEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """A ``.backup`` file: where a base backup began."""

    name: WalFileName
    start: Lsn


WalFileFacts = SegmentFacts | HistoryFacts | BackupFacts


def check_wal_file(name: str, head: bytes, length: int, *, expected_system_id: SystemId | None = None) -> WalFileFacts:
    """Check that a file is what its name says and return what it says of itself.

    Args:
        name: base name as PostgreSQL passes it in ``%p``.
        head: the first :data:`HEAD_BYTES` or more of a segment; the whole of a ``.history`` or ``.backup``.
        length: the file's length in bytes.
        expected_system_id: the cluster it must belong to; ``None`` before the first snapshot pinned one.
            ``.history`` and ``.backup`` files do not carry it, so their origin is not proved by this.

    Raises:
        ForeignSegmentError: it is not; the message names the one thing that differs.
    """
    try:
        parsed = WalFileName.parse(name)
    except ValueError as error:
        raise ForeignSegmentError(
            str(error), hint="archive_command must pass %p, the path PostgreSQL gives; nothing was stored."
        ) from error
    if parsed.kind in {WalFileKind.SEGMENT, WalFileKind.PARTIAL}:
        return _check_segment(parsed, head, length, expected_system_id)
    text = _small_text(parsed, head, length)
    if parsed.kind is WalFileKind.HISTORY:
        return _check_history(parsed, text)
    return _check_backup(parsed, text)


def _check_segment(name: WalFileName, head: bytes, length: int, expected_system_id: SystemId | None) -> SegmentFacts:
    if len(head) < HEAD_BYTES:
        raise ForeignSegmentError(f"{name.name}: {length} bytes hold no WAL page header")
    magic, flags, header_timeline, address, _ = struct.unpack_from("<HHIQI", head, 0)
    major = _MAJORS.get(magic)
    if major is None:
        raise ForeignSegmentError(
            f"{name.name}: the WAL page magic is 0x{magic:04X}, which is none of PostgreSQL 13 to 18",
            hint="The file is empty, damaged, encrypted by another program, or of an unsupported version.",
        )
    if not flags & _LONG_HEADER or flags & ~_ALL_FLAGS:
        raise ForeignSegmentError(f"{name.name}: its first page has flags 0x{flags:04X}, not a long header")
    raw_system_id, segment_bytes, wal_block_bytes = struct.unpack_from("<QII", head, 24)
    system_id = SystemId(str(raw_system_id))
    if expected_system_id is not None and system_id != expected_system_id:
        raise ForeignSegmentError(
            f"{name.name}: it is of the cluster with system identifier {system_id}, expected is {expected_system_id}"
        )
    if not _is_power(segment_bytes, _LEAST_SEGMENT, _MOST_SEGMENT):
        raise ForeignSegmentError(f"{name.name}: its header names a segment size of {segment_bytes} bytes")
    if not _is_power(wal_block_bytes, 1 << 10, 1 << 16):
        raise ForeignSegmentError(f"{name.name}: its header names a WAL page of {wal_block_bytes} bytes")
    if length != segment_bytes:
        raise ForeignSegmentError(
            f"{name.name}: it has {length} bytes, a segment of this cluster has {segment_bytes}",
            hint="The file is truncated or still being copied; PostgreSQL will offer it again.",
        )
    begin = segment_begin(_number(name, segment_bytes), segment_bytes)
    if address != begin.value:
        raise ForeignSegmentError(
            f"{name.name}: its first page is of position {Lsn(address)}, the name says {begin}",
            hint="A recycled segment that was never written under this name, or a renamed file.",
        )
    if not 0 < header_timeline <= name.timeline:
        raise ForeignSegmentError(
            f"{name.name}: its first page is of timeline {header_timeline}, the name says {name.timeline}"
        )
    return SegmentFacts(
        name=name,
        system_id=system_id,
        major=major,
        timeline=name.timeline,
        header_timeline=Timeline(header_timeline),
        begin=begin,
        segment_bytes=segment_bytes,
        wal_block_bytes=wal_block_bytes,
    )


def require_every_page(facts: SegmentFacts, data: bytes | memoryview) -> None:
    """Check that each page of a segment is of its own position: none is left of a file that was re-used.

    Where the server switched to the next segment early, the pages behind are empty, and stay so to the end. Whether an
    empty end was ever written over is for the caller to know: a segment in use looks the same.

    Raises:
        ForeignSegmentError: naming the first page that is not.
    """
    (magic,) = struct.unpack_from("<H", data, 0)
    empty = bytes(facts.wal_block_bytes)
    ends_at: int | None = None
    for offset in range(0, facts.segment_bytes, facts.wal_block_bytes):
        page_magic, _, timeline, address = struct.unpack_from("<HHIQ", data, offset)
        position = facts.begin + offset
        if (page_magic, address) == (magic, position.value) and ends_at is None and 0 < timeline <= facts.timeline:
            continue
        if data[offset : offset + facts.wal_block_bytes] != empty:
            raise ForeignSegmentError(
                f"{facts.name.name}: its page at {position} is of position {Lsn(address)}, timeline {timeline}",
                hint="A segment that was re-used before it was written to its end, or one that is damaged.",
            )
        ends_at = offset if ends_at is None else ends_at


def require_ancestry(facts: SegmentFacts, entries: tuple[HistoryEntry, ...]) -> None:
    """Check that a first page of an older timeline is where the history says the timeline begins.

    When a timeline begins in the middle of a segment, PostgreSQL copies the beginning of the ancestor's
    segment under the new name; no other segment may carry an ancestor's timeline in its first page.

    Args:
        facts: of the segment.
        entries: the ancestors of the segment's timeline (:class:`HistoryFacts`); empty for timeline 1.

    Raises:
        ForeignSegmentError: the page is of a timeline that cannot be in this segment.
    """
    if facts.header_timeline == facts.timeline:
        return
    end = facts.begin + facts.segment_bytes
    begins_later = bool(entries) and entries[-1].end >= end
    for span in timeline_path(facts.timeline, entries):
        owns = span.begin <= facts.begin and (span.end is None or facts.begin < span.end)
        if owns and span.timeline == facts.header_timeline and not begins_later:
            return
    raise ForeignSegmentError(
        f"{facts.name.name}: its first page is of timeline {facts.header_timeline},"
        f" which the history of timeline {facts.timeline} does not place there"
    )


def _check_history(name: WalFileName, text: str) -> HistoryFacts:
    try:
        entries = parse_history(text)
    except ValueError as error:
        raise ForeignSegmentError(f"{name.name}: {error}") from error
    if not entries:
        raise ForeignSegmentError(f"{name.name}: it names no ancestor of timeline {name.timeline}")
    if entries[-1].timeline >= name.timeline:
        raise ForeignSegmentError(
            f"{name.name}: it names timeline {entries[-1].timeline} as an ancestor of {name.timeline}"
        )
    ends = [entry.end for entry in entries]
    if ends != sorted(ends):
        raise ForeignSegmentError(f"{name.name}: its switch positions go backward")
    return HistoryFacts(name=name, entries=entries)


def _check_backup(name: WalFileName, text: str) -> BackupFacts:
    first = text.splitlines()[0] if text else ""
    match = _BACKUP_START.match(first)
    if match is None:
        raise ForeignSegmentError(f"{name.name}: it does not begin like a backup history file: {first[:80]!r}")
    if match[2] != name.name[:24]:
        raise ForeignSegmentError(f"{name.name}: it describes a backup that began in {match[2]}")
    return BackupFacts(name=name, start=Lsn.parse(match[1]))


def _small_text(name: WalFileName, head: bytes, length: int) -> str:
    if length > SMALL_FILE_BYTES:
        raise ForeignSegmentError(f"{name.name}: {length} bytes are too many for a file of this kind")
    if len(head) != length:
        raise ForeignSegmentError(f"{name.name}: {len(head)} of {length} bytes could be read")
    try:
        return head.decode("utf-8")
    except UnicodeDecodeError:
        # The label in a .backup file is in the server's encoding; the lines that count are ASCII.
        return head.decode("latin-1")


def _number(name: WalFileName, segment_bytes: int) -> int:
    if int(name.name[16:24], 16) >= (1 << 32) // segment_bytes:
        raise ForeignSegmentError(
            f"{name.name}: no such name exists with segments of {segment_bytes} bytes",
            hint="The segment size in the file's header and the name contradict each other.",
        )
    return segment_number(name.name, segment_bytes)


def _is_power(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value & (value - 1) == 0
