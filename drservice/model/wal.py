"""Positions in the write-ahead log and the names of its files.

Sources: PostgreSQL's ``xlog_internal.h`` (file names), ``timeline.c`` (history files). Segment size is
always a parameter: it is chosen at ``initdb`` and read from ``pg_control``, never assumed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType

Timeline = NewType("Timeline", int)

_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})\Z")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history\Z")
_PARTIAL = re.compile(r"([0-9A-F]{24})\.partial\Z")
_BACKUP = re.compile(r"([0-9A-F]{24})\.([0-9A-F]{8})\.backup\Z")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)")


@dataclass(frozen=True, slots=True, order=True)
class Lsn:
    """A byte position in the WAL (``pg_lsn``)."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 64:
            raise ValueError(f"{self.value} is no WAL position")

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read PostgreSQL's ``X/X`` form.

        Raises:
            ValueError: for anything else.
        """
        high, slash, low = text.strip().partition("/")
        if not slash or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
            raise ValueError(f"{text!r} is no WAL position; write it as 0/3000028")
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __add__(self, length_bytes: int) -> Lsn:
        return Lsn(self.value + length_bytes)

    def segment_number(self, segment_bytes: int) -> int:
        """Return the number of the segment that holds the byte at this position."""
        return self.value // segment_bytes


class WalFileKind(Enum):
    """What a file in the WAL archive is."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    HISTORY = "history"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class WalFileName:
    """A parsed name of a file that PostgreSQL hands to ``archive_command``."""

    name: str
    kind: WalFileKind
    timeline: Timeline

    @classmethod
    def parse(cls, name: str) -> WalFileName:
        """Parse a base name.

        Raises:
            ValueError: if it is none of segment, ``.partial``, ``.history``, ``.backup``.
        """
        for kind, pattern in (
            (WalFileKind.SEGMENT, _SEGMENT),
            (WalFileKind.HISTORY, _HISTORY),
            (WalFileKind.PARTIAL, _PARTIAL),
            (WalFileKind.BACKUP, _BACKUP),
        ):
            if pattern.match(name):
                return cls(name=name, kind=kind, timeline=Timeline(int(name[:8], 16)))
        raise ValueError(f"{name!r} is no WAL file name")


def segment_name(timeline: Timeline, number: int, segment_bytes: int) -> str:
    """Return the file name of segment ``number`` (0-based over the whole WAL) on ``timeline``."""
    per_log = (1 << 32) // segment_bytes
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"


def segment_number(name: str, segment_bytes: int) -> int:
    """Return the number of the segment that ``name`` (24 hex digits, maybe with a suffix) stands for."""
    per_log = (1 << 32) // segment_bytes
    return int(name[8:16], 16) * per_log + int(name[16:24], 16)


def segment_begin(number: int, segment_bytes: int) -> Lsn:
    """Return the position of a segment's first byte."""
    return Lsn(number * segment_bytes)


def segments_between(begin: Lsn, end: Lsn, segment_bytes: int) -> range:
    """Return the numbers of the segments that hold the bytes ``[begin, end)``; at least one."""
    last = max(begin.value, end.value - 1)
    return range(begin.segment_number(segment_bytes), last // segment_bytes + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """A line of a ``.history`` file: ``timeline`` was left at ``end``."""

    timeline: Timeline
    end: Lsn


def parse_history(text: str) -> tuple[HistoryEntry, ...]:
    """Parse a timeline history file: its ancestors, oldest first.

    Raises:
        ValueError: for a line that is neither a comment nor an entry, or entries out of order.
    """
    entries: list[HistoryEntry] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HISTORY_LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of a history file: {line!r}")
        entry = HistoryEntry(timeline=Timeline(int(match[1])), end=Lsn.parse(match[2]))
        if entries and entry.timeline <= entries[-1].timeline:
            raise ValueError("a history file lists its timelines in increasing order")
        entries.append(entry)
    return tuple(entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSpan:
    """The part of one timeline that a recovery path uses: ``[begin, end)``; ``end`` None = open."""

    timeline: Timeline
    begin: Lsn
    end: Lsn | None


def timeline_path(timeline: Timeline, ancestors: Sequence[HistoryEntry]) -> tuple[TimelineSpan, ...]:
    """Return the spans that lead to ``timeline``, oldest first, from the lines of its history file."""
    spans: list[TimelineSpan] = []
    begin = Lsn(0)
    for entry in ancestors:
        spans.append(TimelineSpan(timeline=entry.timeline, begin=begin, end=entry.end))
        begin = entry.end
    spans.append(TimelineSpan(timeline=timeline, begin=begin, end=None))
    return tuple(spans)
