"""A side restore of one database: which files it needs, a server that replays without the others, and what is told.

The files of the other databases are there at their full size and hold nothing. Replay meets them: a full page image
makes a page of theirs real, other records find a page of zeros. PostgreSQL calls that an invalid page and ends
recovery; here it may go on (``ignore_invalid_pages``), and every page it names is looked at: one of a database that
was *not* left out fails the restore as it would have without. After the promotion each database that is not known to
be whole is marked as PostgreSQL itself marks one whose removal was cut off: nobody can connect to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.databases import (
    FILENODE_MAP,
    Selection,
    UnknownDatabase,
    database_file,
    database_of,
    database_of_relation,
    database_rows,
    select_database,
)
from drservice.components.postgres.recovery import Options
from drservice.environments.interface import Environment
from drservice.errors import FormatError, PostgresError, ProofError, ReplayError, UnknownNameError
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.reader import SnapshotReader

SIDE_OPTIONS: Options = (("ignore_invalid_pages", "on"), ("log_error_verbosity", "terse"))
"""What a server needs beside everything else to replay over left-out files (options of PostgreSQL 13 and later)."""

_NAME = "drservice restore"
_LOG_PIECE_BYTES = 1 << 20
_KEPT_LOG_LETTERS = 1 << 20
_WARNING = re.compile(r"\[\d+\] WARNING:  (.*)")
_INVALID_PAGE = re.compile(r"page (\d+) of relation (\S+) (?:is uninitialized|does not exist)\Z")
_REFERENCES = "WAL contains references to invalid pages"
_ELSEWHERE = (
    "A name is looked up in the snapshot before the target: a database renamed since is asked for by its earlier name,"
    " one created since needs the whole cluster (drservice restore --start)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What of a snapshot a side restore places."""

    selection: Selection
    wanted_bytes: int
    left_out_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRestore:
    """What a side restore brought back, as the recovered server says."""

    database: str
    """Its name at the recovered instant."""
    oid: int
    left_out: tuple[str, ...]
    """The databases that are not whole here, and to which nobody can connect."""
    pages_passed_over: int
    """How often replay met a page of theirs that is not here."""


def select_files(reader: SnapshotReader, name: str) -> Selected:
    """Choose what has to be placed for one database.

    Raises:
        UnknownNameError: the snapshot has no database of this name; the hint lists those it has.
        FormatError: the snapshot does not tell which databases it has.
    """
    files = [entry for entry in reader.entries() if entry.kind is EntryKind.FILE]
    by_path = {entry.path: entry for entry in files if entry.path.startswith(b"global/")}
    try:
        path = database_file(reader.read_file(_entry(by_path, FILENODE_MAP)))
        facts = reader.record.postgres
        content = reader.read_file(_entry(by_path, path))
    except FormatError as error:
        raise FormatError(
            f"snapshot {reader.record.id} does not tell which databases it has: {error.message}",
            hint="Restore the whole cluster (drservice restore --start), or take another snapshot's target.",
        ) from error
    rows = database_rows(content, block_bytes=facts.block_bytes, major=facts.server_version)
    present = frozenset(oid for entry in files if (oid := database_of(entry.path)) is not None)
    found = select_database(rows, name, present=present)
    if isinstance(found, UnknownDatabase):
        raise UnknownNameError(
            f"snapshot {reader.record.id} has no database {name}",
            hint=f"It has: {', '.join(found.known) or 'none'}. {_ELSEWHERE}",
        )
    wanted = sum(entry.size for entry in files if found.wants(entry.path))
    total = sum(entry.size for entry in files)
    return Selected(selection=found, wanted_bytes=wanted, left_out_bytes=total - wanted)


def _entry(entries: dict[bytes, Entry], path: bytes) -> Entry:
    found = entries.get(path)
    if found is None:
        raise FormatError(f"{path.decode('utf-8', 'backslashreplace')} is not in it")
    return found


class SideServer:
    """Hears a server that replays over left-out files, and finds the database in it at the end.

    There may be one complaint for each page of the others that was vacuumed, so they are taken out as they come; the
    rest is kept like :meth:`Environment.server_log` keeps it.
    """

    def __init__(self, environment: Environment, selection: Selection) -> None:
        self._environment = environment
        self._selection = selection
        self._offset = 0
        self._unfinished = b""
        self._kept = ""
        self.passed_over = 0

    def read(self) -> str:
        """Return the last 1 MiB of what is not a complaint about a left-out page.

        Raises:
            ReplayError: the WAL refers to a page that should be there and is not.
        """
        while piece := self._environment.read_server_log(self._offset, _LOG_PIECE_BYTES):
            self._offset += len(piece)
            *lines, self._unfinished = (self._unfinished + piece).split(b"\n")
            told = [text for line in lines if self._is_told(text := line.decode("utf-8", "replace"))]
            self._kept = (self._kept + "".join(f"{text}\n" for text in told))[-_KEPT_LOG_LETTERS:]
        return self._kept

    def _is_told(self, line: str) -> bool:
        warning = _WARNING.search(line)
        if warning is None:
            return True
        if warning[1] == _REFERENCES:
            return False
        page = _INVALID_PAGE.match(warning[1])
        if page is None:
            return True
        database = database_of_relation(page[2])
        if database is None or database in self._selection.kept:
            raise ReplayError(
                f"the WAL refers to page {page[1]} of {page[2]}, which the snapshot does not have",
                hint="The snapshot is not whole. Restore an older one, and run `drservice verify`.",
            )
        self.passed_over += 1
        return False

    def settle(self) -> SideRestore:
        """Find the database in the recovered cluster, and bar everybody from those that are not whole.

        Raises:
            UnknownNameError: at the target there is no such database, or it is another one than the snapshot has.
            ProofError: it cannot be connected to: it is no whole copy.
            PostgresError: the recovered server cannot be asked.
        """
        self.read()
        self._environment.require_own_socket()
        dsn = self._environment.dsn
        with connect(dsn, application_name=_NAME) as session:
            oid, name = _the_one(session, self._selection)
            left_out = _bar(session, self._selection)
        try:
            with connect(dsn, application_name=_NAME, database=name) as session:
                session.row("select count(*) from pg_class")
        except PostgresError as error:
            raise ProofError(
                f"the recovered database {name} cannot be used: {error.message}",
                hint="It may have been copied after the snapshot from a database that was left out (CREATE DATABASE"
                " with STRATEGY file_copy). Restore the whole cluster: drservice restore --start.",
            ) from error
        return SideRestore(database=name, oid=oid, left_out=left_out, pages_passed_over=self.passed_over)


def _the_one(session: Session, selection: Selection) -> tuple[int, str]:
    """Return OID and name of the database that is meant: the one of this name, or the one that had it."""
    rows = session.rows("select oid::bigint, datname::text from pg_database order by 2")
    by_name = {str(name): int(oid) for oid, name in rows}
    oid = by_name.get(selection.name)
    if oid in selection.candidates:
        assert oid is not None
        return oid, selection.name
    if oid is not None:
        raise UnknownNameError(
            f"the database {selection.name} at the target is not the one that the snapshot has under this name",
            hint=f"It was created or got its name after the snapshot. {_ELSEWHERE}",
        )
    renamed = [(int(found), str(name)) for found, name in rows if int(found) in selection.holders]
    if len(renamed) == 1:
        return renamed[0]
    there = ", ".join(str(name) for _, name in rows)
    raise UnknownNameError(
        f"there is no database {selection.name} at the target: it was dropped before, or renamed",
        hint=f"At the target there are: {there}. Choose an instant before it was dropped.",
    )


def _bar(session: Session, selection: Selection) -> tuple[str, ...]:
    """Mark every database but those kept as invalid (``datconnlimit = -2``), in one transaction.

    Servers from the summer of 2023 on say so to whoever connects and refuse to let anybody in again; for older ones
    it does not allow connections. One that was created after the snapshot may be whole, but nobody knows.
    """
    kept: Sequence[int] = sorted(selection.kept)
    rows = session.rows(
        "update pg_database set datallowconn = false, datconnlimit = -2 where oid <> all(%s::oid[])"
        " returning datname::text",
        (list(kept),),
    )
    return tuple(sorted(str(name) for (name,) in rows))
