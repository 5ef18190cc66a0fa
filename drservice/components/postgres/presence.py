"""Telling whether a server runs on a data directory, when a mistake would cost the cluster: any doubt says yes.

Four witnesses, each enough by itself: a process that works in the directory (a postmaster and all of its children do,
also in a container that sees other process numbers, and also children that outlived a killed postmaster); the process
that ``postmaster.pid`` names; its shared memory with somebody attached; its socket with somebody listening. A file
alone is no witness: after a crash it stays.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PID_FILE = "postmaster.pid"
_MOST_BYTES = 8192
_PROGRAMS = ("postgres", "postmaster")
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """What ``postmaster.pid`` says (``CreateLockFile`` in miscinit.c); what is not written yet is empty."""

    pid: int
    port: str
    socket_folder: str
    shared_memory: tuple[int, int] | None
    """Key and id."""


def server_on(directory: Path, *, proc: Path = Path("/proc")) -> str | None:
    """Return why a server is to be taken for running on a data directory, ``None`` if none is.

    Raises:
        OSError: the directory itself cannot be looked at.
    """
    facts = directory.stat()
    works_there = _process_in(facts, proc)
    if works_there is not None:
        return works_there
    try:
        lock = _read_lock_file(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{directory / _PID_FILE} is there and cannot be understood ({error})"
    return _named_process(lock, facts, proc) or _shared_memory(lock, proc) or _listener(lock, directory)


def _process_in(facts: os.stat_result, proc: Path) -> str | None:
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            works_in = (entry / "cwd").stat()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        except PermissionError:
            # Another user's: a server's user owns its data directory, or it does not start.
            if _owner(entry) == facts.st_uid and _program(entry) in _PROGRAMS:
                return f"process {entry.name} ({_program(entry)}) of the directory's owner cannot be looked at"
            continue
        except OSError:
            continue  # its directory is gone
        if (works_in.st_dev, works_in.st_ino) == (facts.st_dev, facts.st_ino) and _program(entry) in _PROGRAMS:
            return f"process {entry.name} ({_program(entry)}) works in it"
    return None


def _owner(entry: Path) -> int | None:
    try:
        return entry.stat().st_uid
    except OSError:
        return None


def _program(entry: Path) -> str:
    try:
        return (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_lock_file(directory: Path) -> LockFile:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_PID_FILE, flags, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        lines = stream.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()
    if not lines:
        raise ValueError("it is empty: a server may be starting")
    lines += [""] * 8
    words = lines[6].split()
    return LockFile(
        pid=abs(int(lines[0])),
        port=lines[3].strip(),
        socket_folder=lines[4].strip(),
        shared_memory=(int(words[0]), int(words[1])) if len(words) == 2 else None,
    )


def _named_process(lock: LockFile, facts: os.stat_result, proc: Path) -> str | None:
    """Tell whether the named process may be the server: numbers are given again, above all after a restart."""
    entry = proc / str(lock.pid)
    program = _program(entry)
    if program not in _PROGRAMS:
        return None
    try:
        works_in = (entry / "cwd").stat()
    except FileNotFoundError:
        return None
    except OSError:
        return f"{_PID_FILE} names process {lock.pid}, a {program} that cannot be looked at"
    if (works_in.st_dev, works_in.st_ino) != (facts.st_dev, facts.st_ino):
        return None  # another cluster's
    return f"{_PID_FILE} names process {lock.pid}, a {program} that works in it"


def _shared_memory(lock: LockFile, proc: Path) -> str | None:
    if lock.shared_memory is None:
        return None
    for key, identifier, attached in _segments(proc):
        if (key, identifier) == lock.shared_memory and attached > 0:
            return f"{attached} process(es) use the shared memory that {_PID_FILE} names"
    return None


def _segments(proc: Path) -> Iterator[tuple[int, int, int]]:
    """Yield key, id and number of attached processes of all System V shared memory (proc(5))."""
    try:
        lines = (proc / "sysvipc" / "shm").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    names = lines[0].split()
    columns = [names.index(name) for name in ("key", "shmid", "nattch")]
    for line in lines[1:]:
        values = line.split()
        key, identifier, attached = (int(values[column]) for column in columns)
        yield key & 0xFFFFFFFF, identifier, attached


def _listener(lock: LockFile, directory: Path) -> str | None:
    """Tell whether somebody listens on the socket that the file names, unless its lock names another directory."""
    if not lock.socket_folder.startswith("/") or not lock.port.isdigit():
        return None
    path = Path(lock.socket_folder, f".s.PGSQL.{lock.port}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            if error.errno is None:
                return f"{path} does not answer in {_CONNECT_SECONDS:.0f} s"  # a timeout: somebody is there
            return None if not path.exists() else f"{path} cannot be asked ({error.strerror})"
    try:
        owner = Path(f"{path}.lock").read_text(encoding="utf-8", errors="replace").splitlines()[1]
        is_other = owner.startswith("/") and not Path(owner).samefile(directory)
    except (OSError, IndexError):
        is_other = False
    return None if is_other else f"somebody listens on {path}, which {_PID_FILE} names"
