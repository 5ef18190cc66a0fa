"""Real PostgreSQL clusters for tests: made from a template in a moment, ended by their own pid.

Use it through a fixture (see ``tests/integration/postgres/conftest.py``)::

    maker = ClusterMaker(cache=tmp_path_factory.getbasetemp())   # once per session
    cluster = maker.make(checksums=True, wal_segment_mb=1)       # stopped, own folder, own socket
    cluster.archive_to(folder)                                   # before start: archive_mode=on, cp
    cluster.start()
    cluster.sql("create table t(i int)")                         # rows as tuples; autocommit
    cluster.stop()                                               # "smart" | "fast" | "immediate"
    maker.close()                                                # ends and removes everything it made

Rules it follows: only Unix sockets; the server runs as ``postgres`` when the tests run as root; each cluster
lives in its own folder below the system's temporary directory, or in memory (pytest's own is closed to other users,
and socket paths must be short); processes are ended by pid, never by name.

Clusters made from one template share its system identifier. ``fresh=True`` runs initdb anew (about 1 s) for
tests that need a cluster of another identity.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import psycopg

from drservice import processes

StopMode = Literal["smart", "fast", "immediate"]
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "''",
    "fsync": "off",
    "shared_buffers": "'16MB'",
    "max_connections": "30",
    "max_wal_senders": "5",
    "max_worker_processes": "6",
    "wal_level": "replica",
    "autovacuum": "on",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "'%m [%p] '",
    "lc_messages": "'C'",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "wal_keep_size": "0",
    "min_wal_size": "'32MB'",
}
"""What every test cluster is configured with, as written to postgresql.conf."""


def find_bin(major: int | None = None) -> Path:
    """Return the folder of the newest installed server, or of ``major``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    wanted = [path for path in found if major is None or path.parts[-3] == str(major)]
    if not wanted:
        raise FileNotFoundError(f"no PostgreSQL server {major or ''} in /usr/lib/postgresql")
    return wanted[-1].parent


def hand_over(path: Path) -> None:
    """Give a tree to the user PostgreSQL runs as (only as root)."""
    account = processes.server_account()
    if account is None:
        return
    for folder, _, files in os.walk(path):
        os.chown(folder, account.uid, account.gid)
        for name in files:
            os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)


@dataclass(kw_only=True)
class Cluster:
    """One cluster in a folder of its own: ``data/``, ``sock/``, ``log``."""

    root: Path
    """Owned by the server's user; tests may put archives and copies here."""
    bin: Path
    data: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def sock(self) -> Path:
        """The folder of the Unix socket."""
        return self.root / "sock"

    @property
    def log(self) -> Path:
        """The server's log (appended by every start)."""
        return self.root / "log"

    @property
    def account(self) -> processes.Account | None:
        """The user the server runs as; ``None`` = the present one."""
        return processes.server_account(self.data)

    @property
    def user(self) -> str:
        """The superuser's name."""
        return "postgres"

    def dsn(self, database: str = "postgres", user: str | None = None) -> str:
        """Return a libpq string that reaches the cluster from this machine."""
        return f"host={self.sock} dbname={database} user={user or self.user}"

    def configure(self, **settings: str) -> None:
        """Append raw ``name = value`` lines to postgresql.conf (quote values yourself)."""
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as config:
            config.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def archive_to(self, folder: Path) -> Path:
        """Archive with a plain ``cp`` that never overwrites; takes effect at the next start."""
        folder.mkdir(parents=True, exist_ok=True)
        hand_over(folder)
        self.configure(archive_mode="on", archive_command=f"'test ! -f {folder}/%f && cp %p {folder}/%f'")
        return folder

    def start(self, options: Sequence[tuple[str, str]] = (), *, wait: bool = True) -> None:
        """Start the server with ``-c name=value`` options; with ``wait`` until it takes connections."""
        assert self.process is None, "it runs already"
        argv: list[str] = [str(self.bin / "postgres"), "-D", str(self.data), "-k", str(self.sock)]
        argv += ["-c", "dynamic_shared_memory_type=mmap"]  # goes with the data directory, also of a killed server
        for name, value in options:
            argv += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = processes.start(argv, account=self.account, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_seconds: float = 60.0) -> None:
        """Wait until a connection succeeds; an ended server is an AssertionError with its log."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended:\n{self.log_text()[-4000:]}"
            try:
                psycopg.connect(self.dsn(), autocommit=True).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, f"not ready:\n{self.log_text()[-4000:]}"
                time.sleep(0.02)
            else:
                return

    def wait_ended(self, timeout_seconds: float = 60.0) -> int:
        """Wait for the server to end by itself and return its exit status."""
        assert self.process is not None
        status = self.process.wait(timeout_seconds)
        self.process = None
        return status

    def stop(self, mode: StopMode = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop the server; one that does not run is fine."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(_SIGNALS[mode])
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise
        self.process = None

    def restart(self) -> None:
        """Stop (fast) and start again."""
        self.stop()
        self.start()

    def kill9(self) -> None:
        """Kill the postmaster and its children without warning, as a power cut does."""
        if self.process is None:
            return
        if self.process.poll() is not None:  # it ended by itself
            self.process = None
            return
        children = self.children()
        self.process.kill()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)
        self.process = None
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/exe").exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.01)  # a process that was killed works in the directory until the kernel has come to it
        self._free_shared_memory()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _free_shared_memory(self) -> None:
        """Remove the System V segment that a killed server leaves: a machine has 4,096 of them, shared by all runs.

        Its id is the second word of the seventh line of ``postmaster.pid``.
        """
        try:
            segment = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[6].split()[1]
        except (FileNotFoundError, IndexError):  # it was killed before it had one
            return
        subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)  # a test may have removed it itself

    def children(self) -> list[int]:
        """Return the pids of the postmaster's children."""
        assert self.process is not None
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def connect(self, database: str = "postgres", user: str | None = None) -> psycopg.Connection[Any]:
        """Open an autocommit connection; the caller closes it."""
        return psycopg.connect(self.dsn(database, user), autocommit=True)

    def sql(
        self, query: str, parameters: Sequence[Any] | None = None, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement (or several without parameters) and return the rows of the last, if any."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters: Sequence[Any] | None = None) -> Any:
        """Return the first column of the first row."""
        return self.sql(query, parameters)[0][0]

    def run(self, program: str, *arguments: str | Path, timeout_seconds: float = 120) -> processes.Finished:
        """Run one of PostgreSQL's programs as the server's user."""
        return processes.run([self.bin / program, *arguments], account=self.account, timeout_seconds=timeout_seconds)

    def pgbench_init(self, scale: int = 1, database: str = "postgres") -> None:
        """Fill pgbench's tables (about 15 MB per unit of scale)."""
        done = self.run("pgbench", "-i", "-q", "-s", str(scale), "-h", self.sock, "-U", self.user, database)
        assert done.status == 0, done.stderr.decode()

    def pgbench(self, *, seconds: int, clients: int = 2, database: str = "postgres") -> None:
        """Run pgbench's built-in load to its end."""
        done = self.run(
            "pgbench", "-n", "-T", str(seconds), "-c", str(clients), "-h", self.sock, "-U", self.user, database
        )
        assert done.status == 0, done.stderr.decode()

    def switch_wal(self) -> str:
        """Finish the current segment (a record is written first so that there is something) and name it."""
        self.sql("select pg_logical_emit_message(true, 'test', 'switch')")
        return str(self.value("select pg_walfile_name(pg_switch_wal())"))

    def wait_archived(self, name: str, folder: Path, timeout_seconds: float = 30.0) -> Path:
        """Wait until ``name`` is in the archive folder and return its path."""
        deadline = time.monotonic() + timeout_seconds
        while not (self.data / "pg_wal" / "archive_status" / f"{name}.done").exists():
            if (folder / name).exists() and not (self.data / "pg_wal" / name).exists():
                break
            assert time.monotonic() < deadline, f"{name} was not archived:\n{self.log_text()[-2000:]}"
            time.sleep(0.02)
        return folder / name

    def log_text(self) -> str:
        """Return the server's log."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def copy_data(self, destination: Path) -> Path:
        """Copy the data directory with ``cp -a`` (a crude backup when taken between start and stop)."""
        # A live cluster's files come and go: cp's complaint about a vanished one is no failure here.
        subprocess.run(
            ["cp", "-a", "--reflink=auto", f"{self.data}/.", str(destination)],
            check=False,
            stderr=subprocess.DEVNULL,
        )
        (destination / "postmaster.pid").unlink(missing_ok=True)
        return destination


class ClusterMaker:
    """Makes clusters from cached templates and removes all of them at the end."""

    place: ClassVar[Path | None] = None
    """Where clusters get their folders; ``None``: the system's temporary directory, as benchmarks want it."""

    def __init__(self, *, cache: Path, major: int | None = None, on_disk: bool = False) -> None:
        """``cache``: a folder for templates; may be shared by several test processes.

        ``on_disk``: not in :attr:`place`, for clusters whose paths a sandbox has to have: it has a ``/dev`` of its own.
        """
        self._cache = cache
        self._place = None if on_disk else self.place
        self._bin = find_bin(major)
        self._made: list[Cluster] = []

    def make(
        self,
        *,
        checksums: bool = True,
        wal_segment_mb: int = 16,
        fresh: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> Cluster:
        """Make a cluster, not started.

        Args:
            checksums: initialise with data checksums (``initdb -k``).
            wal_segment_mb: WAL segment size; 1 makes many small files.
            fresh: run initdb for this one, so that its system identifier is its own.
            settings: raw postgresql.conf values beside :data:`SETTINGS`.
        """
        cluster = self._empty()
        if fresh:
            self._initdb(cluster.data, checksums=checksums, wal_segment_mb=wal_segment_mb)
        else:
            template = self._template(checksums=checksums, wal_segment_mb=wal_segment_mb)
            subprocess.run(["cp", "-a", "--reflink=auto", f"{template}/.", str(cluster.data)], check=True)
        cluster.configure(**(settings or {}))
        return cluster

    def over(self, data: Path) -> Cluster:
        """Return a cluster (not started) over an existing data directory, with a socket of its own."""
        cluster = self._empty()
        cluster.data = data
        hand_over(data)
        data.chmod(0o700)
        return cluster

    def folder(self, name: str = "x") -> Path:
        """Make an empty folder that the server's user owns; removed at the end."""
        cluster = self._empty()
        path = cluster.root / name
        path.mkdir(mode=0o700)
        hand_over(path)
        return path

    def close(self) -> None:
        """End every server and remove every folder made here."""
        for cluster in self._made:
            try:
                cluster.kill9()
            finally:
                shutil.rmtree(cluster.root, ignore_errors=True)
        self._made.clear()

    def _empty(self) -> Cluster:
        root = Path(tempfile.mkdtemp(prefix="drs-pg-", dir=self._place))
        root.chmod(0o755)
        for name, mode in (("data", 0o700), ("sock", 0o755)):
            (root / name).mkdir()
            (root / name).chmod(mode)
        hand_over(root)
        cluster = Cluster(root=root, bin=self._bin, data=root / "data")
        self._made.append(cluster)
        return cluster

    def _template(self, *, checksums: bool, wal_segment_mb: int) -> Path:
        name = f"pg-template-{self._bin.parts[-2]}-{'k' if checksums else 'n'}-{wal_segment_mb}"
        template = self._cache / name
        with (self._cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not template.exists():
                making = self._empty()
                self._initdb(making.data, checksums=checksums, wal_segment_mb=wal_segment_mb)
                unfinished = self._cache / f"{name}.new"
                shutil.rmtree(unfinished, ignore_errors=True)
                subprocess.run(["cp", "-a", str(making.data), str(unfinished)], check=True)
                unfinished.rename(template)
        return template

    def _initdb(self, data: Path, *, checksums: bool, wal_segment_mb: int) -> None:
        argv: list[str | Path] = [
            self._bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
            "--no-sync", f"--wal-segsize={wal_segment_mb}",
        ]  # fmt: skip
        if checksums:
            argv.append("--data-checksums")
        done = processes.run(argv, account=processes.server_account(data), timeout_seconds=120)
        assert done.status == 0, done.stderr.decode()
        with (data / "postgresql.conf").open("a", encoding="utf-8") as config:
            config.writelines(f"{key} = {value}\n" for key, value in SETTINGS.items())
