"""Records that could not be written: kept aside on this host, signed and durable, until the ledger takes them.

A file per record below ``state_dir/evidence/pending``, named by a number that keeps their order, the size the ledger
was known to have, and the record's hash. A file is removed only after its record is known to be in the ledger.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drservice.errors import LedgerError
from drservice.processes import create_private, make_folder

_NAME = re.compile(r"([0-9]{12})-([0-9]{12})-([0-9a-f]{64})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """One record kept aside."""

    path: Path
    raw: bytes
    known_size: int
    """The ledger had at least this many entries when it was kept: it stands at none of them."""


class PendingFolder:
    """The records that wait on this host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, raw: bytes, *, known_size: int) -> Path:
        """Write a signed record durably; it is complete under its name or not there.

        Raises:
            LedgerError: this host's disk does not take it either.
        """
        try:
            make_folder(self._folder, mode=0o700)
            number = max((int(match[1]) for match in self._matches()), default=-1) + 1
            digest = hashlib.sha256(raw).hexdigest()
            path = self._folder / f"{number:012d}-{known_size:012d}-{digest}.json"
            temporary = self._folder / f".{digest}.{os.getpid()}"
            with os.fdopen(create_private(temporary), "wb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            self._sync()
        except OSError as error:
            raise LedgerError(
                f"the record cannot even be kept aside in {self._folder}: {error.strerror}",
                hint="Free space below state_dir; the record of this run exists only in what was printed.",
            ) from error
        return path

    def all(self) -> Sequence[Pending]:
        """Return what waits, in the order it was kept.

        Raises:
            LedgerError: a file is not what was kept.
        """
        found = []
        for match in sorted(self._matches(), key=lambda match: match[0]):
            path = self._folder / match[0]
            raw = self._read(path)
            if hashlib.sha256(raw).hexdigest() != match[3]:
                raise LedgerError(
                    f"the record kept aside in {path} is damaged: its hash is not that of its name",
                    hint="Move it out of the folder and keep it for the auditor; the others are appended then.",
                )
            found.append(Pending(path=path, raw=raw, known_size=int(match[2])))
        return found

    def count(self) -> int:
        """Return how many records wait."""
        return len(self._matches())

    def remove(self, pending: Pending) -> None:
        """Forget a record that is in the ledger now.

        Raises:
            LedgerError: the file cannot be removed.
        """
        try:
            pending.path.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise LedgerError(f"cannot remove {pending.path}, which is in the ledger: {error.strerror}") from error

    def _matches(self) -> list[re.Match[str]]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError(f"cannot read {self._folder}: {error.strerror}") from error
        return [match for name in names if (match := _NAME.fullmatch(name))]

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise LedgerError(f"cannot read the record kept aside in {path}: {error.strerror}") from error

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
