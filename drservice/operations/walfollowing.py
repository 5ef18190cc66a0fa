"""Follows the WAL of one server over one connection, from its first byte to whatever ends it.

One thread takes what comes, hands out what is to be uploaded, reports what is durable and says how it is; see
:mod:`drservice.operations.walstream` for what is around it.
"""

from __future__ import annotations

import select
import threading
from dataclasses import replace
from datetime import datetime, timedelta

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.localwal import LocalWal
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.streaming import (
    Keepalive,
    ReplicationConnection,
    StreamEnded,
    TimelineEnded,
    WalData,
)
from drservice.errors import DrError, PostgresUnreachableError, StreamError
from drservice.model.estate import PostgresSettings, WalMode
from drservice.model.wal import Lsn, Timeline, segment_begin
from drservice.operations.clocksearch import CLOCKS_APART
from drservice.operations.streamstate import StreamPhase
from drservice.operations.walboard import StreamBoard
from drservice.operations.walcollector import Collector, Job, JobKind, Pacing, Segment, in_memory
from drservice.operations.walreading import Patience, Reading
from drservice.operations.walresume import Begin, store_history
from drservice.operations.walshipping import ClockPairs, Pairs, Shipping, Upload
from drservice.operations.waluploads import Uploads
from drservice.operations.walwatch import SlotWatch, slot_problem, synchronous_problem
from drservice.repository.spool import Spools

_HELD_BYTES = 32 << 20
"""Received and not durable: behind it the socket is not read. At least a segment and :data:`_BESIDE_BYTES`."""
_BESIDE_BYTES = 16 << 20
_SPOOL_SECONDS = 0.01
"""How often the pages of such files are let go of while they are read and written."""
_TAKEN_BYTES = 1 << 20
"""Read at one go before uploads and reports are looked after."""
_GATHER_SECONDS = 0.05
"""How long a server's WAL may gather before it is read, at most a fifth of the interval: a look for each commit takes
both sides more of a processor than all that is done with the bytes."""
_GATHERED_BYTES = 64 << 10
"""A look that finds more may have let a server go on that had no room to send: it is read until one finds less."""
_LOOK_SECONDS = 0.25
_SAY_SECONDS = 0.1
_CLOCK_SPACING = timedelta(seconds=3)
"""A segment that ends sooner behind one with a clock has none, but of CLOCKS_APART segments one has: three requests for
each segment are too many to narrow a search by so little."""
_STATUS_SECONDS = 10.0
_ASK_SECONDS = 1.0
"""A server that has said nothing for so long is asked: what is at risk is measured by its clock."""
_SILENT_SECONDS = 30.0
"""A server that does not answer for so long is given up: the network is cut, or its host is gone."""
_STALLED_SECONDS = 5.0
_DRAIN_SECONDS = 20.0
"""How long a receiver that is to stop, or a server that goes down, waits for a store that does not take the WAL."""


class Following:
    """One connection, from its first byte to whatever ends it."""

    def __init__(
        self,
        *,
        connection: ReplicationConnection,
        identity: SystemIdentity,
        shipping: Shipping,
        spools: Spools | None,
        uploads: Uploads[Upload],
        watch: SlotWatch,
        board: StreamBoard,
        component: PostgresSettings,
        pairs: ClockPairs,
        patience: Patience,
        hole: DrError | None,
        kept_from: Lsn,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._feed: ReplicationConnection | LocalWal = connection
        self._identity = identity
        self._shipping = shipping
        self._spools = spools
        self._uploads = uploads
        self._watch = watch
        self._board = board
        self._component = component
        self._pairs = pairs
        self._hole = hole
        self._kept_from = kept_from
        self._clock = clock
        self._stop = stop
        self._reading = Reading(component, identity, slot=board.state.slot, watch=watch, patience=patience, clock=clock)
        self._has_read = False
        """No stream was asked since files were read: a server that went down has told nobody where its WAL ends."""
        self._is_open = True
        self._broken: DrError | None = None
        """Why there is no connection, while what was received is stored."""
        timeout = connection.sender_timeout_seconds()
        self._status_seconds = _STATUS_SECONDS if timeout is None else min(_STATUS_SECONDS, timeout / 4)
        self._bound_bytes = max(_HELD_BYTES, identity.wal_segment_bytes + _BESIDE_BYTES)
        wal = component.wal
        self._gather_seconds = 0.0 if wal.synchronous else min(_GATHER_SECONDS, wal.interval.total_seconds() / 5)
        self._rests_until = self._said_at = self._released_at = float("-inf")
        self._reported = (Lsn(0), float("-inf"))
        self._asked_at = self._heard_at = clock.monotonic()
        self._server_time: datetime | None = None
        self._clock_noted: datetime | None = None
        self._clockless = 0
        self._poll = select.poll()
        self._poll.register(uploads, select.POLLIN)

    def run(self, begin: Begin) -> None:
        """Stream until the server or the receiver ends it.

        Raises:
            PostgresUnreachableError: the connection broke; everything that was received is stored.
            DrError: it cannot go on like this.
        """
        try:
            while True:
                collector = self._collector(begin)
                ended = self._from(begin, collector)
                if not isinstance(ended, TimelineEnded):
                    return
                begin = self._next_timeline(collector, ended)
        finally:
            self._close()

    def _collector(self, begin: Begin) -> Collector:
        return Collector(
            timeline=begin.timeline,
            segment_bytes=self._identity.wal_segment_bytes,
            begin=begin.segment,
            stored=begin.stored,
            pacing=Pacing(
                interval=self._component.wal.interval,
                idle_interval=self._component.wal.idle_interval,
                synchronous=self._component.wal.synchronous,
            ),
            allocate=in_memory if self._spools is None else self._spools.make,
        )

    def _from(self, begin: Begin, collector: Collector) -> TimelineEnded | StreamEnded | None:
        """Stream one timeline; ``None``: the receiver is to stop. Nothing that was received is left unstored."""
        self._stream().start(slot=self._board.state.slot, begin=begin.segment, timeline=begin.timeline)
        telemetry.info("wal stream begins", timeline=begin.timeline, begin=str(begin.segment), stored=str(begin.stored))
        # Where another server, or another timeline, ended says nothing about this one.
        self._board.state = replace(self._board.state, timeline=begin.timeline, server_lsn=None)
        self._reported = (Lsn(0), float("-inf"))
        self._heard_at = self._clock.monotonic()
        try:
            ended = self._follow(collector)
        except PostgresUnreachableError as error:
            self._broken = error
            self._close()  # a server that goes down waits for it
            try:
                if self._has_read:
                    self._read_what_shutdown_left(collector, error)
            finally:
                self._drain(collector)
            raise
        if ended is not None:
            self._is_open = False  # no status belongs between two streams
        self._drain(collector)
        self._is_open = ended is None or isinstance(ended, TimelineEnded)
        return ended

    def _next_timeline(self, collector: Collector, ended: TimelineEnded) -> Begin:
        """Close a timeline in the repository and return where the next one is streamed from (trap T24)."""
        if self._stop.is_set():
            raise PostgresUnreachableError("stopped between two timelines")
        rest = collector.unfinished
        if rest is not None:
            self._put_clock(rest, Lsn(rest.begin + rest.filled))
            if self._component.wal.mode is WalMode.STREAM:  # else archive_command brings the server's own
                self._shipping.put_partial(rest, last_write=self._server_time or self._clock.now())
        store_history(self._stream(), self._shipping, ended.next_timeline)
        telemetry.info("timeline ended", timeline=collector.timeline, next=ended.next_timeline, at=str(ended.begin))
        size = self._identity.wal_segment_bytes
        segment = segment_begin(ended.begin.segment_number(size), size)
        stored = self._shipping.stored_end(ended.next_timeline, segment)
        return Begin(timeline=ended.next_timeline, segment=segment, stored=stored)

    # --- the loop -------------------------------------------------------------------------------------------

    def _follow(self, collector: Collector) -> TimelineEnded | StreamEnded | None:
        while not self._stop.is_set():
            self._choose(collector)
            took, is_room = 0, self._has_room(collector)
            if is_room and self._clock.monotonic() >= self._rests_until:
                took, ended = self._take(collector)
                if ended is not None:
                    return ended
            self._look_after(collector)
            self._require_life(collector, is_reading=is_room)
            if took and (took >= _GATHERED_BYTES or not collector.is_caught_up):
                continue
            if took and self._reading.local is None:
                self._rest(collector)
            self._wait(collector, self._feed.fileno())
        return None

    def _choose(self, collector: Collector) -> None:
        """Go over from the stream to the files or back, where what was received ends."""
        if self._reading.is_to_begin(collector.received, collector.timeline):
            if (local := self._reading.begin(collector.received)) is not None:
                self._feed.close()
                self._feed, self._rests_until = local, float("-inf")
                self._has_read = True
        elif self._reading.is_to_end(collector.received):
            self._reading.end()
            telemetry.info("wal is streamed again", begin=str(collector.received))
            slot = self._board.state.slot
            self._feed = ReplicationConnection.open(self._component.production_dsn, application_name=slot)
            known = self._feed.identify()
            if (known.system_id, known.timeline) != (self._identity.system_id, collector.timeline):
                raise PostgresUnreachableError("another server, or another timeline, answers")
            self._feed.start(slot=slot, begin=collector.received, timeline=collector.timeline)
            self._has_read = False

    def _stream(self) -> ReplicationConnection:
        assert isinstance(self._feed, ReplicationConnection), "only the middle of a timeline is read from the disk"
        return self._feed

    def _is_reading(self, collector: Collector) -> bool:
        """Tell whether flushed WAL is about to be read from the disk, which the next piece should take along."""
        if self._reading.local is None or not self._has_room(collector):
            return False
        self._reading.local.want(collector.next_cut)
        return self._reading.local.is_behind or not collector.is_caught_up

    def _has_room(self, collector: Collector) -> bool:
        return collector.held_bytes < self._bound_bytes

    def _rest(self, collector: Collector) -> None:
        """Let WAL gather, but not beyond the moment at which a piece is due: that takes along what came until then."""
        now = self._clock.monotonic()
        due = self._due_seconds(collector, now)
        self._rests_until = now + (self._gather_seconds if due is None else min(self._gather_seconds, due))

    def _due_seconds(self, collector: Collector, now: float) -> float | None:
        return collector.wait_seconds(now) if self._uploads.free > 0 else None

    def _take(self, collector: Collector) -> tuple[int, TimelineEnded | StreamEnded | None]:
        """Take what has arrived, up to a bound; returns its bytes."""
        size, is_dry, now = 0, False, self._clock.monotonic()
        last: WalData | Keepalive | None = None
        ended: TimelineEnded | StreamEnded | None = None
        while size < _TAKEN_BYTES:
            message = self._feed.receive()
            if message is None:
                if is_dry:
                    break
                self._feed.fill()
                is_dry = True
                continue
            if isinstance(message, TimelineEnded | StreamEnded):
                ended = message
                break
            is_dry, last = False, message
            if isinstance(message, WalData):
                size += len(message.data)
                collector.add(
                    message.start,
                    message.data,
                    server_end=message.server_end,
                    server_time=message.server_time,
                    now=now,
                )
            else:
                collector.heard(message.server_end, server_time=message.server_time)
                if message.wants_reply:
                    self._report(collector, now, ask=False)
        if last is not None:
            self._heard_at = now
            self._note(last)
        return size, ended

    def _note(self, message: WalData | Keepalive) -> None:
        self._server_time = message.server_time
        self._pairs.add(message.server_time, message.server_end)
        state = self._board.state
        if state.server_lsn is None or message.server_end > state.server_lsn or state.timeline is None:
            self._board.state = replace(state, server_lsn=message.server_end, server_time=message.server_time)
        else:
            self._board.state = replace(state, server_time=message.server_time)

    def _look_after(self, collector: Collector) -> None:
        """Take what was stored, hand out what is due, report, and say how it is."""
        for finished in self._uploads.finished():
            if finished.problem is not None:
                self._failed(finished.item, finished.problem)
            elif isinstance(finished.item, Job):
                collector.acknowledge(finished.item)
                if finished.item.kind is JobKind.SEGMENT:
                    self._put_clock(finished.item.segment, Lsn(finished.item.end))
        self._shipping.is_fenced = self._is_primary(collector.timeline)
        now = self._clock.monotonic()
        if self._spools is not None and now - self._released_at >= _SPOOL_SECONDS:
            self._spools.release()
            self._released_at = now
        collector.is_more_coming = self._is_reading(collector)
        while self._uploads.free > 0 and (job := collector.next_job(now)) is not None:
            self._uploads.submit(job)
        if self._is_open:
            durable, at = self._reported
            is_quiet = now - self._heard_at >= _ASK_SECONDS and now - self._asked_at >= _ASK_SECONDS
            if collector.durable != durable or now - at >= self._status_seconds or is_quiet:
                self._report(collector, now, ask=is_quiet)
        if now - self._said_at >= _SAY_SECONDS:
            self._say(collector, now)

    def _is_primary(self, timeline: Timeline) -> bool:
        """Tell whether the server is known to be the primary of this timeline since the connection began.

        One that was promoted sends its past, too: the timelines it left are not its own any more. A standby follows
        whoever was promoted by itself.
        """
        if self._identity.timeline != timeline:
            return False
        if self._identity.in_recovery is not None:
            return not self._identity.in_recovery
        facts = self._watch.facts
        return facts is not None and facts.in_recovery is False

    def _failed(self, item: Upload, problem: DrError) -> None:
        if isinstance(item, Pairs):
            telemetry.warning("clock of a segment not stored", problem=problem.message)
            return
        raise problem

    def _put_clock(self, segment: Segment, end: Lsn) -> None:
        """Store what the server's clock said while a segment was written."""
        pairs = tuple(pair for pair in self._pairs.take(end) if pair.lsn.value >= segment.begin)
        noted, self._clockless = self._clock_noted, self._clockless + 1
        is_soon = noted is not None and pairs and timedelta(0) <= pairs[-1].server_time - noted < _CLOCK_SPACING
        if pairs and (not is_soon or self._clockless == CLOCKS_APART):
            self._clock_noted, self._clockless = pairs[-1].server_time, 0
            number = segment.begin // segment.size
            self._uploads.submit(Pairs(timeline=segment.timeline, segment=number, pairs=pairs))

    def _report(self, collector: Collector, now: float, *, ask: bool) -> None:
        durable = collector.durable
        reported = durable if durable >= self._kept_from else None
        self._feed.report(reported, now=self._clock.now(), ask=ask)
        self._reported = (durable, now)
        if ask:
            self._asked_at = now

    def _require_life(self, collector: Collector, *, is_reading: bool) -> None:
        """Give up a server that is silent, and let one go that is going down and waits for a store that is away.

        Raises:
            PostgresUnreachableError: that is so.
        """
        now = self._clock.monotonic()
        if not is_reading:
            self._heard_at = now  # its words wait in the socket
        if now - self._heard_at > _SILENT_SECONDS:
            raise PostgresUnreachableError(
                f"the server has been silent for {_SILENT_SECONDS:.0f} s",
                hint="Its host is gone or the network between is cut. It keeps its WAL in the slot.",
            )
        if self._watch.down_seconds > _DRAIN_SECONDS and collector.oldest_age_seconds(now) > _DRAIN_SECONDS:
            raise PostgresUnreachableError(
                "the server goes down and was let go: what is not stored waits in its slot",
                hint="Bring the repository back, then start the server.",
            )

    def _read_what_shutdown_left(self, collector: Collector, problem: DrError) -> None:
        """Take what a server wrote until it was down: a WAL sender would have sent it, and nobody reads it later.

        One that comes back, or crashed, is asked for it as ever.
        """
        began = self._clock.monotonic()
        while self._reading.is_going_down(problem, self._clock.monotonic() - began) and not self._stop.is_set():
            self._look_after(collector)
            self._wait(collector, None)
        left = self._reading.what_shutdown_left()
        if left is None:
            return
        end, folder = left
        telemetry.info("wal of a server that went down is read to its end", begin=str(collector.received), end=str(end))
        time = self._server_time or self._clock.now()
        try:
            while collector.received < end and not self._stop.is_set():
                if self._has_room(collector):
                    data, now = folder.read(collector.received, end), self._clock.monotonic()
                    collector.add(collector.received, data, server_end=end, server_time=time, now=now)
                else:
                    self._wait(collector, None)
                self._look_after(collector)
        finally:
            folder.close()

    def _drain(self, collector: Collector) -> None:
        """Store everything that was received; when the receiver is to stop, only as long as that may take."""
        collector.drain()
        deadline: float | None = None
        while not collector.is_drained:
            if self._stop.is_set():
                deadline = deadline or self._clock.monotonic() + _DRAIN_SECONDS
                if self._clock.monotonic() > deadline:
                    telemetry.warning("stopped with WAL that is not stored; it waits in the slot")
                    break
            self._look_after(collector)
            self._wait(collector, None)
        self._said_at = float("-inf")
        self._look_after(collector)
        if self._is_open and self._reading.local is not None:
            self._reading.local.settle()

    def _wait(self, collector: Collector, socket: int | None) -> None:
        """Wait until the server says something, an upload ends, a piece is due or it is time to look."""
        seconds = _LOOK_SECONDS
        if (due := self._due_seconds(collector, self._clock.monotonic())) is not None:
            seconds = min(seconds, due)
        if self._is_open:
            seconds = min(seconds, self._status_seconds / 2)
        if self._spools is not None and collector.is_whole_on_its_way:
            seconds = min(seconds, _SPOOL_SECONDS)
        rest = self._rests_until - self._clock.monotonic()
        if rest > 0:
            seconds = min(seconds, rest)
        if rest > 0 or not self._has_room(collector):
            socket = None
        if socket is not None and self._reading.local is not None:
            ask = self._reading.local.wait_seconds()
            seconds = seconds if ask is None else min(seconds, ask)
        if socket is not None:
            self._poll.register(socket, select.POLLIN)
        try:
            self._poll.poll(max(1.0, seconds * 1000.0))
        finally:
            if socket is not None:
                self._poll.unregister(socket)

    def _close(self) -> None:
        self._is_open = False
        self._reading.abandon()
        self._feed.close()

    # --- what is said ---------------------------------------------------------------------------------------

    def _say(self, collector: Collector, now: float) -> None:
        self._said_at = now
        facts = self._watch.facts
        state = self._board.state
        durable = collector.durable
        self._board.state = replace(
            state,
            received_lsn=collector.received,
            durable_lsn=durable,
            covered_lsn=collector.covered,
            server_lsn=max(state.server_lsn or Lsn(0), collector.received),
            durable_server_time=collector.durable_server_time or state.durable_server_time,
            slot_status=None
            if facts is None or facts.slot is None or facts.slot.status is None
            else facts.slot.status.value,
            safe_wal_bytes=None if facts is None or facts.slot is None else facts.slot.safe_bytes,
        )
        is_stalled = collector.covered != collector.received and collector.oldest_age_seconds(now) > _STALLED_SECONDS
        problem = self._problem(collector, is_stalled=is_stalled)
        if is_stalled or self._is_open:
            self._board.say(StreamPhase.STALLED if is_stalled else StreamPhase.STREAMING, problem)
        elif self._broken is not None:
            self._board.say(StreamPhase.CONNECTING, self._broken)
        self._board.publish()

    def _problem(self, collector: Collector, *, is_stalled: bool) -> DrError | None:
        """Return the worst that is wrong.

        Raises:
            StreamError: commits would wait for ever.
        """
        facts = self._watch.facts
        backlog = self._board.state.bytes_at_risk or 0
        slot = None if facts is None else slot_problem(facts, backlog_bytes=backlog)
        if is_stalled and slot is None:  # what the server is about to remove is worse than what waits there
            cause = self._uploads.problem
            age = collector.oldest_age_seconds(self._clock.monotonic())
            return StreamError(
                f"{backlog >> 20} MB of WAL are not stored, the oldest for {int(age // 5) * 5} s:"
                f" {'the store is slow' if cause is None else cause.message}",
                hint="PostgreSQL keeps its WAL meanwhile. "
                + ("See how loaded the store and the network to it are." if cause is None else cause.hint),
            )
        if facts is None:
            return self._hole
        return (
            slot
            or self._hole
            or synchronous_problem(facts, self._board.state.slot, is_wanted=self._component.wal.synchronous)
        )
