"""What a server says about a physical replication slot and about who waits for it, asked over SQL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from drservice.components.postgres.connection import Session
from drservice.errors import StreamError
from drservice.model.wal import Lsn


class SlotStatus(Enum):
    """``pg_replication_slots.wal_status`` (PostgreSQL documentation 54.19)."""

    RESERVED = "reserved"
    """The WAL it needs is within ``max_wal_size``."""
    EXTENDED = "extended"
    """More than that is kept for it."""
    UNRESERVED = "unreserved"
    """The next checkpoint may remove what it needs."""
    LOST = "lost"
    """What it needs is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """A physical slot."""

    restart_lsn: Lsn | None
    status: SlotStatus | None
    """``None``: it never reserved anything."""
    safe_bytes: int | None
    """How much more WAL may be written before it may be lost; ``None``: without a limit, or lost."""
    active_pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFacts:
    """What makes the server wait for, or keep things for, a receiver."""

    slot: SlotFacts | None
    limit_bytes: int | None
    """``max_slot_wal_keep_size``; ``None``: no limit."""
    synchronous_commit: str
    is_synchronous: bool
    """The receiver is a synchronous standby now, or would be if another one left."""
    in_recovery: bool | None = None
    """Whether the server is a standby; ``None``: not asked."""


def slot_facts(session: Session, name: str) -> SlotFacts | None:
    """Return a slot, ``None`` if there is none of this name.

    Raises:
        StreamError: it is a logical one.
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    rows = session.rows(
        "select slot_type, restart_lsn::text, wal_status, safe_wal_size, active_pid from pg_replication_slots"
        " where slot_name = %s",
        (name,),
    )
    if not rows:
        return None
    ((kind, restart, status, safe, active),) = rows
    if kind != "physical":
        raise StreamError(
            f"the replication slot {name} is a {kind} one", hint="Drop or rename what took the name of the receiver's."
        )
    return SlotFacts(
        restart_lsn=None if restart is None else Lsn.parse(restart),
        status=None if status is None else SlotStatus(status),
        safe_bytes=None if safe is None else int(safe),
        active_pid=active,
    )


def waiting_facts(session: Session, name: str) -> WaitingFacts:
    """Return what the server keeps for a receiver of this name (slot and ``application_name``), and who waits for it.

    Raises:
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    limit, commit, in_recovery = session.row(
        "select (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'),"
        " current_setting('synchronous_commit'), pg_is_in_recovery()"
    )
    states = session.rows("select sync_state from pg_stat_replication where application_name = %s", (name,))
    return WaitingFacts(
        slot=slot_facts(session, name),
        limit_bytes=None if limit < 0 else int(limit) << 20,
        synchronous_commit=str(commit),
        is_synchronous=any(state in {"sync", "quorum", "potential"} for (state,) in states),
        in_recovery=bool(in_recovery),
    )
