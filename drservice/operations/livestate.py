"""What a process that lives long says of itself for those who only look: a small file, and a lock that it lives.

The file is written beside and renamed: a reader sees one whole state or the one before. Whoever was killed leaves his
last word behind, so the lock is asked (:func:`is_held`) before the file is believed. Deleting the file harms nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TypeVar

from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import BusyError, FormatError
from drservice.model.wal import Lsn
from drservice.processes import create_private, make_folder, open_private

_PATIENCE_SECONDS = 1.0
"""Somebody who only looks holds the lock for a moment."""
_POLL_SECONDS = 0.05
State = TypeVar("State")


def is_held(path: Path) -> bool:
    """Tell whether a living process holds the lock of this name.

    Raises:
        OSError: the lock cannot be looked at.
    """
    if not path.exists():
        return False
    file = open_private(path)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@contextmanager
def held_alone(path: Path, *, clock: Clock, taken: BusyError) -> Iterator[None]:
    """Hold the lock of this name while the block runs; a process that is killed frees it.

    Raises:
        BusyError: ``taken``: another one holds it.
    """
    make_folder(path.parent)
    file = open_private(path)
    try:
        deadline = clock.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if clock.monotonic() >= deadline:
                    raise taken from error
                clock.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(file)


def write_live_state(path: Path, document: Mapping[str, object]) -> None:
    """Replace a state; times, positions and enums are written as JSON has them.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    make_folder(path.parent)
    temporary = path.with_suffix(".new")  # one writer lives at a time
    try:
        with os.fdopen(create_private(temporary, 0o644), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(document))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_live_state(path: Path, parse: Callable[[Fields], State], *, what: str) -> State | None:
    """Return what was said last; ``None`` if nobody ever said anything here.

    Raises:
        FormatError: the file is not one of ``what``.
        OSError: it cannot be read.
    """
    try:
        return parse(Fields(json.loads(path.read_bytes())))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} describes no {what}: {error!r}", hint="Remove the file; it is made anew.") from error


def plain(value: object) -> object:
    """Return a field as JSON has it."""
    match value:
        case Lsn():
            return str(value)
        case datetime():
            return to_iso(value)
        case Enum():
            return value.value
        case _:
            return value


class Fields:
    """The fields of a state that was read: each of the type that is asked for, or the file is not believed."""

    def __init__(self, found: Mapping[str, object]) -> None:
        self._found = found

    def text(self, name: str) -> str | None:
        """Return a text that may be absent (null)."""
        value = self._found[name]
        if value is not None and not isinstance(value, str):
            raise TypeError(name)
        return value

    def given(self, name: str) -> str:
        """Return a text that has to be there."""
        value = self.text(name)
        if value is None:
            raise TypeError(name)
        return value

    def number(self, name: str) -> int | None:
        """Return a whole number that may be absent (null)."""
        value = self._found[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(name)
        return value

    def count(self, name: str) -> int:
        """Return a whole number that has to be there."""
        value = self.number(name)
        if value is None:
            raise TypeError(name)
        return value

    def truth(self, name: str) -> bool:
        """Return a yes or no."""
        value = self._found[name]
        if not isinstance(value, bool):
            raise TypeError(name)
        return value

    def instant(self, name: str) -> datetime | None:
        """Return a time that may be absent (null)."""
        value = self.text(name)
        return None if value is None else from_iso(value)

    def lsn(self, name: str) -> Lsn | None:
        """Return a position that may be absent (null)."""
        value = self.text(name)
        return None if value is None else Lsn.parse(value)
