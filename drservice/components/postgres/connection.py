"""Connections to a running server over SQL.

psycopg is imported here and in ``replication`` only; its errors leave as ours, with the likely cause. A
session never reconnects by itself: a backup belongs to the one session that began it (trap T1).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors as pg_errors
from psycopg.conninfo import conninfo_to_dict

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
