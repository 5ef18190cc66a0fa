"""Locks among the processes of one host: ``flock`` held by the process, never a file's mere existence.

A killed holder frees its lock at once; nothing has to be cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from drservice.clock import Clock
from drservice.errors import BusyError, StoreDeniedError
from drservice.processes import make_folder

_POLL_SECONDS = 0.02


@contextlib.contextmanager
def host_lock(path: Path, *, clock: Clock, patience_seconds: float) -> Iterator[None]:
    """Hold the lock of this name; others on this host, threads too, wait.

    The lock file is made when missing, readable by everybody who can enter its folder, because two users
    (root and ``postgres``) may take turns; its content means nothing and it is never removed.

    Raises:
        StoreDeniedError: the lock file cannot be opened.
        BusyError: another holder kept it longer than ``patience_seconds``.
    """
    try:
        make_folder(path.parent)  # made by root it belongs to whom the folder above belongs to, who locks there too
        file = _open(path)
    except OSError as error:
        raise StoreDeniedError(
            f"cannot open the lock file {path}: {error.strerror}",
            hint="Without it two writers of this host could collide; check the rights of its folder.",
        ) from error
    try:
        deadline = clock.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if clock.monotonic() >= deadline:
                    raise BusyError(f"another process held {path} for more than {patience_seconds:.0f} s") from error
                clock.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(file)  # frees the lock as well


def _open(path: Path) -> int:
    """Open the lock file; reading is enough for flock(2), so a file of another user will do."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    file = os.open(path, flags | os.O_CREAT, 0o644)
    if os.fstat(file).st_uid == os.geteuid():
        os.fchmod(file, 0o644)  # whatever the umask: the other user must be able to open it
    return file
