"""Which folders of a filestore changed, and what its files are: no link followed, nothing believed but the content.

A folder is listed when its time of modification is another than before, and once more when that time is old enough that
nothing can have happened within it any more; only times of one file system are compared with each other, and how long
ago is asked of the steady clock. A folder whose times lie, as on a network disk, is what rows are asked for as well.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.odoo_filestore.names import is_document_file, is_document_folder
from drservice.errors import DocumentsUnreadableError
from drservice.model.documents import DocumentPart
from drservice.repository.descent import GONE, open_below
from drservice.repository.documentsets import PART_BYTES, cut

_SETTLED_SECONDS = 2.1
"""Coarser than the times of every file system that is in use (FAT: 2 s)."""
_PIECE_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class _Stamp:
    modified_ns: int
    seen_at: float
    listed_at: float


class Filestore:
    """A filestore as it is in one round."""

    def __init__(self, descriptor: int, watch: FolderWatch) -> None:
        self._root = descriptor
        self._watch = watch

    def changed(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the folders that may have new documents, each with the names of all its files that are called so.

        A folder that cannot be listed is told in ``unlisted`` of the watch, and ends nothing.

        Raises:
            DocumentsUnreadableError: the filestore itself cannot be listed, or is empty and was not before.
        """
        return self._watch.changed(self._root)

    def parts(self, name: str) -> Iterator[DocumentPart]:
        """Yield what a file has, as sets take it; one piece unless it is big.

        Raises:
            FileNotFoundError: it is gone.
            WrongContentError: it is not what its name says; what was yielded is not to be believed.
            OSError: it cannot be read.
        """
        folder, _, file_name = name.partition("/")
        with open_below(self._root, folder.encode()) as inside:
            file = os.open(file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
        with os.fdopen(file, "rb") as stream:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                raise WrongContentError(name)
            if facts.st_size <= PART_BYTES:
                data = stream.read(PART_BYTES + 1)
                if hashlib.sha1(data, usedforsecurity=False).hexdigest() != name[-40:]:
                    raise WrongContentError(name)
                yield DocumentPart(name=name, size=len(data), offset=0, data=data)
                return
            digest = hashlib.sha1(usedforsecurity=False)
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
            if digest.hexdigest() != name[-40:]:
                raise WrongContentError(name)
            yield from self._cut(name, stream.tell(), file)

    def _cut(self, name: str, size: int, file: int) -> Iterator[DocumentPart]:
        """Read a big file again, part by part; it is hashed again, too: what is stored is what is compared."""
        digest = hashlib.sha1(usedforsecurity=False)
        for offset in range(0, size, PART_BYTES):
            wanted = cut(name, size, offset)
            data = _read_exactly(file, wanted)
            if len(data) != len(wanted):
                raise WrongContentError(name)
            digest.update(data)
            yield DocumentPart(name=name, size=size, offset=offset, data=data)
        if digest.hexdigest() != name[-40:]:
            raise WrongContentError(name)


class WrongContentError(Exception):
    """A file's content is not what its name says."""


def _read_exactly(file: int, wanted: range) -> bytes:
    data = bytearray()
    while len(data) < len(wanted):
        piece = os.pread(file, len(wanted) - len(data), wanted.start + len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


class FolderWatch:
    """Remembers when the folders of a filestore were listed.

    Args:
        path: of the filestore.
        clock: of this host.
    """

    def __init__(self, path: str, *, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._stamps: dict[str, _Stamp] = {}
        self._fresh: list[str] = []
        self._root: tuple[int, int] | None = None
        self.unlisted: dict[str, str] = {}
        """Folders that cannot be listed, with the reason."""
        self.count = 0
        """Folders in the last round."""

    @contextmanager
    def opened(self) -> Iterator[Filestore]:
        """Open the filestore for a round. A round that fails has listed nothing: its folders are listed again.

        Raises:
            DocumentsUnreadableError: it is not there.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise DocumentsUnreadableError(f"cannot open {self._path}: {error.strerror}") from error
        self._fresh = []
        is_done = False
        try:
            yield Filestore(descriptor, self)
            is_done = True
        finally:
            os.close(descriptor)
            if not is_done:
                self.forget()

    def forget(self) -> None:
        """Let the folders of this round be listed again."""
        for folder in self._fresh:
            self._stamps.pop(folder, None)

    def reset(self) -> None:
        """Let every folder be listed again."""
        self._stamps.clear()

    def changed(self, root: int) -> Iterator[tuple[str, list[str]]]:
        """As :meth:`Filestore.changed`."""
        folders = self._folders(root)
        self.unlisted = {}
        for folder in folders:
            try:
                with open_below(root, folder.encode()) as inside:
                    if self._is_due(folder, os.fstat(inside).st_mtime_ns):
                        found = os.listdir(inside)  # noqa: PTH208  # a descriptor has no path
                        self._fresh.append(folder)
                    else:
                        continue
            except OSError as error:
                self._stamps.pop(folder, None)
                if error.errno not in GONE:
                    self.unlisted[folder] = error.strerror or str(error)
                continue
            yield folder, [name for name in found if is_document_file(folder, name)]

    def _folders(self, root: int) -> list[str]:
        facts = os.fstat(root)
        here = (facts.st_dev, facts.st_ino)
        try:
            found = os.listdir(root)
        except OSError as error:
            raise DocumentsUnreadableError(f"cannot list {self._path}: {error.strerror}") from error
        folders = sorted(name for name in found if is_document_folder(name))
        self.count = len(folders)
        if self._stamps and not folders:
            raise DocumentsUnreadableError(
                f"{self._path} has no documents any more",
                hint="Is its disk mounted? Nothing is taken for lost; what comes back is captured.",
            )
        if self._root is not None and here != self._root:
            telemetry.warning("the filestore is another folder than before: all of it is listed", path=self._path)
            self._stamps.clear()
        self._root = here
        for folder in self._stamps.keys() - set(folders):
            del self._stamps[folder]
        return folders

    def _is_due(self, folder: str, modified_ns: int) -> bool:
        now = self._clock.monotonic()
        stamp = self._stamps.get(folder)
        if stamp is None or stamp.modified_ns != modified_ns:
            self._stamps[folder] = _Stamp(modified_ns=modified_ns, seen_at=now, listed_at=now)
            return True
        is_settled = stamp.listed_at - stamp.seen_at >= _SETTLED_SECONDS
        if not is_settled:
            stamp.listed_at = now
        return not is_settled


def is_gone(error: OSError) -> bool:
    """Tell whether a file is not there, rather than not to be read."""
    return error.errno in GONE or error.errno == errno.ESTALE
