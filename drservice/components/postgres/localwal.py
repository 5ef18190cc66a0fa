"""WAL read from ``pg_wal`` on the server's own host, as far as the server says that it is flushed.

A WAL sender is woken by every flush and copies what it sends through a socket: under load that costs a server's
processors more than all that is done with the bytes behind it (docs/adr/0039-wal-from-the-disk.md). Here the server is
asked a few times a second how far it has flushed, and the files are read. The slot keeps what is read, and is moved
with the same question: it refuses while somebody else streams from it.

Nothing is believed that was not looked at: the session's own process works in this very directory, ``pg_control`` is a
primary's, and each page says itself where it belongs, so that a file which was recycled is never taken for another.
"""

from __future__ import annotations

import os
import select
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import pq
from psycopg.pq import abc

from drservice.components.postgres.connection import connection_parameters, translate_connect_error
from drservice.components.postgres.controlfile import ClusterState, ControlFile, read_control_file
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.slots import reader_name
from drservice.components.postgres.streaming import Keepalive, WalData
from drservice.components.postgres.walrecords import record_end
from drservice.errors import DrError, FormatError, PostgresUnreachableError, SlotBusyError, StreamError
from drservice.model.wal import Lsn, segment_name

_CHUNK_BYTES = 1 << 20
_PAGE_PLACE = struct.Struct("<8xQ")
"""``xlp_pageaddr`` in the head of each page (access/xlog_internal.h)."""
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STARTED_LINE = 2
_STARTED_APART_SECONDS = 60.0
"""``postmaster.pid`` says when the process began, the server when it was ready to begin recovery."""
_IN_USE = b"55006"
_PROMPT_SECONDS = 0.05
_SETTLE_SECONDS = 1.0
_LEAVING_SECONDS = 5.0
"""How long a WAL sender whose connection was closed may have the slot."""
_MOVE = b", (select end_lsn from pg_catalog.pg_replication_slot_advance($1, $2::pg_lsn))"
_QUESTION = (
    # In this order: what was committed before the clock was read lies before the position.
    b"select (extract(epoch from clock_timestamp()) * 1000000)::bigint,"
    b" (pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint"
)


class WalFolder:
    """The ``pg_wal`` of one cluster on one timeline, as bytes by position; close it.

    Args:
        directory: the data directory.
        control: what its ``pg_control`` says.
    """

    def __init__(self, directory: Path, control: ControlFile) -> None:
        self._folder = directory / "pg_wal"
        self._timeline = control.timeline
        self._segment_bytes = control.wal_segment_bytes
        self._page_bytes = control.wal_block_bytes
        self._buffer = memoryview(bytearray(_CHUNK_BYTES + control.wal_block_bytes))
        self._number, self._file = -1, -1

    def read(self, begin: Lsn, end: Lsn) -> memoryview:
        """Return bytes from ``begin`` on, at least one and none of ``end`` or behind it; valid until the next call.

        Raises:
            PostgresUnreachableError: they are not there (any more), or of another position.
        """
        number = begin.segment_number(self._segment_bytes)
        offset = begin.value % self._segment_bytes
        page = offset - offset % self._page_bytes  # from its begin on, because that says where it belongs
        length = min(self._segment_bytes - offset, end.value - begin.value, _CHUNK_BYTES)
        view = self._buffer[: offset - page + length]
        try:
            got = os.preadv(self._open(number), [view], page)
        except OSError as error:
            raise self._lost(number, error.strerror or str(error)) from error
        if got != len(view):
            raise self._lost(number, f"it ends at {page + got} bytes")
        for place in range(0, len(view), self._page_bytes):
            if len(view) - place < _PAGE_PLACE.size:
                break  # a head that is not all here belongs to what is read next
            (said,) = _PAGE_PLACE.unpack_from(view, place)
            if said != number * self._segment_bytes + page + place:
                raise self._lost(number, f"the page at {page + place} is of {Lsn(said)}")
        return view[offset - page :]

    def close(self) -> None:
        """Close what is open."""
        if self._file >= 0:
            os.close(self._file)
        self._number, self._file = -1, -1

    def _open(self, number: int) -> int:
        if number != self._number:
            self.close()
            path = self._folder / segment_name(self._timeline, number, self._segment_bytes)
            self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            self._number = number
        return self._file

    def _lost(self, number: int, why: str) -> PostgresUnreachableError:
        self.close()
        name = segment_name(self._timeline, number, self._segment_bytes)
        return PostgresUnreachableError(f"{name} cannot be read from {self._folder}: {why}")


class LocalWal:
    """What a replication connection is for a receiver, for the primary on this host; close it.

    Args:
        session: with the server.
        folder: its WAL.
        slot: keeps what is read; nobody streams from it.
        begin: what is wanted first.
        least_seconds: from one question to the next, where none is wanted earlier.
    """

    def __init__(
        self, session: psycopg.Connection[Any], folder: WalFolder, *, slot: str, begin: Lsn, least_seconds: float
    ) -> None:
        self._session = session
        self._line: abc.PGconn = session.pgconn
        self._folder = folder
        self._slot = slot
        self._least_seconds = least_seconds
        self._position = self._end = begin
        self._server_time: datetime = _UNIX_EPOCH
        self._moved = self._wanted = Lsn(0)
        self._is_asking = self._is_news = False
        self._result: abc.PGresult | None = None
        self._opened_at = time.monotonic()
        self._asked_at = self._wanted_at = float("-inf")
        self._is_due = True
        self._last_words = ""
        session.add_notice_handler(self._hear)  # what ends an idle session comes as a notice
        self._line.nonblocking = 1

    @classmethod
    def open(
        cls, dsn: str, *, directory: Path, identity: SystemIdentity, slot: str, begin: Lsn, least_seconds: float
    ) -> Self:
        """Connect, and make sure that the server is a primary that works in this directory of this host.

        Raises:
            StreamError: it is another server, or this host cannot tell.
            PostgresUnreachableError, PostgresError: no session.
        """
        control = _control(directory, identity)
        parameters = connection_parameters(dsn, reader_name(slot)) | {"application_name": reader_name(slot)}
        try:
            session = psycopg.connect(**parameters, autocommit=True)
        except psycopg.OperationalError as error:
            raise translate_connect_error(error) from error
        try:
            _require_here(session, directory)
        except psycopg.Error as error:
            session.close()
            raise PostgresUnreachableError(f"the connection broke: {' '.join(str(error).split())}") from error
        except BaseException:
            session.close()
            raise
        return cls(session, WalFolder(directory, control), slot=slot, begin=begin, least_seconds=least_seconds)

    def fileno(self) -> int:
        """Return the socket to wait on.

        Raises:
            PostgresUnreachableError: the connection is closed.
        """
        try:
            return self._line.socket
        except psycopg.OperationalError as error:
            raise self._broken(str(error)) from error

    def want(self, at: float) -> None:
        """Say when flushed WAL will be of use, by ``time.monotonic``: it is asked for then, and not later."""
        self._wanted_at = at

    def wait_seconds(self) -> float | None:
        """Return until when nothing is to be done but to wait for an answer; ``None``: one is waited for."""
        if self._is_asking:
            return None
        if self._is_due or self._wanted > self._moved:
            return 0.0
        at = self._wanted_at if self._is_owed else self._asked_at + self._least_seconds
        return max(0.0, at - time.monotonic())

    @property
    def _is_owed(self) -> bool:
        return self._asked_at < self._wanted_at

    @property
    def is_behind(self) -> bool:
        """Whether what is wanted was not asked for yet, or the answer is to be expected at any moment.

        A server that does not answer keeps nobody waiting with what is here.
        """
        return time.monotonic() - self._asked_at < _PROMPT_SECONDS if self._is_asking else self._is_owed

    def fill(self) -> None:
        """Ask the server if that is due, and take its answer if it is here; never waits.

        Raises:
            PostgresUnreachableError: the connection broke.
            SlotBusyError: somebody streams from the slot by now.
            StreamError: the server refuses.
        """
        try:
            if not self._is_asking and self.wait_seconds() == 0.0:
                self._ask()
            self._line.flush()
            self._line.consume_input()
            while not self._line.is_busy() and self._is_asking:
                if (result := self._line.get_result()) is None:
                    self._is_asking = False
                else:
                    self._result = result
        except psycopg.OperationalError as error:
            raise self._broken(str(error)) from error
        if self._is_asking or self._result is None:
            return
        result, self._result = self._result, None
        if result.error_field(pq.DiagnosticField.SQLSTATE) == _IN_USE and self._is_new:
            self._moved = self._wanted  # the WAL sender that was ours is leaving: with the next position, then
            return
        self._take(result)

    @property
    def _is_new(self) -> bool:
        return time.monotonic() - self._opened_at < _LEAVING_SECONDS

    def receive(self) -> WalData | Keepalive | None:
        """Return the next flushed bytes, or what the server's last answer said; ``None``: nothing is new.

        Raises:
            PostgresUnreachableError: what is flushed cannot be read.
        """
        if self._position < self._end:
            data = self._folder.read(self._position, self._end)
            start, self._position = self._position, self._position + len(data)
            self._is_news = False
            return WalData(start=start, data=data, server_end=self._end, server_time=self._server_time)
        if not self._is_news:
            return None
        self._is_news = False
        return Keepalive(server_end=self._end, server_time=self._server_time, wants_reply=False)

    def report(self, durable: Lsn | None, *, now: datetime, ask: bool) -> None:
        """Move the slot to ``durable`` with a question, unless one is open; ``ask`` one without a position, too.

        Raises:
            As :meth:`fill`.
        """
        del now
        if durable is not None and durable > self._wanted:
            self._wanted = durable
        self._is_due |= ask
        self.fill()

    def settle(self) -> None:
        """Wait a moment for the slot to be where it was reported to: this receiver ends.

        Raises:
            As :meth:`fill`.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (self._is_asking or self._wanted > self._moved) and time.monotonic() < deadline:
            self.fill()
            if self._is_asking:
                select.select([self.fileno()], [], [], _PROMPT_SECONDS)

    def close(self) -> None:
        """Close session and files; the slot stays where it is."""
        self._folder.close()
        self._session.close()

    def _ask(self) -> None:
        self._asked_at, self._is_due = time.monotonic(), False
        if self._wanted > self._moved:
            values = [self._slot.encode(), str(self._wanted).encode()]
            self._line.send_query_params(_QUESTION + _MOVE, values)
            self._moved = self._wanted
        else:
            self._line.send_query_params(_QUESTION, None)
        self._is_asking = True

    def _take(self, result: abc.PGresult) -> None:
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples != 1:
            raise self._refusal(result)
        micros, end = (result.get_value(0, column) for column in (0, 1))
        if micros is None or end is None:
            raise StreamError("the server does not say how far its WAL is flushed")
        self._server_time = _UNIX_EPOCH + timedelta(microseconds=int(micros))
        self._end = max(self._end, Lsn(int(end)))
        self._is_news = True

    def _refusal(self, result: abc.PGresult) -> DrError:
        said = " ".join(result.error_message.decode("utf-8", "replace").split()).removeprefix("ERROR: ").strip()
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
        if self._line.status != pq.ConnStatus.OK or state.startswith((b"08", b"57P")):
            return self._broken(said)
        if state == _IN_USE:
            return SlotBusyError(said)
        return StreamError(f"the server does not say how far its WAL is flushed: {said}")

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if (notice.severity_nonlocalized or "") in {"FATAL", "PANIC"}:
            self._last_words = notice.message_primary or ""

    def _broken(self, text: str) -> PostgresUnreachableError:
        words = f"{self._last_words}; " if self._last_words and self._last_words not in text else ""
        return PostgresUnreachableError(f"the connection broke: {words}{' '.join(text.split())}")


def end_after_shutdown(directory: Path, identity: SystemIdentity) -> tuple[Lsn, WalFolder] | None:
    """Return where the WAL of a primary ends that was shut down in order, and its files; ``None``: it was not.

    Raises:
        DrError: that cannot be told: another cluster, or a file that is unreadable.
    """
    control = read_control_file(directory)
    if control.system_id != identity.system_id or control.timeline != identity.timeline:
        raise StreamError(f"{directory} is of another cluster, or on another timeline, by now")
    if control.state is not ClusterState.SHUT_DOWN:
        return None
    folder, page = WalFolder(directory, control), control.wal_block_bytes
    begin = control.checkpoint.value % page
    head = Lsn(control.checkpoint.value - begin)
    try:
        for pages in (1, 2):  # the page behind the last one was never written
            length = record_end(folder.read(head, head + pages * page), begin, page)
            if length is not None:
                return head + length, folder
    except BaseException:
        folder.close()
        raise
    folder.close()
    raise FormatError(f"the last checkpoint of {directory} is not a whole record of its segment")


def _control(directory: Path, identity: SystemIdentity) -> ControlFile:
    try:
        control = read_control_file(directory)
    except OSError as error:
        raise StreamError(f"pg_control of {directory} cannot be read: {error.strerror}") from error
    said = (control.system_id, control.timeline, control.wal_segment_bytes, control.state)
    own = (identity.system_id, identity.timeline, identity.wal_segment_bytes, ClusterState.IN_PRODUCTION)
    if said != own:
        raise StreamError(f"{directory} is not of the primary that the dsn leads to")
    return control


def _require_here(session: psycopg.Connection[Any], directory: Path) -> None:
    """Make sure that the session's own process works in ``directory`` on this host.

    A process of this number might be another server's on a host that has a copy: its start is compared as well, and
    ``pg_control`` said that the directory is a primary's.
    """
    row = session.execute(
        "select pg_backend_pid(), pg_is_in_recovery(), extract(epoch from pg_postmaster_start_time())::float8"
    ).fetchone()
    assert row is not None, "a query without a table has a row"
    pid, in_recovery, started = row
    if in_recovery:
        raise StreamError("the server is a standby")
    try:
        place, own = Path(f"/proc/{pid}/cwd").stat(), directory.stat()
        lines = (directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        began = float(lines[_STARTED_LINE])
    except (OSError, ValueError, IndexError) as error:
        raise StreamError(f"whether the server works in {directory} cannot be told here: {error}") from error
    if (place.st_dev, place.st_ino) != (own.st_dev, own.st_ino) or abs(began - started) > _STARTED_APART_SECONDS:
        raise StreamError(f"the server does not work in {directory} on this host")
