"""What was fetched ahead: put in by ``drservice wal prefetch`` and believed only while that lives.

A spool belongs to one cluster, one user and one data directory (the working directory of restore_command)::

    <spool>/<system id>-<user>-<device>-<inode>/
        about                          locked (flock) by the process that fetches; version, configuration, its pid
        asked                          the last name PostgreSQL asked for
        <name>.<SHA-256>               a whole segment that was checked against its signed hash
        <name>.part                    on its way

Nothing in it proves absence: what is not there is asked of the archive. A spool whose process is gone, was started with
another configuration, or belongs to another user, is not there. Each file is hashed once more when it is taken.
"""

from __future__ import annotations

import fcntl
import os
from time import monotonic, sleep

from drservice.walclient import protocol

ABOUT, ASKED, PART = "about", "asked", ".part"
_PATIENCE_SECONDS = 5.0
_PIECE_BYTES = 1 << 20


def folder_of(spool: str, system_id: str, working: os.stat_result) -> str:
    """Return the folder of one cluster's spool for one data directory."""
    return f"{spool}/{system_id}-{os.geteuid()}-{working.st_dev}-{working.st_ino}"


def about(config: os.stat_result) -> bytes:
    """Return how ``about`` begins."""
    return f"{protocol.VERSION}\n{protocol.configuration(config)}\n".encode()


def take(
    *,
    spool: str,
    system_id: str,
    config: str,
    name: str,
    destination: str,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> str:
    """Move a segment out of the spool to ``destination``: ``""`` if that is done, else why not.

    The destination is written whole or not at all.

    Args:
        spool: of the component.
        system_id: of the cluster.
        config: the configuration file that the slow way would read.
        name: of the segment.
        destination: where PostgreSQL wants it.
        patience_seconds: for one that is on its way.
    """
    try:
        folder = folder_of(spool, system_id, os.stat("."))  # noqa: PTH116 - pathlib takes 10 ms to import
        _require_alive(folder, config)
        entry = _wait_for(folder, name, patience_seconds)
        if not entry:
            return f"{name} was not fetched ahead"
        _place(f"{folder}/{entry}", entry.rpartition(".")[2], destination)
        note_asked(folder, name)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def note_asked(folder: str, name: str) -> None:
    """Note how far PostgreSQL has come, for the process that fetches."""
    temporary = f"{folder}/{ASKED}.{os.getpid()}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, name.encode())
    finally:
        os.close(file)
    os.rename(temporary, f"{folder}/{ASKED}")  # noqa: PTH104 - as above


def is_locked(file: int) -> bool:
    """Tell whether the process that made an ``about`` lives."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _require_alive(folder: str, config: str) -> None:
    """Return if somebody fetches into this folder, for us and with our settings.

    Raises:
        OSError, ValueError: it is not so.
    """
    file = os.open(f"{folder}/{ABOUT}", os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(file).st_uid != os.geteuid():
            raise ValueError("the spool belongs to another user")
        said = os.read(file, 4096)
        if not is_locked(file):
            raise ValueError("nobody fetches ahead")
    finally:
        os.close(file)
    if not said.startswith(about(os.stat(config))):  # noqa: PTH116 - as above
        raise ValueError("what was fetched ahead is of another configuration")


def _wait_for(folder: str, name: str, patience_seconds: float) -> str:
    """Return the entry of a name; one that is on its way is waited for."""
    deadline = monotonic() + patience_seconds
    while True:
        entries = os.listdir(folder)  # noqa: PTH208 - as above
        for entry in entries:
            if entry.startswith(f"{name}.") and entry != f"{name}{PART}":
                return entry
        if f"{name}{PART}" not in entries or monotonic() >= deadline:
            return ""
        sleep(0.005)


def _place(source: str, digest: str, destination: str) -> None:
    """Check a file's hash and give it its name.

    Raises:
        ValueError: it was damaged.
        OSError: it cannot be read or written.
    """
    import hashlib  # noqa: PLC0415 - only where there is something to hash

    temporary = f"{destination}.{os.getpid()}"
    same = _device(source) == _device(destination.rpartition("/")[0] or ".")
    found = hashlib.sha256()
    file = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    copy = -1 if same else os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while piece := os.read(file, _PIECE_BYTES):
            found.update(piece)
            while copy >= 0 and piece:
                piece = piece[os.write(copy, piece) :]
        _require_hash(found.hexdigest(), digest)
        if not same:
            os.fsync(copy)
            os.rename(temporary, destination)  # noqa: PTH104 - as above
        else:
            os.rename(source, destination)  # noqa: PTH104 - as above
    except BaseException:
        if not same:
            os.unlink(temporary)  # noqa: PTH108 - as above
        raise
    finally:
        os.close(file)
        if copy >= 0:
            os.close(copy)
    if not same:
        os.unlink(source)  # noqa: PTH108 - as above


def _device(path: str) -> int:
    return os.stat(path).st_dev  # noqa: PTH116 - as above


def _require_hash(found: str, expected: str) -> None:
    if found != expected:
        raise ValueError("what was fetched ahead is damaged")
