"""The cluster that is raced over: PostgreSQL with page checksums, pgbench, orders with three indexes, JSON messages.

It is made once per run and both programs back up the same one. While nobody is timed its ``archive_command`` copies
segments into a folder (``held``), from which they are then given to every program: so all of them have all WAL, and
none pays for another's. A timed program has the ``archive_command`` to itself.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from racewatch import quietly

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
_PATIENCE_SECONDS = 240
_ORDERS = """
create table orders (id bigserial, customer int, placed timestamptz, state text, amount numeric(12,2), note text);
insert into orders (customer, placed, state, amount, note)
  select (random() * 50000)::int, timestamptz '2024-01-01' + i * interval '12 seconds',
         (array['draft','confirmed','delivered','invoiced','paid'])[1 + i % 5], (random() * 10000)::numeric(12,2),
         md5(i::text) || ' Stückliste ' || (i % 977)
  from generate_series(1, {orders}) i;
alter table orders add primary key (id);
create index on orders (customer, placed);
create index on orders (state, amount);
"""
_MESSAGES = """
create table messages (id bigserial primary key, body jsonb);
insert into messages (body)
  select jsonb_build_object('order', i, 'kind', (array['mrp','sale','stock'])[1 + i % 3], 'quantity', i % 5000,
         'machine', 'press-' || i % 40, 'batch', md5((i * 7)::text), 'ok', i % 19 <> 0,
         'tags', jsonb_build_array(i % 7, i % 11), 'trace', md5(i::text) || md5((i + 1)::text) || md5((i * 3)::text),
         'text', format('Arbeitsgang %s an press-%s gemeldet: Menge %s gut, %s Ausschuss, Werkzeug %s von %s',
                        i % 90, i % 40, i % 5000, i % 13, 4000 + i % 977,
                        (array['Maier','Nowak','Öztürk','Weber'])[1 + i % 4]))
  from generate_series(1, {messages}) i;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything there is."""

    scale: int
    orders: int
    messages: int
    load_seconds: int
    wal_bytes: int
    """How much WAL the recovery to an instant replays."""
    segments: int
    """How many ready segments are pushed."""


REFERENCE = Size(scale=60, orders=2_500_000, messages=1_200_000, load_seconds=20, wal_bytes=1 << 30, segments=200)
LARGE = Size(scale=600, orders=25_000_000, messages=12_000_000, load_seconds=20, wal_bytes=1 << 30, segments=200)
"""20 GB: does memory stay as it is?"""
SMALL = Size(scale=4, orders=150_000, messages=80_000, load_seconds=4, wal_bytes=96 << 20, segments=12)


class Cluster:
    """One server of a user that is not root, below a folder of the benchmark."""

    def __init__(self, base: Path, size: Size) -> None:
        self.base = base
        self.size = size
        self.user = "postgres" if os.geteuid() == 0 else None
        self.data, self.sock, self.held = base / "pg", base / "sock", base / "held"
        self.own(base, mode=0o755)
        for folder in (self.data, self.sock, self.held):
            self.own(folder, mode=0o700)

    def own(self, folder: Path, *, mode: int = 0o750) -> Path:
        """Make a folder that the server's user owns."""
        folder.mkdir(mode=mode, parents=True)
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        return folder

    def run(self, program: str, *arguments: object) -> str:
        """Run one of PostgreSQL's programs as the server's user and return what it printed."""
        command = [str(BIN / program), *map(str, arguments)]
        return quietly(command, user=self.user, folder=self.base).decode()

    def sql(self, text: str) -> str:
        """Run SQL and return its rows, unaligned."""
        return self.run(
            "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.sock, "-U", "postgres", "-c", text, "postgres"
        ).strip()

    def make(self) -> None:
        """Make the cluster, fill it and leave it running."""
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--data-checksums", "--locale=C.UTF-8")
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.sock}'\narchive_mode = on\n"
                "archive_command = '/bin/true'\nshared_buffers = 512MB\nmax_wal_size = 8GB\ncheckpoint_timeout = 1h\n"
                # Nothing may move between the runs of two programs, or they would not back up the same.
                "autovacuum = off\nsynchronous_commit = off\nmaintenance_work_mem = 256MB\nlogging_collector = off\n"
            )
        self.start()
        socket = ("-h", self.sock, "-U", "postgres")
        self.run("pgbench", *socket, "-i", "-q", "-I", "dtgvp", "-s", self.size.scale, "postgres")
        self.sql(_ORDERS.format(orders=self.size.orders))
        self.sql(_MESSAGES.format(messages=self.size.messages))
        self.sql("vacuum (freeze, analyze)")
        self.settle()

    def start(self) -> None:
        """Start the server."""
        self.run("pg_ctl", "-D", self.data, "-l", self.base / "server.log", "-s", "-w", "start")

    def stop(self) -> None:
        """Stop the server at once if it runs; nothing of it is needed any more."""
        if not (self.data / "postmaster.pid").exists():
            return
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "-s", "stop")

    def archive_by(self, command: str | None) -> None:
        """Let a program archive; ``None`` = segments are held for all of them."""
        hold = f"cp %p {self.held}/.new && mv {self.held}/.new {self.held}/%f"
        text = hold if command is None else f"{command} && {hold}"
        self.sql(f"alter system set archive_command = '{text}'")
        self.sql("select pg_reload_conf()")
        self._await(lambda: self.sql("show archive_command") == text, "the new archive_command")

    def settle(self) -> None:
        """Wait until everything is on disk and archived, and files are old enough to be believed unchanged."""
        self.sql("checkpoint")
        self.sql("select pg_switch_wal()")
        self.await_archiver()
        os.sync()
        time.sleep(2.5)

    def await_archiver(self) -> None:
        """Wait until no segment waits to be archived."""
        status = self.data / "pg_wal" / "archive_status"
        self._await(lambda: not any(path.suffix == ".ready" for path in status.iterdir()), "the archiver")

    def _await(self, is_done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_done():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {_PATIENCE_SECONDS} s for {what}; see {self.base}/server.log")
            time.sleep(0.02)

    def take_held(self) -> list[Path]:
        """Return the segments that were archived since, oldest first, in a folder of their own."""
        folder = self.base / f"held-{time.monotonic_ns()}"
        self.held.rename(folder)
        self.own(self.held, mode=0o700)
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

    def load(self) -> int:
        """Let pgbench work for a while and return how many transactions it did."""
        said = self._pgbench(self.size.load_seconds)
        found = re.search(r"transactions actually processed: (\d+)", said)
        return int(found.group(1)) if found else 0

    def write_wal(self) -> int:
        """Let pgbench write WAL until there is enough of it; return how much there is."""
        begin = self.sql("select pg_current_wal_lsn()")
        while (written := int(self.sql(f"select (pg_current_wal_lsn() - '{begin}')::bigint"))) < self.size.wal_bytes:
            self._pgbench(2)
        return written

    def _pgbench(self, seconds: int) -> str:
        socket = ("-h", self.sock, "-U", "postgres")
        return self.run("pgbench", *socket, "-n", "-c", "4", "-j", "2", "-T", seconds, "postgres")

    def fingerprint(self, database: str | None = None) -> str:
        """Return what a recovered copy must agree with."""
        query = (
            "select (select count(*) || '/' || coalesce(sum(delta), 0) from pgbench_history),"
            " (select sum(abalance) from pgbench_accounts), (select count(*) from orders),"
            " (select count(*) from messages)"
        )
        if database is None:
            return self.sql(query)
        return self.run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", query).strip()

    def relation_files(self) -> list[str]:
        """Return the paths of all files below ``base/``."""
        return sorted(str(path.relative_to(self.data)) for path in (self.data / "base").rglob("*") if path.is_file())

    def source_bytes(self) -> int:
        """Return how much there is below ``base/`` and ``global/``."""
        below = (path for name in ("base", "global") for path in (self.data / name).rglob("*"))
        return sum(path.stat().st_size for path in below if path.is_file())

    def warm(self) -> None:
        """Read everything once: nobody shall be the one who waits for the disk."""
        warm(self.data / "base")


def warm(folder: Path) -> None:
    """Read all files below a folder."""
    buffer = bytearray(4 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def remove(folder: Path) -> None:
    """Delete a folder and all in it."""
    shutil.rmtree(folder, ignore_errors=True)
