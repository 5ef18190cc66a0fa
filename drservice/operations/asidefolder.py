"""The folder that takes in what a data directory has and nothing else does, while it is restored in place.

That is WAL, configuration, and whatever else stands in the directory and is not PostgreSQL's data (the server's own
log, keys, an administrator's folders): a restore replaces or removes all of it. The folder stands beside the directory,
named after it and the instant (``main.before-20261126T021405Z``), so that moving into it is a rename. Where the
directory is a mount of its own, it stands below ``state_dir`` and what goes there is copied. A note in ``state_dir``
says that the directory was taken and by which folder: a restore that was killed is completed with it, and the WAL in
the directory is then the attempt's and not production's.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice import processes
from drservice.components.postgres.existing import Existing
from drservice.components.postgres.withholding import is_cluster
from drservice.errors import RecoveryError
from drservice.model.wal import WalFileName
from drservice.processes import Account
from drservice.repository.nodes import RESTORE_MARKER
from drservice.repository.records import Scope

_WAL = "pg_wal"
_DATA = frozenset(
    {
        *("PG_VERSION", "base", "global", "pg_clog", "pg_commit_ts", "pg_dynshmem", "pg_logical", "pg_multixact"),
        *("pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_subtrans"),
        *("pg_tblspc", "pg_twophase", "pg_xact", "backup_label", "backup_label.old", "tablespace_map"),
        *("tablespace_map.old", "backup_manifest", "current_logfiles", "postmaster.opts", "postmaster.pid"),
        *("lost+found", RESTORE_MARKER.decode()),
    }
)
"""What PostgreSQL and restores keep at the top of a data directory; only the snapshot's is of any use afterwards."""
_WAL_FOLDERS = frozenset({"archive_status", "summaries"})
_WAL_TEMPORARY = re.compile(r"xlogtemp\.\d+|\.?RECOVERY(XLOG|HISTORY)(\.\d+)?")
_MOST_DEPTH = 64
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class AsideFolder:
    """The folder of one restore in place."""

    path: Path
    note: Path
    account: Account | None

    @property
    def wal(self) -> Path:
        """Where production's ``pg_wal`` is once it was moved."""
        return self.path / _WAL

    def take_from(self, directory: Path) -> None:
        """Move everything out of a directory that is not data, ``pg_wal`` last; what is here already stays as it is.

        Raises:
            RecoveryError: it cannot be moved.
        """
        try:
            source = os.open(directory, _FOLDER_FLAGS)
            target = os.open(self.path, _FOLDER_FLAGS)
        except OSError as error:
            raise _problem(self.path, error) from error
        try:
            if _is_there(target, _WAL):
                return  # then all was taken, and what is in the directory by now is an attempt's
            for name in sorted(os.listdir(source)):  # noqa: PTH208  # of a descriptor
                if name != _WAL and name not in _DATA and not _is_there(target, name):
                    self._move(name, source, target)
            os.fsync(target)
            os.fsync(source)
            if _is_there(source, _WAL):
                self._move(_WAL, source, target)
            os.fsync(target)
            os.fsync(source)
        except OSError as error:
            raise _problem(self.path, error) from error
        finally:
            os.close(source)
            os.close(target)

    def _move(self, name: str, source: int, target: int) -> None:
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # What was copied stays where it was until the restore removes or replaces it.
            new = f".{name}.new"
            _remove(new, target)
            _copy(name, source, new, target, self.account)
            os.rename(new, name, src_dir_fd=target, dst_dir_fd=target)

    def tidy(self, *, keep: AbstractSet[str]) -> Left:
        """Forget the note and remove WAL that is archived, after the directory was proved; return what is left of it.

        The note goes first: a folder whose clean-up was cut short must not be taken for a restore to go on with.

        Args:
            keep: segments that no archive has. One that is to be archived as ``.partial`` gets that name here.

        Raises:
            RecoveryError: it cannot be removed.
        """
        try:
            self.note.unlink(missing_ok=True)
            if self.wal.is_dir() and not self.wal.is_symlink():
                return _remove_archived(self.wal, keep)
        except OSError as error:
            raise _problem(self.path, error) from error
        return Left(unsaved=(), foreign=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What stays in ``pg_wal`` of the folder, by name."""

    unsaved: tuple[str, ...]
    """WAL that no archive has."""
    foreign: tuple[str, ...]
    """What is not PostgreSQL's."""


def copied_bytes(directory: Path) -> int:
    """Return how much the folder of a directory takes of the room below ``state_dir``; a rename takes none."""
    if not _is_mount(directory):
        return 0
    total = 0
    for folder, folders, files, descriptor in os.fwalk(directory, follow_symlinks=False):
        if Path(folder) == directory:
            folders[:] = [name for name in folders if name not in _DATA]
            files = [name for name in files if name not in _DATA]  # noqa: PLW2901  # the others are not copied
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_size
    return total


def _is_mount(directory: Path) -> bool:
    return directory.parent.stat().st_dev != directory.stat().st_dev


def begin_aside(state_dir: Path, scope: Scope, existing: Existing, *, now: datetime) -> AsideFolder:
    """Make the folder for a restore and note it; the directory itself is not touched yet.

    Raises:
        RecoveryError: it cannot be made.
    """
    directory = existing.path
    name = f"{directory.name}.before-{now:%Y%m%dT%H%M%SZ}"
    is_mount = _is_mount(directory)
    path = state_dir / "set-aside" / name if is_mount else directory.parent / name
    try:
        if is_mount:
            processes.make_folder(path.parent)
        path.mkdir(mode=0o700)
        if existing.account is not None:
            os.chown(path, existing.account.uid, existing.account.gid, follow_symlinks=False)
        _sync(path.parent)
        note = _note(state_dir, scope)
        processes.make_folder(note.parent)
        content = json.dumps({"directory": str(directory), "aside": str(path)}).encode()
        temporary = note.with_suffix(".new")
        with os.fdopen(processes.create_private(temporary), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(note)
        _sync(note.parent)
    except OSError as error:
        raise RecoveryError(
            f"a folder beside {directory} cannot be made: {error}",
            hint="Run it as root, or let the directory's owner write in the folder above it. Nothing was changed.",
        ) from error
    return AsideFolder(path=path, note=note, account=existing.account)


def find_aside(state_dir: Path, scope: Scope, directory: Path) -> AsideFolder | None:
    """Return the folder of a restore of this directory that was not completed.

    Raises:
        RecoveryError: the note is there and cannot be read.
    """
    note = _note(state_dir, scope)
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        noted, path = Path(content["directory"]), Path(content["aside"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecoveryError(
            f"{note} cannot be read: {error}", hint="It names the folder with what an earlier restore took out. Look."
        ) from error
    account = processes.server_account(directory)
    aside = AsideFolder(path=path, note=note, account=account)
    if noted != directory or not path.is_dir():
        return None  # it is another directory's
    if is_cluster(directory) and next(path.iterdir(), None) is not None:
        return None  # it was completed and killed before it tidied up, or undone by hand
    return aside


def _note(state_dir: Path, scope: Scope) -> Path:
    return state_dir / "in-place" / f"{scope.service}-{scope.component}.json"


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(name: str, folder: int) -> None:
    """Remove what a killed attempt left half copied."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def _copy(name: str, source: int, new: str, target: int, account: Account | None, depth: int = 0) -> None:
    """Copy a file, a link as a link, or a folder with what is in it, durably; sockets and the like are left out."""
    mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
    if stat.S_ISREG(mode):
        _copy_file(name, source, new, target, account)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=target)
    elif stat.S_ISDIR(mode):
        if depth >= _MOST_DEPTH:
            raise OSError(errno.ELOOP, "folders nested too deeply", name)
        os.mkdir(new, 0o700, dir_fd=target)
        origin = os.open(name, _FOLDER_FLAGS, dir_fd=source)
        try:
            inside = os.open(new, _FOLDER_FLAGS, dir_fd=target)
            try:
                if account is not None:
                    os.fchown(inside, account.uid, account.gid)
                for entry in os.listdir(origin):  # noqa: PTH208  # of a descriptor
                    _copy(entry, origin, entry, inside, account, depth + 1)
                os.fsync(inside)
            finally:
                os.close(inside)
        finally:
            os.close(origin)


def _copy_file(name: str, source: int, new: str, target: int, account: Account | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        os.fdopen(os.open(name, _FILE_FLAGS, dir_fd=source), "rb") as content,
        os.fdopen(os.open(new, flags, 0o600, dir_fd=target), "wb") as stream,
    ):
        if account is not None:
            os.fchown(stream.fileno(), account.uid, account.gid)
        shutil.copyfileobj(content, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def _remove_archived(wal: Path, keep: AbstractSet[str]) -> Left:
    """Remove PostgreSQL's files but ``keep``, whose members are named as they are to be archived; return the rest."""
    unsaved: list[str] = []
    foreign: list[str] = []
    for path in sorted(wal.iterdir()):
        if path.name in keep:
            unsaved.append(path.name)
        elif f"{path.name}.partial" in keep:
            unsaved.append(path.rename(path.with_name(f"{path.name}.partial")).name)
        elif path.name in _WAL_FOLDERS and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif _is_wal(path):
            path.unlink()
        else:
            foreign.append(path.name)
    if not unsaved and not foreign:
        wal.rmdir()
    return Left(unsaved=tuple(unsaved), foreign=tuple(foreign))


def _is_wal(path: Path) -> bool:
    """Tell a file of PostgreSQL's by its name: it knows no others in ``pg_wal``."""
    if not path.is_file() or path.is_symlink():
        return False
    try:
        WalFileName.parse(path.name)
    except ValueError:
        return _WAL_TEMPORARY.fullmatch(path.name) is not None
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, _FOLDER_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path, error: OSError) -> RecoveryError:
    return RecoveryError(f"moving aside to {path} failed: {error.strerror or error}")
