"""The only place that starts programs.

Programs start from argv lists, never through a shell, with the environment the caller names. PostgreSQL
refuses to run as root, so :func:`account_of` and ``account=`` drop to the owner of a data directory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from drservice.errors import ProgramMissingError

_SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A system user that a program runs as."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended: exit status (negative signal number if killed) and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    def last_line(self) -> str:
        """Return the last non-empty line of stderr (or stdout), for messages."""
        for stream in (self.stderr, self.stdout):
            lines = [line for line in stream.decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return lines[-1].strip()
        return ""


def account_named(name: str) -> Account:
    """Look up a system user.

    Raises:
        ProgramMissingError: if there is no such user.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ProgramMissingError(f"there is no system user {name}") from error
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def account_of(path: Path) -> Account:
    """Return the owner of ``path``."""
    entry = pwd.getpwuid(path.stat().st_uid)
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def server_account(data_directory: Path | None = None) -> Account | None:
    """Return the user PostgreSQL must run as, or ``None`` when the present user will do.

    As root: the owner of the data directory unless that is root, else ``postgres``. Not as root: ``None``.
    """
    if os.geteuid() != 0:
        return None
    if data_directory is not None and data_directory.exists() and data_directory.stat().st_uid != 0:
        return account_of(data_directory)
    return account_named("postgres")


def inherit_owner(path: Path) -> None:
    """As root, give a file or folder just made the owner of its parent; otherwise do nothing.

    ``state_dir`` belongs to one user (often PostgreSQL's, whose archive_command works in it); a backup run as root must
    not leave files there that this user cannot use.
    """
    if os.geteuid() == 0:
        facts = path.parent.stat()
        os.chown(path, facts.st_uid, facts.st_gid, follow_symlinks=False)


def make_folder(path: Path, *, mode: int = 0o755) -> None:
    """Make a folder and its missing parents, each with the owner of the folder above it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=mode, exist_ok=True)
    inherit_owner(path)


def find_program(name: str, *, package: str) -> Path:
    """Find a program on the PATH or in the system's folders.

    Raises:
        ProgramMissingError: naming the Debian package that brings it.
    """
    found = shutil.which(name) or shutil.which(name, path=_SAFE_PATH)
    if found is None:
        raise ProgramMissingError(f"{name} is not installed", hint=f"Install it: apt-get install {package}")
    return Path(found)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a minimal environment: a PATH, the C locale, UTC, and what ``extra`` adds."""
    environment = {"PATH": _SAFE_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    environment.update(extra or {})
    return environment


def run(
    argv: Sequence[str | Path],
    *,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    timeout_seconds: float | None = None,
) -> Finished:
    """Run a program to its end and return how it ended; a non-zero status is not an exception.

    On timeout the whole process group is killed and the status is ``-SIGKILL``.

    Raises:
        ProgramMissingError: if the program does not exist.
    """
    process = start(
        argv,
        account=account,
        environment=environment,
        cwd=cwd,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        kill_group(process)
        stdout, stderr = process.communicate()
    except BaseException:
        kill_group(process)
        process.communicate()
        raise
    return Finished(status=process.returncode, stdout=stdout, stderr=stderr)


def start(
    argv: Sequence[str | Path],
    *,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own and return it; the caller ends and reaps it.

    Args:
        argv: program and arguments; never a shell line.
        account: the user to become (root only); its supplementary groups are dropped.
        environment: the whole environment; :func:`clean_environment` when ``None``.
        cwd: working directory; ``/`` when ``None``, because the caller's may be closed to ``account``.
        stdin: as for :class:`subprocess.Popen`.
        stdout: as for :class:`subprocess.Popen`.
        stderr: as for :class:`subprocess.Popen`.
        pass_fds: descriptors the program inherits.

    Raises:
        ProgramMissingError: if the program does not exist.
    """
    try:
        return subprocess.Popen(
            [os.fspath(part) for part in argv],
            env=dict(environment) if environment is not None else clean_environment(),
            cwd=cwd or Path("/"),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except FileNotFoundError as error:
        raise ProgramMissingError(f"{argv[0]} is not installed") from error


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process started here together with its group; one that is gone already is fine."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
