"""``BASE_BACKUP`` over a replication connection: what ``pg_basebackup`` does, for clusters with extra tablespaces.

The program writes several tablespaces to a folder only, which takes as much disk as the cluster has, and it leaves
tablespaces in place out without a word (tar format, before 16). The protocol it speaks sends them one after the other
over one connection, and whoever reads slowly slows the server down. Its two forms (documentation 13 and 15, Streaming
Replication Protocol): until 14 one COPY for each archive, then one for the manifest; since 15 one COPY for all, in
messages of a type each.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from drservice.components.postgres.backupsession import CheckpointSpeed, promoted
from drservice.components.postgres.connection import connection_parameters, translate_connect_error
from drservice.components.postgres.servernotices import FileNotice, read_notice
from drservice.errors import CaptureError, PostgresError, PostgresUnreachableError, WalTimeoutError

_ONE_COPY = 15
_IN_PLACE_SERVED = 16
_LIMIT_BYTES = 1 << 30
_AUDIBLE = "-c client_min_messages=warning"
_DATA_CORRUPTED = "XX001"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTablespace:
    """One that the server sends as an archive of its own."""

    oid: int
    location: str
    """Relative (``pg_tblspc/OID``) for one in place."""


class BaseBackup:
    """One base backup; use it as a context manager: leaving it early ends the backup on the server.

    Order of use: :meth:`begin`, :meth:`archives` to their end, :meth:`finish`.
    """

    def __init__(self, connection: pq.abc.PGconn, *, close: Callable[[], None], silence_seconds: float) -> None:
        """Take a connection over, which ``close`` ends; see :func:`open_base_backup`."""
        self._pg = connection
        self._close = close
        self._silence = silence_seconds
        self._major = connection.server_version // 10000
        self._tablespaces: list[ServedTablespace] = []
        self._warnings: list[str] = []
        self._pg.notice_handler = self._hear
        self._manifest = bytearray()
        self._message: memoryview = memoryview(b"")
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def begin(self, label: str, *, checkpoint: CheckpointSpeed) -> tuple[ServedTablespace, ...]:
        """Begin the backup and return the tablespaces that have archives of their own; waits for its checkpoint.

        Raises:
            PostgresError, PostgresUnreachableError: the server refuses.
        """
        fast = checkpoint is CheckpointSpeed.FAST
        # The WAL is waited for in the store, so the server need not wait for its archive. Without TABLESPACE_MAP the
        # links, and tablespaces in place, stand in the archive of the data directory; since 16 the latter have archives
        # of their own, and with the map a link may be longer than a tar header holds.
        if self._major >= _ONE_COPY:
            mapped = "true" if self._major >= _IN_PLACE_SERVED else "false"
            command = (
                f"BASE_BACKUP (LABEL '{label}', CHECKPOINT '{'fast' if fast else 'spread'}', WAIT false,"
                f" MANIFEST 'yes', MANIFEST_CHECKSUMS 'NONE', TABLESPACE_MAP {mapped})"
            )
        else:
            command = (
                f"BASE_BACKUP LABEL '{label}' {'FAST ' if fast else ''}NOWAIT MANIFEST 'yes' MANIFEST_CHECKSUMS 'NONE'"
            )
        self._pg.send_query(command.encode())
        self._result(pq.ExecStatus.TUPLES_OK, patient=True)  # the start position, which backup_label has, too
        spaces = self._result(pq.ExecStatus.TUPLES_OK, patient=True)
        for row in range(spaces.ntuples):
            oid, location = spaces.get_value(row, 0), spaces.get_value(row, 1)
            if oid is not None and location is not None:
                place = location.decode("utf-8", "surrogateescape")
                self._tablespaces.append(ServedTablespace(oid=int(oid), location=place))
        return tuple(self._tablespaces)

    def archives(self) -> Iterator[tuple[ServedTablespace | None, Archive]]:
        """Yield the archives in the server's order, each to be read to its end; ``None`` is the data directory.

        Raises:
            CaptureError: the server broke off, or sends what is not understood.
            WalTimeoutError: it was silent for too long.
        """
        if self._major >= _ONE_COPY:
            yield from self._of_one_copy()
        else:
            yield from self._of_copies()

    @property
    def is_terminated(self) -> bool:
        """Whether the archives have blocks of zeros at their end."""
        return self._major >= _ONE_COPY

    def finish(self) -> bytes:
        """Wait for the server's last word and return the manifest.

        Raises:
            CaptureError: the backup is void.
        """
        end = self._next_result()
        if end is not None and end.status == pq.ExecStatus.TUPLES_OK:
            end = self._next_result()
        if end is not None and end.status == pq.ExecStatus.FATAL_ERROR:
            sqlstate = end.error_field(pq.DiagnosticField.SQLSTATE) or b""
            if sqlstate.decode() != _DATA_CORRUPTED or all(item.block is None for item in self.notices()):
                raise _refused(end)
        elif end is None or end.status != pq.ExecStatus.COMMAND_OK:
            raise CaptureError("the server did not say that its base backup is complete")
        return bytes(self._manifest)

    def refusal(self) -> CaptureError | PostgresError | None:
        """Return why the server broke an archive off, ``None`` if it did not."""
        end = self._next_result()
        return _refused(end) if end is not None and end.status == pq.ExecStatus.FATAL_ERROR else None

    def notices(self) -> list[FileNotice]:
        """Return what the server said about single files: damaged pages, and what it does not send."""
        locations = {space.location: space.oid for space in self._tablespaces}
        found = (read_notice(text, locations=locations) for text in self._warnings)
        return [item for item in found if item is not None]

    # --- the two forms --------------------------------------------------------------------------------------

    def _of_copies(self) -> Iterator[tuple[ServedTablespace | None, Archive]]:
        # One row stands for the data directory; it is the last, and so is its archive.
        for space in (*self._tablespaces, None):
            self._result(pq.ExecStatus.COPY_OUT)
            yield space, Archive(self._copied)
        self._result(pq.ExecStatus.COPY_OUT)
        while (data := self._copied()) is not None:
            self._keep_manifest(data)

    def _of_one_copy(self) -> Iterator[tuple[ServedTablespace | None, Archive]]:
        self._result(pq.ExecStatus.COPY_OUT)
        known = {f"{space.oid}.tar": space for space in self._tablespaces}
        self._advance()
        while not self._is_over:
            kind = bytes(self._message[:1])
            if kind == b"n":
                name = bytes(self._message[1:]).split(b"\0")[0].decode("ascii", "replace")
                if name != "base.tar" and name not in known:
                    raise CaptureError(f"the server sends an archive {name!r} of no tablespace it listed")
                self._advance()
                yield known.get(name), Archive(self._piece)
            elif kind == b"m":
                self._advance()
                while (data := self._piece()) is not None:
                    self._keep_manifest(data)
            elif kind == b"p":
                self._advance()
            else:
                raise CaptureError(f"the server sends a message of type {kind!r} in the middle of its base backup")

    def _piece(self) -> memoryview | None:
        """Return the next data of the archive or manifest that is being sent."""
        while not self._is_over and bytes(self._message[:1]) == b"p":
            self._advance()
        if self._is_over or bytes(self._message[:1]) != b"d":
            return None
        data = self._message[1:]
        self._advance()
        return data

    def _advance(self) -> None:
        data = self._copied()
        self._is_over, self._message = data is None, data if data is not None else memoryview(b"")

    def _keep_manifest(self, data: memoryview) -> None:
        self._manifest += data
        if len(self._manifest) > _LIMIT_BYTES:
            raise CaptureError("the backup manifest has no end")

    # --- the connection -------------------------------------------------------------------------------------

    def _copied(self) -> memoryview | None:
        """Return the next message of the COPY under way, ``None`` at its end."""
        try:
            while True:
                size, data = self._pg.get_copy_data(1)
                if size > 0:
                    return memoryview(data)
                if size < 0:
                    return None
                self._await_server(patient=False)
        except psycopg.Error as error:
            raise CaptureError(f"the base backup broke off: {' '.join(str(error).split())}") from error

    def _result(self, wanted: pq.ExecStatus, *, patient: bool = False) -> pq.abc.PGresult:
        found = self._next_result(patient=patient)
        if found is None or found.status == pq.ExecStatus.FATAL_ERROR:
            raise _refused(found)
        if found.status != wanted:
            raise CaptureError(f"the server answered BASE_BACKUP with {pq.ExecStatus(found.status).name}")
        return found

    def _next_result(self, *, patient: bool = False) -> pq.abc.PGresult | None:
        try:
            while self._pg.flush() or self._pg.is_busy():
                self._await_server(patient=patient)
            return self._pg.get_result()
        except psycopg.Error as error:
            raise PostgresUnreachableError(f"the connection broke: {' '.join(str(error).split())}") from error

    def _await_server(self, *, patient: bool) -> None:
        """Wait for the server; a spread checkpoint at the beginning takes as long as it takes (trap T7)."""
        ready, _, _ = select.select([self._pg.socket], [], [], None if patient else self._silence)
        if not ready:
            raise WalTimeoutError(f"the server was silent for {self._silence:g} s in the middle of its base backup")
        self._pg.consume_input()

    def _hear(self, notice: pq.abc.PGresult) -> None:
        text = notice.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        self._warnings.append(text.decode("utf-8", "surrogateescape"))


class Archive:
    """The tar stream of one archive."""

    def __init__(self, pull: Callable[[], memoryview | None]) -> None:
        self._pull = pull
        self._left: memoryview = memoryview(b"")
        self._ended = False

    def readinto(self, view: memoryview, /) -> int:
        """Fill ``view`` as far as there is something at once; 0 at the end."""
        while not self._left.nbytes and not self._ended:
            data = self._pull()
            self._ended, self._left = data is None, data if data is not None else self._left
        count = min(len(view), self._left.nbytes)
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def read(self, amount: int, /) -> bytes:
        """Return up to ``amount`` bytes; none at the end."""
        buffer = bytearray(amount)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])


def audible(dsn: str) -> str:
    """Return the dsn with the server's warnings asked for: what it does not send it tells by them alone.

    Any role may ask for them; ``client_min_messages`` of the server's configuration may say otherwise.
    """
    options = conninfo_to_dict(dsn).get("options") or os.environ.get("PGOPTIONS", "")
    return make_conninfo(dsn, options=f"{options} {_AUDIBLE}".strip())


def open_base_backup(dsn: str, *, silence_seconds: float) -> BaseBackup:
    """Connect for a base backup.

    Args:
        dsn: of a role with REPLICATION.
        silence_seconds: how long the server may say nothing once it sends.

    Raises:
        PostgresUnreachableError, PostgresError: no connection, or the role lacks REPLICATION.
    """
    parameters = connection_parameters(audible(dsn), "drservice backup") | {"replication": "true"}
    try:
        connection = psycopg.connect(**parameters, autocommit=True)
    except psycopg.OperationalError as error:
        raise translate_connect_error(error) from error
    return BaseBackup(connection.pgconn, close=connection.close, silence_seconds=silence_seconds)


def _refused(result: pq.abc.PGresult | None) -> CaptureError | PostgresError:
    text = b"" if result is None else result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    message = text.decode("utf-8", "replace") or "the server ended the connection"
    if "the standby was promoted during online backup" in message:
        return promoted()
    return CaptureError(f"the server's base backup failed: {message}")
