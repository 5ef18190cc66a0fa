"""Folders that somebody else may write to: opened step by step from the root, through no link, and recognised again.

What was exchanged since it was listed is reported, never followed.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drservice.errors import CaptureError

_OPEN_FOLDERS = 128
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What opening a listed name says when it was deleted or exchanged meanwhile."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that is captured or filled: reached by name, and recognised by device and inode ever after."""

    path: str
    device: int
    inode: int

    def open(self) -> int:
        """Open it.

        Raises:
            CaptureError: it is gone, or another folder has its name.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CaptureError(f"cannot open {self.path}: {error.strerror}") from error
        facts = os.fstat(descriptor)
        if (facts.st_dev, facts.st_ino) != (self.device, self.inode):
            os.close(descriptor)
            raise CaptureError(f"{self.path} is another folder than it was at the beginning")
        return descriptor


@contextmanager
def open_below(root: int, folder: bytes) -> Iterator[int]:
    """Open a folder below an open one, step by step and through no link; ``b""`` is the open one itself.

    Raises:
        OSError: it is not there, or not a folder.
    """
    current = os.dup(root)
    try:
        for step in folder.split(b"/") if folder else ():
            deeper = os.open(step, _FOLDER, dir_fd=current)
            os.close(current)
            current = deeper
        yield current
    finally:
        os.close(current)


class Folders:
    """The folders below an open one, each opened as :func:`open_below` does; those used last stay open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def at(self, folder: bytes) -> int:
        """Return the descriptor of a folder (``b""`` = the open one), good until another one is asked for.

        Raises:
            OSError: it is not there, or not a folder.
        """
        if not folder:
            return self._root
        descriptor = self._open.get(folder)
        if descriptor is not None:
            self._open.move_to_end(folder)
            return descriptor
        if len(self._open) >= _OPEN_FOLDERS:
            os.close(self._open.popitem(last=False)[1])
        with open_below(self._root, folder) as opened:
            descriptor = self._open[folder] = os.dup(opened)
        return descriptor

    def close(self) -> None:
        """Close them all but for the first, which is the caller's."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
