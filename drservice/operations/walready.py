"""The WAL files a cluster has ready for its archive, read without believing their names or that they stand still.

A file is *ready* while PostgreSQL keeps ``archive_status/NAME.ready`` beside it: it is complete then, and is neither
re-used nor removed. Everything here may be looked at while the server runs, is restored over, or is another one by now.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from drservice.errors import WalError
from drservice.model.wal import WalFileKind, WalFileName
from drservice.walclient import protocol

MOST_BYTES = 1 << 30
"""No segment is longer (``initdb --wal-segsize``)."""
_SETTLED_SECONDS = 0.02
"""A file system's times move in ticks of up to 10 ms: two changes in one tick look like none. Twice that, and no more:
every backup waits for the segment that it has just ended.
"""
_READY, _DONE = ".ready", ".done"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyFile:
    """A file that was read as a whole and did not change meanwhile. ``data`` is a view of the caller's buffer."""

    identity: str
    head: str
    data: memoryview
    last_write: datetime


class ReadyFolder:
    """The ``pg_wal`` of one cluster."""

    def __init__(self, data_directory: Path) -> None:
        self._data_directory = data_directory
        self._wal = data_directory / "pg_wal"

    def path(self, name: str) -> Path:
        """Return where a WAL file stands."""
        return self._wal / name

    def owner(self) -> int:
        """Return the user the cluster belongs to.

        Raises:
            OSError: there is no such directory.
        """
        return self._data_directory.stat().st_uid

    def names(self) -> list[str]:
        """Return what is ready, in the order PostgreSQL archives: histories first, then by name.

        Raises:
            WalError: the folder cannot be read.
        """
        return self._marked(_READY)

    def done(self) -> list[str]:
        """Return what PostgreSQL has finished and does not offer (any more), in the same order.

        It was archived, or was never to be: a standby marks so whatever it receives unless its ``archive_mode`` is
        ``always``, and nothing archives that when the standby becomes the primary (trap T21).

        Raises:
            WalError: the folder cannot be read.
        """
        return self._marked(_DONE)

    def _marked(self, mark: str) -> list[str]:
        try:
            found = os.listdir(self._wal / "archive_status")  # noqa: PTH208 - names are all that is wanted, of thousands
        except OSError as error:
            raise WalError(
                f"cannot list {self._wal / 'archive_status'}: {error.strerror}",
                hint="Run drservice on the database's host, as the owner of the data directory or as root.",
            ) from error
        marked: list[tuple[bool, str]] = []
        for entry in found:
            if entry.endswith(mark):
                try:
                    name = WalFileName.parse(entry.removesuffix(mark))
                except ValueError:
                    continue  # not PostgreSQL's
                marked.append((name.kind is not WalFileKind.HISTORY, name.name))
        return [name for _, name in sorted(marked)]

    def is_ready(self, name: str) -> bool:
        """Tell whether PostgreSQL waits for this file to be archived."""
        return (self._wal / "archive_status" / f"{name}{_READY}").exists()

    def read(self, name: str, buffer: bytearray) -> ReadyFile | None:
        """Read a file that is ready into ``buffer``, which grows as needed; ``None`` if it is not, or not any more.

        Raises:
            WalError: it cannot be read, is not the cluster's own, or changed meanwhile.
        """
        if not self.is_ready(name):
            return None
        read = self.read_any(name, buffer)
        # Archived in another way it may have been re-used before it was opened.
        return read if self.is_ready(name) else None

    def read_any(self, name: str, buffer: bytearray) -> ReadyFile:
        """Read a file into ``buffer`` whatever its mark is: PostgreSQL may re-use it meanwhile, so judge its pages.

        Raises:
            WalError: as :meth:`read`.
        """
        try:
            file = os.open(self.path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                facts = self._settled(file, name)
                size = _read_into(file, facts.st_size, buffer)
                changed = size != facts.st_size or protocol.identity(os.fstat(file)) != protocol.identity(facts)
            finally:
                os.close(file)
        except OSError as error:
            raise WalError(f"cannot read {self.path(name)}: {error.strerror}") from error
        if changed:
            raise WalError(f"{name} changed while it was read", hint="It is read again; PostgreSQL still has it.")
        return ReadyFile(
            identity=protocol.identity(facts),
            head=bytes(buffer[: min(size, protocol.HEAD_BYTES)]).hex(),
            data=memoryview(buffer)[:size],
            last_write=datetime.fromtimestamp(facts.st_mtime, tz=UTC),
        )

    def _settled(self, file: int, name: str) -> os.stat_result:
        """Return the facts of a file whose last change lies so far back that the next one would show."""
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != self.owner() or facts.st_size > MOST_BYTES:
            raise WalError(
                f"{name} is no WAL file of this cluster: {facts.st_size} bytes, mode {facts.st_mode:o}, user"
                f" {facts.st_uid}",
                hint="Look who put it into pg_wal.",
            )
        age = time.time() - max(facts.st_mtime, facts.st_ctime)
        if age < _SETTLED_SECONDS:
            time.sleep(min(_SETTLED_SECONDS, _SETTLED_SECONDS - max(age, 0.0)))
            facts = os.fstat(file)
        return facts


def _read_into(file: int, size: int, buffer: bytearray) -> int:
    """Read up to ``size`` bytes and return how many there were."""
    if len(buffer) < size:
        buffer.extend(bytes(size - len(buffer)))
    with memoryview(buffer) as view:
        position = 0
        while position < size:
            count = os.readv(file, [view[position:size]])
            if count == 0:
                break
            position += count
    return position
