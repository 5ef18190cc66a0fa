"""The folder that a restore fills before it gets the target's name.

Root fills it for a user that may be hostile, in a folder that this user may own. Until it is complete it is closed to
everybody but the process that fills it; it is reached by descriptors from the first moment, so whoever exchanges a name
on the way leads nobody elsewhere; and it is handed over from the deepest folder upwards, the folder itself at the very
end, under its final name. A crash just before that leaves a whole restore that only root can enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from drservice.errors import ConfigurationError, RecoveryError, TargetDirectoryError
from drservice.processes import Account, open_folder
from drservice.repository.descent import Folders, Root
from drservice.repository.target import free_bytes, require_space, sync_opened, write_error

_FOLDER_MODE = 0o755
_FILE_MODE = 0o644
"""What Odoo gives its documents."""
_UNFINISHED = b".unfinished"
_WRITE_BACK_BYTES = 64 << 20
"""The disk begins to write when so much waits for it, which it would have to write in the end anyway."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """An open folder of this run beside the target; paths are relative to it."""

    def __init__(self, target: Path, name: str, parent: int, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        self.root = Root(os.fspath(target.parent / name), facts.st_dev, facts.st_ino)
        self._target = target
        self._name = name
        self._parent = parent
        self._descriptor = descriptor
        self._folders = Folders(descriptor)
        self._modes: dict[bytes, int] = {}
        self._placed = False
        self._written_bytes = 0
        self._syncing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-back")

    def has_space(self, needed_bytes: int) -> bool:
        """Tell whether so much is free."""
        return free_bytes(self._target.parent) >= needed_bytes

    def require_space(self, needed_bytes: int) -> None:
        """Refuse to begin what cannot end.

        Raises:
            RecoveryError: with the bytes that are free and needed.
        """
        require_space(self._target.parent, needed_bytes)

    def make_folder(self, path: bytes, mode: int = _FOLDER_MODE) -> None:
        """Make a folder, or leave one that was made before; it gets its mode at the end, it may forbid to write.

        Raises:
            RecoveryError: it cannot be made.
        """
        if path in self._modes:
            return
        above, _, name = path.rpartition(b"/")
        with writing(path):
            os.mkdir(name, 0o700, dir_fd=self._folders.at(above))
        self._modes[path] = mode

    def make_link(self, path: bytes, target: bytes, account: Account | None) -> None:
        """Make a symbolic link with its owner.

        Raises:
            RecoveryError: it cannot be made.
        """
        above, _, name = path.rpartition(b"/")
        with writing(path):
            inside = self._folders.at(above)
            os.symlink(target, name, dir_fd=inside)
            if account is not None:
                os.chown(name, account.uid, account.gid, dir_fd=inside, follow_symlinks=False)

    def write_file(self, path: bytes, data: bytes, account: Account | None) -> None:
        """Write a new file with its owner.

        Raises:
            RecoveryError: it cannot be written, or is there.
        """
        with writing(path), self._open(path, os.O_EXCL) as descriptor:
            _write_all(descriptor, data, 0)
            _give(descriptor, account, _FILE_MODE)

    def write_part(self, path: bytes, offset: int, data: bytes) -> None:
        """Write bytes of a file that is put together; it has another name until it is whole.

        Raises:
            RecoveryError: they cannot be written.
        """
        with writing(path), self._open(path + _UNFINISHED, 0) as descriptor:
            _write_all(descriptor, data, offset)

    def finish_parts(self, path: bytes, sha1: str, account: Account | None) -> bool:
        """Give a file that was put together its name if its content has that SHA-1; otherwise remove it.

        Raises:
            RecoveryError: it cannot be read or renamed.
        """
        with writing(path), self._open(path + _UNFINISHED, 0) as descriptor:
            with open(descriptor, "rb", closefd=False) as file:
                right = hashlib.file_digest(file, partial(hashlib.sha1, usedforsecurity=False)).hexdigest() == sha1
            if right:
                _give(descriptor, account, _FILE_MODE)
                inside = self._folders.at(path.rpartition(b"/")[0])
                name = path.rpartition(b"/")[2]
                os.rename(name + _UNFINISHED, name, src_dir_fd=inside, dst_dir_fd=inside)
        if not right:
            self.drop_parts(path)
        return right

    def drop_parts(self, path: bytes) -> None:
        """Remove what was written of a file that is not whole."""
        folder, _, name = path.rpartition(b"/")
        with writing(path):
            os.unlink(name + _UNFINISHED, dir_fd=self._folders.at(folder))

    @contextmanager
    def _open(self, path: bytes, flags: int) -> Iterator[int]:
        folder, _, name = path.rpartition(b"/")
        always = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, always | flags, 0o600, dir_fd=self._folders.at(folder))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def wrote(self, amount: int) -> None:
        """Hear of bytes that were written: now and then the disk begins with them while others are written.

        Raises:
            RecoveryError: the disk reported an error.
        """
        self._written_bytes += amount
        if self._written_bytes >= _WRITE_BACK_BYTES and (self._syncing is None or self._syncing.done()):
            self._await_sync()
            self._written_bytes = 0
            self._syncing = self._thread.submit(sync_opened, self._descriptor, self._target)

    def _await_sync(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def put_in_place(self, account: Account | None, *, mode: int) -> None:
        """Hand everything over, make it durable and give it the target's name.

        Args:
            account: who gets the folders; files and links have their owners already.
            mode: of the folder itself.

        Raises:
            RecoveryError: it cannot be done; what was filled is not under the target's name, or not handed over.
        """
        for path in sorted(self._modes, reverse=True):
            with writing(path):
                _give(self._folders.at(path), account, self._modes[path])
        self._await_sync()
        sync_opened(self._descriptor, self._target)
        with writing(self._target):
            os.rename(self._name, self._target.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._placed = True
            facts = os.stat(self._target.name, dir_fd=self._parent, follow_symlinks=False)
        if (facts.st_dev, facts.st_ino) != (self.root.device, self.root.inode):
            raise RecoveryError(
                f"{self._target} is another folder than the one that was filled",
                hint="Somebody exchanged it meanwhile. Give --into a folder that no other user may write to.",
            )
        with writing(self._target):
            _give(self._descriptor, account, mode)
            os.fsync(self._descriptor)
            _sync(self._parent)

    def close(self) -> None:
        """Release everything; what was not put in place is removed as far as it can be."""
        self._thread.shutdown(wait=True)
        self._folders.close()
        try:
            if not self._placed:
                self._remove()
        finally:
            os.close(self._descriptor)

    def _remove(self) -> None:
        """Empty the folder by its descriptor: its name may be another's by now, and of that only an empty one goes.

        What cannot be removed lies under a name that nobody takes for a restore.
        """
        with suppress(OSError):
            for name in os.listdir(self._descriptor):  # noqa: PTH208  # a descriptor has no path
                with suppress(IsADirectoryError):
                    os.unlink(name, dir_fd=self._descriptor)
                    continue
                shutil.rmtree(name, ignore_errors=True, dir_fd=self._descriptor)
            os.rmdir(self._name, dir_fd=self._parent)


@contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """Make the folder of this run beside the target; it is removed again unless it was put in place.

    Raises:
        TargetDirectoryError: the target is in use, or behind a link that somebody may have planted; nothing was made.
        RecoveryError: it cannot be made.
    """
    try:
        with writing(target):
            parent = open_folder(target.parent)
    except ConfigurationError as error:
        raise TargetDirectoryError(
            f"{target.parent} is behind a link that another user may have made",
            hint="As root, give --into the real folder.",
        ) from error
    try:
        _require_free(target, parent)
        name = f".{target.name}.drservice-{os.getpid()}-{os.urandom(4).hex()}"
        with writing(target.parent / name):
            opened = _make(name, parent)
        made = Staging(target, name, parent, opened)
        try:
            yield made
        finally:
            made.close()
    finally:
        os.close(parent)


def _make(name: str, parent: int) -> int:
    """Make a folder that is closed to all others and return it open.

    Raises:
        RecoveryError: what stands under the name by now is not what was made.
    """
    os.mkdir(name, 0o700, dir_fd=parent)
    descriptor = os.open(name, _OPEN, dir_fd=parent)
    facts = os.fstat(descriptor)
    # Whoever owns the parent can put another folder there in between, though none that is like this one and not empty.
    own = facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) & 0o777 == 0o700
    if not own or os.listdir(descriptor):  # noqa: PTH208  # a descriptor has no path
        os.close(descriptor)
        raise RecoveryError(f"{name} was exchanged as soon as it was made")
    return descriptor


def _require_free(target: Path, parent: int) -> None:
    try:
        descriptor = os.open(target.name, _OPEN, dir_fd=parent)
    except FileNotFoundError:
        if target.name in {"", ".."}:
            raise TargetDirectoryError(f"{target} cannot be made") from None
        return
    except NotADirectoryError as error:  # a link, too
        raise TargetDirectoryError(f"{target} is no directory") from error
    except OSError as error:
        raise TargetDirectoryError(f"cannot look at {target}: {error.strerror}") from error
    try:
        with os.scandir(descriptor) as found:
            first = next(found, None)
    finally:
        os.close(descriptor)
    if first is not None:
        raise TargetDirectoryError(f"{target} is not empty (it holds {first.name})")


def _give(descriptor: int, account: Account | None, mode: int) -> None:
    if account is not None:
        os.fchown(descriptor, account.uid, account.gid)
    os.fchmod(descriptor, mode)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        offset += written
        left = left[written:]


def _sync(folder: int) -> None:
    """Make names in a folder durable; its descriptor may be one that cannot be read from."""
    descriptor = os.open(".", _OPEN, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: bytes | Path) -> Iterator[None]:
    """Translate what the system refuses while ``path`` is made: no space, read-only, not permitted."""
    try:
        yield
    except OSError as error:
        raise write_error(os.fsencode(path), error) from error
