"""The tables of the catalogue.

Snapshots, points, windows of WAL and records can be filled again from the repository (``rebuild``). Accounts, tokens,
the access log, the queue of runs with their events and what waits to be told are here only; what runs have achieved
is in the records. Times are written by the database (``drservice_now()``) or come from the repository; hosts' clocks
decide nothing. Free-form parts are JSON documents whose shape the writer's module describes.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Computed,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Document = dict[str, Any]
"""A JSON object."""
NOW = text("drservice_now()")
"""The catalogue's clock: the database's, or what a test or a simulation puts in its place."""


def storable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a text or JSON value as PostgreSQL can hold it.

    It has no place for U+0000 and for half a surrogate pair, and names from hosts and questions from browsers may hold
    either: each becomes U+FFFD. What is signed is in the repository as it was.
    """
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {storable(name): storable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    return value


class StorableText(TypeDecorator[str]):
    """Text that the database never refuses (:func:`storable`)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return what is sent to the database."""
        del dialect
        return None if value is None else storable(value)


class StorableDocument(TypeDecorator[Any]):
    """JSON that the database never refuses; ``None`` is NULL, not JSON's null."""

    impl = JSONB(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401 - any JSON value
        """Return what is sent to the database."""
        del dialect
        return storable(value)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:  # noqa: ANN401 - SQLAlchemy's signature
        """Compare parts of a document as JSONB does."""
        return self.impl_instance.coerce_compared_value(op, value)


def _number_in(name: str) -> str:
    """Return what reads a number of a predicate, and nothing where it holds something else under that name.

    Written as PostgreSQL shows it again, so that schema and declaration can be compared.
    """
    return (
        f"CASE WHEN jsonb_typeof(predicate -> '{name}'::text) = 'number'::text"
        f" THEN (predicate ->> '{name}'::text)::numeric ELSE NULL::numeric END"
    )


_EXCEPTION = """CASE kind
    WHEN 'drill'::text THEN CASE WHEN jsonb_typeof(predicate -> 'mutation'::text) = 'string'::text
        THEN COALESCE(outcome, ''::text) <> 'failed'::text ELSE COALESCE(outcome, ''::text) <> 'passed'::text END
    WHEN 'backup'::text THEN COALESCE(outcome, ''::text) <> 'complete'::text
    WHEN 'restore'::text THEN COALESCE(outcome, ''::text) <> 'restored'::text
    WHEN 'probe'::text THEN COALESCE(outcome, ''::text) <> 'passed'::text
    WHEN 'retention'::text THEN COALESCE(outcome, ''::text) <> ALL (ARRAY['applied'::text, 'marked'::text])
    WHEN 'approval'::text THEN COALESCE(predicate ->> 'decision'::text, ''::text) <> 'approved'::text
    ELSE kind = ANY (ARRAY['missed'::text, 'failure'::text]) END"""
"""Which records say that something is not as promised, written as PostgreSQL shows it again."""


class Base(DeclarativeBase):
    """The declarations."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: StorableText,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        Document: StorableDocument,
        list[str]: StorableDocument,
    }


class Host(Base):
    """A machine with a ``drservice node``: who it is now, and when it was last seen."""

    __tablename__ = "host"

    name: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    """Of the process that holds the name; another process with the name is refused while this one is seen."""
    version: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    seen_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Run(Base):
    """One execution of an operation (states: ``model.runs``)."""

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("service", "kind", "plan", "scheduled_for"),
        Index(None, "service", "id"),
        Index(None, "kind", "id"),
        Index(None, "state", "lease_until"),
        Index(None, "state", "id"),
        Index(
            "run_done_idx",
            "service",
            "kind",
            "plan",
            "ended_at",
            postgresql_where=text("state IN ('succeeded', 'partial')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """ULID."""
    service: Mapped[str]
    kind: Mapped[str]
    plan: Mapped[str] = mapped_column(default="")
    """Name of a drill plan, or empty."""
    scheduled_for: Mapped[datetime | None]
    """The slot; ``None`` for a run that somebody asked for. No slot is run twice."""
    state: Mapped[str]
    host: Mapped[str | None]
    """Who may run it: a host, or anybody (``None``)."""
    requested_by: Mapped[str]
    requested_at: Mapped[datetime] = mapped_column(server_default=NOW)
    parameters: Mapped[Document] = mapped_column(default=dict)
    epoch: Mapped[int] = mapped_column(default=0)
    """Counts claims; a write that names another epoch changes nothing."""
    claimed_by: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    cancel_requested_by: Mapped[str | None]
    """Who wants a running run to end; its host ends it, or the reaper if the host is gone."""
    progress: Mapped[Document] = mapped_column(default=dict)
    """{step, done, total, unit, rate, eta_seconds} of the present step."""
    result: Mapped[Document | None]
    error: Mapped[Document | None]
    """{code, message, hint, exit_status}."""
    caught_up_by: Mapped[str | None]
    """Of a missed slot: the run that was made for it."""


class Timetable(Base):
    """How far a schedule has been carried out (``catalogue.timetables``)."""

    __tablename__ = "timetable"

    service: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    plan: Mapped[str] = mapped_column(primary_key=True)
    settled_until: Mapped[datetime]
    """Every slot up to here is a run, or noted as missed."""


class RunEvent(Base):
    """What happened in a run, in order; the source of live pages."""

    __tablename__ = "run_event"

    run: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    epoch: Mapped[int]
    kind: Mapped[str]
    """state | step | progress | note."""
    data: Mapped[Document]


class Environment(Base):
    """A recovered system on a host, as that host last told (``catalogue.environments``)."""

    __tablename__ = "environment"
    __table_args__ = (Index(None, "service", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    service: Mapped[str]
    purpose: Mapped[str]
    state: Mapped[str]
    dsn: Mapped[str]
    """Reaches it from its host."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Snapshot(Base):
    """A snapshot in the repository."""

    __tablename__ = "snapshot"
    __table_args__ = (Index(None, "service", "component", "stopped_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    service: Mapped[str]
    component: Mapped[str]
    kind: Mapped[str]
    method: Mapped[str]
    state: Mapped[str]
    host: Mapped[str]
    started_at: Mapped[datetime]
    stopped_at: Mapped[datetime]
    source_bytes: Mapped[int]
    read_bytes: Mapped[int]
    stored_bytes: Mapped[int]
    files: Mapped[int]
    facts: Mapped[Document]
    """Of a cluster {system_id, timeline, start_lsn, stop_lsn, server_version, segment_bytes, block_bytes,
    data_checksums, bad_pages}; of files {walk_began_at, referred, missing, corrupt, foreign, vanished, unreadable,
    left_out}."""


class Point(Base):
    """A recovery point in the repository."""

    __tablename__ = "point"
    __table_args__ = (Index(None, "service", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    service: Mapped[str]
    created_at: Mapped[datetime]
    """The instant it stands for."""
    state: Mapped[str]
    members: Mapped[Document]
    """component -> {kind, snapshot, state, started_at, stopped_at, position: {system_id, timeline, lsn} | null}."""
    verified_at: Mapped[datetime | None]
    """When a drill last passed from it."""


class WalWindow(Base):
    """A stretch of WAL of a cluster without a gap."""

    __tablename__ = "wal_window"

    service: Mapped[str] = mapped_column(primary_key=True)
    component: Mapped[str] = mapped_column(primary_key=True)
    timeline: Mapped[int] = mapped_column(primary_key=True)
    from_lsn: Mapped[int] = mapped_column(primary_key=True)
    to_lsn: Mapped[int]
    from_time: Mapped[datetime | None]
    to_time: Mapped[datetime | None]


class WalHole(Base):
    """WAL of a cluster that is missing although snapshots need it (``model.continuity``)."""

    __tablename__ = "wal_hole"

    service: Mapped[str] = mapped_column(primary_key=True)
    component: Mapped[str] = mapped_column(primary_key=True)
    timeline: Mapped[int] = mapped_column(primary_key=True)
    from_lsn: Mapped[int] = mapped_column(primary_key=True)
    to_lsn: Mapped[int]
    first_segment: Mapped[str]
    segments: Mapped[int]
    is_open: Mapped[bool]
    """The latest position cannot be reached before there is a new snapshot."""
    cost: Mapped[str]
    """What it takes away, in words."""


class StreamRow(Base):
    """How a process that streams for as long as it lives was when its host last told."""

    __abstract__ = True

    service: Mapped[str] = mapped_column(primary_key=True)
    component: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    state: Mapped[str]
    durable_until: Mapped[datetime | None]
    """Nothing that was committed up to here is missing in the repository; by the database's clock."""
    seconds_at_risk: Mapped[float | None]
    """``None``: it does not say."""
    problem: Mapped[str | None]
    remedy: Mapped[str | None]
    told_at: Mapped[datetime] = mapped_column(server_default=NOW)


class WalStream(StreamRow):
    """The receiver of a cluster's WAL (``operations.streamstate``).

    Its states: connecting | streaming | stalled | failed | absent.
    """

    __tablename__ = "wal_stream"

    is_synchronous: Mapped[bool]
    timeline: Mapped[int | None]
    durable_lsn: Mapped[int | None]
    server_lsn: Mapped[int | None]
    bytes_at_risk: Mapped[int | None]
    slot_status: Mapped[str | None]
    safe_wal_bytes: Mapped[int | None]


class DocumentStream(StreamRow):
    """The capture of a filestore's documents (``operations.documentstate``).

    Its states: starting | streaming | stalled | absent.
    """

    __tablename__ = "document_stream"

    pending: Mapped[int | None]
    missing: Mapped[int | None]
    """In production, like ``corrupt``."""
    corrupt: Mapped[int | None]
    in_database: Mapped[int | None]
    not_covered: Mapped[int | None]


class Record(Base):
    """A record of the ledger."""

    __tablename__ = "record"
    __table_args__ = (
        Index(None, "service", "kind", "entry"),
        Index(None, "kind", "entry"),
        Index("record_event_idx", "event", postgresql_where=text("event IS NOT NULL")),
        Index("record_obligation_idx", "obligation", "kind", postgresql_where=text("obligation IS NOT NULL")),
        Index("record_exception_idx", "entry", postgresql_where=text("exception")),
    )

    entry: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    service: Mapped[str | None]
    host: Mapped[str]
    run: Mapped[str | None]
    recorded_at: Mapped[datetime]
    outcome: Mapped[str | None]
    predicate: Mapped[Document]
    sha256: Mapped[str]
    mutation: Mapped[str | None] = mapped_column(Computed("predicate ->> 'mutation'::text", persisted=True))
    """Of a drill that is meant to fail. This and the next two are read of many records at once, without documents."""
    rpo_ms: Mapped[Decimal | None] = mapped_column(Computed(_number_in("rpo_ms"), persisted=True))
    rto_ms: Mapped[Decimal | None] = mapped_column(Computed(_number_in("rto_ms"), persisted=True))
    event: Mapped[str | None] = mapped_column(Computed("predicate ->> 'event'::text", persisted=True))
    """What waited as a ``LedgerEvent``."""
    obligation: Mapped[str | None] = mapped_column(Computed("predicate ->> 'obligation'::text", persisted=True))
    """Of an obligation, and of the drill that answers it."""
    exception: Mapped[bool] = mapped_column(Computed(_EXCEPTION, persisted=True))
    """Whether it says that something is not as promised (docs/evidence.md)."""


class Account(Base):
    """A local user."""

    __tablename__ = "account"

    name: Mapped[str] = mapped_column(primary_key=True)
    password_hash: Mapped[str]
    """Argon2id, in its own notation."""
    roles: Mapped[list[str]]
    services: Mapped[list[str]]
    """Empty = all."""
    disabled: Mapped[bool] = mapped_column(default=False)
    failures: Mapped[int] = mapped_column(default=0)
    locked_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Token(Base):
    """An API token or a browser's session: only its hash is kept."""

    __tablename__ = "token"

    id: Mapped[str] = mapped_column(primary_key=True)
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    kind: Mapped[str]
    """api | session."""
    name: Mapped[str]
    account: Mapped[str]
    roles: Mapped[list[str]]
    services: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Access(Base):
    """A request that somebody made: the access log."""

    __tablename__ = "access"
    __table_args__ = (
        Index(None, "at"),
        Index(None, "day", "id"),
        Index("access_open_idx", "at", postgresql_where=text("day IS NULL")),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    account: Mapped[str | None]
    token: Mapped[str | None]
    address: Mapped[str]
    method: Mapped[str]
    route: Mapped[str]
    service: Mapped[str | None]
    status: Mapped[int]
    day: Mapped[str | None]
    """Whose digest has this line (``catalogue.accesslog``); ``None`` until that day is closed."""


class AccessDay(Base):
    """A closed day of the access log."""

    __tablename__ = "access_day"

    day: Mapped[str] = mapped_column(primary_key=True)
    """YYYY-MM-DD, in UTC."""
    event: Mapped[str]
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    sha256: Mapped[str]
    closed_at: Mapped[datetime]
    log: Mapped[str | None]
    """Under which name of a log its record stands in the ledger."""
    entry: Mapped[int | None]


class LedgerEvent(Base):
    """What happened in the catalogue and is to stand in the ledger (``catalogue.ledgeroutbox``)."""

    __tablename__ = "ledger_event"
    __table_args__ = (Index("ledger_event_open_idx", "number", postgresql_where=text("entry IS NULL")),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    event: Mapped[str] = mapped_column(unique=True)
    """ULID; in the record, too."""
    kind: Mapped[str]
    service: Mapped[str | None]
    run: Mapped[str | None]
    fields: Mapped[Document]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    entry: Mapped[int | None]
    written_at: Mapped[datetime | None]
    problem: Mapped[str | None]
    """Why it cannot be spelled as a record."""


class Answer(Base):
    """The answer to a request with an idempotency key."""

    __tablename__ = "answer"

    account: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int | None]
    """``None`` while the first request is being answered."""
    headers: Mapped[Document] = mapped_column(default=dict)
    body: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Duty(Base):
    """What one node at a time does for all (``catalogue.duties``)."""

    __tablename__ = "duty"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at: Mapped[datetime]


class Breach(Base):
    """A promise that does not hold, or a result that is overdue (``catalogue.breaches``)."""

    __tablename__ = "breach"

    service: Mapped[str] = mapped_column(primary_key=True)
    what: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """objective | overdue."""
    title: Mapped[str]
    since: Mapped[datetime]
    told_at: Mapped[datetime]
    told: Mapped[int]


class Message(Base):
    """What is to be told, to one place: the outbox."""

    __tablename__ = "message"
    __table_args__ = (Index(None, "delivered_at", "next_attempt_at"), UniqueConstraint("event", "place"))

    id: Mapped[str] = mapped_column(primary_key=True)
    event: Mapped[str]
    """Names the event once and for all: it is told to each place once."""
    place: Mapped[str]
    """Which entry of ``notify`` (never its URL, which is a secret)."""
    kind: Mapped[str]
    """failure | objective | overdue."""
    severity: Mapped[str]
    """business-critical | technical."""
    service: Mapped[str | None]
    title: Mapped[str]
    body: Mapped[str]
    next_command: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=NOW)
    delivered_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
