"""Physical replication as the receiver of WAL: slot, stream, timelines, status (PostgreSQL documentation 55.4).

One connection in the simple protocol over psycopg's ``pq``. Nothing here blocks once a stream runs: the caller waits on
:meth:`ReplicationConnection.fileno` and asks for messages. Reported are written = flushed = what the caller calls
durable; applied stays invalid, and hot standby feedback is never sent (trap T26): nothing here may hold back vacuum.
"""

from __future__ import annotations

import re
import select
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import psycopg
from psycopg import pq
from psycopg.pq import abc

from drservice.components.postgres.connection import connection_parameters, translate_connect_error
from drservice.components.postgres.replication import SystemIdentity, parse_size
from drservice.components.postgres.server import require_supported
from drservice.errors import (
    DrError,
    PostgresError,
    PostgresUnreachableError,
    SlotBusyError,
    StreamError,
    WalRemovedError,
    WrongTimelineError,
)
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts microseconds from here."""
_WAL_HEAD = struct.Struct(">xQQq")
_KEEPALIVE = struct.Struct(">xQQB")
_STATUS = struct.Struct(">cQQQqB")
_WAL_DATA, _KEEPALIVE_WORD = ord("w"), ord("k")
_DURATION = re.compile(r"(\d+)(ms|s|min|h|d)?\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, None: 0.001}
_IN_USE = "55006"
_ANSWER_SECONDS = 10.0
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}\Z")

_REFUSALS: Sequence[tuple[str, str]] = (
    (
        r"wal_level",
        "Set wal_level = replica (or logical) in postgresql.conf and restart the server: a lower one keeps too little.",
    ),
    (
        r"all replication slots are in use|max_replication_slots",
        "Raise max_replication_slots and restart the server, or drop a slot nobody uses (see pg_replication_slots).",
    ),
    (
        r"permission denied|must be superuser or replication role",
        "ALTER ROLE ... REPLICATION for the role in the dsn.",
    ),
    (
        r"ahead of the WAL flush position|not in this server's history|is not a child of this server's history",
        WrongTimelineError.hint,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalData:
    """Bytes of the WAL; ``data`` belongs to the receiver."""

    start: Lsn
    data: memoryview
    server_end: Lsn
    """End of the server's WAL when it was sent."""
    server_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """The server is there; with ``wants_reply`` it asks for a status now."""

    server_end: Lsn
    """How far the server has sent."""
    server_time: datetime
    wants_reply: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEnded:
    """The timeline was left; the server went on with another at ``begin`` (trap T24)."""

    next_timeline: Timeline
    begin: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnded:
    """The server ended the stream in order: it shuts down and has heard that everything is durable."""


StreamMessage = WalData | Keepalive | TimelineEnded | StreamEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPosition:
    """A physical slot as the replication protocol shows it (version 15 and later)."""

    restart_lsn: Lsn | None
    """``None``: it reserves nothing; that of a slot which was used before is lost."""


class ReplicationConnection:
    """One physical replication connection; close it or use it in ``with``."""

    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session
        self._connection: abc.PGconn = session.pgconn
        self._ended: StreamMessage | None = None

    @classmethod
    def open(cls, dsn: str, *, application_name: str) -> Self:
        """Connect; waits for ``connect_timeout`` at most for each host of the dsn.

        Args:
            dsn: where to.
            application_name: replaces the dsn's: ``synchronous_standby_names`` goes by it.

        Raises:
            PostgresUnreachableError: no answer.
            PostgresError: refused (pg_hba.conf, password, REPLICATION, max_wal_senders), each with its hint.
        """
        parameters = connection_parameters(dsn, application_name)
        parameters |= {"replication": "true", "application_name": application_name}
        try:
            # Not pq's own connect(): it holds the interpreter while it waits.
            session = psycopg.connect(**parameters, autocommit=True)
        except psycopg.OperationalError as error:
            raise translate_connect_error(error) from error
        require_supported(session.info.server_version // 10000)
        return cls(session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server_version(self) -> int:
        """``server_version_num``, for example 150018."""
        return self._connection.server_version

    def fileno(self) -> int:
        """Return the socket to wait on.

        Raises:
            PostgresUnreachableError: the connection is closed.
        """
        try:
            return self._connection.socket
        except psycopg.OperationalError as error:
            raise PostgresUnreachableError("the connection broke before") from error

    def close(self) -> None:
        """Close the connection; the slot stays, and is free again."""
        self._session.close()

    # --- questions ------------------------------------------------------------------------------------------

    def identify(self) -> SystemIdentity:
        """Ask who the server is, where it is, and how large its segments are (trap T25).

        Raises:
            PostgresError, PostgresUnreachableError: no answer that makes sense.
        """
        system_id, timeline, flushed = self._row("IDENTIFY_SYSTEM", columns=3)
        (segment,) = self._row("SHOW wal_segment_size", columns=1)
        return SystemIdentity(
            system_id=SystemId(system_id),
            timeline=Timeline(int(timeline)),
            flushed=Lsn.parse(flushed),
            server_version=self.server_version,
            wal_segment_bytes=parse_size(segment),
            in_recovery=self._row("SHOW in_hot_standby", columns=1)[0] == "on"
            if self.server_version >= 140000
            else None,
        )

    def sender_timeout_seconds(self) -> float | None:
        """Return after how much silence the server gives a receiver up; ``None``: never."""
        (text,) = self._row("SHOW wal_sender_timeout", columns=1)
        found = _DURATION.match(text)
        if found is None:
            raise PostgresError(f"the server names a duration of {text!r}")
        return int(found[1]) * _SECONDS[found[2]] or None

    def history(self, timeline: Timeline) -> bytes:
        """Return the history file of a timeline, from the server itself.

        Raises:
            PostgresError: it has none.
        """
        result = self._command(f"TIMELINE_HISTORY {timeline}")
        content = result.get_value(0, 1) if result.ntuples == 1 and result.nfields == 2 else None
        if content is None:
            raise StreamError(f"the server has no history of timeline {timeline}")
        return content

    def slot(self, name: str) -> SlotPosition | None:
        """Return a physical slot, ``None`` if there is no slot of this name; for servers of version 15 and later.

        Raises:
            StreamError: the slot is a logical one.
        """
        result = self._command(f"READ_REPLICATION_SLOT {_slot(name)}")
        kind, restart = (result.get_value(0, column) for column in (0, 1)) if result.ntuples == 1 else (None, None)
        if kind is None:
            return None
        if kind != b"physical":
            raise _logical(name)
        return SlotPosition(restart_lsn=None if restart is None else Lsn.parse(restart.decode()))

    # --- slot and stream ------------------------------------------------------------------------------------

    def create_slot(self, name: str) -> None:
        """Make a physical slot that keeps WAL from now on, before anything is streamed (trap T22).

        Raises:
            PostgresError: refused, with its remedy.
        """
        self._command(f"CREATE_REPLICATION_SLOT {_slot(name)} PHYSICAL RESERVE_WAL")

    def drop_slot(self, name: str) -> None:
        """Drop a slot that nobody uses.

        Raises:
            SlotBusyError: somebody does.
            PostgresError: refused.
        """
        self._command(f"DROP_REPLICATION_SLOT {_slot(name)}")

    def start(self, *, slot: str, begin: Lsn, timeline: Timeline) -> None:
        """Begin to stream; from here on only :meth:`receive` and :meth:`report` are of use until the stream ends.

        Raises:
            SlotBusyError: another receiver has the slot.
            PostgresError: refused: the position is not in the server's history, the slot is lost or not there.
        """
        self._ended = None
        self._connection.nonblocking = 0
        command = f"START_REPLICATION SLOT {_slot(slot)} PHYSICAL {begin} TIMELINE {timeline}"
        result = self._connection.exec_(command.encode())
        if result.status == pq.ExecStatus.TUPLES_OK:  # the timeline ended at or before ``begin``
            self._ended = self._following(result)
            return
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._refusal(result)
        self._connection.nonblocking = 1

    def fill(self) -> None:
        """Take what has arrived off the socket; never waits.

        Raises:
            PostgresUnreachableError: the connection broke.
        """
        try:
            self._connection.consume_input()
        except psycopg.OperationalError as error:
            raise _broken(error) from error

    def receive(self) -> StreamMessage | None:
        """Return the next message that has arrived, ``None`` if there is none.

        Raises:
            WalRemovedError: the server has no longer what was asked for.
            PostgresError, PostgresUnreachableError: the stream ended with an error.
        """
        if self._ended is not None:
            return self._ended
        try:
            length, message = self._connection.get_copy_data(1)
        except psycopg.OperationalError as error:
            raise self._removed(str(error)) or _broken(error) from error
        if length == 0:
            return None
        if length < 0:
            self._ended = self._end()
            return self._ended
        return _parse(message)

    def report(self, durable: Lsn | None, *, now: datetime, ask: bool) -> None:
        """Tell the server that everything before ``durable`` is written and flushed; ``ask`` for an answer.

        The slot is set to it, backward as well. ``None``: no position, only that the receiver lives.

        Raises:
            PostgresUnreachableError: the connection broke.
        """
        micros = (now - _EPOCH) // timedelta(microseconds=1)
        position = 0 if durable is None else durable.value
        try:
            self._connection.put_copy_data(_STATUS.pack(b"r", position, position, 0, micros, ask))
            self._connection.flush()
        except psycopg.OperationalError as error:
            raise _broken(error) from error

    def _end(self) -> StreamMessage:
        """Answer the end of the stream with ours and return what the server says it is."""
        try:
            result = self._result()
            if result is not None and result.status in {pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH}:
                self._connection.put_copy_end()
                self._connection.flush()
                result = self._result()
        except psycopg.OperationalError as error:
            raise _broken(error) from error
        if result is None:
            raise PostgresUnreachableError("the stream ended without a word of the server")
        if result.status == pq.ExecStatus.TUPLES_OK:
            return self._following(result)
        if result.status == pq.ExecStatus.COMMAND_OK:
            return StreamEnded()
        raise self._refusal(result)

    def _following(self, result: abc.PGresult) -> TimelineEnded:
        timeline, begin = (result.get_value(0, column) for column in (0, 1)) if result.ntuples == 1 else (None, None)
        if timeline is None or begin is None:
            raise StreamError("the server ended the timeline and did not say how it goes on")
        while self._result() is not None:
            pass  # the words that end the command
        return TimelineEnded(next_timeline=Timeline(int(timeline)), begin=Lsn.parse(begin.decode()))

    def _result(self) -> abc.PGresult | None:
        """Return the next result; pq's own waiting would hold the interpreter, and with it every upload."""
        waiting = select.poll()
        waiting.register(self._connection.socket, select.POLLIN)
        while self._connection.is_busy():
            if not waiting.poll(_ANSWER_SECONDS * 1000):
                raise PostgresUnreachableError("the server does not say how the stream ended")
            self._connection.consume_input()
        return self._connection.get_result()

    # --- commands -------------------------------------------------------------------------------------------

    def _row(self, command: str, *, columns: int) -> tuple[str, ...]:
        result = self._command(command)
        values = [result.get_value(0, column) for column in range(columns)] if result.ntuples == 1 else []
        if len(values) != columns or None in values:
            raise PostgresError(f"the server answered {command} with something else")
        return tuple(value.decode("ascii") for value in values if value is not None)

    def _command(self, command: str) -> abc.PGresult:
        result = self._connection.exec_(command.encode())
        if result.status not in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
            raise self._refusal(result)
        return result

    def _refusal(self, result: abc.PGresult) -> DrError:
        text = " ".join((result.error_message or self._connection.error_message).decode("utf-8", "replace").split())
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode("ascii", "replace")
        if self._connection.status != pq.ConnStatus.OK or state.startswith(("08", "57P")):
            return PostgresUnreachableError(f"the connection broke: {text}")
        if state == _IN_USE:
            return SlotBusyError(text.removeprefix("ERROR: ").strip())
        removed = self._removed(text)
        if removed is not None:
            return removed
        for pattern, hint in _REFUSALS:
            if re.search(pattern, text):
                return StreamError(f"the server does not stream: {text}", hint=hint)
        return StreamError(f"the server does not stream: {text}")

    @staticmethod
    def _removed(text: str) -> WalRemovedError | None:
        if "has already been removed" not in text:
            return None
        return WalRemovedError(" ".join(text.split()))


def is_shutting_down(error: BaseException) -> bool:
    """Tell whether a failed connection says that the server is going down in order."""
    return "shutting down" in str(error) or "57P01" in str(error) or "administrator command" in str(error)


def _parse(message: memoryview) -> StreamMessage:
    word = message[0] if message else 0
    if word == _WAL_DATA and len(message) >= _WAL_HEAD.size:
        start, end, micros = _WAL_HEAD.unpack_from(message)
        return WalData(
            start=Lsn(start), data=message[_WAL_HEAD.size :], server_end=Lsn(end), server_time=_instant(micros)
        )
    if word == _KEEPALIVE_WORD and len(message) >= _KEEPALIVE.size:
        end, micros, wants_reply = _KEEPALIVE.unpack_from(message)
        return Keepalive(server_end=Lsn(end), server_time=_instant(micros), wants_reply=bool(wants_reply))
    raise StreamError(f"the server sent a message that begins with {bytes(message[:1])!r} and has {len(message)} bytes")


def _instant(micros: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError as error:
        raise StreamError(f"the server's clock shows {micros} microseconds after 2000") from error


def _slot(name: str) -> str:
    if not _SLOT_NAME.match(name):
        raise StreamError(f"{name!r} cannot be the name of a slot")
    return name


def _logical(name: str) -> StreamError:
    return StreamError(
        f"the replication slot {name} is a logical one",
        hint="Drop or rename what took the name; see pg_replication_slots.",
    )


def _broken(error: psycopg.OperationalError) -> PostgresUnreachableError:
    return PostgresUnreachableError(f"the connection broke: {' '.join(str(error).split())}")
