"""Puts files into a .zip or a folder, so that the same files give the same bytes and nothing appears half.

Everything is written under a name that begins with a dot, beside the target, made durable, and only then given its
name; a target that exists is never replaced. What fails is removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

from drservice.errors import BundleExistsError, EvidenceExportError

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first instant a .zip can tell."""
_FILE_MODE = 0o100644
_UNIX = 3
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class BundleForm(Enum):
    """What a bundle is written as."""

    ZIP = "zip"
    FOLDER = "folder"


class Sink(Protocol):
    """Takes files one after the other."""

    def write(self, name: str, blocks: Iterable[bytes]) -> tuple[str, int]:
        """Write one file, block by block; return its SHA-256 (hex) and size."""
        ...

    def publish(self) -> int:
        """Make everything durable and visible at the target; return the bytes stored."""
        ...


@contextmanager
def open_sink(target: Path, form: BundleForm) -> Iterator[Sink]:
    """Open a place for the files of one bundle; unless it is published, nothing of it is left at the end.

    Raises:
        BundleExistsError: there is something at ``target``.
        EvidenceExportError: it cannot be written.
    """
    if os.path.lexists(target):
        raise BundleExistsError(f"{target} exists")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        sink = _ZipSink(temporary, target) if form is BundleForm.ZIP else _FolderSink(temporary, target)
        try:
            yield sink
        finally:
            sink.close()
    except OSError as error:
        raise EvidenceExportError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        _remove(temporary)


class _ZipSink:
    """One .zip, stored and not compressed."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        self._file = temporary.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def write(self, name: str, blocks: Iterable[bytes]) -> tuple[str, int]:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.create_system = _UNIX
        info.external_attr = _FILE_MODE << 16
        digest, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            for block in blocks:
                member.write(block)
                digest.update(block)
                size += len(block)
        return digest.hexdigest(), size

    def publish(self) -> int:
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        _name_once(self._temporary, self._target)
        _sync(self._target.parent)
        return size

    def close(self) -> None:
        if self._file.closed:
            return
        with suppress(OSError, ValueError):  # what is not published is thrown away; its end need not be written
            self._zip.close()
        with suppress(OSError):
            self._file.close()


class _FolderSink:
    """A folder."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        self._stored_bytes = 0
        temporary.mkdir()

    def write(self, name: str, blocks: Iterable[bytes]) -> tuple[str, int]:
        path = self._temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with path.open("xb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
            file.flush()
            os.fsync(file.fileno())
        self._stored_bytes += size
        return digest.hexdigest(), size

    def publish(self) -> int:
        for folder, _, _ in os.walk(self._temporary, topdown=False):
            _sync(Path(folder))
        if os.path.lexists(self._target):
            raise BundleExistsError(f"{self._target} appeared meanwhile")
        self._temporary.rename(self._target)  # fails if a folder with content appeared since
        _sync(self._target.parent)
        return self._stored_bytes

    def close(self) -> None:
        """Nothing is open between files."""


def _name_once(temporary: Path, target: Path) -> None:
    """Give a file its name, which fails if the name is taken (link(2))."""
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise BundleExistsError(f"{target} appeared meanwhile") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise BundleExistsError(f"{target} appeared meanwhile") from error
        temporary.rename(target)  # no hard links here (FAT): the look before is the best there is


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary)
    else:
        temporary.unlink(missing_ok=True)
