"""Collects streamed WAL into what is uploaded, and knows how much of it is durable. Pure: no threads, no I/O.

* A *piece* goes up ``interval`` after the one before or with 4 MiB, whichever comes first; the first one after a pause
  at once. WAL of an idle server alone waits for ``idle_interval``.
* A *segment* goes up as a whole as soon as its last byte is here; what was not cut from it by then is not cut any more.
  While the server has the rest of a segment already (catching up), none is cut at all.
* What earlier runs stored of the first segment is *compared* with what the server sends before it counts: a server that
  was set back, or a clone, has the same positions and other bytes.
* *Durable* is the contiguous prefix of what was acknowledged, and ends before the end of the oldest segment that is
  not stored as a whole: the server may recycle what lies before it, and only the last segment is restored from pieces.

Positions inside are integers (bytes); one collector serves one timeline of one connection.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from drservice.components.postgres.walrecords import is_idle
from drservice.errors import StreamError
from drservice.model.wal import Lsn, Timeline, segment_name
from drservice.operations.walpacking import Packing
from drservice.repository.walarchive import SealedWal

PIECE_BYTES = 4 << 20
"""More per request costs a loaded primary less (docs/adr/0027-the-receiver.md); how old WAL gets is the interval's."""
_IDLE_BYTES = 32 << 10
"""Heartbeats of a minute are a third of it; more than this counts as work unseen."""
_LINGER_SECONDS = 0.005
"""Until the first piece after a pause is cut: a commit comes in several messages."""
_PATIENCE_SECONDS = 1.0
"""How long a segment whose rest is on its way may be waited for before pieces are cut from it after all."""
_MARK_SECONDS = 0.02
_PROOF_SPACING = timedelta(milliseconds=20)
_MOST_PROOFS = 4096
_WORKING_SECONDS = 1.0
"""How long after work what follows is taken for work unseen."""
_WHOLE_IN_FLIGHT = 2


class JobKind(Enum):
    """What is uploaded."""

    PIECE = "piece"
    SEGMENT = "segment"
    COMPARISON = "comparison"
    """Nothing: what is in the repository already is compared with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How long WAL may wait."""

    interval: timedelta = timedelta(milliseconds=250)
    idle_interval: timedelta = timedelta(seconds=60)
    synchronous: bool = False
    """Commits wait for every byte: nothing is held back but WAL of an idle server."""


@dataclass(slots=True, kw_only=True, eq=False)
class Segment:
    """A segment as far as it is here: ``[0, filled)``; the rest is zero."""

    timeline: Timeline
    begin: int
    size: int
    data: memoryview
    """Empty once it was sealed: pieces of it that are still on their way hold what they need."""
    filled: int = 0
    cut: int = 0
    """How far pieces were cut from it, or were in the repository before."""
    whole_is_due: bool = True
    """It was not handed out as a whole yet."""
    packing: Packing = field(default_factory=Packing)
    """What was compressed of it already."""
    sealed: SealedWal | None = None
    """As it is stored, from when it is being stored as a whole."""

    @property
    def end(self) -> int:
        """Position behind its last byte."""
        return self.begin + self.size

    @property
    def is_full(self) -> bool:
        """Whether all of it is here."""
        return self.filled == self.size

    @property
    def name(self) -> str:
        """Its file name."""
        return segment_name(self.timeline, self.begin // self.size, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to upload."""

    kind: JobKind
    segment: Segment
    begin: int
    end: int
    server_time: datetime
    """The server's clock when it sent the last byte."""
    part: memoryview | None
    """Its bytes, without a copy; ``None``: those of the whole segment, while it has them."""

    @property
    def data(self) -> memoryview:
        """Its bytes."""
        return self.segment.data if self.part is None else self.part


@dataclass(slots=True, kw_only=True)
class _Mark:
    """When bytes arrived, and when the server sent them."""

    end: int
    server_time: datetime
    arrived: float


@dataclass(slots=True, kw_only=True)
class _Proof:
    """At ``server_time`` the server's WAL ended at ``end``: once that is durable, everything of that moment is."""

    end: int
    server_time: datetime


@dataclass(slots=True)
class _Acknowledged:
    """The contiguous prefix of what is stored."""

    end: int
    islands: dict[int, int] = field(default_factory=dict)

    def add(self, begin: int, end: int) -> None:
        self.islands[begin] = max(end, self.islands.get(begin, end))
        grown = True
        while grown:
            grown = False
            for start in [start for start in self.islands if start <= self.end]:
                reached = self.islands.pop(start)
                if reached > self.end:
                    self.end, grown = reached, True


def in_memory(size: int) -> memoryview:
    """Return zero bytes that go when nothing refers to them any more."""
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            made.madvise(mmap.MADV_HUGEPAGE)  # 8 faults instead of 4,096
    return memoryview(made)


class Collector:
    """Collects the WAL of one timeline from the begin of a segment on.

    Args:
        timeline: the timeline.
        segment_bytes: size of a segment.
        begin: where the stream begins: the begin of a segment.
        stored: up to here pieces that begin at ``begin`` are in the repository already, by their names.
        pacing: how long WAL may wait.
        allocate: makes the zero bytes that a segment is put together in.
    """

    def __init__(
        self,
        *,
        timeline: Timeline,
        segment_bytes: int,
        begin: Lsn,
        stored: Lsn,
        pacing: Pacing,
        allocate: Callable[[int], memoryview] = in_memory,
    ) -> None:
        if begin.value % segment_bytes:
            raise ValueError(f"{begin} is not the begin of a segment of {segment_bytes} bytes")
        self.timeline = timeline
        self._segment_bytes = segment_bytes
        self._pacing = pacing
        self._allocate = allocate
        self._interval = 0.0 if pacing.synchronous else pacing.interval.total_seconds()
        self._linger = 0.0 if pacing.synchronous else min(_LINGER_SECONDS, self._interval)
        self._received = begin.value
        self._stored = stored.value
        self._to_compare = begin.value < stored.value < begin.value + segment_bytes
        """A whole one is compared where it is stored once more."""
        self._is_unproved = stored.value >= begin.value + segment_bytes
        """The first segment is stored as a whole; nothing behind it goes up before it was found to be the server's."""
        self._is_comparing = False
        self._acknowledged = _Acknowledged(begin.value)
        self._segments: deque[Segment] = deque()
        self._whole_in_flight = 0
        self._server_end = begin.value
        self._marks: deque[_Mark] = deque()
        self._proofs: deque[_Proof] = deque()
        self._durable_time: datetime | None = None
        self._heard_time: datetime | None = None
        self._cut_at = float("-inf")
        self._uncut_since = 0.0
        self._worked_at = float("-inf")
        self._idle_seen = (-1, False)
        self._idle = (begin.value, begin.value)
        """WAL of an idle server, as it was when that was seen last; it stays that, whatever follows."""
        self._draining = False
        self.is_more_coming = False
        """What the server has is being read and will be here at once: pieces wait for it."""

    # --- what is known --------------------------------------------------------------------------------------

    @property
    def received(self) -> Lsn:
        """Everything before it is here or stored."""
        return Lsn(self._received)

    @property
    def is_caught_up(self) -> bool:
        """Whether the server had nothing more when it was heard from last."""
        return self._received >= self._server_end

    @property
    def durable(self) -> Lsn:
        """Everything before it is stored, and the server may forget it."""
        oldest = self._segments[0].begin if self._segments else self._received
        return Lsn(min(self._acknowledged.end, oldest + self._segment_bytes - 1))

    @property
    def covered(self) -> Lsn:
        """Everything before it is durable, or is known to be WAL of an idle server."""
        durable = self.durable.value
        last = self._segments[-1] if self._segments else None
        if last is not None and last.begin + last.cut == durable and self._is_idle(last):
            return self.received
        return Lsn(max(durable, self._idle[1]) if self._idle[0] <= durable else durable)

    @property
    def durable_server_time(self) -> datetime | None:
        """Last known moment of the server whose WAL is all durable by now, or idle; ``None``: none yet."""
        self._forget()
        covered = self.covered.value
        while self._proofs and self._proofs[0].end <= covered:
            self._durable_time = self._proofs.popleft().server_time
        return self._durable_time

    @property
    def held_bytes(self) -> int:
        """Bytes that are held in memory because they are not durable."""
        held = sum(segment.filled for segment in self._segments if segment.is_full)
        last = self.unfinished
        return held if last is None else held + max(0, self._received - max(last.begin, self._acknowledged.end))

    def oldest_age_seconds(self, now: float) -> float:
        """Return how long the oldest byte has been here that is neither durable nor idle; 0 if there is none."""
        self._forget()
        covered = self.covered.value
        return next((max(0.0, now - mark.arrived) for mark in self._marks if mark.end > covered), 0.0)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was received is stored, and every full segment as a whole."""
        is_stored = self._received <= max(self._acknowledged.end, self._stored)
        return is_stored and not self._is_comparing and not any(segment.is_full for segment in self._segments)

    @property
    def is_whole_on_its_way(self) -> bool:
        """Whether a segment is being stored as a whole."""
        return self._whole_in_flight > 0

    @property
    def unfinished(self) -> Segment | None:
        """The last segment, if its end is not here."""
        last = self._segments[-1] if self._segments else None
        return last if last is not None and not last.is_full and last.filled else None

    # --- what comes in --------------------------------------------------------------------------------------

    def add(self, start: Lsn, data: memoryview, *, server_end: Lsn, server_time: datetime, now: float) -> None:
        """Take streamed bytes.

        Raises:
            StreamError: they do not follow those before them; none of them were taken.
        """
        if start.value != self._received:
            raise StreamError(
                f"the server sent {len(data)} bytes from {start} on, {self.received} was next",
                hint="Nothing is lost: it is asked again for what follows what is durable.",
            )
        while data:
            segment = self._filling()
            count = min(len(data), segment.size - segment.filled)
            segment.data[segment.filled : segment.filled + count] = data[:count]
            if segment.filled + count > segment.cut >= segment.filled:
                self._uncut_since = now
            segment.filled += count
            self._received += count
            data = data[count:]
        self._mark(server_time, now)
        self.heard(server_end, server_time=server_time)

    def heard(self, server_end: Lsn, *, server_time: datetime) -> None:
        """Take the server's word on where its WAL ended when."""
        self._server_end = max(self._server_end, server_end.value)
        last = self._proofs[-1] if self._proofs else None
        spacing = _PROOF_SPACING if len(self._proofs) < _MOST_PROOFS else timedelta(days=1)
        if self._heard_time is not None and server_time < self._heard_time:
            # Its clock was set back: moments by the one before would never be passed, and make everything look young.
            self._proofs.clear()
            self._durable_time = last = None
        self._heard_time = server_time
        if last is None or (last.end < server_end.value and server_time - last.server_time >= spacing):
            self._proofs.append(_Proof(end=server_end.value, server_time=server_time))
        else:  # a later end is no proof of an earlier moment: the pair is replaced as one
            last.end, last.server_time = max(last.end, server_end.value), max(last.server_time, server_time)

    def drain(self) -> None:
        """Let nothing wait any more."""
        self._draining = True

    # --- what goes out --------------------------------------------------------------------------------------

    def next_job(self, now: float) -> Job | None:
        """Return what is to be uploaded next, by somebody who is free now; ``None``: nothing is due."""
        if self._to_compare and self._received >= self._stored:
            self._to_compare, self._is_comparing = False, True
            first = self._segments[0]
            return self._job(JobKind.COMPARISON, first, first.begin, self._stored)
        for segment in self._segments:
            if segment.is_full and segment.whole_is_due:
                # A whole segment goes before pieces, so it must not be another history's.
                if self._is_comparing or self._whole_in_flight >= (1 if self._is_unproved else _WHOLE_IN_FLIGHT):
                    return None
                segment.whole_is_due = False
                segment.cut = segment.size
                self._whole_in_flight += 1
                return self._job(JobKind.SEGMENT, segment, segment.begin, segment.end)
        last = self.unfinished
        if last is None or self._is_unproved or self._due_at(last, now) > now:
            return None
        if self.is_more_coming and not self._draining and last.filled - last.cut < PIECE_BYTES:
            return None
        begin = last.begin + last.cut
        end = min(begin + PIECE_BYTES, last.begin + last.filled)
        last.cut = end - last.begin
        late = now - self.next_cut
        # A cut that was a moment late does not put off the next one: of many, WAL would be as much older.
        self._cut_at = self.next_cut if 0 <= late < self._interval / 2 else now
        return self._job(JobKind.PIECE, last, begin, end)

    def wait_seconds(self, now: float) -> float | None:
        """Return until when nothing more is due unless something happens; ``None``: for ever."""
        last = self.unfinished
        due = float("inf") if last is None or self._is_unproved else self._due_at(last, now)
        return None if due == float("inf") else max(0.0, due - now)

    @property
    def next_cut(self) -> float:
        """Before this moment no piece is due, unless much waits."""
        return self._cut_at + self._interval

    def acknowledge(self, job: Job) -> None:
        """Take note that a job's bytes are stored, for good."""
        self._acknowledged.add(job.begin, job.end)
        if job.kind is JobKind.COMPARISON:
            self._is_comparing = False
        elif job.kind is JobKind.SEGMENT:
            self._whole_in_flight -= 1
            self._is_unproved = False
            self._segments.remove(job.segment)
        self._forget()

    def _due_at(self, segment: Segment, now: float) -> float:
        """Return when the next piece of the last segment is due."""
        uncut = segment.filled - segment.cut
        if uncut <= 0:
            return float("inf")
        if self._draining:
            return now
        if self._server_end >= segment.end:
            return self._uncut_since + _PATIENCE_SECONDS  # the rest of it is on its way
        due = max(self._cut_at + self._interval, self._uncut_since + self._linger)
        if uncut < PIECE_BYTES and (due > now or now - self._worked_at < _WORKING_SECONDS):
            return due
        if self._is_idle(segment):
            return self._uncut_since + self._pacing.idle_interval.total_seconds()
        self._worked_at = now
        return now

    def _is_idle(self, segment: Segment) -> bool:
        """Tell whether what was not cut from a segment is WAL of an idle server; asked again only when it grew."""
        uncut = segment.filled - segment.cut
        if uncut <= 0 or uncut > _IDLE_BYTES:
            return uncut <= 0
        if self._idle_seen[0] != self._received:
            idle = is_idle(segment.data, segment.cut, segment.filled)
            self._idle_seen = (self._received, idle)
            if idle:
                self._idle = (segment.begin + segment.cut, self._received)
        return self._idle_seen[1]

    def _job(self, kind: JobKind, segment: Segment, begin: int, end: int) -> Job:
        server_time = next((mark.server_time for mark in self._marks if mark.end >= end), None)
        assert server_time is not None, "what is not durable has a mark"
        is_whole = kind is JobKind.SEGMENT
        part = None if is_whole else segment.data[begin - segment.begin : end - segment.begin]
        return Job(kind=kind, segment=segment, begin=begin, end=end, server_time=server_time, part=part)

    # --- what is remembered of moments ----------------------------------------------------------------------

    def _mark(self, server_time: datetime, now: float) -> None:
        last = self._marks[-1] if self._marks else None
        if last is not None and now - last.arrived < _MARK_SECONDS and last.end > self._acknowledged.end:
            last.end, last.server_time = self._received, server_time  # its arrival stays: no age is too small
        else:
            self._marks.append(_Mark(end=self._received, server_time=server_time, arrived=now))

    def _forget(self) -> None:
        durable = self.durable.value
        while self._marks and self._marks[0].end <= durable:
            self._marks.popleft()

    def _filling(self) -> Segment:
        last = self._segments[-1] if self._segments else None
        if last is not None and not last.is_full:
            return last
        data = self._allocate(self._segment_bytes)
        stored = min(max(0, self._stored - self._received), self._segment_bytes)
        made = Segment(timeline=self.timeline, begin=self._received, size=self._segment_bytes, data=data, cut=stored)
        self._segments.append(made)
        return made
