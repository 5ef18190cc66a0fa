"""Puts what a receiver has collected: pieces, whole segments, histories, what is left of a timeline, clock pairs.

Every segment is compared with its own first page before anything of it is stored, as ``wal push`` does (trap T17).
Identical bytes that are there already are fine, so archive_command may run beside the receiver.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.walfile import HEAD_BYTES, check_wal_file
from drservice.errors import (
    DamagedObjectError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    SegmentConflictError,
    WrongTimelineError,
)
from drservice.model.ids import SystemId
from drservice.model.tail import ClockPair, covered_until
from drservice.model.wal import Lsn, Timeline, WalFileKind, WalFileName, segment_begin, segment_name, segment_number
from drservice.operations.walcollector import Job, JobKind, Segment
from drservice.operations.walpacking import Packing
from drservice.repository.clocks import MAX_PAIRS, ClockArchive
from drservice.repository.daykey import DayKeys
from drservice.repository.spool import Spools
from drservice.repository.tail import TailArchive
from drservice.repository.walarchive import PutOutcome, SealedWal, WalArchive

_PAIR_SPACING = timedelta(seconds=1)
_COMPARED = 8
"""Pieces of earlier runs that are compared with what the server sends. Histories that parted before the last of them
do not come together again: every commit has its time."""
_FENCE_SECONDS = 10.0
"""How often a primary's place is looked after while its WAL is stored: one small request."""
_MOST_PAIRS = 20_000
"""Hours of them are held: of a segment that fills slowly, or of those that are not here yet during a catch-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The clock pairs of one segment."""

    timeline: Timeline
    segment: int
    pairs: tuple[ClockPair, ...]


Upload = Job | Pairs


def old_primary(timeline: Timeline) -> WrongTimelineError:
    """Return why a primary is refused: the repository has a newer timeline than its own."""
    return WrongTimelineError(
        f"this server is on timeline {timeline}, and the repository has the history of timeline {timeline + 1}"
    )


class ClockPairs:
    """Pairs of the server's time and the end of its WAL, about one a second, by the segment they lie in."""

    def __init__(self) -> None:
        self._pairs: deque[ClockPair] = deque()

    def add(self, server_time: datetime, end: Lsn) -> None:
        """Take a pair, unless the one before is of the same second or position; a clock may go back."""
        last = self._pairs[-1] if self._pairs else None
        if last is not None and (abs(server_time - last.server_time) < _PAIR_SPACING or end <= last.lsn):
            return
        self._pairs.append(ClockPair(server_time=server_time, lsn=end))
        if len(self._pairs) > _MOST_PAIRS:
            self._pairs = deque(list(self._pairs)[::2])  # every other second is narrow enough

    def take(self, end: Lsn) -> tuple[ClockPair, ...]:
        """Return and forget the pairs up to the end of a segment, no more than one object may hold."""
        taken: list[ClockPair] = []
        while self._pairs and self._pairs[0].lsn <= end:
            taken.append(self._pairs.popleft())
        return tuple(taken[:: -(-len(taken) // MAX_PAIRS) or 1])


class Shipping:
    """The way into the repository for the WAL of one cluster; safe for threads.

    With ``spools`` sealed segments wait on disk while they are sent, not in memory.
    """

    def __init__(
        self,
        *,
        archive: WalArchive,
        tail: TailArchive,
        clocks: ClockArchive,
        day_keys: DayKeys,
        system_id: SystemId,
        segment_bytes: int,
        clock: Clock,
        spools: Spools | None = None,
    ) -> None:
        self._archive = archive
        self._tail = tail
        self._clocks = clocks
        self._day_keys = day_keys
        self._system_id = system_id
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._spools = spools
        self._sealing = threading.Lock()
        self._looked_at = clock.monotonic()
        self.is_fenced = False
        """Whether what is streamed is a primary: then nothing of it is stored once another one was promoted."""

    # --- writing --------------------------------------------------------------------------------------------

    def put(self, upload: Upload) -> None:
        """Store one upload; durable and verified on return.

        Raises:
            ForeignSegmentError: the segment is not what it should be; nothing was stored.
            SegmentConflictError: other bytes are stored under its name, or of its stretch.
            WrongTimelineError: another server was promoted; nothing was stored.
            DrError: not stored, or not known to be.
        """
        if isinstance(upload, Pairs):
            self._put_clock(upload)
            return
        self._check(upload.segment)
        if upload.kind is JobKind.COMPARISON:
            self._compare(upload)
            return
        self._require_present(upload)
        if upload.kind is JobKind.PIECE:
            self._put_piece(upload)
            return
        outcome = self._archive.put_sealed(self._sealed(upload))
        gc.collect()  # a request of botocore's is a cycle, and holds what it sent until somebody looks
        telemetry.info("wal segment stored", name=upload.segment.name, outcome=outcome.value)

    def _require_present(self, upload: Job) -> None:
        """Refuse to store more of a primary whose place another one has taken: the repository has the history of that.

        Looked for before each whole segment, and every few seconds before a piece. What is refused is not acknowledged,
        so in synchronous mode no commit on the old primary is from here on.
        """
        now = self._clock.monotonic()
        if not self.is_fenced or (upload.kind is JobKind.PIECE and now - self._looked_at < _FENCE_SECONDS):
            return
        timeline = upload.segment.timeline
        if self.knows_timeline(Timeline(timeline + 1)):
            raise old_primary(timeline)
        self._looked_at = now

    def _sealed(self, upload: Job) -> SealedWal:
        """Return a whole segment as it is stored; its plain bytes go then, before it is sent.

        One at a time: two would need the memory of four.
        """
        segment = upload.segment
        with self._sealing:
            if segment.sealed is None:
                segment.sealed = self._archive.seal(
                    WalFileName.parse(segment.name),
                    segment.data,
                    system_id=self._system_id,
                    last_write=upload.server_time,
                    key=self._day_keys.today(),
                    spools=self._spools,
                    frames=None if self._spools else segment.packing.whole(segment.data),
                )
                segment.data, segment.packing = memoryview(b""), Packing()
            return segment.sealed

    def _put_piece(self, upload: Job) -> None:
        segment = upload.segment
        self._tail.put(
            upload.data,
            system_id=self._system_id,
            timeline=segment.timeline,
            start=Lsn(upload.begin),
            server_time=upload.server_time,
            segment_bytes=self._segment_bytes,
            key=self._day_keys.today(),
            frames=None if self._spools else segment.packing.piece(upload.begin - segment.begin, upload.data),
        )

    def _compare(self, upload: Job) -> None:
        """Require that the last pieces of a stretch hold what the server sent; the hashes in their headers tell.

        One that cannot be read or believed any more (its host was replaced) is stored once more.
        """
        segment = upload.segment
        begin, end = Lsn(upload.begin), Lsn(upload.end)
        stored = self._tail.pieces(self._system_id, segment.timeline, begin=begin, end=end)
        fitting = [item for item in stored if item.piece.end <= end]
        for item in fitting[-_COMPARED:]:
            first, last = item.piece.start.value, item.piece.end.value
            part = upload.data[first - upload.begin : last - upload.begin]
            own = replace(upload, kind=JobKind.PIECE, begin=first, end=last, part=part)
            try:
                facts = self._tail.facts(item, system_id=self._system_id)
            except (FormatError, DamagedObjectError, KeyProblemError, MissingObjectError) as error:
                telemetry.warning("stored piece of wal unusable", piece=item.piece.name, problem=error.message)
                self._put_piece(own)
                continue
            if facts.plain_sha256 != hashlib.sha256(own.data).hexdigest():
                raise SegmentConflictError(
                    f"WAL from {item.piece.start} to {item.piece.end} (timeline {segment.timeline}) is stored with"
                    " other content: this server is a copy of the one that wrote it, or was set back",
                    hint=WrongTimelineError.hint,
                )

    def _put_clock(self, upload: Pairs) -> None:
        try:
            self._clocks.put(
                system_id=self._system_id,
                timeline=upload.timeline,
                segment=upload.segment,
                segment_bytes=self._segment_bytes,
                pairs=upload.pairs,
            )
        except ValueError as error:  # a search is slower without it, and nothing else
            telemetry.warning("clock of a segment not stored", segment=upload.segment, problem=str(error))

    def put_partial(self, segment: Segment, *, last_write: datetime) -> PutOutcome:
        """Store the last segment of a timeline that was left, as far as it was written."""
        self._check(segment)
        name = WalFileName.parse(f"{segment.name}.partial")
        return self._archive.put_partial(
            name, segment.data, system_id=self._system_id, last_write=last_write, spools=self._spools
        )

    def put_history(self, timeline: Timeline, content: bytes) -> PutOutcome:
        """Store the history of a timeline, as the server has it.

        Raises:
            ForeignSegmentError: it is not one.
        """
        name = f"{timeline:08X}.history"
        check_wal_file(name, content, len(content))
        return self._archive.put(
            WalFileName.parse(name),
            content,
            system_id=self._system_id,
            last_write=self._clock.now(),
            key=self._day_keys.today(),
        )

    def _check(self, segment: Segment) -> None:
        if data := segment.data:  # else it was sealed, and looked at before
            head = bytes(data[:HEAD_BYTES])
            check_wal_file(segment.name, head, segment.size, expected_system_id=self._system_id)

    # --- what is there --------------------------------------------------------------------------------------

    def knows_timeline(self, timeline: Timeline) -> bool:
        """Tell whether the history of a timeline is archived."""
        return self._archive.exists(WalFileName.parse(f"{timeline:08X}.history"), system_id=self._system_id)

    def stored_end(self, timeline: Timeline, begin: Lsn) -> Lsn:
        """Return how far the segment that begins at ``begin`` is stored without a gap, as pieces or as a whole.

        One that is stored in pieces only ends before its end, however many there are: the whole is still to be stored.

        Raises:
            ObjectStoreError: not known.
        """
        number = begin.segment_number(self._segment_bytes)
        name = WalFileName.parse(segment_name(timeline, number, self._segment_bytes))
        if self._archive.exists(name, system_id=self._system_id):
            return begin + self._segment_bytes
        pieces = self._tail.pieces(self._system_id, timeline, begin=begin, end=begin + self._segment_bytes)
        return min(covered_until(begin, (item.piece for item in pieces)), begin + (self._segment_bytes - 1))

    def archived_end(self, timeline: Timeline) -> Lsn | None:
        """Return where the WAL of a timeline ends in the repository; ``None``: there is none of it.

        Lists the timeline: it is asked only when no slot says where to go on.

        Raises:
            ObjectStoreError: the listing is not complete.
        """
        after = None if timeline == 1 else WalFileName.parse(f"{timeline - 1:08X}{'F' * 16}")
        newest = -1
        for item in self._archive.listing(self._system_id, after=after):
            if item.timeline > timeline:
                break
            if item.timeline == timeline and WalFileName.parse(item.name).kind is WalFileKind.SEGMENT:
                newest = max(newest, segment_number(item.name, self._segment_bytes))
        if newest < 0:
            pieces = self._tail.pieces(self._system_id, timeline)
            if not pieces:
                return None
            newest = min(item.piece.start for item in pieces).segment_number(self._segment_bytes) - 1
        end = segment_begin(newest + 1, self._segment_bytes)
        while True:
            reached = self.stored_end(timeline, end)
            if reached.value < end.value + self._segment_bytes:
                return reached
            end = reached
