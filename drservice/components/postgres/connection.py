"""Connections to a running server over SQL.

psycopg is imported here and in ``replication`` only; its errors leave as ours, with the likely cause. A
session never reconnects by itself: a backup belongs to the one session that began it (trap T1).
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors as pg_errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from drservice.errors import DrError, PostgresError, PostgresUnreachableError

_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
}
"""Values for what the dsn leaves open: a silent network is noticed within about a minute."""

_OPEN = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})
_COPYING = frozenset({ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH})
_REFUSALS: Sequence[tuple[str, str]] = (
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "Add a line for this user, database and address to pg_hba.conf of the server and reload it.",
    ),
    (
        r"password authentication failed|no password supplied|authentication failed for user",
        "Check user and password: a passfile (~/.pgpass of the user running this) or PGPASSFILE holds it.",
    ),
    (r"role .* does not exist", "Create the role, or correct user= in the dsn."),
    (r"database .* does not exist", "Correct dbname= in the dsn; any database will do for a backup."),
    (
        r"must be superuser or replication role|permission denied to start WAL sender",
        "ALTER ROLE ... REPLICATION for the role in the dsn.",
    ),
    (
        r"too many clients|remaining connection slots|number of requested standby connections",
        "Raise max_connections or max_wal_senders, or end idle connections.",
    ),
)


def connection_parameters(dsn: str, application_name: str, *, database: str | None = None) -> dict[str, Any]:
    """Return libpq parameters: the dsn's own, our defaults for what it leaves open; ``database`` replaces the dsn's.

    Raises:
        PostgresError: the dsn cannot be parsed.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise PostgresError(
            f"the dsn cannot be read: {str(error).strip()}",
            hint='Write it as libpq does: "host=db1 dbname=plant user=drservice".',
        ) from error
    named = {} if database is None else {"dbname": database}
    return {**_DEFAULTS, "application_name": application_name, **given, **named}


def translate_connect_error(error: psycopg.OperationalError) -> DrError:
    """Return our error for a failed connection attempt: refused by the server, or not reached at all."""
    text = " ".join(str(error).split())
    for pattern, hint in _REFUSALS:
        if re.search(pattern, text):
            return PostgresError(f"the PostgreSQL server refused the connection: {text}", hint=hint)
    return PostgresUnreachableError(f"no connection to the PostgreSQL server: {text}")


class Session:
    """One open connection in autocommit mode; close it or use it in ``with``."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server_version(self) -> int:
        """``server_version_num``, for example 150018."""
        return self._connection.info.server_version

    @property
    def major(self) -> int:
        """The major version."""
        return self.server_version // 10000

    @property
    def backend_pid(self) -> int:
        """The process that serves this session."""
        return self._connection.info.backend_pid

    @property
    def is_in_transaction(self) -> bool:
        """Whether a statement began a transaction that none has ended yet; one that failed counts too."""
        return self._connection.info.transaction_status in _OPEN

    def rows(self, query: LiteralString, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows (none for a command).

        Raises:
            PostgresUnreachableError: the connection broke.
            PostgresError: the server refused the statement; the hint names a missing privilege.
        """
        cursor = self._execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def _execute(
        self, query: LiteralString | bytes, parameters: Sequence[object] | None = None, *, prepare: bool | None = None
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, parameters, prepare=prepare)
        except pg_errors.InsufficientPrivilege as error:
            raise PostgresError(
                f"the role lacks a privilege: {_one_line(error)}",
                hint="`drservice check` lists the privileges a backup needs and prints the GRANT lines.",
            ) from error
        except psycopg.OperationalError as error:
            if self._connection.broken or self._connection.closed:
                raise PostgresUnreachableError(f"the connection broke: {_one_line(error)}") from error
            raise PostgresError(_one_line(error)) from error
        except psycopg.Error as error:
            raise PostgresError(_one_line(error)) from error

    def row(self, query: LiteralString, parameters: Sequence[object] | None = None) -> tuple[Any, ...]:
        """Run one statement that returns exactly one row.

        Raises:
            PostgresError: another number of rows; else as :meth:`rows`.
        """
        found = self.rows(query, parameters)
        if len(found) != 1:
            raise PostgresError(f"the server returned {len(found)} rows where one belongs")
        return found[0]

    def texts(self, query: str) -> list[tuple[str | None, ...]]:
        """Run exactly one statement, taken as it stands (``%`` is a letter), and return its rows as the server prints.

        Raises:
            PostgresError, PostgresUnreachableError: as :meth:`rows`; also for two statements in one text.
        """
        # A prepared statement is one statement: a second behind a semicolon is refused by the server.
        result = self._execute(query.encode(), prepare=True).pgresult
        if result is None:
            return []
        columns = range(result.nfields)
        cells = ([result.get_value(row, column) for column in columns] for row in range(result.ntuples))
        # Bytes that are no UTF-8 (a database in SQL_ASCII) are escaped, the same way each time.
        return [
            tuple(None if cell is None else cell.decode("utf-8", "backslashreplace") for cell in row) for row in cells
        ]

    def script(self, text: bytes, *, seconds: float) -> None:
        """Run the statements of a text of somebody else's as they stand; none after one that fails, no row is kept.

        All of it is one message: without a transaction of the caller's it is one by itself.

        Raises:
            PostgresUnreachableError: the connection broke, or the text was not through in time: the session is over.
            PostgresError: the server refused a statement, or one wants to copy to or from here.
        """
        deadline = time.monotonic() + seconds
        line = self._connection.pgconn
        refusal: str | None = None
        try:
            line.send_query(text)
            line.set_single_row_mode()  # a result of any size passes by in pieces
            while line.flush():
                self._await_line(deadline, writing=True)
            while (result := self._next_result(deadline)) is not None:
                if result.status in _COPYING:
                    self._connection.close()
                    raise PostgresError("it copies to or from the client, which is not possible here")
                if result.status == ExecStatus.FATAL_ERROR and refusal is None:
                    refusal = " ".join(result.get_error_message(self._connection.info.encoding).split())
        except psycopg.Error as error:
            raise PostgresUnreachableError(f"the connection broke: {_one_line(error)}") from error
        if refusal is not None:
            raise PostgresError(refusal)

    def copy_in(self, statement: bytes, rows: Iterable[bytes]) -> int:
        """Run one ``COPY ... FROM STDIN`` with rows as they stand, in pieces of any size; return how many were taken.

        Raises:
            PostgresUnreachableError: the connection broke.
            PostgresError: the server refused the statement or a row; none of them is there.
        """
        try:
            with self._connection.cursor() as cursor:
                with cursor.copy(statement) as line:
                    for piece in rows:
                        line.write(piece)
                return cursor.rowcount
        except psycopg.OperationalError as error:
            if self._connection.broken or self._connection.closed:
                raise PostgresUnreachableError(f"the connection broke: {_one_line(error)}") from error
            raise PostgresError(_one_line(error)) from error
        except psycopg.Error as error:
            raise PostgresError(_one_line(error)) from error

    def _next_result(self, deadline: float) -> PGresult | None:
        while self._connection.pgconn.is_busy():
            self._await_line(deadline)
        return self._connection.pgconn.get_result()

    def _await_line(self, deadline: float, *, writing: bool = False) -> None:
        """Wait until the line moves, and take what is there."""
        line = self._connection.pgconn
        left = max(0.0, deadline - time.monotonic())
        readable, writable, _ = select.select([line.socket], [line.socket] if writing else [], [], left)
        if not readable and not writable:
            self._connection.close()
            raise PostgresUnreachableError("the statements were not through in time: the connection was cut")
        if readable:
            line.consume_input()

    def listener_pid(self) -> int:
        """Return the process that listens at the other end of a Unix socket, as this host numbers it (unix(7)).

        Raises:
            PostgresUnreachableError: the connection is closed, or is none of this host.
        """
        with self.line() as line:
            if line.family != socket.AF_UNIX:
                raise PostgresUnreachableError("it is no connection over a Unix socket")
            raw = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _uid, _gid = struct.unpack("3i", raw)
        return int(pid)

    def line(self) -> socket.socket:
        """Return the connection's socket under a descriptor of its own; the caller closes it, which ends nothing.

        Raises:
            PostgresUnreachableError: the connection is closed.
        """
        if self._connection.closed:
            raise PostgresUnreachableError("the connection broke before")
        return socket.socket(fileno=os.dup(self._connection.fileno()))

    def close(self) -> None:
        """Close the connection; the server ends what the session had begun."""
        self._connection.close()


def connect(dsn: str, *, application_name: str = "drservice", database: str | None = None) -> Session:
    """Open a session to the server; ``database`` replaces the one that the dsn names.

    Raises:
        PostgresUnreachableError: no answer.
        PostgresError: refused (pg_hba.conf, password, role, database, slots), each with its hint.
    """
    try:
        return Session(
            psycopg.connect(**connection_parameters(dsn, application_name, database=database), autocommit=True)
        )
    except psycopg.OperationalError as error:
        raise translate_connect_error(error) from error
    except psycopg.Error as error:
        raise PostgresError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
