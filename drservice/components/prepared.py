"""A private folder that something is prepared in before it is captured like a folder of files.

It lies in ``state_dir``, whose owner may not be who runs the backup (``processes``): it is made closed to everybody
else, held by its descriptor, filled through that, and locked while it is in use. What a crash left behind is found by
the next run of the same component, because nobody holds its lock any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drservice.errors import CaptureError
from drservice.processes import open_folder

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PreparedFolder:
    """An open private folder; paths in it are relative, and no link in it is followed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def make_folder(self, path: bytes, mode: int = 0o700) -> None:
        """Make a folder and those above it; one that is there is left."""
        _require_inside(path)
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            with suppress(FileExistsError):
                os.mkdir(b"/".join(parts[:count]), mode, dir_fd=self.descriptor)

    def create(self, path: bytes, mode: int = 0o600) -> int:
        """Make a new file and return its descriptor, open for reading and writing."""
        _require_inside(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, mode, dir_fd=self.descriptor)
        os.fchmod(descriptor, mode)
        return descriptor

    def link(self, path: bytes, target: bytes) -> None:
        """Make a symbolic link."""
        _require_inside(path)
        os.symlink(target, path, dir_fd=self.descriptor)

    def write(self, path: bytes, content: bytes) -> None:
        """Make a new file with this content."""
        with os.fdopen(self.create(path), "wb") as file:
            file.write(content)

    def remove(self, path: bytes) -> None:
        """Remove a folder with everything in it; one that is not there is fine."""
        shutil.rmtree(path, ignore_errors=True, dir_fd=self.descriptor)

    def remove_file(self, path: bytes) -> None:
        """Remove a file; one that is not there is fine."""
        with suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self.descriptor)

    def require_own_name(self) -> None:
        """Ask whether the path still leads to this folder.

        Raises:
            CaptureError: somebody exchanged it.
        """
        facts = os.fstat(self.descriptor)
        try:
            found = self.path.lstat()
        except OSError as error:
            raise CaptureError(f"{self.path} is gone: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != (facts.st_dev, facts.st_ino):
            raise CaptureError(f"{self.path} is another folder than the one that was prepared")


def _require_inside(path: bytes) -> None:
    """Refuse a path that leads out of the folder, whoever made it up.

    Raises:
        CaptureError: it does.
    """
    if any(step in {b"", b".", b".."} for step in path.split(b"/")):
        raise CaptureError(f"{os.fsdecode(path)!a} is no path inside the private folder")


@contextmanager
def prepared_folder(state_dir: Path, name: str) -> Iterator[PreparedFolder]:
    """Make a private folder below ``state_dir`` and remove it afterwards, with what earlier runs left behind.

    Raises:
        CaptureError: it cannot be made.
        ConfigurationError: a folder on the way is a link that somebody may have planted.
    """
    folder = state_dir / _parent_name()
    try:
        above = _open_parent(state_dir, folder.name)
    except OSError as error:
        raise CaptureError(f"cannot make {folder}: {error.strerror}") from error
    try:
        _remove_left_behind(above, f"{name}-")
        own = f"{name}-{os.getpid()}-{os.urandom(4).hex()}"
        os.mkdir(own, 0o700, dir_fd=above)
        descriptor = os.open(own, _OPEN, dir_fd=above)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield PreparedFolder(folder / own, descriptor)
        finally:
            shutil.rmtree(own, ignore_errors=True, dir_fd=above)
            os.close(descriptor)
    finally:
        os.close(above)


def remove_left_behind(folder: Path, prefix: str) -> None:
    """Remove the folders with this prefix that no process holds."""
    with suppress(OSError):
        above = os.open(folder, _OPEN)
        try:
            _remove_left_behind(above, prefix)
        finally:
            os.close(above)


def _parent_name() -> str:
    """Each user has its own: backups of one host may run as root and as PostgreSQL's user in turn."""
    return f"prepared-{os.geteuid()}"


def _open_parent(state_dir: Path, name: str) -> int:
    state_dir.mkdir(parents=True, exist_ok=True)
    opened = open_folder(state_dir)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=opened)
        parent = os.open(name, _OPEN, dir_fd=opened)
    finally:
        os.close(opened)
    facts = os.fstat(parent)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        os.close(parent)
        raise CaptureError(f"{state_dir / name} is not this user's own, or open to others", hint="Remove it.")
    return parent


def _remove_left_behind(above: int, prefix: str) -> None:
    for name in os.listdir(above):
        if not name.startswith(prefix):
            continue
        with suppress(OSError):  # held by a run that is at work, or gone meanwhile
            held = os.open(name, _OPEN, dir_fd=above)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(name, ignore_errors=True, dir_fd=above)
            finally:
                os.close(held)
