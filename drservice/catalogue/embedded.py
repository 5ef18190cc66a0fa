"""The embedded catalogue: a private PostgreSQL cluster below ``state_dir/catalogue``, reached over a Unix socket only.

One server serves every process of a host (node, web, commands). Whoever starts first starts it, whoever stops last
stops it; both are told by locks that the kernel drops when a process dies, so that a killed process leaves a running
server, never a blocked one: the next to start finds it.

In the folder: ``data`` (the cluster), ``sock``, ``log``, ``lock`` (held while somebody starts or stops the server) and
``users`` (locked shared by each process that uses it). All of it may be deleted while nothing runs; ``drservice
rebuild`` fills a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg

from drservice import processes
from drservice.components.postgres.server import PostgresPrograms, find_programs
from drservice.components.postgres.versions import SUPPORTED_MAJORS
from drservice.environments import proc
from drservice.environments.proc import ProcessIdentity
from drservice.errors import EmbeddedClusterError, ProgramMissingError
from drservice.processes import Account

_ROLE = "drservice"
_DATABASE = "postgres"
_PORT = 5432
_LONGEST_SOCKET_PATH = 107
"""Of ``sun_path`` in Linux's unix(7), without its final zero."""
_LOCK_SECONDS = 90.0
_INITDB_SECONDS = 120.0
_READY_SECONDS = 120.0
"""A server that was killed replays its log before it answers."""
_RETRY_SECONDS = 20.0
"""How long the children of a killed server may take to notice."""
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02
_ASK_SECONDS = 0.1
"""Each refused connection is a line in the server's log."""
_LOG_BYTES = 16 << 20

SETTINGS: dict[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "off",
    "cluster_name": "drservice-catalogue",
}
"""Given on the command line, so that no file in the data directory decides whether the server listens to a network."""


class EmbeddedCluster:
    """The private cluster of one ``state_dir``; a context manager that yields its URL.

    As root the server runs as the owner of the folder (``postgres`` if that is root); only it and root may connect.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir.absolute() / "catalogue"
        self._data = self._folder / "data"
        self._using: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> str:
        """Start and return the URL."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, unless another process uses it."""
        self.stop()

    @property
    def url(self) -> str:
        """Where the server is reached while it runs."""
        return f"postgresql://{_ROLE}@/{_DATABASE}?host={quote(str(self._sock), safe='')}&port={_PORT}"

    def start(self) -> str:
        """Make the cluster if there is none, start its server if it does not run, and return the URL.

        Safe to repeat: a server that has died is started again.

        Raises:
            EmbeddedClusterError: it does not start; its log says why.
            ProgramMissingError: no PostgreSQL server is installed, or not in the version of the cluster.
            ConfigurationError: a link stands where a folder of ours should be.
        """
        account = self._make_folder()
        with self._locked() as lock:
            if self._using is None:
                self._using = self._open_users(fcntl.LOCK_SH)
            try:
                self._bring_up(account, lock)
            except BaseException:
                self._leave()
                raise
        return self.url

    def stop(self) -> None:
        """Stop using the server, and shut it down if no other process uses it.

        Raises:
            EmbeddedClusterError: it does not end.
        """
        if self._using is None:
            return
        with self._locked():
            self._leave()
            try:
                alone = self._open_users(fcntl.LOCK_EX)
            except BlockingIOError:
                return
            try:
                self._stop_server()
            finally:
                os.close(alone)

    def _make_folder(self) -> Account | None:
        """Make the folder, of whom the server runs as, and return that user."""
        try:
            processes.make_folder(self._folder, mode=0o700)
            account = processes.server_account(self._folder)
            if account is not None:
                self._own(self._folder, account)
        except OSError as error:
            raise EmbeddedClusterError(f"cannot make {self._folder}: {error.strerror}") from error
        return account

    @property
    def _sock(self) -> Path:
        usual = self._folder / "sock"
        if len(os.fsencode(usual / f".s.PGSQL.{_PORT}")) <= _LONGEST_SOCKET_PATH:
            return usual
        base = Path("/run/drservice") if os.geteuid() == 0 else Path(f"/tmp/drservice-{os.getuid()}")  # noqa: S108 - ownership is checked before use
        return base / f"catalogue-{hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]}"

    def _make_sock(self, account: Account | None) -> None:
        if self._sock.parent != self._folder:
            base = self._sock.parent
            base.mkdir(mode=0o711, exist_ok=True)
            facts = base.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                raise EmbeddedClusterError(
                    f"{base} is not a folder that only this user can write",
                    hint="Remove it, or set a shorter state_dir so that no short socket folder is needed.",
                )
        processes.make_folder(self._sock, mode=0o700)
        if account is not None:
            self._own(self._sock, account)

    @staticmethod
    def _own(path: Path, account: Account) -> None:
        parent = processes.open_folder(path.parent)
        try:
            os.chown(path.name, account.uid, account.gid, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Be the only one that starts or stops the server."""
        try:
            descriptor = processes.open_private(self._folder / "lock")
        except OSError as error:
            raise EmbeddedClusterError(
                f"cannot open {self._folder}/lock: {error.strerror}",
                hint="The embedded catalogue belongs to the owner of state_dir; only that user and root may use it.",
            ) from error
        try:
            if not _wait_until(lambda: _flocked(descriptor, fcntl.LOCK_EX), _LOCK_SECONDS):
                raise EmbeddedClusterError(
                    f"another process has been starting or stopping the catalogue for {_LOCK_SECONDS:.0f} s",
                    hint=f"See who holds {self._folder}/lock (`lslocks`).",
                )
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_users(self, how: int) -> int:
        """Lock ``users`` without waiting and return the descriptor that holds the lock."""
        descriptor = processes.open_private(self._folder / "users")
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _leave(self) -> None:
        if self._using is not None:
            os.close(self._using)
            self._using = None

    def _postmaster(self) -> ProcessIdentity | None:
        """Return the running server of this cluster, found by its command line.

        Not by its pid file, which may be absent yet, or name a pid that another program has by now. The server never
        changes its own title; a child still has it for a moment, and is younger.
        """
        wanted = os.fsencode(self._data)
        found: list[ProcessIdentity] = []
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                arguments = (path / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between two looks
            if Path(os.fsdecode(arguments[0])).name == "postgres" and arguments[1:3] == [b"-D", wanted]:
                identity = proc.identity_of(int(path.name))
                found += [identity] if identity is not None else []
        return min(found, key=lambda identity: (identity.start_ticks, identity.pid), default=None)

    def _bring_up(self, account: Account | None, lock: int) -> None:
        """Wait for the server that runs, also through its recovery or its end; start one when none runs."""
        deadline = time.monotonic() + _READY_SECONDS
        while (refusal := self._refusal()) is not None:
            if time.monotonic() > deadline:
                raise EmbeddedClusterError(f"the catalogue's server does not answer: {refusal}")
            if self._postmaster() is None:
                self._start_server(account, lock)
            time.sleep(_ASK_SECONDS)

    def _refusal(self) -> str | None:
        """Return why no connection can be had, ``None`` if one can."""
        try:
            psycopg.connect(self.url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            return " ".join(str(error).split())
        return None

    def _start_server(self, account: Account | None, lock: int) -> None:
        """Start the server and wait until it answers, or has to recover for long."""
        programs = self._programs()
        if not self._data.exists():
            self._initialise(programs, account, lock)
        self._write_access(account)
        self._make_sock(account)
        argv: list[str | Path] = [programs.path("postgres"), "-D", self._data, "-k", self._sock]
        for name, value in SETTINGS.items():
            argv += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + _RETRY_SECONDS
        while not self._try_start(argv, account):
            # Children of a killed server hold its memory for a moment; a new one refuses to start beside them.
            if time.monotonic() > deadline:
                raise EmbeddedClusterError(f"the catalogue's server ended at once: {self._last_log_line()}")
            time.sleep(0.5)

    def _try_start(self, argv: list[str | Path], account: Account | None) -> bool:
        """Start the server; ``False`` if it ended before it answered."""
        if self._process is not None:
            self._process.wait(_STOP_SECONDS)
        self._remove_pid_files()
        log = processes.open_private(self._folder / "log")
        try:
            if os.fstat(log).st_size > _LOG_BYTES:
                os.ftruncate(log, 0)
            os.lseek(log, 0, os.SEEK_END)
            process = processes.start(argv, account=account, stdout=log, stderr=log)
        finally:
            os.close(log)
        self._process = process
        _wait_until(
            lambda: process.poll() is not None or self._refusal() is None, _RETRY_SECONDS, poll_seconds=_ASK_SECONDS
        )
        return process.poll() is None

    def _programs(self) -> PostgresPrograms:
        """Return the programs of the cluster's version, or of the newest installed for a new cluster."""
        try:
            major = int((self._data / "PG_VERSION").read_text(encoding="ascii"))
        except FileNotFoundError:
            return _newest_programs()
        except ValueError as error:
            raise EmbeddedClusterError(f"{self._data}/PG_VERSION is no version") from error
        try:
            return find_programs(major)
        except ProgramMissingError as error:
            raise ProgramMissingError(
                error.message,
                hint=f"Install postgresql-{major}, or remove {self._data} and run `drservice rebuild`: nothing in it"
                " but accounts, tokens and unsent messages is lost.",
            ) from error

    def _initialise(self, programs: PostgresPrograms, account: Account | None, lock: int) -> None:
        """Make the cluster beside its place and move it there when it is whole."""
        unfinished = self._folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        done = processes.run(
            [programs.path("initdb"), "-D", unfinished, f"--username={_ROLE}", "--auth=reject", "--encoding=UTF8",
             "--locale=C.UTF-8", "--data-checksums"],
            account=account,
            timeout_seconds=_INITDB_SECONDS,
            pass_fds=(lock,),  # if this process is killed, nobody else begins before initdb has ended
        )  # fmt: skip
        if done.status != 0:
            raise EmbeddedClusterError(f"initdb failed: {done.last_line()}")
        folder = processes.open_folder(self._folder)
        try:
            os.rename(unfinished.name, self._data.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def _write_access(self, account: Account | None) -> None:
        """Let in whoever the server runs as, and root, by the kernel's word (peer); nobody else."""
        own = account or processes.account_of(Path("/proc/self"))
        names = dict.fromkeys([own.name, "root"])
        files = {
            "pg_hba.conf": f"local all {_ROLE} peer map={_ROLE}\n",
            "pg_ident.conf": "".join(f'{_ROLE} "{name}" {_ROLE}\n' for name in names),
        }
        for name, content in files.items():
            with os.fdopen(processes.create_private(self._data / name), "w", encoding="utf-8") as stream:
                stream.write(content)

    def _remove_pid_files(self) -> None:
        """Remove what a dead server left to name it: PostgreSQL believes it if its pid is another program's by now.

        Should a server of this cluster run all the same, a second one finds its shared memory and refuses to start.
        """
        for path in (self._data / "postmaster.pid", self._sock / f".s.PGSQL.{_PORT}.lock"):
            folder = processes.open_folder(path.parent)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=folder)
            finally:
                os.close(folder)

    def _stop_server(self) -> None:
        for number, patience in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, _RETRY_SECONDS)):
            running = self._postmaster()
            if running is None or not proc.send_signal(running, number):
                break
            if _wait_until(lambda: not proc.is_alive(running), patience):  # noqa: B023 - called before the next turn
                break
        if self._postmaster() is not None:
            raise EmbeddedClusterError("the catalogue's server does not end")
        if self._process is not None:
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def _last_log_line(self) -> str:
        try:
            lines = (self._folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"its log cannot be read: {error.strerror}"
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def _newest_programs() -> PostgresPrograms:
    for major in reversed(SUPPORTED_MAJORS):
        try:
            return find_programs(major)
        except ProgramMissingError:
            continue
    raise ProgramMissingError(
        "no PostgreSQL server is installed for the embedded catalogue",
        hint="Install one (apt-get install postgresql), or name a database: catalogue: postgresql://...",
    )


def _flocked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], seconds: float, *, poll_seconds: float = _POLL_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_seconds)
    return True
