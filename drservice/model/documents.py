"""Documents as an append-only set, and up to where they are known to be with the rows that refer to them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.model.ids import KeyId, SystemId
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import Lsn, Timeline, TimelineSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPosition:
    """Where a database stood, and what its clock said, before its rows were asked which documents they refer to."""

    system_id: SystemId
    timeline: Timeline
    lsn: Lsn
    server_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPart:
    """Bytes of a document: all of them, or those of one that is too big for a set, from ``offset`` on."""

    name: str
    """As rows have it: ``xx/<sha1>``."""
    size: int
    """Of the whole document."""
    offset: int
    data: bytes

    @property
    def is_whole(self) -> bool:
        """Whether these are all bytes of the document."""
        return self.offset == 0 and len(self.data) == self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSet:
    """A set of documents, as its public header has it."""

    id: str
    key: str
    position: DocumentPosition
    documents: int
    """How many documents and parts of documents are in it."""
    plain_bytes: int
    key_id: KeyId
    previous: str | None
    """The set before it in its run."""
    is_whole: bool
    """Every document that rows visible at its position refer to is in a set or a pass, or is named as lost there."""
    stored_bytes: int
    stored_at: datetime
    """By the store's clock."""

    @property
    def looked_at(self) -> datetime:
        """When its position was read: as the server's clock said, and never later than the store received it."""
        return min(self.position.server_time, self.stored_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """How far documents follow the rows of a recovered database."""

    newest: datetime | None
    """When the newest position was read at or before which every row's document is stored; ``None``: never."""
    by: str | None
    """The set or the pass that says so."""
    behind_seconds: float
    """How much older than the recovered rows that is; 0: the documents are as new as the rows, or there is none."""


def nearest_sets(sets: Sequence[StoredSet], instant: datetime | None) -> tuple[StoredSet, ...]:
    """Return in which order sets are looked into for the documents of an instant, the nearest first.

    ``None`` stands for the latest position. It is an order and no choice: a document is named by its content, so a copy
    is right wherever it lies.
    """
    if instant is None:
        return tuple(sorted(sets, key=lambda item: (item.position.server_time, item.id), reverse=True))
    return tuple(sorted(sets, key=lambda item: (abs(item.position.server_time - instant), item.id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAt:
    """Which position of which history a recovered database shows."""

    system_id: SystemId
    timeline: Timeline
    lsn: Lsn
    instant: datetime
    """Of the last commit in it, by the clock of the server."""


def covered_at(records: Sequence[SnapshotRecord], sets: Sequence[StoredSet], rows: RowsAt) -> Covered:
    """Return up to where the documents of a recovered database are known.

    A row that was committed behind the newest position at which anybody looked may refer to a document that nobody has
    taken. What was looked at is a whole set (its position) or a pass over all files (its beginning). A set of another
    cluster says nothing of these rows, nor does one of a branch that they are not on: a newer timeline than theirs, or
    a later position of an older one.

    Args:
        records: passes over the filestore.
        sets: of documents.
        rows: what the database shows.
    """
    looks: list[tuple[datetime, str]] = []
    for item in sets:
        if not item.is_whole:
            continue
        position = item.position
        if position.system_id != rows.system_id or position.timeline > rows.timeline:
            continue
        if position.timeline == rows.timeline and position.lsn >= rows.lsn:
            looks.append((max(item.looked_at, rows.instant), item.id))  # whatever a clock said that was set meanwhile
        elif position.lsn <= rows.lsn:
            looks.append((item.looked_at, item.id))
    looks += [(record.documents.walk_began_at, record.id) for record in records if _tells_all(record)]
    if not looks:
        return Covered(newest=None, by=None, behind_seconds=0.0)
    newest, by = max(looks)
    return Covered(newest=newest, by=by, behind_seconds=max(0.0, (rows.instant - newest).total_seconds()))


def _tells_all(record: SnapshotRecord) -> bool:
    """Tell whether a pass looked at everything: what it lacks, production lacked."""
    return record.state is not SnapshotState.PARTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A position of a history at which somebody found every document of its rows stored, or known to be lost."""

    timeline: Timeline
    lsn: Lsn
    at: datetime
    """When the position was read, as the server's clock said, and never later than the store knew of it."""
    by: str
    """The set or the pass that says so."""


def stands_on(timeline: Timeline, lsn: Lsn, path: Sequence[TimelineSpan]) -> bool:
    """Tell whether a position lies on a history, and not on a branch that it left."""
    return any(span.timeline == timeline and (span.end is None or lsn <= span.end) for span in path)


def newest_look(looks: Sequence[Look], path: Sequence[TimelineSpan]) -> Look | None:
    """Return the look that leads furthest along a history; ``None``: nobody has looked at this one."""
    own = [look for look in looks if stands_on(look.timeline, look.lsn, path)]
    return max(own, key=lambda look: (look.lsn, look.at), default=None)
