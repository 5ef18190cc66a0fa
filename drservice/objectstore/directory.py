"""A directory as an object store.

An object is a regular file; its key is its path. ``create`` writes a temporary file in the final folder,
makes it durable, and gives it its name with ``link(2)``, which fails if the name is taken: that one system
call decides every race, also between hosts on NFS. Temporary names begin with a dot, no key does, so what a
killed writer leaves behind is never listed and never read.

A file system that is unmounted leaves an empty folder under the same path. So the directory is the one that was opened,
or one with the same repository file (mounted again); in any other nothing is stored, and nothing is absent.

Two users may write to one directory (a backup as root, ``wal push`` as ``postgres``): what root creates is
given to the owner of the repository's directory; in a group-writable directory new folders are group-writable
too. As the other user may be hostile, every step goes through directory descriptors and follows no symbolic
link below the root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as stat_module
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from drservice.errors import (
    DamagedObjectError,
    InvalidKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from drservice.objectstore.bodies import buffers_of, size_of
from drservice.objectstore.interface import Body, Capabilities, CreateMode, ObjectInfo
from drservice.objectstore.keys import is_part, split_key, split_prefix

TEMPORARY_PREFIX = ".tmp-"
_REPOSITORY_FILE = "drservice-repository.json"
_REPOSITORY_FILE_BYTES = 1 << 20

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_UNREACHABLE = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.EHOSTDOWN}
)
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_VECTOR_LIMIT = 512  # below IOV_MAX (1,024 on Linux, writev(2))
_ADOPTION_SECONDS = 2.0
_LARGE_BYTES = 24 << 20  # data packs; WAL is smaller, and read back soon


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ownership:
    """What new files and folders should look like, taken from the repository's own directory."""

    uid: int
    gid: int
    is_shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One name in a folder; ``info`` is ``None`` for a folder."""

    name: str
    info: ObjectInfo | None


class DirectoryStore:
    """Objects as files below ``root``, which must exist."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable: set[tuple[str, ...]] = set()
        """Folders whose own name is known to be on disk, so that it is not made durable again."""
        self._identity: tuple[int, int] | None = None
        folder = self._open_root()
        try:
            status = os.fstat(folder)
            self._repository_file = _repository_file(folder)
        finally:
            os.close(folder)
        self._ownership = _Ownership(
            uid=status.st_uid, gid=status.st_gid, is_shared=bool(status.st_mode & stat_module.S_IWGRP)
        )
        writable = os.access(root, os.W_OK | os.X_OK, effective_ids=True)
        self._capabilities = Capabilities(
            create_mode=CreateMode.CONDITIONAL,
            versioned=False,
            writable=writable,
            warnings=()
            if writable
            else (f"The directory {root} is not writable for this user: nothing can be backed up to it.",),
        )

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._root.as_uri()

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do; links make ``create`` strong on every file system that has them."""
        return self._capabilities

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``: durable on return, all or nothing.

        A crash leaves at most a temporary file, which is never visible.

        Raises:
            ObjectExistsError: the key is taken. What is there is durable too, so that a caller who finds it
                identical may rely on it.
            InvalidKeyError, StoreFullError, StoreDeniedError, StoreUnreachableError.
        """
        *folders, name = split_key(key)
        try:
            folder = self._make_folder(tuple(folders))
        except OSError as error:
            raise self._translated(error, f"create {key}", stored_bytes=size_of(body)) from error
        try:
            self._create_in(folder, name, key, body)
        except OSError as error:
            raise self._translated(error, f"create {key}", stored_bytes=size_of(body)) from error
        finally:
            os.close(folder)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``.

        Raises:
            ObjectNotFoundError, DamagedObjectError, InvalidKeyError, StoreDeniedError, StoreUnreachableError.
        """
        _require_range(offset, length)
        with self._translation(f"read {key}"):
            file = self._open_object(key)
            try:
                size = os.fstat(file).st_size
                wanted = size - offset if length is None else length
                if wanted < 0 or offset + wanted > size:
                    raise DamagedObjectError(
                        f"{key} in {self.description} has {size} bytes; {wanted} bytes from {offset} were expected"
                    )
                return _read_exactly(file, offset, wanted, key)
            finally:
                os.close(file)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and time of an object.

        Raises:
            ObjectNotFoundError, InvalidKeyError, StoreDeniedError, StoreUnreachableError.
        """
        *folders, name = split_key(key)
        with self._translation(f"stat {key}"):
            folder = self._find_folder(tuple(folders))
            if folder is None:
                raise self._not_found(key)
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError as error:
                raise self._not_found(key) from error
            finally:
                os.close(folder)
            if stat_module.S_ISDIR(status.st_mode):
                raise self._not_found(key)
            return self._info(key, status)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix`` and is greater than ``start_after``, by key.

        Names that no key can have (``lost+found``, temporary files) are passed over. An object deleted while
        the listing runs may be in it or not.

        Raises:
            ObjectStoreError: also for a symbolic link or a special file, because skipping it could hide
                objects.
        """
        folders, beginning = split_prefix(prefix)
        return self._walk(folders, beginning, start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the object's body, or nothing: a directory keeps no versions."""
        try:
            body = self.read(key)
        except ObjectNotFoundError:
            return
        yield body

    def extend_lock(self, key: str, until: datetime) -> None:
        """Refuse: a directory keeps no locks.

        Raises:
            ObjectStoreError: always.
        """
        del until
        raise ObjectStoreError(f"cannot lock {key}: {self.description} keeps no locks")

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is fine. Folders stay: removing them would race with creators.

        Raises:
            StoreDeniedError, StoreUnreachableError, InvalidKeyError.
        """
        *folders, name = split_key(key)
        with self._translation(f"delete {key}"):
            folder = self._find_folder(tuple(folders))
            if folder is None:
                return
            try:
                if stat_module.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    return
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
            except FileNotFoundError:
                return
            finally:
                os.close(folder)

    def server_time(self) -> datetime:
        """Return the file system's clock: the time it gives to a file made now (and removed again).

        Raises:
            StoreDeniedError: the directory is not writable.
        """
        with self._translation("read the file system's clock"):
            folder = self._open_root()
            try:
                name = _temporary_name()
                file = _open_new(name, folder)
                try:
                    return _time_of(os.fstat(file))
                finally:
                    os.close(file)
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Release nothing: no descriptor outlives a call."""

    # --- creating ---------------------------------------------------------------------------------------

    def _create_in(self, folder: int, name: str, key: str, body: Body) -> None:
        if _is_taken(name, folder):
            # Its creator may not have made the name durable yet, and the caller may rely on what is there.
            os.fsync(folder)
            raise ObjectExistsError(f"{key} exists in {self.description}")
        temporary = _temporary_name()
        file = _open_new(temporary, folder)
        try:
            try:
                self._adopt_file(file)
                _write_all(file, body)
                os.fsync(file)
                if size_of(body) >= _LARGE_BYTES:
                    # Only a restore reads it again: what production has in memory is worth more than a backup's pages.
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
            self._link(temporary, name, folder, key)
        finally:
            # Gone already if an administrator cleaned up; the object is what counts.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
        os.fsync(folder)

    def _link(self, temporary: str, name: str, folder: int, key: str) -> None:
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            os.fsync(folder)
            raise ObjectExistsError(f"{key} exists in {self.description}") from error
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise StoreDeniedError(
                    f"the file system of {self.description} refuses link(2): {os.strerror(error.errno)}",
                    hint="A directory repository needs a file system with hard links (not FAT, not every FUSE).",
                ) from error
            raise

    def _adopt_file(self, file: int) -> None:
        if self._ownership.is_shared:
            os.fchmod(file, 0o640)
        self._adopt(file)

    def _adopt(self, descriptor: int) -> None:
        """Give what was made here to those who share the repository."""
        owner = self._ownership
        status = os.fstat(descriptor)
        if os.geteuid() == 0:
            if (status.st_uid, status.st_gid) != (owner.uid, owner.gid):
                os.fchown(descriptor, owner.uid, owner.gid)
        elif owner.is_shared and status.st_gid != owner.gid:
            os.fchown(descriptor, -1, owner.gid)

    def _make_folder(self, parts: tuple[str, ...]) -> int:
        """Open a folder, making what is missing, with every name on the way durable."""
        folder = self._open_root()
        try:
            for depth, part in enumerate(parts, start=1):
                child = self._open_or_make_child(folder, part)
                path = parts[:depth]
                try:
                    if path not in self._durable:
                        # Also when another process made it: it may not have come as far as its fsync.
                        os.fsync(folder)
                        self._durable.add(path)
                except BaseException:
                    os.close(child)
                    raise
                os.close(folder)
                folder = child
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _open_or_make_child(self, folder: int, part: str) -> int:
        try:
            return self._open_child(folder, part)
        except FileNotFoundError:
            pass
        try:
            os.mkdir(part, 0o770 if self._ownership.is_shared else 0o750, dir_fd=folder)
        except FileExistsError:
            return self._open_child(folder, part)
        child = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
        try:
            if self._ownership.is_shared:
                os.fchmod(child, 0o2770)
            self._adopt(child)
        except BaseException:
            os.close(child)
            raise
        return child

    def _open_child(self, folder: int, part: str) -> int:
        """Open a folder in a folder.

        Root makes a folder and then gives it away; whoever comes between is let in a moment later.
        """
        deadline = time.monotonic() + _ADOPTION_SECONDS
        while True:
            try:
                return os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            except PermissionError:
                owner = os.stat(part, dir_fd=folder, follow_symlinks=False).st_uid
                if owner in (self._ownership.uid, os.geteuid()) or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)

    # --- finding ----------------------------------------------------------------------------------------

    def _open_root(self) -> int:
        try:
            # The root itself may be a symbolic link: it is the administrator's word, not the store's content.
            folder = os.open(self._root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreUnreachableError(
                f"there is no directory {self._root}",
                hint="Is the file system mounted? `drservice init` makes the directory of a new repository.",
            ) from error
        except OSError as error:
            raise self._translated(error, "open the directory") from error
        try:
            self._require_same(folder)
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _require_same(self, folder: int) -> None:
        """Refuse another directory than the one that was opened, unless its file system was only mounted again.

        Raises:
            StoreUnreachableError: it is another one, as the mount point of an unmounted file system is.
        """
        status = os.fstat(folder)
        found = (status.st_dev, status.st_ino)
        if found == self._identity:
            return
        if self._identity is not None:
            if not self._repository_file or _repository_file(folder) != self._repository_file:
                raise StoreUnreachableError(
                    f"{self._root} is another directory than the one that was opened",
                    hint="Was its file system unmounted? Mount it again; nothing was written to what is there now.",
                )
            self._durable.clear()
        self._identity = found

    def _find_folder(self, parts: tuple[str, ...]) -> int | None:
        """Open a folder for reading; ``None`` if there is no such folder."""
        folder = self._open_root()
        for part in parts:
            try:
                child = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                # Linux says ENOTDIR also for a symbolic link opened with O_NOFOLLOW | O_DIRECTORY (open(2)).
                if stat_module.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise self._strange("/".join(parts)) from error
                return None
            finally:
                os.close(folder)
            folder = child
        return folder

    def _open_object(self, key: str) -> int:
        *folders, name = split_key(key)
        folder = self._find_folder(tuple(folders))
        if folder is None:
            raise self._not_found(key)
        try:
            # O_NONBLOCK: a FIFO planted here must not hold the reader for ever.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError as error:
            raise self._not_found(key) from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise self._strange(key) from error
            raise
        finally:
            os.close(folder)
        mode = os.fstat(file).st_mode
        if stat_module.S_ISREG(mode):
            return file
        os.close(file)
        raise self._not_found(key) if stat_module.S_ISDIR(mode) else self._strange(key)

    def _walk(self, folders: tuple[str, ...], beginning: str, start_after: str) -> Iterator[ObjectInfo]:
        base = "".join(f"{part}/" for part in folders)
        with self._translation(f"list {base or 'everything'}"):
            entries = self._entries(folders, base, beginning, start_after)
        for entry in entries:
            if entry.info is not None:
                yield entry.info
            else:
                yield from self._walk((*folders, entry.name), "", start_after)

    def _entries(self, folders: tuple[str, ...], base: str, beginning: str, start_after: str) -> tuple[_Entry, ...]:
        folder = self._find_folder(folders)
        if folder is None:
            return ()
        found = []
        try:
            with os.scandir(folder) as scan:
                for entry in scan:
                    if not is_part(entry.name) or not entry.name.startswith(beginning):
                        continue
                    key = base + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        below = f"{key}/"
                        if below > start_after or start_after.startswith(below):
                            found.append(_Entry(name=entry.name, info=None))
                    elif key > start_after:
                        with contextlib.suppress(FileNotFoundError):  # deleted since: it may be left out
                            status = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
                            found.append(_Entry(name=entry.name, info=self._info(key, status)))
        finally:
            os.close(folder)
        # A folder's name is compared with its slash, because that is how its keys compare: "a-b" < "a/b".
        found.sort(key=lambda entry: entry.name if entry.info else f"{entry.name}/")
        return tuple(found)

    def _info(self, key: str, status: os.stat_result) -> ObjectInfo:
        if not stat_module.S_ISREG(status.st_mode):
            raise self._strange(key)
        return ObjectInfo(key=key, stored_bytes=status.st_size, modified_at=_time_of(status))

    # --- errors -----------------------------------------------------------------------------------------

    def _not_found(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"there is no {key} in {self.description}")

    def _strange(self, key: str) -> ObjectStoreError:
        return ObjectStoreError(
            f"{key} in {self.description} is or passes through a symbolic link or special file",
            hint="drservice makes none and follows none. Find out who put it there; move it away.",
        )

    @contextlib.contextmanager
    def _translation(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translated(error, action) from error

    def _translated(self, error: OSError, action: str, *, stored_bytes: int | None = None) -> ObjectStoreError:
        """Say an operating system error in the words of the catalogue."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        message = f"cannot {action} in {self._root}: {reason}"
        if error.errno in _FULL:
            needed = f"; {stored_bytes} bytes were needed" if stored_bytes is not None else ""
            return StoreFullError(message + needed)
        if error.errno in _DENIED:
            return StoreDeniedError(
                message, hint="Check owner and mode of the directory and how its file system is mounted."
            )
        if error.errno in _UNREACHABLE:
            return StoreUnreachableError(message)
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            return InvalidKeyError(message, hint="A part of the path is an object or a symbolic link, not a folder.")
        return ObjectStoreError(message, hint="Look at the file system and the limits of this process.")


def make_directory(root: Path) -> None:
    """Make the directory of a new repository (0750), with missing parents; one that exists is left alone.

    Raises:
        StoreDeniedError, StoreFullError, ObjectStoreError.
    """
    try:
        root.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        kind = (
            StoreFullError if error.errno in _FULL else StoreDeniedError if error.errno in _DENIED else ObjectStoreError
        )
        raise kind(
            f"cannot make the directory {root}: {reason}", hint="Check repository.url and the parents."
        ) from error


def _require_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"no range begins at {offset} with length {length}")


def _repository_file(folder: int) -> bytes:
    """Return what tells one repository from another, ``b""`` if there is none."""
    try:
        file = os.open(_REPOSITORY_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return b""
    with os.fdopen(file, "rb") as stream:
        return stream.read(_REPOSITORY_FILE_BYTES) if stat_module.S_ISREG(os.fstat(file).st_mode) else b""


def _is_taken(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"


def _open_new(name: str, folder: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o640, dir_fd=folder)


def _write_all(file: int, body: Body) -> None:
    pending = [*buffers_of(body)]
    while pending:
        written = os.writev(file, pending[:_VECTOR_LIMIT])
        done = 0
        while done < len(pending) and written >= pending[done].nbytes:
            written -= pending[done].nbytes
            done += 1
        del pending[:done]
        if written:
            pending[0] = pending[0][written:]


def _read_exactly(file: int, offset: int, length: int, key: str) -> bytes:
    data = os.pread(file, length, offset)
    while len(data) < length:  # Linux returns at most 2 GiB at once (read(2))
        more = os.pread(file, length - len(data), offset + len(data))
        if not more:
            raise DamagedObjectError(f"{key} became shorter while it was read")
        data += more
    return data


def _time_of(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime_ns / 1_000_000_000, tz=UTC)
