"""Bytes that are too many for memory: a file without a name, seen through a mapping whose pages are let go of.

What was written stays in the file when its pages are let go; whoever looks again gets it back. So memory holds what was
touched since :meth:`Spools.release` was called last, however large the file is. The room on the disk is taken before
the first byte is written, because a mapping has no other way than a signal to say that there is none. A process that
is killed leaves nothing behind: the file has no name.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from pathlib import Path

from drservice.errors import StreamError
from drservice.processes import create_private, make_folder


class Spools:
    """Makes such files and lets their pages go; safe for threads.

    Args:
        folder: where the files lie, made if it is absent; only this user can read them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def make(self, size: int) -> memoryview:
        """Return ``size`` zero bytes to write to; the file goes when nothing refers to them any more.

        Raises:
            StreamError: there is no room for them, or the folder cannot be written to.
        """
        path = self._folder / f"spool-{os.getpid()}-{threading.get_ident()}"
        try:
            make_folder(self._folder)
            descriptor = create_private(path)
            try:
                path.unlink()
                os.posix_fallocate(descriptor, 0, size)
                made = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StreamError(
                f"no room for {size >> 20} MB in {self._folder}: {error.strerror}",
                hint="Segments of more than 16 MB wait on this host's disk until they are stored, up to four times the"
                " size of one: make room below state_dir.",
            ) from error
        with self._lock:
            self._maps.add(made)
        return memoryview(made)

    def release(self) -> None:
        """Let go of every page; also while others read and write them."""
        with self._lock:
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)
