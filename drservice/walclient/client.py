"""The client's side: asks the helper about one WAL file, and believes only what is certainly about that file.

Nothing here raises to the caller for a helper that is absent, hung, foreign or broken: the answer is then the reason to
go the slow way.
"""

from __future__ import annotations

import _socket  # ``socket`` takes 5 ms to import, as long as Python itself to start
import posix  # what ``os`` is made of: ``os`` itself is a fifth of the start, and nothing else here needs it
import sys
from time import monotonic

from drservice.walclient import protocol

_CONNECT_SECONDS = 1.0
_SILENCE_SECONDS = 5.0
"""A helper that works says so each second; one that is silent for so long is hung."""
_MOST_SECONDS = 60.0
"""Behind a helper that says it works and gets nowhere nothing waits longer than this."""


def ask(*, socket: str, config: str, service: str, path: str) -> str:
    """Ask whether a WAL file is durable: ``""`` if it is, else why that is not known.

    Args:
        socket: the helper's, below ``run`` in ``state_dir``.
        config: the configuration file that the slow way would read.
        service: ``S`` or ``S/COMPONENT``.
        path: of the WAL file, as PostgreSQL passes it.
    """
    try:
        question = _question(config, service, path)
        connection = connect(socket)
        try:
            return _answer(connection, question)
        finally:
            connection.close()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _question(config: str, service: str, path: str) -> dict[str, str]:
    file = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW)
    try:
        facts = posix.fstat(file)
        head = posix.read(file, protocol.HEAD_BYTES)
    finally:
        posix.close(file)
    return {
        "version": protocol.VERSION,
        "config": protocol.configuration(posix.stat(config)),
        "service": service,
        "name": path.rpartition("/")[2],
        "identity": protocol.identity(facts),
        "head": head.hex(),
    }


def connect(path: str) -> _socket.socket:
    """Connect to a helper that may be believed, however long the path is.

    Raises:
        OSError: there is none, or it is somebody else's.
    """
    folder_name, _, name = path.rpartition("/")
    folder = posix.open(folder_name, posix.O_PATH | posix.O_DIRECTORY)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(f"/proc/self/fd/{folder}/{name}")  # a socket's own path may have 107 bytes at most
        _require_believed(connection, posix.stat("..", dir_fd=folder).st_uid)
    except BaseException:
        connection.close()
        raise
    finally:
        posix.close(folder)
    return connection


def _require_believed(connection: _socket.socket, owner: int) -> None:
    """Return if the other side is root, this user, or the owner of ``state_dir``.

    Raises:
        PermissionError: it is somebody else: anybody could claim that a file is durable.
    """
    uid = _peer(connection)
    if uid not in {0, posix.geteuid(), owner}:
        raise PermissionError(f"the socket belongs to user {uid}, who is not to be believed")


def _peer(connection: _socket.socket) -> int:
    """Return the user who listens at the other end."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # pid, uid, gid
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _answer(connection: _socket.socket, question: dict[str, str]) -> str:
    connection.settimeout(_SILENCE_SECONDS)
    connection.send(protocol.encode(protocol.PUSH, question))
    deadline = monotonic() + _MOST_SECONDS
    word, answer = protocol.WAIT, {"version": protocol.VERSION}
    while word == protocol.WAIT and monotonic() < deadline:
        word, answer = protocol.receive(connection)
        if answer.get("version") != protocol.VERSION:
            return f"the helper speaks version {answer.get('version')}"
    if word == protocol.WAIT:
        return f"the helper worked for {_MOST_SECONDS:.0f} s without an end"
    if word != protocol.DURABLE:
        return answer.get("reason", "no reason given")
    differing = [name for name, value in question.items() if answer.get(name) != value]
    if differing:
        return f"the helper answered for another {differing[0]}"
    name = question["name"]
    if len(name) in {24, 32} and answer.get("system_id") != _system_id(question["head"]):
        return "the helper answered for another cluster"
    return ""


def _system_id(head: str) -> str:
    """Return the system identifier in a segment's first page (``access/xlog_internal.h``)."""
    return str(int.from_bytes(bytes.fromhex(head)[24:32], "little"))
