"""Asking the socket of a data directory's server: it may run where neither its processes nor its memory can be seen.

A server in a container beside this one has process numbers and shared memory of its own; the folder of its socket is
often shared, as the data directory is. What :func:`~drservice.components.postgres.existing.require_stopped` sees is
asked there; this is one witness more, and any doubt says that a server is there.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PID_FILE = "postmaster.pid"
_MOST_BYTES = 8192
_PORT_LINE = 3
_FOLDER_LINE = 4
_CONNECT_SECONDS = 2.0


def listener_of(directory: Path) -> str | None:
    """Return why somebody is to be taken for listening for this data directory, ``None`` if nobody does.

    ``postmaster.pid`` names socket folder and port (``AddToDataDirLockFile`` in miscinit.c). Another cluster may have
    got them since: then the socket's own lock file names that one's directory.
    """
    lines = _lines(directory)
    if len(lines) <= _FOLDER_LINE:
        return None
    port, folder = lines[_PORT_LINE].strip(), lines[_FOLDER_LINE].strip()
    if not port.isdecimal() or not folder.startswith("/"):
        return None
    path = Path(folder, f".s.PGSQL.{port}")
    if not _answers(path):
        return None
    try:
        owner = Path(f"{path}.lock").read_text(encoding="utf-8", errors="replace").splitlines()[1]
        if owner.startswith("/") and not Path(owner).samefile(directory):
            return None
    except (OSError, IndexError):
        pass  # nothing says that it is another's
    return f"somebody listens on {path}, which {directory / _PID_FILE} names"


def _lines(directory: Path) -> list[str]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(directory / _PID_FILE, flags), "rb") as stream:
            return stream.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []  # no server left it, or the other witnesses have refused it already


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return path.exists()  # too busy, or closed to this user: somebody is there
        return True
