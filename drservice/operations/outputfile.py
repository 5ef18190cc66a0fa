"""A file that appears under its name whole or not at all, and never in the place of another."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from drservice.errors import OutputFileError, OutputTakenError

_TAIL_BYTES = 4096
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class OutputFile:
    """Written under a temporary name beside its own, readable by its owner only; use it as a context manager.

    What is not published when the block ends is removed. A process that is killed leaves ``.NAME.XXXX.part``.
    """

    def __init__(self, path: Path) -> None:
        """Begin to write.

        Raises:
            OutputTakenError: the name is taken.
            OutputFileError: nothing can be written there.
        """
        self.path = path
        require_free(path)
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._stream = os.fdopen(os.open(self._temporary, flags, 0o600), "w+b", buffering=0)
        except OSError as error:
            raise OutputFileError(f"cannot write beside {path}: {error.strerror}") from error
        self._sha256 = hashlib.sha256()
        self._published = False
        self.written_bytes = 0
        self.tail = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        if not self._published:
            with suppress(FileNotFoundError):
                self._temporary.unlink()

    @property
    def sha256(self) -> str:
        """Of what was written so far (hex)."""
        return self._sha256.hexdigest()

    def write(self, piece: bytes) -> None:
        """Append.

        Raises:
            OutputFileError: no space left, or the disk reports an error.
        """
        view = memoryview(piece)
        try:
            while view:
                view = view[self._stream.write(view) :]
        except OSError as error:
            raise self._failed(error) from error
        self._sha256.update(piece)
        self.written_bytes += len(piece)
        self.tail = (self.tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def reread(self) -> BinaryIO:
        """Return the file at its beginning, for a program that reads it."""
        self._stream.seek(0)
        return self._stream

    def publish(self) -> None:
        """Make it durable and give it its name.

        Raises:
            OutputTakenError: the name was taken meanwhile.
            OutputFileError: the disk reports an error.
        """
        try:
            os.fsync(self._stream.fileno())
            self._take_name()
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileExistsError as error:
            raise _taken(self.path) from error
        except OSError as error:
            raise self._failed(error) from error

    def _take_name(self) -> None:
        """Link it under its name, which fails if there is one; where there are no links, look and rename."""
        try:
            os.link(self._temporary, self.path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            require_free(self.path)
            self._temporary.rename(self.path)
        else:
            self._temporary.unlink()
        self._published = True

    def _failed(self, error: OSError) -> OutputFileError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return OutputFileError(
                f"no space left for {self.path} after {self.written_bytes:,} bytes",
                hint="Give --output a place with more space; nothing is under its name.",
            )
        return OutputFileError(f"cannot write {self.path}: {error.strerror}")


def require_free(path: Path) -> None:
    """Refuse a name that is taken, be it by a link that leads nowhere, or whose folder is not there.

    Raises:
        OutputTakenError: nothing was written.
    """
    if os.path.lexists(path):
        raise _taken(path)
    if not path.parent.is_dir():
        raise OutputTakenError(f"there is no folder {path.parent}", hint="Make it, or give --output another place.")


def _taken(path: Path) -> OutputTakenError:
    return OutputTakenError(f"{path} exists")
