"""The one session that holds a backup open: start, stop, and whatever may end it in between (traps T1, T2, T4, T5)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.facts import wal_position
from drservice.errors import CaptureError, PostgresError, PostgresUnreachableError, StandbyPromotedError
from drservice.model.wal import Lsn, Timeline


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
    """On a standby that of its last restartpoint, which may be minutes old."""
    timeline: Timeline
    from_standby: bool


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
        """Begin the backup; returns when its checkpoint (on a standby: restartpoint) is written.

        Raises:
            CaptureError: began already, or the server refused (for example wal_level=minimal, or on a standby
                full_page_writes was off on the primary).
            PostgresError: the role may not.
            StandbyPromotedError: the standby was promoted meanwhile.
        """
        if self._started is not None:
            raise CaptureError("this session has begun a backup already")
        self._settle()
        from_standby = self._in_recovery()  # asked before: a promotion from now on spoils the backup
        fast = checkpoint is CheckpointSpeed.FAST
        if self._session.major >= 15:
            begun = self._session.row("select pg_backup_start(%s, %s)::text", (label, fast))[0]
        else:
            begun = self._session.row("select pg_start_backup(%s, %s, exclusive => false)::text", (label, fast))[0]
        lsn = Lsn.parse(begun)
        if from_standby and not self._in_recovery():
            raise promoted()
        timeline, position = wal_position(self._session, standby=from_standby)
        if position < lsn:
            raise CaptureError(f"the backup began at {lsn}, but the server itself is at {position} only")
        self._started = BackupStart(lsn=lsn, timeline=timeline, from_standby=from_standby)
        return self._started

    def check_alive(self) -> None:
        """Make sure that the session, and so the backup, is still there, and the server still what it was.

        Raises:
            CaptureError: it was dropped; what was read since is worthless.
            StandbyPromotedError: the standby is none any more.
        """
        if self._started is None:
            raise CaptureError("this session holds no backup")
        try:
            in_recovery = self._in_recovery()
        except PostgresError as error:
            raise _dropped(error) from error
        if self._started.from_standby and not in_recovery:
            raise promoted()

    def stop(self) -> BackupStop:
        """End the backup without waiting for the archive (trap T4: the store is asked instead).

        Raises:
            CaptureError: the session was dropped, or the server declares the backup void (for example
                full_page_writes was off on the primary of a standby meanwhile).
            StandbyPromotedError: the standby was promoted meanwhile.
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
        except PostgresUnreachableError as error:
            raise _dropped(error) from error
        except PostgresError as error:
            self.check_alive()  # says more about a promotion than the server, in whatever language it speaks
            raise _void(error) from error
        self._started = None
        return BackupStop(lsn=Lsn.parse(row[0]), label_file=bytes(row[1]), tablespace_map=bytes(row[2] or b""))

    def _settle(self) -> None:
        present = self._session.rows(
            "select name, pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings"
            " where name in ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',"
            " 'idle_session_timeout', 'transaction_timeout', 'max_parallel_workers_per_gather')"
        )
        if len(present) < 4:
            raise CaptureError("the server did not take the settings that keep the backup session open")

    def _in_recovery(self) -> bool:
        return bool(self._session.row("select pg_is_in_recovery()")[0])


def open_backup_session(dsn: str, *, application_name: str = "drservice backup") -> BackupSession:
    """Open a connection of its own for one backup.

    Raises:
        PostgresUnreachableError, PostgresError: as :func:`connect`.
    """
    return BackupSession(connect(dsn, application_name=application_name))


def promoted() -> StandbyPromotedError:
    """Return the error for a standby that became a primary while it was read."""
    return StandbyPromotedError("the standby was promoted while it was backed up")


def _dropped(error: PostgresError) -> CaptureError:
    return CaptureError(
        f"the backup session is lost: {error.message}",
        hint="The server ended the backup with it, so the copy is worthless; run the backup again."
        " Look for a restart, pg_terminate_backend or a network timeout in PostgreSQL's log.",
    )


def _void(error: PostgresError) -> CaptureError:
    return CaptureError(
        f"the server declares the backup void: {error.message}",
        hint="On a standby full_page_writes must be on at the primary for the whole backup and for the checkpoint"
        " before it: switch it on there, run CHECKPOINT there, and back up again.",
    )
