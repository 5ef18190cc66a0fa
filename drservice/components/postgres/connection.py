"""Everything that is asked of a running server over SQL.

psycopg is imported here and in ``replication`` only; its errors leave as ours, with the likely cause. A
session never reconnects by itself: a backup belongs to the one session that began it (trap T1).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors as pg_errors
from psycopg.conninfo import conninfo_to_dict

from drservice.errors import CaptureError, DrError, PostgresError, PostgresUnreachableError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline

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


# --- facts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TablespaceFacts:
    """An extra tablespace."""

    oid: int
    location: str
    in_place: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePrivileges:
    """What the session's role may do."""

    name: str
    superuser: bool
    replication: bool
    backup: bool
    """May call both ``pg_backup_start`` and ``pg_backup_stop``."""
    switch_wal: bool
    restore_point: bool
    read_all_settings: bool

    def missing_for_local_backup(self, major: int) -> tuple[str, ...]:
        """Return the GRANT lines that a ``local`` backup still needs; empty if none."""
        lines: list[str] = []
        if not self.backup and major >= 15:
            lines += [
                f"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO {self.name};",
                f"GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO {self.name};",
            ]
        elif not self.backup:
            lines += [
                f"GRANT EXECUTE ON FUNCTION pg_start_backup(text, boolean, boolean) TO {self.name};",
                f"GRANT EXECUTE ON FUNCTION pg_stop_backup(boolean, boolean) TO {self.name};",
            ]
        if not self.switch_wal:
            lines.append(f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {self.name};")
        if not self.restore_point:
            lines.append(f"GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {self.name};")
        if not self.read_all_settings:
            lines.append(f"GRANT pg_read_all_settings TO {self.name};")
        return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """What a server says about itself. ``None``: the role may not see it."""

    server_version: int
    system_id: SystemId
    in_recovery: bool
    timeline: Timeline
    current_lsn: Lsn
    """Primary: flushed WAL. Standby: replayed WAL."""
    data_directory: str | None
    config_file: str | None
    hba_file: str | None
    ident_file: str | None
    wal_level: str
    archive_mode: str
    archive_command: str | None
    full_page_writes: bool
    data_checksums: bool
    wal_segment_bytes: int
    block_bytes: int
    max_wal_senders: int
    tablespaces: tuple[TablespaceFacts, ...]
    privileges: RolePrivileges

    @property
    def major(self) -> int:
        """The major version."""
        return self.server_version // 10000

    @property
    def configuration_outside(self) -> tuple[str, ...]:
        """Configuration files that are not in the data directory (Debian's habit), as far as known."""
        if self.data_directory is None:
            return ()
        inside = self.data_directory.rstrip("/") + "/"
        files = (self.config_file, self.hba_file, self.ident_file)
        return tuple(path for path in files if path and not path.startswith(inside))


def cluster_facts(session: Session) -> ClusterFacts:
    """Ask the server everything a backup has to know before it begins.

    Raises:
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    # The view shows a role only what it may see, where current_setting() would fail.
    settings = {
        str(name): str(value)
        for name, value in session.rows(
            "select name, setting from pg_settings where name in ('data_directory', 'config_file',"
            " 'hba_file', 'ident_file', 'wal_level', 'archive_mode', 'archive_command', 'full_page_writes',"
            " 'data_checksums', 'wal_segment_size', 'block_size', 'max_wal_senders')"
        )
    }
    system_id, in_recovery = session.row("select system_identifier::text, pg_is_in_recovery() from pg_control_system()")
    # system_identifier is a bigint in SQL but an unsigned number everywhere else.
    unsigned = int(system_id) % (1 << 64)
    timeline, lsn = _position(session, standby=bool(in_recovery))
    tablespaces = session.rows(
        "select oid, pg_tablespace_location(oid) from pg_tablespace"
        " where spcname not in ('pg_default', 'pg_global') order by oid"
    )
    return ClusterFacts(
        server_version=session.server_version,
        system_id=SystemId(str(unsigned)),
        in_recovery=bool(in_recovery),
        timeline=timeline,
        current_lsn=lsn,
        data_directory=settings.get("data_directory"),
        config_file=settings.get("config_file"),
        hba_file=settings.get("hba_file"),
        ident_file=settings.get("ident_file"),
        wal_level=settings["wal_level"],
        archive_mode=settings["archive_mode"],
        archive_command=settings.get("archive_command"),
        full_page_writes=settings["full_page_writes"] == "on",
        data_checksums=settings["data_checksums"] == "on",
        wal_segment_bytes=int(settings["wal_segment_size"]),
        block_bytes=int(settings["block_size"]),
        max_wal_senders=int(settings["max_wal_senders"]),
        tablespaces=tuple(
            TablespaceFacts(oid=int(oid), location=str(place), in_place=not str(place).startswith("/"))
            for oid, place in tablespaces
        ),
        privileges=_privileges(session),
    )


def _position(session: Session, *, standby: bool) -> tuple[Timeline, Lsn]:
    if standby:
        timeline, lsn = session.row(
            "select greatest(c.timeline_id, r.min_recovery_end_timeline),"
            " coalesce(pg_last_wal_replay_lsn(), c.redo_lsn)::text"
            " from pg_control_checkpoint() c, pg_control_recovery() r"
        )
        return Timeline(int(timeline)), Lsn.parse(lsn)
    # pg_control lags behind a promotion; the name of the present segment does not.
    name, lsn = session.row("select pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_flush_lsn()::text")
    return Timeline(int(name[:8], 16)), Lsn.parse(lsn)


def _privileges(session: Session) -> RolePrivileges:
    if session.major >= 15:
        backup = session.row(
            "select has_function_privilege('pg_backup_start(text, boolean)', 'execute')"
            " and has_function_privilege('pg_backup_stop(boolean)', 'execute')"
        )[0]
    else:
        backup = session.row(
            "select has_function_privilege('pg_start_backup(text, boolean, boolean)', 'execute')"
            " and has_function_privilege('pg_stop_backup(boolean, boolean)', 'execute')"
        )[0]
    name, superuser, replication, switch, point, read = session.row(
        "select quote_ident(rolname), rolsuper, rolreplication,"
        " has_function_privilege('pg_switch_wal()', 'execute'),"
        " has_function_privilege('pg_create_restore_point(text)', 'execute'),"
        " pg_has_role('pg_read_all_settings', 'usage') from pg_roles where rolname = current_user"
    )
    return RolePrivileges(
        name=name,
        superuser=superuser,
        replication=replication,
        backup=bool(backup),
        switch_wal=switch,
        restore_point=point,
        read_all_settings=read,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiverStatus:
    """``pg_stat_archiver``: what archive_command did so far."""

    archived_count: int
    last_archived: str | None
    last_archived_at: datetime | None
    failed_count: int
    last_failed: str | None
    last_failed_at: datetime | None

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        if self.last_failed_at is None:
            return False
        return self.last_archived_at is None or self.last_failed_at > self.last_archived_at


def archiver_status(session: Session) -> ArchiverStatus:
    """Return what the archiver reports."""
    row = session.row(
        "select archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal,"
        " last_failed_time from pg_stat_archiver"
    )
    return ArchiverStatus(
        archived_count=row[0],
        last_archived=row[1],
        last_archived_at=row[2],
        failed_count=row[3],
        last_failed=row[4],
        last_failed_at=row[5],
    )


def switch_wal(session: Session) -> Lsn:
    """End the present WAL segment, so that it is archived; return the end of its last record."""
    return Lsn.parse(session.row("select pg_switch_wal()::text")[0])


def create_restore_point(session: Session, name: str) -> Lsn:
    """Write a named restore point into the WAL and return its position."""
    return Lsn.parse(session.row("select pg_create_restore_point(%s)::text", (name,))[0])


def current_snapshot_xmax(session: Session) -> int:
    """Return the first transaction id (64 bits) that has not begun as seen by a new snapshot."""
    return int(session.row("select pg_snapshot_xmax(pg_current_snapshot())::text")[0])


# --- the backup session -------------------------------------------------------------------------------------


class CheckpointSpeed(Enum):
    """How the checkpoint that begins a backup is written (trap T7)."""

    FAST = "fast"
    """At once; some I/O for a moment."""
    SPREAD = "spread"
    """At the pace of checkpoint_completion_target: takes up to checkpoint_timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStart:
    """Where a backup began."""

    lsn: Lsn
    timeline: Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStop:
    """Where a backup ended, and the two files exactly as the server returned them (trap T2)."""

    lsn: Lsn
    label_file: bytes
    tablespace_map: bytes
    """Empty for a cluster without extra tablespaces; then no file is to be written."""


class BackupSession:
    """The one session that holds a backup open (trap T1).

    No timeout and no parallel worker can end it; if it drops, the server ends the backup, and every further
    call raises. Leaving the ``with`` block without :meth:`stop` aborts the backup on the server.
    """

    def __init__(self, session: Session) -> None:
        """Take ownership of ``session`` and free it from everything that could end it."""
        self._session = session
        self._started: BackupStart | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    @property
    def backend_pid(self) -> int:
        """The server process of the session."""
        return self._session.backend_pid

    def start(self, label: str, *, checkpoint: CheckpointSpeed = CheckpointSpeed.FAST) -> BackupStart:
        """Begin the backup; returns when its checkpoint is written.

        Raises:
            CaptureError: began already, or the server refused (for example wal_level=minimal).
            PostgresError: the role may not.
        """
        if self._started is not None:
            raise CaptureError("this session has begun a backup already")
        self._settle()
        fast = checkpoint is CheckpointSpeed.FAST
        if self._session.major >= 15:
            lsn = self._session.row("select pg_backup_start(%s, %s)::text", (label, fast))[0]
        else:
            lsn = self._session.row("select pg_start_backup(%s, %s, exclusive => false)::text", (label, fast))[0]
        in_recovery = self._session.row("select pg_is_in_recovery()")[0]
        timeline, _ = _position(self._session, standby=bool(in_recovery))
        self._started = BackupStart(lsn=Lsn.parse(lsn), timeline=timeline)
        return self._started

    def check_alive(self) -> None:
        """Make sure that the session, and so the backup, is still there.

        Raises:
            CaptureError: it was dropped; what was read since is worthless.
        """
        if self._started is None:
            raise CaptureError("this session holds no backup")
        try:
            self._session.row("select 1")
        except PostgresError as error:
            raise self._dropped(error) from error

    def stop(self) -> BackupStop:
        """End the backup without waiting for the archive (trap T4: the store is asked instead).

        Raises:
            CaptureError: the session was dropped, or the server declares the backup void (for example a
                standby was promoted, or full_page_writes was off meanwhile).
        """
        if self._started is None:
            raise CaptureError("this session holds no backup")
        # convert_to() into the database's own encoding changes nothing and returns bytes: no client encoding
        # can touch them on the way.
        try:
            if self._session.major >= 15:
                row = self._session.row(
                    "select lsn::text, convert_to(labelfile, getdatabaseencoding()),"
                    " convert_to(spcmapfile, getdatabaseencoding()) from pg_backup_stop(false)"
                )
            else:
                row = self._session.row(
                    "select lsn::text, convert_to(labelfile, getdatabaseencoding()),"
                    " convert_to(spcmapfile, getdatabaseencoding()) from pg_stop_backup(false, false)"
                )
        except PostgresError as error:
            raise self._dropped(error) from error
        self._started = None
        return BackupStop(lsn=Lsn.parse(row[0]), label_file=bytes(row[1]), tablespace_map=bytes(row[2] or b""))

    def _settle(self) -> None:
        present = self._session.rows(
            "select name, set_config(name, '0', false) from pg_settings where name in ('statement_timeout',"
            " 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',"
            " 'transaction_timeout', 'max_parallel_workers_per_gather')"
        )
        if len(present) < 4:
            raise CaptureError("the server did not take the settings that keep the backup session open")

    def _dropped(self, error: PostgresError) -> CaptureError:
        return CaptureError(
            f"the backup session is lost: {error.message}",
            hint="The server ended the backup with it, so the copy is worthless; run the backup again."
            " Look for a restart, pg_terminate_backend or a network timeout in PostgreSQL's log.",
        )


def open_backup_session(dsn: str, *, application_name: str = "drservice backup") -> BackupSession:
    """Open a connection of its own for one backup.

    Raises:
        PostgresUnreachableError, PostgresError: as :func:`connect`.
    """
    return BackupSession(connect(dsn, application_name=application_name))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
