"""Listing a live folder: descriptors not paths, no link followed, and nothing that cannot be read ends it.

A folder is opened below its parent with ``O_NOFOLLOW``, so one that is exchanged for a link after it was listed is not
entered. What stands in it is listed with its status and judged by that: regular files and folders are captured, links
are recorded (in a plain folder), everything else is left out by name and never opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from drservice.components.odoo_filestore.names import CHECKLIST, is_document_file, is_document_folder
from drservice.errors import DocumentsUnreadableError
from drservice.model.estate import FilesKind
from drservice.repository.bulk import GONE, Root, open_below
from drservice.repository.folders import ListedFile, ListedFolder
from drservice.repository.marks import look_of
from drservice.repository.nodes import RESTORE_MARKER

_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFLNK: "link",
}


@dataclass(frozen=True, slots=True)
class FoundFolder:
    """A folder to record: path in the snapshot and permission bits."""

    path: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link to record, with where it points."""

    path: bytes
    target: bytes


@dataclass(slots=True)
class Aside:
    """What a walk met and did not take; names are paths in the snapshot."""

    foreign: list[bytes] = field(default_factory=list)
    """In a filestore: names that no document has."""
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    """Not a file, a folder or a link that is recorded; with what it is."""
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    vanished: list[bytes] = field(default_factory=list)


class Walk:
    """One pass over a folder."""

    def __init__(
        self,
        path: str,
        kind: FilesKind,
        *,
        on_folder: Callable[[FoundFolder], None],
        on_link: Callable[[FoundLink], None],
    ) -> None:
        self._kind = kind
        self._on_folder = on_folder
        self._on_link = on_link
        self.aside = Aside()
        self._descriptor = _open_root(path)
        facts = os.fstat(self._descriptor)
        self.root = Root(path, facts.st_dev, facts.st_ino)

    def close(self) -> None:
        """Release the root."""
        os.close(self._descriptor)

    def folders(self) -> Iterator[ListedFolder]:
        """Yield every folder with its regular files, parents first.

        Raises:
            DocumentsUnreadableError: the root cannot be listed.
        """
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                with open_below(self._descriptor, path) as descriptor, os.scandir(descriptor) as found:
                    listed, deeper = self._list(path, descriptor, found)
            except OSError as error:
                if not path:
                    raise DocumentsUnreadableError(f"cannot list {self.root.path}: {error.strerror}") from error
                self._failed(path, error)
                continue
            pending.extend(reversed(deeper))
            yield listed

    def _list(
        self, path: bytes, descriptor: int, found: Iterator[os.DirEntry[str]]
    ) -> tuple[ListedFolder, list[bytes]]:
        prefix = path + b"/" if path else b""
        files: list[ListedFile] = []
        deeper: list[bytes] = []
        is_ours = self._rule(path)
        for item in found:
            if not is_ours(item.name):
                if path or item.name != CHECKLIST:
                    self.aside.foreign.append(prefix + os.fsencode(item.name))
                continue
            name = os.fsencode(item.name)
            try:
                status = item.stat(follow_symlinks=False)
            except OSError as error:
                self._failed(prefix + name, error)
                continue
            if stat.S_ISREG(status.st_mode) and not path and self._kind is FilesKind.ODOO_FILESTORE:
                self.aside.foreign.append(name)  # documents lie in folders only
            elif stat.S_ISREG(status.st_mode):
                if prefix + name == RESTORE_MARKER:
                    self.aside.left_out.append((name, "mark of a restore that did not finish"))
                    continue
                files.append(ListedFile(name, status.st_size, look_of(status)))
            else:
                self._other(prefix + name, name, status.st_mode, descriptor, deeper)
        deeper.sort()
        return ListedFolder(path, files, flat=not deeper), deeper

    def _rule(self, path: bytes) -> Callable[[str], bool]:
        """Return which names in a folder are ours."""
        if self._kind is FilesKind.DIRECTORY:
            return lambda _: True
        if not path:
            return is_document_folder
        folder = path.decode("ascii")
        return lambda name: is_document_file(folder, name)

    def _other(self, path: bytes, name: bytes, mode: int, descriptor: int, deeper: list[bytes]) -> None:
        plain = self._kind is FilesKind.DIRECTORY
        if stat.S_ISDIR(mode) and (plain or b"/" not in path):
            self._on_folder(FoundFolder(path, mode & 0o777))
            deeper.append(path)
        elif stat.S_ISLNK(mode) and plain:
            try:
                self._on_link(FoundLink(path, os.readlink(name, dir_fd=descriptor)))
            except OSError as error:
                self._failed(path, error)
        else:
            self.aside.left_out.append((path, _KINDS.get(stat.S_IFMT(mode), "folder")))

    def _failed(self, path: bytes, error: OSError) -> None:
        if error.errno in GONE:
            self.aside.vanished.append(path)
        else:
            self.aside.unreadable.append((path, error.strerror or str(error)))


def _open_root(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DocumentsUnreadableError(f"cannot open {path}: {error.strerror}") from error
