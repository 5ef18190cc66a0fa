"""The last checkpoint signed on this host, kept before anybody sees it: the store could be set back."""

from __future__ import annotations

import os
from pathlib import Path

from drservice.errors import LedgerError
from drservice.processes import create_private


class RememberedNote:
    """One note in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, note: bytes) -> None:
        """Replace the note durably.

        Raises:
            LedgerError: this host's disk does not take it.
        """
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            with os.fdopen(create_private(temporary), "wb") as stream:
                stream.write(note)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise LedgerError(f"cannot keep the checkpoint in {self._path}: {error.strerror}") from error

    def read(self) -> bytes | None:
        """Return the note, ``None`` if none was ever kept.

        Raises:
            LedgerError: it cannot be read.
        """
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"cannot read {self._path}: {error.strerror}") from error
