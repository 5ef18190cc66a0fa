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
from drservice.repository.descent import GONE, Root, open_below
from drservice.repository.folders import ListedFolder
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
        self.root_mode = facts.st_mode & 0o777

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
                    if path and self._kind is FilesKind.ODOO_FILESTORE:
                        listed, deeper = self._list_documents(path, found), list[bytes]()
                    else:
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
        """List a folder of a plain folder, or the root of a filestore, which holds folders only."""
        prefix = path + b"/" if path else b""
        looks: dict[bytes, bytes] = {}
        deeper: list[bytes] = []
        filestore = self._kind is FilesKind.ODOO_FILESTORE
        for item in found:
            if filestore and not is_document_folder(item.name):
                if item.name != CHECKLIST:
                    self.aside.foreign.append(os.fsencode(item.name))
                continue
            name = os.fsencode(item.name)
            try:
                status = item.stat(follow_symlinks=False)
            except OSError as error:
                self._failed(prefix + name, error)
                continue
            if not stat.S_ISREG(status.st_mode):
                self._other(prefix + name, name, status.st_mode, descriptor, deeper)
            elif filestore:
                self.aside.foreign.append(name)
            elif prefix + name == RESTORE_MARKER:
                self.aside.left_out.append((name, "mark of a restore that did not finish"))
            else:
                looks[name] = look_of(status)
        deeper.sort()
        return ListedFolder(path, looks, flat=not deeper), deeper

    def _list_documents(self, path: bytes, found: Iterator[os.DirEntry[str]]) -> ListedFolder:
        """List a folder of documents: most of what a backup does when nothing has changed."""
        folder = path.decode("ascii")
        looks: dict[bytes, bytes] = {}
        for item in found:
            if not is_document_file(folder, item.name):
                self.aside.foreign.append(path + b"/" + os.fsencode(item.name))
                continue
            name = item.name.encode("ascii")
            try:
                status = item.stat(follow_symlinks=False)
            except OSError as error:
                self._failed(path + b"/" + name, error)
                continue
            if stat.S_ISREG(status.st_mode):
                looks[name] = look_of(status)
            else:
                self.aside.left_out.append((path + b"/" + name, _kind_of(status.st_mode)))
        return ListedFolder(path, looks, flat=True)

    def _other(self, path: bytes, name: bytes, mode: int, descriptor: int, deeper: list[bytes]) -> None:
        if stat.S_ISDIR(mode):
            self._on_folder(FoundFolder(path, mode & 0o777))
            deeper.append(path)
        elif stat.S_ISLNK(mode) and self._kind is not FilesKind.ODOO_FILESTORE:
            try:
                self._on_link(FoundLink(path, os.readlink(name, dir_fd=descriptor)))
            except OSError as error:
                self._failed(path, error)
        else:
            self.aside.left_out.append((path, _kind_of(mode)))

    def _failed(self, path: bytes, error: OSError) -> None:
        if error.errno in GONE:
            self.aside.vanished.append(path)
        else:
            self.aside.unreadable.append((path, error.strerror or str(error)))


def _kind_of(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "folder")


def _open_root(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DocumentsUnreadableError(f"cannot open {path}: {error.strerror}") from error
