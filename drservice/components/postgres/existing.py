"""A data directory that a restore may write over: whose it is, which cluster it was, and that no server runs on it.

It was written by a server that may be hostile: names are opened from a descriptor and through no link, nothing is
opened blockingly, and what is read is compared and not believed. This protects against a mistake (the wrong directory,
a server that runs), not against its owner, who may do with it what he likes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from drservice.components.postgres.controlfile import CONTROL_FILE_BYTES, parse_control
from drservice.errors import (
    FormatError,
    RecoveryError,
    ServerRunningError,
    TargetDirectoryError,
    UnsupportedClusterError,
)
from drservice.model.ids import SystemId
from drservice.processes import Account, files_as, server_account
from drservice.repository.descent import open_below
from drservice.repository.nodes import RESTORE_MARKER
from drservice.repository.target import write_error

UNPROVEN = "pg_control.unproven"
"""Below ``global``: where ``pg_control`` waits while the directory is none that may be started."""
_CONTROL = "pg_control"
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LOCK_BYTES = 4096
_SHARED_MEMORY_LINE = 6
_SERVER_NAMES = ("postgres", "postmaster")


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """A data directory of the right cluster on which no server ran when it was looked at."""

    path: Path
    device: int
    inode: int
    account: Account | None
    """Whose it is, as root; ``None`` = the present user's."""


def examine(target: Path, *, system_id: SystemId) -> Existing | None:
    """Find out whether ``target`` may be restored onto; ``None`` if it is not there or empty. Changes nothing.

    It must be a data directory (``PG_VERSION``) whose ``pg_control``, in place or set aside by an earlier restore,
    names the same cluster, or what a restore of the same cluster left that was interrupted.

    Raises:
        TargetDirectoryError: it is something else, of another cluster, or another user's.
        ServerRunningError: a server runs on it, or that cannot be excluded.
    """
    try:
        if not os.path.lexists(target):
            return None
        if not stat.S_ISDIR(target.lstat().st_mode):
            raise TargetDirectoryError(f"{target} is no directory", hint="Give the directory itself, not a link to it.")
        with _opened(target) as folder:
            if next(iter(os.listdir(folder)), None) is None:  # noqa: PTH208  # of a descriptor
                return None
            facts = os.fstat(folder)
            account = server_account(target)
            _require_owner(target, facts, account)
            _require_cluster(target, folder, system_id)
            require_stopped(target, folder)
    except OSError as error:
        raise TargetDirectoryError(f"cannot look at {target}: {error.strerror}") from error
    return Existing(path=target, device=facts.st_dev, inode=facts.st_ino, account=account)


def set_aside(existing: Existing) -> None:
    """Take ``pg_control`` away, durably, so that no server starts until the restore is through.

    Raises:
        ServerRunningError: one was started meanwhile; ``pg_control`` is back.
        TargetDirectoryError: it is another directory now.
        RecoveryError: it cannot be renamed.
    """
    with _opened(existing.path) as folder:
        facts = os.fstat(folder)
        if (facts.st_dev, facts.st_ino) != (existing.device, existing.inode):
            raise TargetDirectoryError(f"{existing.path} is another directory than it was at the beginning")
        was_in_place = _rename_control(existing, folder, _CONTROL, UNPROVEN)
        try:
            require_stopped(existing.path, folder)
        except ServerRunningError:
            if was_in_place:
                _rename_control(existing, folder, UNPROVEN, _CONTROL)
            raise


def put_back(existing: Existing) -> None:
    """Undo :func:`set_aside` of a directory that was not changed: a server starts on it again.

    Raises:
        RecoveryError: it cannot be renamed.
    """
    with _opened(existing.path) as folder:
        _rename_control(existing, folder, UNPROVEN, _CONTROL)


def control_of(existing: Existing) -> bytes:
    """Return ``pg_control``, in place or set aside, ``b""`` if there is none; a server that runs writes it anew.

    Raises:
        RecoveryError: the directory cannot be looked at.
    """
    with _opened(existing.path) as folder:
        try:
            with open_below(folder, b"global") as inside:
                found = _read_plain(inside, _CONTROL, CONTROL_FILE_BYTES)
                return found or _read_plain(inside, UNPROVEN, CONTROL_FILE_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RecoveryError(f"cannot open global in {existing.path}: {error.strerror}") from error


def _rename_control(existing: Existing, folder: int, old: str, new: str) -> bool:
    """Rename within ``global``, durably; False if there is nothing to rename.

    Raises:
        RecoveryError: the system refuses.
    """
    try:
        with files_as(existing.account), open_below(folder, b"global") as inside:
            os.rename(old, new, src_dir_fd=inside, dst_dir_fd=inside)
            os.fsync(inside)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise write_error(os.fsencode(existing.path / "global" / old), error) from error
    return True


def require_stopped(path: Path, folder: int) -> None:
    """Refuse a data directory on which a server runs: any doubt refuses.

    A server's processes work in its data directory, whatever became of its ``postmaster.pid``; and the pid file tells
    of one that cannot be looked at.

    Raises:
        ServerRunningError: naming the process.
    """
    own = os.fstat(folder)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _works_in(process, own) and _is_server(process):
            raise ServerRunningError(f"a server runs on {path} (process {process.name})")
    lines = _read_plain(folder, "postmaster.pid", _LOCK_BYTES).split(b"\n")
    if lines == [b""]:
        return
    try:
        pid = abs(int(lines[0]))
    except ValueError:
        raise ServerRunningError(f"the postmaster.pid in {path} cannot be read, so a server may run on it") from None
    if Path(f"/proc/{pid}").exists() and _works_in(Path(f"/proc/{pid}"), own) is not False:
        raise ServerRunningError(f"process {pid}, which the postmaster.pid in {path} names, is alive")
    if len(lines) > _SHARED_MEMORY_LINE and _attached(lines[_SHARED_MEMORY_LINE].split()):
        raise ServerRunningError(f"processes of a server on {path} still share its memory")


def _works_in(process: Path, folder: os.stat_result) -> bool | None:
    """Tell whether a process works in a folder; ``None`` if this user may not know."""
    try:
        facts = (process / "cwd").stat()
    except PermissionError:
        return None
    except OSError:
        return False  # it has ended
    return (facts.st_dev, facts.st_ino) == (folder.st_dev, folder.st_ino)


def _is_server(process: Path) -> bool:
    """Tell a server from a shell that happens to stand in the folder."""
    try:
        name = (process / "comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it has ended
    return any(known in name for known in _SERVER_NAMES)


def _attached(words: list[bytes]) -> bool:
    """Tell whether somebody uses the shared memory that a pid file names by key and id."""
    try:
        table = Path("/proc/sysvipc/shm").read_bytes().splitlines()[1:]
    except OSError:
        return False  # a kernel without it has none
    rows = (line.split() for line in table)
    return any(row[:2] == words[:2] and int(row[6]) > 0 for row in rows)


def _require_owner(target: Path, facts: os.stat_result, account: Account | None) -> None:
    if facts.st_uid != (os.geteuid() if account is None else account.uid):
        raise TargetDirectoryError(
            f"{target} belongs to user {facts.st_uid}",
            hint="Run it as that user, or as root on a directory of PostgreSQL's user; nothing was written.",
        )


def _require_cluster(target: Path, folder: int, system_id: SystemId) -> None:
    if _read_plain(folder, RESTORE_MARKER.decode(), _LOCK_BYTES).strip() == system_id.encode():
        return
    if not _read_plain(folder, "PG_VERSION", 16).strip().isdigit():
        raise TargetDirectoryError(
            f"{target} is not empty and no data directory of PostgreSQL",
            hint="--delta restores onto a data directory of the same cluster; nothing was written.",
        )
    found: set[SystemId] = set()
    with open_below(folder, b"global") as inside:
        for name in (_CONTROL, UNPROVEN):
            with suppress(FormatError, UnsupportedClusterError):
                found.add(parse_control(_read_plain(inside, name, CONTROL_FILE_BYTES)).system_id)
    if found != {system_id}:
        what = f"of the cluster {', '.join(sorted(found))}" if found else "without a readable pg_control"
        raise TargetDirectoryError(
            f"{target} is a data directory {what}, and the snapshot is of {system_id}",
            hint="Restore into a new directory; nothing was written.",
        )


def _read_plain(folder: int, name: str, most: int) -> bytes:
    """Read the beginning of a plain file; ``b""`` if there is none."""
    try:
        descriptor = os.open(name, _PLAIN, dir_fd=folder)
    except OSError:
        return b""
    try:
        return os.read(descriptor, most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RecoveryError(f"cannot open {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
