"""The demo's plant: a PostgreSQL cluster with a manufacturer's tables, and people who enter orders all the time.

Everything lives in one folder and is ended by its own pid. The people remember each commit the server acknowledged;
what they remember is the oracle a recovery is compared with. The tables are in ``plantschema``, documents in
``plantdocuments``, modules and configuration in ``plantcode``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import LiteralString

from drservice import processes
from drservice.cli.oracle import Document, Order
from drservice.cli.plantcode import install_modules, installed_git, write_configuration, write_modules
from drservice.cli.plantdocuments import Filestore, Filing, file_history
from drservice.cli.plantschema import DIGEST, HISTORY, OUTWARD, PRODUCTION, PRODUCTIONS, SALE, SALES, SCHEMA
from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.server import PostgresPrograms, find_programs
from drservice.components.postgres.versions import SUPPORTED_MAJORS
from drservice.environments.proc import ProcessIdentity, children_of, is_alive, send_signal
from drservice.errors import DrError, PostgresError, PostgresUnreachableError, ProgramMissingError
from drservice.model.wal import Lsn

DATABASE = "plant"
SEGMENT_MIB = 4
ARCHIVE_SECONDS = 2

_INITDB = (
    "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-k", "--no-sync", f"--wal-segsize={SEGMENT_MIB}"
)  # fmt: skip
_READY_SECONDS = 60.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02
_PAUSE_SECONDS = 0.02
_FILING_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Rows that were there before the demo began, and a hash over all of them."""

    rows: int
    md5: str


def digest_of(session: Session) -> Digest:
    """Hash every row that the plant was filled with."""
    rows, md5 = session.row(DIGEST)
    return Digest(rows=int(rows), md5=str(md5))


def orders_in(session: Session) -> dict[str, int]:
    """Return every order entered by the people of the demo, with its number of lines."""
    rows = [*session.rows(SALES), *session.rows(PRODUCTIONS)]
    return {str(number): int(lines) for number, lines in rows}


def sales_in(session: Session) -> dict[str, int]:
    """Return every order that was sold by the people of the demo, with its number of lines."""
    return {str(number): int(lines) for number, lines in session.rows(SALES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outward:
    """What of an Odoo acts on the world outside, in numbers."""

    mails_waiting: int
    mail_servers: int
    scheduled_actions: int
    connections: int
    """Of the plant's own module."""


def outward_of(session: Session) -> Outward:
    """Count what acts on the world outside."""
    mails, servers, actions, connections = session.row(OUTWARD)
    return Outward(
        mails_waiting=int(mails),
        mail_servers=int(servers),
        scheduled_actions=int(actions),
        connections=int(connections),
    )


def installed_postgres() -> PostgresPrograms:
    """Return the newest supported PostgreSQL server on this machine.

    Raises:
        ProgramMissingError: there is none.
    """
    for major in reversed(SUPPORTED_MAJORS):
        try:
            return find_programs(major)
        except ProgramMissingError:
            continue
    raise ProgramMissingError(
        f"no PostgreSQL server program of versions {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]} is installed",
        hint="`make setup` installs one, or: apt-get install postgresql. The demo makes a cluster of its own.",
    )


@dataclass(slots=True, kw_only=True)
class Plant:
    """The cluster in ``folder``: ``data/``, ``sock/``, ``log``, and its files: ``filestore/``, ``configuration/``.

    ``account``: who runs the server, ``None`` = this user.
    """

    folder: Path
    programs: PostgresPrograms
    account: processes.Account | None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def dsn(self) -> str:
        """A libpq string that reaches the plant's database."""
        return f"host={self.folder / 'sock'} dbname={DATABASE} user=postgres"

    @property
    def filestore(self) -> Filestore:
        """The documents of the plant's database."""
        return Filestore(self.folder / "filestore" / DATABASE)

    @property
    def configuration(self) -> Path:
        """The folder with the application's configuration and the plant's own modules: a clone, if git is installed."""
        return self.folder / "configuration"

    @property
    def addons(self) -> tuple[Path, ...]:
        """The folders with Odoo's modules, and with the plant's own."""
        return (self.folder / "odoo", self.configuration / "addons")

    def create(self) -> list[Document]:
        """Make the cluster, its tables, some history and its documents; the server is stopped again at the end.

        Returns:
            The documents that were filed.

        Raises:
            PostgresError: a program failed; the message has its last line.
        """
        for name, mode in (("data", 0o700), ("sock", 0o755), ("filestore", 0o755), ("configuration", 0o755)):
            (self.folder / name).mkdir(mode=mode)
            processes.inherit_owner(self.folder / name)
        write_configuration(self.configuration, self.account, git=installed_git())
        write_modules(self.folder / "odoo")
        made = processes.run(
            [self.programs.path("initdb"), "-D", self.data, *_INITDB], account=self.account, timeout_seconds=120
        )
        if made.status != 0:
            raise PostgresError(f"initdb failed: {made.last_line()}", hint="Is there space left in the folder?")
        self.configure(
            {
                "listen_addresses": "",
                "unix_socket_directories": str(self.folder / "sock"),
                "shared_buffers": "64MB",
                "max_connections": "20",
                "log_destination": "stderr",
                "logging_collector": "off",
                "timezone": "UTC",
            }
        )
        # The history is no news for anybody: written without WAL to archive.
        self.start(("wal_level=minimal", "max_wal_senders=0", "archive_mode=off", "fsync=off"))
        with connect(f"{self.dsn} dbname=postgres") as session:
            session.rows("create database plant")
        with connect(self.dsn) as session:
            for statement in (*SCHEMA.split(";"), *HISTORY.split(";")):
                session.rows(statement)
            install_modules(session)
            documents = file_history(session, self.filestore)
            session.rows("vacuum analyze")
        self.stop()
        return documents

    def configure(self, settings: dict[str, str]) -> None:
        """Append settings to postgresql.conf; values are quoted here."""
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as stream:
            stream.writelines(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())

    def start(self, options: Sequence[str] = ()) -> None:
        """Start the server with ``name=value`` options and wait until it takes connections.

        Raises:
            PostgresError: it ended, or is not ready within a minute.
        """
        argv: list[str | Path] = [self.programs.path("postgres"), "-D", self.data]
        argv += [word for option in options for word in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = processes.start(argv, account=self.account, stdout=log, stderr=log)
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                connect(f"{self.dsn} dbname=postgres").close()
            except PostgresError as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise PostgresError(f"the plant's server did not start: {self.last_words()}") from error
                time.sleep(_POLL_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the server in an orderly way, by force if it does not; one that does not run is fine.

        What is not archived yet stays so: a server that stops would archive all of it first.
        """
        process = self._process
        if process is None:
            return
        family = family_of(process.pid)
        if process.poll() is None:
            self.configure({"archive_command": ""})
            process.send_signal(signal.SIGHUP)
        for number in (signal.SIGINT, signal.SIGQUIT):
            if process.poll() is None:
                process.send_signal(number)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            break
        else:
            processes.kill_group(process)
            process.wait()
        self._process = None
        # A push that the archiver had started may outlive it for a moment.
        deadline = time.monotonic() + _STOP_SECONDS
        while (left := [member for member in family if is_alive(member)]) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for member in left:
            send_signal(member, signal.SIGKILL)

    def crash(self) -> None:
        """Kill the server and everything it started, without warning, as a power cut does."""
        process = self._process
        assert process is not None, "it runs"
        family = family_of(process.pid)
        process.kill()
        for member in family:
            send_signal(member, signal.SIGKILL)
        process.wait(_STOP_SECONDS)
        self._process = None

    def lose(self) -> None:
        """Remove what the machine had on its disks: the data directory, the documents, the configuration."""
        for folder in (self.data, self.filestore.root, self.configuration):
            shutil.rmtree(folder)

    def take_over(self, *, data: Path, filestore: Path, configuration: Path) -> None:
        """Put what was recovered beside the plant into its places; the server does not run."""
        data.rename(self.data)
        filestore.rename(self.filestore.root)
        configuration.rename(self.configuration)

    def last_words(self) -> str:
        """Return the last line of the server's log."""
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "its log is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Somebody cannot go on: when, who, and what the server said."""

    at: datetime
    who: str
    what: str


class People:
    """People at work: threads that commit one order or document after the other and remember what was acknowledged."""

    def __init__(
        self, dsn: str, filing: Filing, *, clerks: int = 2, shift: str = "", has_shop_floor: bool = True
    ) -> None:
        """``shift``: what their numbers begin with; without a shop floor nobody finishes manufacturing orders."""
        self._dsn = dsn
        self._stop = threading.Event()
        self._at_work = threading.Event()
        self._orders: list[Order] = []
        self._documents: list[Document] = []
        self.complaints: list[Complaint] = []
        work: dict[str, Callable[[str], None]] = {
            f"{shift}SO-{clerk}-": partial(self._enter_orders, statement=SALE, lines=3)
            for clerk in range(1, clerks + 1)
        }
        work[f"{shift}DOC-1-"] = partial(self._file_documents, filing)
        if has_shop_floor:
            work[f"{shift}MO-1-"] = partial(self._enter_orders, statement=PRODUCTION, lines=1)
        self._threads = [
            threading.Thread(target=what, args=(prefix,), name=prefix, daemon=True) for prefix, what in work.items()
        ]

    def start(self) -> None:
        """Begin to enter orders, or go on after a rest."""
        self._at_work.set()
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def rest(self) -> None:
        """Let everybody finish the order in hand and wait for :meth:`start`."""
        self._at_work.clear()

    def stop(self) -> None:
        """Let everybody finish the order in hand."""
        self._stop.set()
        self._at_work.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def orders(self) -> list[Order]:
        """Return what was entered so far, as remembered by those who sent it."""
        return list(self._orders)

    def documents(self) -> list[Document]:
        """Return what was filed so far, as remembered by those who sent it."""
        return list(self._documents)

    def _enter_orders(self, prefix: str, *, statement: LiteralString, lines: int) -> None:
        self._work(prefix, lines, lambda session, number: session.rows(statement, (number, lines)), self._orders.append)

    def _file_documents(self, filing: Filing, prefix: str) -> None:
        def remember(entry: Order) -> None:
            self._documents.append(Document(entry=entry, sha1=filing.sha1_of(entry.number)))

        self._work(prefix, 1, filing.file, remember, pause_seconds=_FILING_PAUSE_SECONDS)

    def _work(
        self,
        prefix: str,
        lines: int,
        enter: Callable[[Session, str], object],
        remember: Callable[[Order], None],
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        """Enter one thing after the other until told to stop, or until the server refuses."""
        number, begun, acknowledged = "", datetime.now(UTC), None
        try:
            with connect(self._dsn, application_name=prefix) as session:
                for count in range(1, 1_000_000):
                    self._at_work.wait()
                    if self._stop.wait(pause_seconds):
                        return
                    number, begun, acknowledged = f"{prefix}{count:05d}", datetime.now(UTC), None
                    enter(session, number)
                    acknowledged = datetime.now(UTC)
                    flushed = Lsn.parse(session.row("select pg_current_wal_flush_lsn()::text")[0])
                    remember(Order(number=number, lines=lines, begun=begun, acknowledged=acknowledged, flushed=flushed))
        except DrError as error:
            if number and (acknowledged is not None or isinstance(error, PostgresUnreachableError)):
                # Without an answer nobody knows whether it was committed: it may or may not be there later.
                remember(Order(number=number, lines=lines, begun=begun, acknowledged=acknowledged, flushed=None))
            self.complaints.append(Complaint(at=datetime.now(UTC), who=prefix.strip("-"), what=error.message))


def family_of(pid: int) -> list[ProcessIdentity]:
    """Return the live descendants of a process: a server's children, and the pushes its archiver started."""
    found: list[ProcessIdentity] = []
    for child in children_of(pid):
        found += [child, *family_of(child.pid)]
    return found
