"""The only place that starts programs, and the one that makes files where another user may plant links.

Programs start from argv lists, never through a shell, with the environment the caller names. PostgreSQL
refuses to run as root, so :func:`account_of` and ``account=`` drop to the owner of a data directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from drservice.errors import ConfigurationError, ProgramMissingError

_SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIBC = ctypes.CDLL(None, use_errno=True)


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
    timed_out: bool = False
    """Whether it was killed here because its time was up."""

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


@contextmanager
def files_as(account: Account | None) -> Iterator[None]:
    """Make the file accesses of the calling thread those of ``account`` (``setfsuid(2)``); ``None`` changes nothing.

    For folders that another user owns: the kernel then lets root do there what that user may do, and no more. It holds
    for this thread only, and for threads that are started inside.

    Raises:
        ConfigurationError: the kernel does not do it.
    """
    if account is None or os.geteuid() != 0:
        yield
        return
    _LIBC.setfsgid(account.gid)
    _LIBC.setfsuid(account.uid)
    try:
        if (_LIBC.setfsuid(-1), _LIBC.setfsgid(-1)) != (account.uid, account.gid):  # -1 only asks
            raise ConfigurationError(f"the rights of {account.name} cannot be taken on", hint="Run it as that user.")
        yield
    finally:
        _LIBC.setfsuid(0)
        _LIBC.setfsgid(0)


def inherit_owner(path: Path) -> None:
    """As root, give a file or folder just made the owner of its parent; otherwise do nothing.

    ``state_dir`` belongs to one user (often PostgreSQL's, whose archive_command works in it); a backup run as root must
    not leave files there that this user cannot use.

    Raises:
        ConfigurationError: it is a symbolic link, or has another name somewhere (a hard link): not what was made.
    """
    if os.geteuid() != 0:
        return
    folder = open_folder(path.parent)
    try:
        descriptor = _open_entry(path, folder, os.O_RDONLY)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISDIR(facts.st_mode) and (not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1):
                raise _planted(path)
            _give(descriptor, folder)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def create_private(path: Path, mode: int = 0o600) -> int:
    """Make a new, empty file and return its descriptor (read and write); what stood there is unlinked, never opened.

    For files below ``state_dir``: it belongs to the database's user, who could have planted a link under a name that
    root is about to write. As root the file gets the owner of its folder.

    Raises:
        OSError: it cannot be made.
        ConfigurationError: a folder on the way is a link that somebody other than root may have planted.
    """
    folder = open_folder(path.parent)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        return _create(path.name, folder, mode)
    finally:
        os.close(folder)


def open_private(path: Path, mode: int = 0o600) -> int:
    """Open a regular file for reading and writing, made if it is absent; links are never followed.

    For locks: unlike :func:`create_private` it keeps what is there.

    Raises:
        OSError: it can be neither opened nor made.
        ConfigurationError: there is a link or something else that is no regular file.
    """
    folder = open_folder(path.parent)
    try:
        while True:
            try:
                descriptor = _open_entry(path, folder, os.O_RDWR)
            except FileNotFoundError:
                with suppress(FileExistsError):  # another process was faster: open what it made
                    return _create(path.name, folder, mode)
                continue
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            raise _planted(path)
    finally:
        os.close(folder)


def make_folder(path: Path, *, mode: int = 0o755) -> None:
    """Make a folder and its missing parents, each with the owner of the folder above it.

    Raises:
        OSError: it cannot be made.
        ConfigurationError: as root, a folder on the way is a link that somebody other than root may have planted.
    """
    with suppress(FileNotFoundError):
        os.close(open_folder(path))
        return
    make_folder(path.parent)
    folder = open_folder(path.parent)
    try:
        with suppress(FileExistsError):
            os.mkdir(path.name, mode, dir_fd=folder)
            if os.geteuid() == 0:
                descriptor = _open_entry(path, folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _give(descriptor, folder)
                finally:
                    os.close(descriptor)
    finally:
        os.close(folder)


def open_folder(path: Path) -> int:
    """Open a folder to work in; as root, one step at a time and through no link that others may have planted.

    A link is followed where only root could have put it: it is root's own and stands in a folder of root's.

    Returns:
        A descriptor to name what stands in it by (``O_PATH``); the caller closes it.

    Raises:
        OSError: it is not there, or no folder.
        ConfigurationError: a folder on the way is a link that somebody other than root may have planted.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    absolute = path.absolute()
    if os.geteuid() != 0:
        return os.open(absolute, flags)
    folder = os.open("/", flags)
    for name in absolute.parts[1:]:
        try:
            facts = os.lstat(name, dir_fd=folder)
            trusted = not stat.S_ISLNK(facts.st_mode) or (facts.st_uid == 0 and os.fstat(folder).st_uid == 0)
            if not trusted:
                raise _planted(absolute)
            follow = os.O_NOFOLLOW if not stat.S_ISLNK(facts.st_mode) else 0
            inner = os.open(name, flags | follow, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def _open_entry(path: Path, folder: int, flags: int) -> int:
    """Open what stands under a name without following it, and without waiting for a pipe's other end."""
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR}:
            raise _planted(path) from error
        raise


def _create(name: str, folder: int, mode: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=folder)
    try:
        if os.geteuid() == 0:
            _give(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _give(descriptor: int, folder: int) -> None:
    facts = os.fstat(folder)
    os.fchown(descriptor, facts.st_uid, facts.st_gid)


def _planted(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is a symbolic link, or behind one, or not what it should be: it is not used",
        hint="Links below state_dir are not followed, because its owner could lead root anywhere with them. Look who"
        " made it; name the real folder in state_dir.",
    )


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
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run a program to its end and return how it ended; a non-zero status is not an exception.

    On timeout the whole process group is killed, the status is ``-SIGKILL``, and ``timed_out`` says so.

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
        pass_fds=pass_fds,
    )
    timed_out = False
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        kill_group(process)
        stdout, stderr = process.communicate()
    except BaseException:
        kill_group(process)
        process.communicate()
        raise
    return Finished(status=process.returncode, stdout=stdout, stderr=stderr, timed_out=timed_out)


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
