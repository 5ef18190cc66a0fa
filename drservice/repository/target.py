"""The file system a restore writes to: its room, its errors in words, and making everything durable with one call."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from drservice.errors import RecoveryError


def sync_folder(root: Path) -> None:
    """Make everything below ``root`` durable with one call (``syncfs(2)``).

    Raises:
        RecoveryError: the disk reports an error.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(os.fsencode(root), error) from error
    try:
        sync_opened(descriptor, root)
    finally:
        os.close(descriptor)


def sync_opened(descriptor: int, root: Path) -> None:
    """Make everything durable that is below an open folder; ``root`` is how messages call it.

    Raises:
        RecoveryError: the disk reports an error.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        raise RecoveryError(f"writing {root} to disk failed: {os.strerror(ctypes.get_errno())}")


def write_error(path: bytes, error: OSError) -> RecoveryError:
    """Translate a failed write into the target folder."""
    name = path.decode("utf-8", "backslashreplace")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RecoveryError(f"no space left while writing {name}", hint="Free space on the target and run again.")
    return RecoveryError(f"cannot write {name}: {error.strerror}")


def free_bytes(root: Path) -> int:
    """Return what this user may still write to the file system of a folder."""
    facts = os.statvfs(root)
    return facts.f_bavail * facts.f_frsize


def require_space(root: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        RecoveryError: with the bytes that are free and needed.
    """
    free = free_bytes(root)
    if free < needed_bytes:
        raise RecoveryError(
            f"{root} has {free:,} bytes free, and {needed_bytes:,} are needed",
            hint="Give --into a place with more space; nothing was written.",
        )
