"""The documents of a zip on disk, each compared with its name, and what the rows of its dump refer to beside them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drservice.components.odoo.zipreading import Member, OdooZipFile, Part
from drservice.errors import EnvironmentFailedError, ImportRefusedError

_FOLDER_MODE = 0o755
_FILE_MODE = 0o644
_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """The documents of a zip in a folder of their own."""

    root: Path
    count: int
    damaged: frozenset[str]
    """Names of those whose content has another SHA-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What is not as the rows or the names say; nothing of it: the zip is whole."""

    expected: int
    """Documents that rows refer to."""
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    """There, with another content than their name says; whether a row refers to them or not."""
    other_size: tuple[str, ...]
    """There and what their name says, and the row tells another size."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.damaged or self.other_size)

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong in sentences."""
        told = (
            (self.missing, "are not in the zip, and rows refer to them"),
            (self.damaged, "have another content than their name says"),
            (self.other_size, "have another size than their row says"),
        )
        return tuple(f"{len(names)} documents {what} ({', '.join(names[:_SHOWN])})" for names, what in told if names)


_SHOWN = 3


def unpack_documents(archive: OdooZipFile, root: Path, *, heard: Callable[[int], None]) -> Unpacked:
    """Write every document of a zip below ``root``, which is made; nothing is written under any other name.

    Raises:
        ImportRefusedError: a document is there twice, or damaged as a member of the zip.
        EnvironmentFailedError: it cannot be written; the message tells when there is no space left.
    """
    damaged: set[str] = set()
    count = 0
    try:
        root.mkdir()
        root.chmod(_FOLDER_MODE)
        descriptor = os.open(root, _ROOT_FLAGS)
        try:
            made: set[str] = set()
            for member in archive.members():
                if member.part is Part.DOCUMENT:
                    _make_folder(member.document.partition("/")[0], descriptor, made)
                    if not _write(archive, member, descriptor, heard):
                        damaged.add(member.document)
                    count += 1
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise EnvironmentFailedError(
                f"no space left below {root} after {count} documents",
                hint="state_dir needs room for all documents of the zip and for its database, for a while.",
            ) from error
        raise EnvironmentFailedError(f"cannot write below {root}: {error.strerror}") from error
    return Unpacked(root=root, count=count, damaged=frozenset(damaged))


def _make_folder(name: str, root: int, made: set[str]) -> None:
    if name not in made:
        os.mkdir(name, dir_fd=root)
        os.chmod(name, _FOLDER_MODE, dir_fd=root)
        made.add(name)


def _write(archive: OdooZipFile, member: Member, root: int, heard: Callable[[int], None]) -> bool:
    """Write one document; return whether its content is what its name says."""
    try:
        descriptor = os.open(member.document, _NEW_FLAGS, _FILE_MODE, dir_fd=root)
    except FileExistsError as error:
        raise ImportRefusedError(f"{archive.path.name} is not imported: it has {member.name} twice") from error
    found = hashlib.sha1(usedforsecurity=False)
    with os.fdopen(descriptor, "wb", buffering=0) as writing:
        os.fchmod(descriptor, _FILE_MODE)
        for piece in archive.read(member):
            view = memoryview(piece)
            while view:
                view = view[writing.write(view) :]
            found.update(piece)
            heard(len(piece))
    return found.hexdigest() == member.document[-40:]


def compare(unpacked: Unpacked, documents: Mapping[str, int]) -> Compared:
    """Compare what is there with what rows refer to: name in the filestore to size (-1: the row does not say)."""
    missing: list[str] = []
    other_size: list[str] = []
    descriptor = os.open(unpacked.root, _ROOT_FLAGS)
    try:
        for name in sorted(documents):
            try:
                size = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_size
            except FileNotFoundError:
                missing.append(name)
                continue
            if name not in unpacked.damaged and documents[name] not in {-1, size}:
                other_size.append(name)
    finally:
        os.close(descriptor)
    return Compared(
        expected=len(documents),
        missing=tuple(missing),
        damaged=tuple(sorted(unpacked.damaged)),
        other_size=tuple(other_size),
    )
