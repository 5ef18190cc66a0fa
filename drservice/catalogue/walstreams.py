"""Receivers of WAL, as their hosts last told: a row for each cluster that is streamed, renewed every few seconds.

How old a row is says whether its host still tells. Where several hosts try to receive the same WAL, the one that does
has the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, delete, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from drservice.catalogue.database import Database
from drservice.catalogue.tables import WalHole, WalStream

ABSENT = "absent"
"""State of a receiver that does not run."""
STREAMING = "streaming"
_NOW = func.drservice_now(type_=DateTime(timezone=True))
_SILENCE = timedelta(minutes=1)
"""A host that was silent for so long has no claim to its row any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldStream:
    """What a host tells of one receiver (``catalogue.tables.WalStream`` explains the fields)."""

    service: str
    component: str
    state: str
    is_synchronous: bool
    timeline: int | None = None
    durable_lsn: int | None = None
    server_lsn: int | None = None
    durable_until: datetime | None = None
    seconds_at_risk: float | None = None
    bytes_at_risk: int | None = None
    slot_status: str | None = None
    safe_wal_bytes: int | None = None
    problem: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo(ToldStream):
    """A receiver as its host last told."""

    host: str
    told_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HoleInfo:
    """A hole in the archived WAL of a cluster (``catalogue.tables.WalHole`` explains the fields)."""

    component: str
    timeline: int
    from_lsn: int
    to_lsn: int
    first_segment: str
    segments: int
    is_open: bool
    cost: str


class WalStreams:
    """What a catalogue knows of the WAL beside the stretches that can be reached.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell(self, host: str, found: Sequence[ToldStream]) -> None:
        """Replace what is known of a host's receivers by what it has now."""
        with self._database.session() as session:
            kept = [(each.service, each.component) for each in found]
            mine = delete(WalStream).where(WalStream.host == host)
            session.execute(mine.where(tuple_(WalStream.service, WalStream.component).not_in(kept)) if kept else mine)
            for each in sorted(found, key=lambda each: (each.service, each.component)):
                values = {**asdict(each), "host": host, "told_at": _NOW}
                session.execute(
                    insert(WalStream)
                    .values(**values)
                    .on_conflict_do_update(
                        index_elements=[WalStream.service, WalStream.component],
                        set_=values,
                        where=or_(
                            WalStream.host == host,
                            WalStream.told_at < _NOW - _SILENCE,
                            (WalStream.state != STREAMING) & (each.state == STREAMING),
                        ),
                    )
                )

    def streams(self, service: str) -> Sequence[StreamInfo]:
        """Return the receivers of a service."""
        query = select(WalStream).where(WalStream.service == service).order_by(WalStream.component)
        with self._database.session() as session:
            return [
                StreamInfo(**{name: getattr(row, name) for name in StreamInfo.__dataclass_fields__})
                for row in session.scalars(query)
            ]

    def holes(self, service: str) -> Sequence[HoleInfo]:
        """Return the holes in the WAL of a service, by cluster and position."""
        query = select(WalHole).where(WalHole.service == service)
        query = query.order_by(WalHole.component, WalHole.timeline, WalHole.from_lsn)
        with self._database.session() as session:
            return [
                HoleInfo(**{name: getattr(row, name) for name in HoleInfo.__dataclass_fields__})
                for row in session.scalars(query)
            ]
