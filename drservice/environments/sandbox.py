"""The default environment: a bubblewrap sandbox with no network, reached over a Unix socket.

Works as root (everything inside runs as the server account) and as an ordinary user (everything inside runs as
that user, in a user namespace). A keeper process owns the sandbox: the caller may end or crash without
ending it, and the keeper's death ends everything inside.

``execute`` enters by a second sandbox with the same folders: it sees the same files and reaches the server
over the socket in ``/env/sock``, but has process and network namespaces of its own (as empty as the
server's), so it cannot signal the server.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Protocol

import drservice
from drservice import processes
from drservice.clock import Clock
from drservice.environments import bubblewrap, folder, isolation, keeper, proc, seccomp, streaming, watch
from drservice.environments.interface import Endpoint, EnvironmentDescription, EnvironmentSpec, EnvironmentState, Probe
from drservice.environments.limits import BrokenLimit, LimitKind, Usage
from drservice.environments.proc import ProcessIdentity
from drservice.errors import EnvironmentFailedError, EnvironmentLimitError, IsolationError, ProgramMissingError
from drservice.model.ids import EnvironmentId, make_ulid, ulid_time
from drservice.processes import Finished

_LOG_TAIL_BYTES = 1 << 20
_POLL_SECONDS = 0.01
_KILL_SECONDS = 15.0
_ENDING_SECONDS = 30.0
_IMMEDIATE_SECONDS = 5.0
_ORDERLY_SECONDS = 60.0
_SELF_TEST_SECONDS = 20.0
_UNFINISHED_SECONDS = 600.0
_KILLED = 128 + signal.SIGKILL
_VISIBLE = re.compile(r"/(usr|bin|sbin|lib|lib32|lib64|libx32|env)/")


class BuildArgv(Protocol):
    """Makes the command line of a sandbox; :func:`bubblewrap.sandbox_argv` is the one."""

    def __call__(
        self,
        layout: bubblewrap.Layout,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return the argv that runs ``argv`` inside."""
        ...


def prepare_sandbox(
    spec: EnvironmentSpec,
    *,
    environments_dir: Path,
    clock: Clock,
    build_argv: BuildArgv = bubblewrap.sandbox_argv,
) -> Sandbox:
    """Make an empty sandbox below ``environments_dir``; nothing runs yet.

    A crash leaves either nothing under the environment's name or a whole, listed environment whose maker is
    gone (``DEAD``); both are for :func:`reap`.

    Raises:
        ProgramMissingError: bubblewrap or setpriv is not installed.
        EnvironmentFailedError: the folder cannot be made.
    """
    processes.find_program("bwrap", package="bubblewrap")
    processes.find_program("setpriv", package="util-linux")
    now = clock.now()
    identifier = EnvironmentId(make_ulid(now, secrets.token_bytes(10)))
    root = folder.make_folder(spec, environments_dir=environments_dir.absolute(), identifier=identifier, now=now)
    return Sandbox(root, build_argv=build_argv)


def open_sandbox(path: Path) -> Sandbox:
    """Open an environment that somebody else prepared.

    Raises:
        EnvironmentFailedError: there is none at ``path``.
    """
    return Sandbox(path.absolute())


def list_sandboxes(environments_dir: Path) -> list[EnvironmentDescription]:
    """Return what is there, oldest first; one that is being removed is left out.

    Raises:
        EnvironmentFailedError: a folder cannot be understood.
    """
    found: list[EnvironmentDescription] = []
    for root in folder.folders(environments_dir.absolute()):
        try:
            found.append(open_sandbox(root).describe())
        except EnvironmentFailedError:
            if (root / folder.DESCRIPTION).exists():  # asked afterwards: it may go at any moment before
                raise
    return found


def reap(environments_dir: Path, clock: Clock) -> list[EnvironmentId]:
    """Destroy what has expired or lost its keeper or maker, and what crashes left; return their ids.

    One that cannot be destroyed does not keep the others alive.

    Raises:
        EnvironmentFailedError: at the end, naming each that is left and why.
    """
    reaped: list[EnvironmentId] = []
    failures: list[str] = []
    environments_dir = environments_dir.absolute()
    for root in (*folder.folders(environments_dir), *folder.unfinished(environments_dir)):
        try:
            if _is_leftover(root, clock):
                _destroy_leftover(root)
                reaped.append(EnvironmentId(root.name.removeprefix(folder.NEW_PREFIX)))
        except EnvironmentFailedError as error:
            failures.append(f"{root.name}: {error.message}")
    if failures:
        raise EnvironmentFailedError("environments are left: " + "; ".join(failures))
    return reaped


class Sandbox:
    """One sandbox on this host; implements :class:`~drservice.environments.interface.Environment`."""

    def __init__(self, root: Path, *, build_argv: BuildArgv = bubblewrap.sandbox_argv) -> None:
        self._root = root
        self._about = folder.read_description(root)
        self._build_argv = build_argv

    @property
    def id(self) -> EnvironmentId:
        """Its name, unique on this host."""
        return self._about.id

    @property
    def data(self) -> Path:
        """The cluster's directory as the host sees it."""
        return self._about.data

    @property
    def wal(self) -> Path:
        """The feeder's exchange folder as the host sees it."""
        return self._root / "wal"

    @property
    def log(self) -> Path:
        """The folder ``/env/log`` as the host sees it."""
        return self._root / "log"

    @property
    def dsn(self) -> str:
        """A libpq string that reaches the server from the host as ``postgres``, port 5432 of the socket folder."""
        quoted = str(self._about.sock).replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{quoted}' port=5432 user=postgres dbname=postgres"

    def describe(self) -> EnvironmentDescription:
        """Return its present state."""
        about = self._about
        return EnvironmentDescription(
            id=about.id,
            kind=folder.KIND,
            service=about.service,
            purpose=about.purpose,
            state=self._state(),
            path=self._root,
            dsn=self.dsn,
            created_at=about.created_at,
            expires_at=about.expires_at,
            broken_limit=self._broken_limit(),
        )

    def self_test(self, *, production: Sequence[Endpoint] = ()) -> Sequence[Probe]:
        """Ask from inside whether anything outside can be reached; every probe is returned.

        The probes run in a sandbox made by the same command line as the server's.

        Raises:
            EnvironmentFailedError: the test itself could not run (never a pass).
        """

        def run_inside(argv: Sequence[str], stdin: bytes, canary: Mapping[str, str]) -> Finished:
            outside = processes.clean_environment()
            if self._about.account is not None:
                # Only as root: an ordinary user's own processes may read the environment bwrap was started
                # with, therefore bwrap is never given more than the clean one (see _run_argv).
                outside.update(canary)
            return self._run(argv, environment=outside, stdin=stdin, timeout_seconds=_SELF_TEST_SECONDS)

        return isolation.run_self_test(run_inside, production=production, hidden=(self._root,))

    def folder(self, name: str) -> Path:
        """Return the folder ``name`` for files of another component, made on demand; ``/env/files/NAME`` inside.

        Raises:
            EnvironmentFailedError: the name is none for a folder here, or the folder cannot be made.
            IsolationError: a link stands in its place.
        """
        return folder.files_folder(self._root, name, self._about)

    def share(self, folders: Sequence[Path], *, links: Mapping[str, str]) -> None:
        """Have folders of the host writable inside under their own paths, and links made; from the next start on.

        Raises:
            EnvironmentFailedError: a server runs, or a path cannot be provided inside.
        """
        if self.exit_status() is not None:  # the keeper of a server that has ended ends itself at once
            _wait_until(lambda: self._keeper() is None, _IMMEDIATE_SECONDS)
        if self._keeper() is not None:
            raise EnvironmentFailedError(f"a server runs in {self.id}: it would not see the change")
        self._about = folder.share(self._root, self._about, folders=folders, links=links)

    def write_configuration(self, name: str, content: str) -> str:
        """Put a file into ``conf/`` and return its path as seen from inside.

        Raises:
            EnvironmentFailedError: ``name`` is no plain file name.
        """
        folder.write_configuration(self._root, name, content, account=self._about.account)
        return f"/env/conf/{name}"

    def start(self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start the server inside under a keeper that survives the caller; returns when its program begins.

        Raises:
            ProgramMissingError: there is no such program inside.
            EnvironmentFailedError: the sandbox could not be made, or a server runs here already.
            EnvironmentLimitError: it was ended for a broken limit.
        """
        self.require_within_limits()
        if self._noted_exit() is not None:  # the keeper's last note: it ends itself at once
            _wait_until(lambda: self._keeper() is None, _IMMEDIATE_SECONDS)
        if self._keeper() is not None:
            raise EnvironmentFailedError(f"a server runs in {self.id} already", hint="Stop it first.")
        inside = bubblewrap.telling_argv(_require_program(argv))
        notes = self._root / "keeper"
        launch = {"argv": self._run_argv(inside, environment=environment), "bounds": asdict(self._bounds())}
        keeper.write_durably(notes / keeper.LAUNCH, launch)
        started = processes.run(
            [sys.executable, "-s", "-P", "-m", keeper.__name__, self._root],
            environment=processes.clean_environment({"PYTHONPATH": str(_import_root())}),
        )
        if started.status != 0:
            raise EnvironmentFailedError(
                f"environment {self.id} did not start: {started.last_line()}",
                hint="As an ordinary user bubblewrap needs unprivileged user namespaces; `drservice check` tells.",
            )

    def running(self) -> bool:
        """Tell whether the server's process is alive."""
        server = self._noted("server")
        return self._keeper() is not None and server is not None and proc.is_alive(server)

    def exit_status(self) -> int | None:
        """Return how the server ended (128 + n: by signal n), ``None`` while it runs or if it never started."""
        if self._noted("keeper") is None or self.running():
            return None
        # Between the server's end and the keeper's note there is a moment.
        _wait_until(lambda: self._noted_exit() is not None or self._keeper() is None, _IMMEDIATE_SECONDS)
        noted = self._noted_exit()
        # Without a note the keeper was killed or the machine went down, and the server with it.
        return noted if noted is not None else _KILLED

    def server_log(self) -> str:
        """Return what the server wrote to its output (the last 1 MiB)."""
        return keeper.read_log(self._root, offset=-_LOG_TAIL_BYTES).decode("utf-8", "replace")

    def read_server_log(self, offset: int, length: int) -> bytes:
        """Return at most ``length`` bytes of what the server wrote, from ``offset`` on; empty at the present end."""
        return keeper.read_log(self._root, offset=offset, length=length)

    def require_within_limits(self) -> None:
        """Refuse to go on with an environment that was ended for a broken limit.

        Raises:
            EnvironmentLimitError: naming the limit and what was used.
        """
        if self._read_note(keeper.BROKEN):  # it is being ended
            _wait_until(lambda: not self.running(), _ENDING_SECONDS)
        self.exit_status()  # waits for the keeper's note if the server has just ended
        broken = self._broken_limit()
        if broken is not None:
            raise EnvironmentLimitError(f"environment {self.id} was ended: {broken.detail}")

    def measure(self) -> Usage:
        """Return what is used now, and the peaks so far; what cannot be had is ``None``."""
        try:
            noted = watch.read_noted(self._root / "keeper")
        except (OSError, ValueError) as error:
            raise EnvironmentFailedError(f"{self._root}/keeper/{watch.USAGE} cannot be read: {error}") from error
        files = [self._root / "files", *self._about.folders.values()]
        files_bytes = [watch.bytes_on_disk(path) for path in files]
        return Usage(
            peak_memory_bytes=noted.peak_memory_bytes if noted else None,
            cpu_ms=noted.cpu_ms if noted else None,
            processes=len(proc.processes_of(self._root)),
            data_bytes=watch.bytes_on_disk(self.data.resolve()),
            wal_bytes=watch.bytes_on_disk(self.wal),
            files_bytes=None if None in files_bytes else sum(size for size in files_bytes if size is not None),
            log_bytes=watch.bytes_on_disk(self._root / "log"),
        )

    def require_own_socket(self) -> None:
        """Refuse a socket that is not the server's own; ask before each connection from the host.

        The socket's folder is writable from inside: a hostile server could put a link to production's socket
        in its place, which the host's libpq would follow.

        Raises:
            IsolationError: it is no socket, or not the server account's.
            EnvironmentFailedError: there is none yet.
            EnvironmentLimitError: it was ended for a broken limit.
        """
        self.require_within_limits()
        path = folder.own_socket_path(self._about.sock)
        try:
            facts = path.lstat()
        except FileNotFoundError as error:
            raise EnvironmentFailedError(
                f"the server in {self.id} has no socket yet", hint="Wait for it, or read its log."
            ) from error
        uid = self._about.account.uid if self._about.account else os.getuid()
        if not stat.S_ISSOCK(facts.st_mode) or facts.st_uid != uid:
            raise IsolationError(
                f"{path} is not the socket of the server inside",
                hint="Something inside replaced it. Do not connect; destroy this environment.",
            )

    def execute(self, argv: Sequence[str], *, timeout_seconds: float, stdin: bytes | None = None) -> Finished:
        """Run a program inside, beside the server, and return how it ended (-9 after the timeout).

        Raises:
            ProgramMissingError: there is no such program inside.
            EnvironmentLimitError: the environment was ended for a broken limit, now or before.
        """
        self.require_within_limits()
        finished = self._run(_require_program(argv), stdin=stdin, timeout_seconds=timeout_seconds)
        if finished.status != 0:
            self.require_within_limits()
        return finished

    def stream(
        self,
        argv: Sequence[str],
        *,
        take: Callable[[bytes], object],
        hear: Callable[[str], object],
        source: BinaryIO | None = None,
        stall_seconds: float,
    ) -> int:
        """Run a program inside, beside the server, and hand over what it writes, piece by piece; return its status.

        Raises:
            ProgramMissingError: there is no such program inside.
            EnvironmentLimitError: the environment was ended for a broken limit, now or before.
        """
        self.require_within_limits()
        descriptor = seccomp.open_filter()
        try:
            status = streaming.run_streaming(
                self._run_argv(_require_program(argv), filter_descriptor=descriptor),
                take=take,
                hear=hear,
                source=source,
                stall_seconds=stall_seconds,
                pass_fds=(descriptor,),
            )
        finally:
            os.close(descriptor)
        if status != 0:
            self.require_within_limits()
        return status

    def stop(self, *, timeout_seconds: float = 60.0) -> None:
        """Stop the server in an orderly way (fast shutdown), by force after the timeout.

        Raises:
            EnvironmentFailedError: even by force a process is left.
        """
        for number, patience in ((signal.SIGINT, timeout_seconds), (signal.SIGQUIT, _IMMEDIATE_SECONDS)):
            running = self._keeper()
            if running is None:
                return
            proc.send_signal(running, number)
            if _wait_until(lambda: self._keeper() is None, patience):
                return
        self._kill()
        keeper.write_durably(self._root / "keeper" / keeper.EXIT, {"status": _KILLED})

    def destroy(self) -> None:
        """End every process inside and remove the folder; a bound data directory is left alone.

        A server over a bound data directory is shut down in an orderly way first, because its files stay.

        Raises:
            EnvironmentFailedError: something is left, with its name.
        """
        if not self._about.owns_data:
            self.stop(timeout_seconds=_ORDERLY_SECONDS)
        self._kill()
        folder.remove_folder(self._root, self._about.sock)

    def _kill(self) -> None:
        running = self._keeper()
        if running is not None:
            proc.send_signal(running, signal.SIGKILL)
        kill_processes_of(self._root)

    def _run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a program inside; ``environment`` is bwrap's own, of which nothing goes along."""
        descriptor = seccomp.open_filter()
        try:
            return processes.run(
                self._run_argv(argv, filter_descriptor=descriptor),
                environment=environment,
                stdin=stdin,
                timeout_seconds=timeout_seconds,
                pass_fds=(descriptor,),
            )
        finally:
            os.close(descriptor)

    def _run_argv(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        filter_descriptor: int = bubblewrap.FILTER_DESCRIPTOR,
    ) -> list[str]:
        about = self._about
        merged, separate = folder.host_system()
        layout = bubblewrap.Layout(
            data=about.data,
            wal=self.wal,
            sock=about.sock,
            log=self._root / "log",
            conf=self._root / "conf",
            files=self._root / "files",
            folders=about.folders,
            shared=about.shared,
            links=about.links,
            account=about.account,
            limits=about.limits,
            usr_merged=merged,
            usr_folders=separate,
            etc_extras=folder.etc_extras(),
            filter_descriptor=filter_descriptor,
            present_processes=proc.count_processes(about.account.uid)
            if about.account and about.limits.processes is not None
            else 0,
        )
        return self._build_argv(layout, argv, environment=environment)

    def _bounds(self) -> watch.Bounds:
        about, limits = self._about, self._about.limits
        written = {name: self._root / name for name in ("wal", "log", "files")}
        written |= {"data": about.data.resolve(), "sock": about.sock}
        written |= {str(path): path for path in about.shared}
        return watch.Bounds(
            memory_bytes=limits.memory_bytes,
            cpu_seconds=limits.cpu_seconds,
            disk_bytes=limits.disk_bytes,
            reserve_bytes=limits.reserve_bytes,
            ends_at=about.ends_at_boottime,
            folders={name: str(path) for name, path in written.items()},
        )

    def _broken_limit(self) -> BrokenLimit | None:
        value = self._read_note(keeper.EXIT).get("broken")
        if not isinstance(value, dict):
            return None
        return BrokenLimit(limit=LimitKind(value["limit"]), detail=value["detail"])

    def _state(self) -> EnvironmentState:
        if folder.is_being_removed(self._root):
            return EnvironmentState.DEAD
        if self._noted("keeper") is None:
            alive = proc.is_alive(self._about.maker)
            return EnvironmentState.PREPARED if alive else EnvironmentState.DEAD
        if self.running():
            return EnvironmentState.RUNNING
        if self._keeper() is not None or self._noted_exit() is not None:
            return EnvironmentState.STOPPED
        return EnvironmentState.DEAD

    def _keeper(self) -> ProcessIdentity | None:
        noted = self._noted("keeper")
        return noted if noted is not None and proc.is_alive(noted) else None

    def _noted(self, who: str) -> ProcessIdentity | None:
        value = self._read_note(keeper.STATE).get(who)
        return ProcessIdentity(**value) if isinstance(value, dict) else None

    def _noted_exit(self) -> int | None:
        status = self._read_note(keeper.EXIT).get("status")
        return status if isinstance(status, int) else None

    def _read_note(self, name: str) -> dict[str, object]:
        try:
            value = json.loads((self._root / "keeper" / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise EnvironmentFailedError(f"{self._root}/keeper/{name} cannot be read: {error}") from error
        return value if isinstance(value, dict) else {}


def kill_processes_of(root: Path) -> None:
    """Kill whatever lives in the environment and wait for its end.

    Raises:
        EnvironmentFailedError: processes are left after 15 s, with their pids.
    """

    def none_left() -> bool:
        left = proc.processes_of(root)
        for identity in left:
            proc.send_signal(identity, signal.SIGKILL)
        return not left

    if not _wait_until(none_left, _KILL_SECONDS):
        pids = ", ".join(str(left.pid) for left in proc.processes_of(root))
        raise EnvironmentFailedError(
            f"processes of {root.name} do not end: {pids}", hint="Processes in disk wait end when the disk answers."
        )


def _is_leftover(root: Path, clock: Clock) -> bool:
    age_seconds = (clock.now() - ulid_time(root.name.removeprefix(folder.NEW_PREFIX))).total_seconds()
    if root.name.startswith(folder.NEW_PREFIX):
        if not (root / folder.DESCRIPTION).exists():
            return age_seconds > _UNFINISHED_SECONDS
        return not proc.is_alive(folder.read_description(root).maker)
    if not (root / folder.DESCRIPTION).exists():
        return True  # destroyed but for the last step
    about = open_sandbox(root).describe()
    return about.state is EnvironmentState.DEAD or about.expires_at <= clock.now()


def _destroy_leftover(root: Path) -> None:
    if root.name.startswith(folder.NEW_PREFIX):
        sock = folder.read_description(root).sock if (root / folder.DESCRIPTION).exists() else None
        folder.remove_folder(root, sock if sock is None or sock.name != "sock" else None)
    elif (root / folder.DESCRIPTION).exists():
        open_sandbox(root).destroy()
    else:
        kill_processes_of(root)
        folder.remove_folder(root, None)


def _require_program(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with its program as an absolute path that exists inside."""
    name = argv[0]
    if "/" not in name:
        found = shutil.which(name, path=bubblewrap.INSIDE_VARIABLES["PATH"])
        if found is None:
            raise ProgramMissingError(f"{name} is not installed", hint="Only what is below /usr is visible inside.")
        name = found
    if not _VISIBLE.match(name):
        raise ProgramMissingError(f"{name} is not visible inside", hint="Only what is below /usr is visible inside.")
    if not name.startswith("/env/") and not os.access(name, os.X_OK):
        raise ProgramMissingError(f"{name} is not installed")
    return [name, *argv[1:]]


def _import_root() -> Path:
    return Path(drservice.__path__[0]).parent


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
