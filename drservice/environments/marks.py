"""The mark of an environment whose database was neutralized: it is never promoted, and says so in lists.

It lies beside ``environment.json``, out of reach from inside, and goes with the environment. What stays on the host
(``restore --into``) has a mark of its own in the data directory.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from drservice.clock import to_iso
from drservice.environments import keeper
from drservice.errors import EnvironmentFailedError, NeutralizedCopyError, RecoveryError
from drservice.processes import create_private

MARK = "neutralized.json"
DIRECTORY_MARK = "DRSERVICE_NEUTRALIZED"
_TEXT = "This is a neutralized copy: its mail, keys and scheduled actions are gone. Never take it into production.\n"


def mark_environment(root: Path, *, database: str, at: datetime) -> None:
    """Mark an environment durably, before anything is changed in its database.

    Raises:
        EnvironmentFailedError: it cannot be marked.
    """
    try:
        keeper.write_durably(root / MARK, {"database": database, "at": to_iso(at)})
    except OSError as error:
        raise EnvironmentFailedError(f"{root / MARK} cannot be written: {error.strerror}") from error


def is_marked(root: Path) -> bool:
    """Tell whether an environment was neutralized, also in part."""
    return (root / MARK).exists()


def refuse_marked(root: Path) -> None:
    """Refuse an environment that was neutralized.

    Raises:
        NeutralizedCopyError: it was.
    """
    if is_marked(root):
        raise NeutralizedCopyError(f"{root.name} is a neutralized copy")


def mark_directory(directory: Path) -> None:
    """Leave a mark in a data directory that outlives its environment, as the owner's.

    Raises:
        RecoveryError: it cannot be written.
    """
    path = directory / DIRECTORY_MARK
    try:
        with open(create_private(path), "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(_TEXT)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecoveryError(f"{path} cannot be written: {error.strerror}") from error


def is_marked_directory(directory: Path) -> bool:
    """Tell whether a data directory is a neutralized copy's."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (directory / DIRECTORY_MARK).lstat()
        return True
    return False
