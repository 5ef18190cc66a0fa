"""What a server says about a physical replication slot and about who waits for it, asked over SQL."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from drservice.components.postgres.connection import Session
from drservice.errors import StreamError
from drservice.model.wal import Lsn

_LONGEST_NAME = 63


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
    """Of the process that serves its receiver: a WAL sender, or a session's."""
    reader_pid: int | None = None
    """Of the session of a receiver that reads the files itself (``localwal``)."""


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


def reader_name(slot: str) -> str:
    """Return the ``application_name`` of a receiver's session while it reads the files: the slot is not active then."""
    plain = f"{slot} reader"
    # The server shows 63 bytes, and the end of a long name tells it from others.
    return plain if len(plain) <= _LONGEST_NAME else f"{hashlib.sha256(slot.encode()).hexdigest()[:32]} reader"


def slot_facts(session: Session, name: str) -> SlotFacts | None:
    """Return a slot, ``None`` if there is none of this name.

    Raises:
        StreamError: it is a logical one.
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    rows = session.rows(
        "select slot_type, restart_lsn::text, wal_status, safe_wal_size, active_pid, (select min(pid)"
        " from pg_stat_activity where application_name = %s) from pg_replication_slots where slot_name = %s",
        (reader_name(name), name),
    )
    if not rows:
        return None
    ((kind, restart, status, safe, active, reader),) = rows
    if kind != "physical":
        raise StreamError(
            f"the replication slot {name} is a {kind} one", hint="Drop or rename what took the name of the receiver's."
        )
    return SlotFacts(
        restart_lsn=None if restart is None else Lsn.parse(restart),
        status=None if status is None else SlotStatus(status),
        safe_bytes=None if safe is None else int(safe),
        active_pid=reader if active is None else active,
        reader_pid=reader,
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
