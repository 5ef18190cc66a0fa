"""The folder that takes in what a data directory has and nothing else does, while it is restored in place.

It stands beside the directory, named after it and the instant (``main.before-20261126T021405Z``), so that moving into
it is a rename. Where the directory is a mount of its own, it stands below ``state_dir`` and what goes there is copied.
A note in ``state_dir`` says that the directory was taken and by which folder: a restore that was killed is completed
with it, and the WAL in the directory is then the attempt's and not production's.
"""

from __future__ import annotations

import errno
import json
import os
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
from drservice.processes import Account
from drservice.repository.records import Scope

_WAL = "pg_wal"
_CONFIGURATION = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
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
        """Move WAL and configuration out of a directory; what is here already stays as it is.

        Raises:
            RecoveryError: it cannot be moved.
        """
        try:
            source = os.open(directory, _FOLDER_FLAGS)
            target = os.open(self.path, _FOLDER_FLAGS)
        except OSError as error:
            raise _problem(self.path, error) from error
        try:
            for name in (_WAL, *_CONFIGURATION):
                if not _is_there(target, name) and _is_there(source, name):
                    self._move(name, source, target)
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
            new = f"{name}.new"
            if name == _WAL:
                _copy_wal(source, target, new, self.account)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(new, dir_fd=target)
                _copy_file(name, source, new, target, self.account)
            os.rename(new, name, src_dir_fd=target, dst_dir_fd=target)

    def tidy(self, *, keep: AbstractSet[str]) -> tuple[str, ...]:
        """Remove WAL that is archived, after the directory was proved, and forget the note; return what is left.

        Args:
            keep: segments that no archive has. One that is to be archived as ``.partial`` gets that name here.

        Raises:
            RecoveryError: it cannot be removed.
        """
        left: list[str] = []
        try:
            if self.wal.is_dir() and not self.wal.is_symlink():
                left = _remove_archived(self.wal, keep)
            self.note.unlink(missing_ok=True)
        except OSError as error:
            raise _problem(self.path, error) from error
        return tuple(left)


def begin_aside(state_dir: Path, scope: Scope, existing: Existing, *, now: datetime) -> AsideFolder:
    """Make the folder for a restore and note it; the directory itself is not touched yet.

    Raises:
        RecoveryError: it cannot be made.
    """
    directory = existing.path
    name = f"{directory.name}.before-{now:%Y%m%dT%H%M%SZ}"
    is_mount = directory.parent.stat().st_dev != existing.device
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
    if noted != directory or not path.is_dir() or (is_cluster(directory) and aside.wal.exists()):
        return None  # it was completed and killed before it tidied up, or is another directory's
    return aside


def _note(state_dir: Path, scope: Scope) -> Path:
    return state_dir / "in-place" / f"{scope.service}-{scope.component}.json"


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _copy_wal(source: int, target: int, new: str, account: Account | None) -> None:
    """Copy the plain files of ``pg_wal`` into a new folder."""
    with suppress(FileNotFoundError):
        shutil.rmtree(new, dir_fd=target)
    os.mkdir(new, 0o700, dir_fd=target)
    origin = os.open(_WAL, _FOLDER_FLAGS, dir_fd=source)
    inside = os.open(new, _FOLDER_FLAGS, dir_fd=target)
    try:
        if account is not None:
            os.fchown(inside, account.uid, account.gid)
        for name in os.listdir(origin):  # noqa: PTH208  # of a descriptor
            if stat.S_ISREG(os.stat(name, dir_fd=origin, follow_symlinks=False).st_mode):
                _copy_file(name, origin, name, inside, account)
        os.fsync(inside)
    finally:
        os.close(origin)
        os.close(inside)


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


def _remove_archived(wal: Path, keep: AbstractSet[str]) -> list[str]:
    """Remove everything but ``keep``, whose members are named as they are to be archived; return those names."""
    left: list[str] = []
    for path in sorted(wal.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name in keep:
            left.append(path.name)
        elif f"{path.name}.partial" in keep:
            left.append(path.rename(path.with_name(f"{path.name}.partial")).name)
        else:
            path.unlink()
    if not left:
        wal.rmdir()
    return left


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, _FOLDER_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path, error: OSError) -> RecoveryError:
    return RecoveryError(f"moving aside to {path} failed: {error.strerror or error}")
