"""The demo's plant: a PostgreSQL cluster with a manufacturer's tables, and people who enter orders all the time.

Everything lives in one folder and is ended by its own pid. The people remember each commit the server acknowledged;
what they remember is the oracle a recovery is compared with. The tables of journal items, stock moves and attachments
have the columns that Odoo gives them; documents are in ``plantdocuments``.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import LiteralString

from drservice import processes
from drservice.cli.oracle import Document, Order
from drservice.cli.plantdocuments import Filestore, Filing, file_history
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

_SCHEMA: LiteralString = """
create table customer (id int primary key, name text not null, country text not null);
create table product (id int primary key, code text not null unique, name text not null, price numeric(12,2) not null);
create table sale_order (
    id bigint generated always as identity primary key, number text not null unique,
    customer_id int not null references customer, ordered_at timestamptz not null, state text not null, note text);
create table sale_order_line (
    id bigint generated always as identity primary key, order_id bigint not null references sale_order,
    product_id int not null references product, quantity int not null, price numeric(12,2) not null);
create index on sale_order_line (order_id);
create table work_order (
    id bigint generated always as identity primary key, number text not null unique,
    product_id int not null references product, quantity int not null, planned_at timestamptz not null,
    state text not null, instructions text);
create table account_move_line (
    id bigint generated always as identity primary key, move_name text not null, account text not null,
    parent_state text not null, debit numeric(16,2) not null, credit numeric(16,2) not null);
create table stock_move (
    id bigint generated always as identity primary key, reference text not null,
    product_id int not null references product, product_qty numeric not null, state text not null);
create table ir_attachment (
    id bigint generated always as identity primary key, name text not null, res_model text, type text not null,
    store_fname text, checksum varchar(40), file_size int, db_datas bytea, mimetype text,
    create_date timestamptz not null default now());
create index on ir_attachment (store_fname);
"""
_HISTORY: LiteralString = """
insert into customer select i, 'Customer ' || i, (array['DE','FR','IT','PL','US'])[1 + i % 5]
    from generate_series(1, 500) i;
insert into product select i, 'P-' || lpad(i::text, 5, '0'), 'Gearbox ' || md5(i::text), 10 + i % 990
    from generate_series(1, 2000) i;
insert into sale_order (number, customer_id, ordered_at, state, note)
    select 'S' || lpad(i::text, 6, '0'), 1 + i % 500, timestamptz '2026-01-01Z' + i * interval '7 minutes', 'done',
    repeat(md5(i::text), 4) from generate_series(1, 10000) i;
insert into sale_order_line (order_id, product_id, quantity, price)
    select o.id, 1 + (o.id * 7 + j * 13) % 2000, 1 + (o.id + j) % 20, 10 + (o.id * j) % 500
    from sale_order o, generate_series(1, 4) j;
insert into work_order (number, product_id, quantity, planned_at, state, instructions)
    select 'W' || lpad(i::text, 6, '0'), 1 + i % 2000, 1 + i % 50, timestamptz '2026-01-01Z' + i * interval '5 minutes',
    'done', repeat(md5((i * 3)::text), 6) from generate_series(1, 15000) i;
insert into account_move_line (move_name, account, parent_state, debit, credit)
    select 'INV/' || o.number, side.account, 'posted', o.amount * side.debit, o.amount * (1 - side.debit)
    from (select s.number, sum(l.quantity * l.price) from sale_order s join sale_order_line l on l.order_id = s.id
        group by s.number order by s.number) o(number, amount), (values ('1400', 1), ('8400', 0)) side(account, debit);
insert into stock_move (reference, product_id, product_qty, state)
    select 'WH/' || number, product_id, quantity, 'done' from work_order order by id
"""
_DIGEST: LiteralString = """
select count(*), md5(string_agg(line, E'\\n' order by line)) from (
    select 'customer' || c::text from customer c
    union all select 'product' || p::text from product p
    union all select 'sale_order' || o::text from sale_order o where o.state = 'done'
    union all select 'line' || l::text from sale_order_line l join sale_order o on o.id = l.order_id
        where o.state = 'done'
    union all select 'work_order' || w::text from work_order w where w.state = 'done'
    union all select 'journal' || a::text from account_move_line a where a.move_name like 'INV/%'
    union all select 'move' || m::text from stock_move m where m.reference like 'WH/%') as rows(line)
"""
_SALE: LiteralString = """
with o as (
    insert into sale_order (number, customer_id, ordered_at, state)
    values (%s, 1 + floor(random() * 500)::int, clock_timestamp(), 'sale') returning id, number),
l as (
    insert into sale_order_line (order_id, product_id, quantity, price)
    select o.id, 1 + floor(random() * 2000)::int, 1 + j, 10 * j from o, generate_series(1, %s) j
    returning quantity * price as amount)
insert into account_move_line (move_name, account, parent_state, debit, credit)
select o.number, side.account, 'posted', t.amount * side.debit, t.amount * (1 - side.debit)
from o, (select sum(amount) from l) t(amount), (values ('1400', 1), ('8400', 0)) side(account, debit)
"""
_WORK: LiteralString = """
with w as (
    insert into work_order (number, product_id, quantity, planned_at, state)
    values (%s, 1 + floor(random() * 2000)::int, 1 + %s, clock_timestamp(), 'planned')
    returning number, product_id, quantity)
insert into stock_move (reference, product_id, product_qty, state)
select number, product_id, quantity, 'done' from w
"""
_SALES: LiteralString = """
select o.number, count(l.id) from sale_order o left join sale_order_line l on l.order_id = o.id
where o.state = 'sale' group by o.number
"""
_WORK_ORDERS: LiteralString = "select number, 0 from work_order where state = 'planned'"


_CONFIGURATION = {
    "odoo.conf": "[options]\ndb_name = plant\nlist_db = False\nproxy_mode = True\nworkers = 4\n",
    "addons.txt": "# what is installed beside Odoo itself\nplant_quality 17.0.1.4\nplant_labels 17.0.2.0\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Rows that were there before the demo began, and a hash over all of them."""

    rows: int
    md5: str


def digest_of(session: Session) -> Digest:
    """Hash every row that the plant was filled with."""
    rows, md5 = session.row(_DIGEST)
    return Digest(rows=int(rows), md5=str(md5))


def orders_in(session: Session) -> dict[str, int]:
    """Return every order entered by the people of the demo, with its number of lines."""
    rows = [*session.rows(_SALES), *session.rows(_WORK_ORDERS)]
    return {str(number): int(lines) for number, lines in rows}


def sales_in(session: Session) -> dict[str, int]:
    """Return every order that was sold by the people of the demo, with its number of lines."""
    return {str(number): int(lines) for number, lines in session.rows(_SALES)}


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
        """The folder with the application's configuration."""
        return self.folder / "configuration"

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
        for name, text in _CONFIGURATION.items():
            (self.configuration / name).write_text(text, encoding="utf-8")
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
            for statement in (*_SCHEMA.split(";"), *_HISTORY.split(";")):
                if statement.strip():
                    session.rows(statement)
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

    def __init__(self, dsn: str, filing: Filing | None, *, clerks: int = 2, shift: str = "") -> None:
        """``filing``: ``None`` = they only sell; ``shift``: what their numbers begin with."""
        self._dsn = dsn
        self._stop = threading.Event()
        self._at_work = threading.Event()
        self._archive_room = threading.Lock()
        self._orders: list[Order] = []
        self._documents: list[Document] = []
        self.complaints: list[Complaint] = []
        work: dict[str, Callable[[str], None]] = {
            f"{shift}SO-{clerk}-": partial(self._enter_orders, statement=_SALE, lines=3)
            for clerk in range(1, clerks + 1)
        }
        if filing is not None:
            work[f"{shift}WO-1-"] = partial(self._enter_orders, statement=_WORK, lines=0)
            work[f"{shift}DOC-1-"] = partial(self._file_documents, filing)
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

    @contextmanager
    def filing_closed(self) -> Iterator[None]:
        """Let nobody file a document while the block runs; orders go on."""
        with self._archive_room:
            yield

    def orders(self) -> list[Order]:
        """Return what was entered so far, as remembered by those who sent it."""
        return list(self._orders)

    def documents(self) -> list[Document]:
        """Return what was filed so far, as remembered by those who sent it."""
        return list(self._documents)

    def _enter_orders(self, prefix: str, *, statement: LiteralString, lines: int) -> None:
        self._work(prefix, lines, lambda session, number: session.rows(statement, (number, lines)), self._orders.append)

    def _file_documents(self, filing: Filing, prefix: str) -> None:
        def file(session: Session, number: str) -> None:
            with self._archive_room:
                filing.file(session, number)

        def remember(entry: Order) -> None:
            self._documents.append(Document(entry=entry, sha1=filing.sha1_of(entry.number)))

        self._work(prefix, 1, file, remember)

    def _work(
        self,
        prefix: str,
        lines: int,
        enter: Callable[[Session, str], object],
        remember: Callable[[Order], None],
    ) -> None:
        """Enter one thing after the other until told to stop, or until the server refuses."""
        number, begun, acknowledged = "", datetime.now(UTC), None
        try:
            with connect(self._dsn, application_name=prefix) as session:
                for count in range(1, 1_000_000):
                    self._at_work.wait()
                    if self._stop.wait(_PAUSE_SECONDS):
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
