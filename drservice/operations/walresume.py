"""Where a receiver goes on: from its slot, or from the last byte that is stored; never from "now" (trap T22).

The stream always begins at the begin of a segment, so that the segment can be stored as a whole when its end is here;
what is stored of it already is not stored again. A slot that is not there, or is lost, is made anew at once, so that
nothing more gets lost, and what lies between the repository's last byte and the new slot is asked for all the same: the
server often still has it. What it has not is a hole, and is told loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drservice import telemetry
from drservice.components.postgres.connection import connect
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.slots import SlotStatus, slot_facts
from drservice.components.postgres.streaming import ReplicationConnection
from drservice.errors import (
    DrError,
    PostgresUnreachableError,
    SlotBusyError,
    SlotLostError,
    StreamError,
    WrongTimelineError,
)
from drservice.model.wal import HistoryEntry, Lsn, Timeline, TimelineSpan, parse_history, segment_begin, timeline_path
from drservice.operations.walshipping import Shipping, old_primary


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Where a stream begins."""

    timeline: Timeline
    segment: Lsn
    """The begin of a segment."""
    stored: Lsn
    """So far the segment is in the repository already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where to go on, and where else if the server has that no longer."""

    begin: Begin
    kept_from: Lsn
    """Where the slot keeps WAL from. Nothing earlier may be reported: it would set the slot back to what is gone."""
    otherwise: Begin | None = None
    """Where the slot keeps WAL from; ``None``: ``begin`` is kept by it."""
    is_proof: bool = False
    """What lies before :attr:`otherwise` is stored, and is only to be compared with what the server has."""

    def hole(self) -> SlotLostError:
        """Return what is to be told when the server has no longer what lies before :attr:`otherwise`."""
        assert self.otherwise is not None, "what a slot keeps is there"
        return SlotLostError(
            f"the WAL from {self.begin.stored} (timeline {self.begin.timeline}) to {self.otherwise.segment} is neither"
            " in the repository nor on the server: the replication slot was lost or dropped"
        )


class Resumption:
    """Finds out where to go on with one server.

    Args:
        connection: on which nothing is streamed yet.
        identity: of its server.
        shipping: knows what is stored.
        dsn: of the server, for what only SQL tells before version 15.
        slot: name of the slot.
        proving: where the archive ends exactly at a segment's end, go back for the segment before, if the server may
            still have it: its bytes tell whether the server is the one that wrote it.
    """

    def __init__(
        self,
        connection: ReplicationConnection,
        identity: SystemIdentity,
        shipping: Shipping,
        *,
        dsn: str,
        slot: str,
        proving: bool = True,
    ) -> None:
        self._connection = connection
        self._identity = identity
        self._shipping = shipping
        self._dsn = dsn
        self._slot = slot
        self._proving = proving

    def resume(self) -> Resume:
        """Return where to go on; the slot exists then and keeps WAL.

        Raises:
            WrongTimelineError: the repository knows a newer timeline than this primary, or WAL it never wrote.
            PostgresError, ObjectStoreError: refused, or not known.
        """
        found = self._find()
        self._require_written(found.begin)
        return found

    def _find(self) -> Resume:
        path = timeline_path(self._identity.timeline, self._ancestors())
        restart = self._restart()
        if restart is not None:
            begin = self._at(path, restart)
            before = self._stored_before(path, begin) if self._proving else None
            if before is None:
                return Resume(begin=begin, kept_from=restart)
            return Resume(begin=before, kept_from=restart, otherwise=begin, is_proof=True)
        last = self._last_stored(path)
        if last is not None:
            self._require_written(last)  # no slot is left on a server that is refused: it would fill its disk
        self._connection.create_slot(self._slot)
        restart = self._restart()
        if restart is None:
            raise StreamError(f"the slot {self._slot} was made and keeps no WAL")
        kept = self._at(path, restart)
        telemetry.info("replication slot made", slot=self._slot, keeps_from=str(restart))
        if last is None:
            return Resume(begin=kept, kept_from=restart)
        if last.timeline == kept.timeline and last.stored >= kept.segment:
            return Resume(begin=last, kept_from=restart)
        return Resume(begin=last, kept_from=restart, otherwise=kept)

    def _stored_before(self, path: Sequence[TimelineSpan], begin: Begin) -> Begin | None:
        """Return the segment before a begin, if it is stored as a whole and nothing of the begin's own is.

        Pieces are compared where they are; where there are none, a server that was set back and went on would fit.
        """
        size = self._identity.wal_segment_bytes
        span = next(span for span in path if span.timeline == begin.timeline)
        if begin.stored > begin.segment or begin.segment.value < span.begin.value + size:
            return None
        before = Lsn(begin.segment.value - size)
        if self._shipping.stored_end(begin.timeline, before) != begin.segment:
            return None
        return Begin(timeline=begin.timeline, segment=before, stored=begin.segment)

    def _require_written(self, begin: Begin) -> None:
        """Refuse a primary that has not written what is stored: it was set back, or is a copy of the one that did.

        A server never streams what it has not flushed. (A standby may be behind the primary that was streamed before.)
        """
        if begin.timeline != self._identity.timeline or begin.stored <= self._identity.flushed:
            return
        now = self._connection.identify()  # another receiver may have stored more since it was asked
        if now.in_recovery is not True and begin.stored > now.flushed:
            raise WrongTimelineError(
                f"the repository has WAL up to {begin.stored} (timeline {begin.timeline}), which this server never"
                f" wrote: it is at {now.flushed}, so it was set back, or is a copy"
            )

    def _ancestors(self) -> Sequence[HistoryEntry]:
        """Return the server's own history, and store it if it is new."""
        timeline = self._identity.timeline
        if not self._identity.in_recovery and self._shipping.knows_timeline(Timeline(timeline + 1)):
            raise old_primary(timeline)
        return () if timeline == 1 else store_history(self._connection, self._shipping, timeline)

    def _restart(self) -> Lsn | None:
        """Return from where the slot keeps WAL, ``None`` if there is none that keeps any; a lost one is dropped."""
        restart, is_there = self._ask()
        if is_there and restart is None:
            telemetry.error("the replication slot is lost; it is made anew", slot=self._slot)
            self._connection.drop_slot(self._slot)
        return restart

    def _ask(self) -> tuple[Lsn | None, bool]:
        try:
            with connect(self._dsn, application_name=self._slot) as session:
                facts = slot_facts(session, self._slot)
        except (PostgresUnreachableError, SlotBusyError):
            raise
        except DrError:
            if self._connection.server_version < 150000:
                raise
            position = self._connection.slot(self._slot)  # a role that may only replicate
            return (None, False) if position is None else (position.restart_lsn, True)
        if facts is None:
            return None, False
        if facts.reader_pid is not None:  # the slot is not active then, and would be taken from its receiver
            raise SlotBusyError(
                f"a receiver on the server's host reads the WAL that the slot {self._slot} keeps"
                f" (its session is process {facts.reader_pid})"
            )
        return (None if facts.status is SlotStatus.LOST else facts.restart_lsn), True

    def _last_stored(self, path: Sequence[TimelineSpan]) -> Begin | None:
        """Return where the repository's WAL of this history ends; ``None``: it has none."""
        for span in reversed(path):
            end = self._shipping.archived_end(span.timeline)
            if end is None:
                continue
            if span.end is not None and end >= span.end:
                return self._at(path, span.end)
            return self._at(path, end)
        return None

    def _at(self, path: Sequence[TimelineSpan], position: Lsn) -> Begin:
        """Return how to begin with the segment of a position, behind what is stored as a whole and on its timeline."""
        size = self._identity.wal_segment_bytes
        while True:
            span = next(span for span in reversed(path) if span.begin <= position)
            segment = segment_begin(position.segment_number(size), size)
            stored = self._shipping.stored_end(span.timeline, segment)
            if span.end is not None and stored >= span.end:
                position = span.end  # the next timeline repeats the begin of this segment under its own name
            elif stored < segment + size:
                return Begin(timeline=span.timeline, segment=segment, stored=stored)
            else:
                position = stored


def store_history(connection: ReplicationConnection, shipping: Shipping, timeline: Timeline) -> Sequence[HistoryEntry]:
    """Store the history of a timeline as the server has it, and return its lines.

    Raises:
        StreamError: it has none, or it is none.
        SegmentConflictError: another history of this timeline is stored.
    """
    content = connection.history(timeline)
    shipping.put_history(timeline, content)
    try:
        return parse_history(content.decode("utf-8", "replace"))
    except ValueError as error:
        raise StreamError(f"the server's history of timeline {timeline} is none: {error}") from error
