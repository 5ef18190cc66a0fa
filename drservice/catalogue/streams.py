"""What hosts tell of the processes that stream as long as they live: receivers of WAL, captures of documents.

A row for each component, renewed every few seconds; how old it is says whether its host still tells. Where several
hosts try the same work, the one that does it has the row. This is live state: no rebuild brings it back, its hosts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from sqlalchemy import DateTime, delete, func, or_, tuple_
from sqlalchemy.dialects.postgresql import insert

from drservice.catalogue.database import Database
from drservice.catalogue.tables import DocumentStream, StreamRow, WalStream

ABSENT = "absent"
"""State of what does not run although it is wanted."""
STREAMING = "streaming"
STARTING = "starting"
"""State of a capture that compares everything with what is stored."""
_NOW = func.drservice_now(type_=DateTime(timezone=True))
_SILENCE = timedelta(minutes=1)
"""A host that was silent for so long has no claim to its row any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldStream:
    """What a host tells of one process (``catalogue.tables.StreamRow`` explains the fields)."""

    KEPT: ClassVar[tuple[str, ...]] = ("durable_until",)
    """What stays as it was told before while a process that has just begun does not know it."""

    service: str
    component: str
    state: str
    durable_until: datetime | None = None
    seconds_at_risk: float | None = None
    problem: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldWal(ToldStream):
    """A receiver of WAL."""

    is_synchronous: bool
    timeline: int | None = None
    durable_lsn: int | None = None
    server_lsn: int | None = None
    bytes_at_risk: int | None = None
    slot_status: str | None = None
    safe_wal_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldDocuments(ToldStream):
    """A capture of documents."""

    KEPT: ClassVar[tuple[str, ...]] = ("durable_until", "missing", "corrupt", "in_database", "not_covered")

    pending: int | None = None
    missing: int | None = None
    corrupt: int | None = None
    in_database: int | None = None
    not_covered: int | None = None


def tell_wal(database: Database, host: str, found: Sequence[ToldWal]) -> None:
    """Replace what is known of a host's receivers by what it has now.

    Raises:
        CatalogueUnreachableError: the database does not answer.
    """
    _tell(database, WalStream, host, found)


def tell_documents(database: Database, host: str, found: Sequence[ToldDocuments]) -> None:
    """Replace what is known of a host's captures of documents by what it has now.

    Raises:
        CatalogueUnreachableError: the database does not answer.
    """
    _tell(database, DocumentStream, host, found)


def _tell(database: Database, table: type[StreamRow], host: str, found: Sequence[ToldStream]) -> None:
    with database.session() as session:
        kept = [(each.service, each.component) for each in found]
        mine = delete(table).where(table.host == host)
        session.execute(mine.where(tuple_(table.service, table.component).not_in(kept)) if kept else mine)
        for each in sorted(found, key=lambda each: (each.service, each.component)):
            values = {**asdict(each), "host": host, "told_at": _NOW}
            before = {name: getattr(table, name) for name in each.KEPT if values[name] is None}
            session.execute(
                insert(table)
                .values(**values)
                .on_conflict_do_update(
                    index_elements=[table.service, table.component],
                    set_={**values, **before},
                    where=or_(
                        table.host == host,
                        table.told_at < _NOW - _SILENCE,
                        (table.state != STREAMING) & (each.state == STREAMING),
                    ),
                )
            )
