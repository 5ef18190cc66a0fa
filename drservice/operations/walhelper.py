"""The helper of one PostgreSQL component: a socket at which ``wal push`` hears at once what is durable already.

One helper for each component of a host, by ``flock`` held by the process; a socket that a killed one left is taken
over. It answers about files in its own cluster's ``pg_wal`` only, and only to root, itself and the cluster's owner. It
knows nothing that is not in the store: whoever doubts an answer, or gets none, goes the slow way. The protocol is
described in :mod:`drservice.walclient`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.errors import BusyError, ConfigurationError, WalError
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.walahead import Ahead
from drservice.operations.walsocket import socket_path
from drservice.processes import make_folder, open_folder, open_private
from drservice.walclient import protocol

_SOCKET_MODE = 0o660
_QUESTION_SECONDS = 5.0
_MOST_CONNECTIONS = 32
_BACKLOG = 16
_LOOK_SECONDS = 0.5
_PEER = struct.Struct("=iII")


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperFacts:
    """What a helper is for; a client with other settings gets no answer from it."""

    config: str
    services: Collection[str]
    """How the component may be called: ``S/COMPONENT``, and ``S`` where it is the only one."""
    repository: str


@contextmanager
def only_helper(state_dir: Path, service: ServiceName, component: ComponentName) -> Iterator[None]:
    """Be the only helper of a component on this host while the block runs.

    Raises:
        BusyError: there is one.
    """
    path = socket_path(state_dir, service, component).with_suffix(".lock")
    make_folder(path.parent)
    file = open_private(path)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"a WAL helper of {service}/{component} is running already",
                hint="One is enough: a node has one for each of its services, systemd may have another.",
            ) from error
        yield
    finally:
        os.close(file)


@contextmanager
def listening(path: Path, *, group: int) -> Iterator[socket.socket]:
    """Listen at a socket that root, this user and a group may use; its name is gone at the end.

    Call it only while :func:`only_helper` holds: what stands under the name is then left by a helper that is dead.

    Args:
        path: of any length: it is reached through its folder.
        group: of the user whose archive_command connects.

    Raises:
        ConfigurationError: it cannot be made there.
    """
    folder = open_folder(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            _remove_left_over(path, folder)
            before = os.umask(0o777 & ~_SOCKET_MODE)
            try:
                listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.umask(before)
            made = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            if made.st_gid != group:
                os.chown(path.name, -1, group, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen at {path}: {error.strerror}",
                hint="The helper runs as root, as the owner of the data directory, or as a member of that user's group"
                " who may write to state_dir.",
            ) from error
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=folder)
    finally:
        listener.close()
        os.close(folder)


def _remove_left_over(path: Path, folder: int) -> None:
    """Remove the socket of a helper that was killed, and nothing else.

    Raises:
        ConfigurationError: something else stands there.
    """
    try:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(
            f"{path} is no socket: it is not used", hint="Look who made it, remove it, and start the helper again."
        )
    os.unlink(path.name, dir_fd=folder)


class HelperServer:
    """Answers questions at a socket, each connection in a thread of its own."""

    def __init__(
        self,
        listener: socket.socket,
        facts: HelperFacts,
        ahead: Ahead,
        *,
        believed: Collection[int],
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Nothing is answered before :meth:`serve`.

        Args:
            listener: from :func:`listening`.
            facts: what clients have to agree with.
            ahead: archives, and knows what is durable.
            believed: the users who are answered.
            look_seconds: between looks whether serving is to end.
        """
        self._listener = listener
        self._facts = facts
        self._ahead = ahead
        self._believed = believed
        self._look_seconds = look_seconds
        self._free = threading.Semaphore(_MOST_CONNECTIONS)
        self._threads: set[threading.Thread] = set()

    def serve(self, stop: threading.Event) -> None:
        """Answer until ``stop`` is set; those who wait for an answer then still get it from :meth:`drain`."""
        self._listener.settimeout(self._look_seconds)
        while not stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            if not self._free.acquire(blocking=False):
                connection.close()  # they go the slow way
                continue
            thread = threading.Thread(target=self._connected, args=(connection,), name="wal-client", daemon=True)
            self._threads = {known for known in self._threads if known.is_alive()} | {thread}
            thread.start()

    def drain(self, seconds: float) -> None:
        """Wait for the answers that are on their way."""
        for thread in self._threads:
            thread.join(seconds)

    def _connected(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_QUESTION_SECONDS)
                _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
                if uid not in self._believed:
                    telemetry.warning("a user who may not use the WAL helper tried to", uid=uid)
                    return
                word, question = protocol.receive(connection)
                connection.sendall(self._answer(word, question, connection))
        except (OSError, ValueError) as error:
            telemetry.info("a client of the WAL helper went away", problem=str(error))
        finally:
            self._free.release()

    def _answer(self, word: str, question: Mapping[str, str], connection: socket.socket) -> bytes:
        try:
            if word == protocol.STATE:
                return protocol.encode(protocol.STATE, self._state())
            return protocol.encode(protocol.DURABLE, self._durable(word, question, connection))
        except WalError as error:
            return protocol.encode(
                protocol.OTHER, {"version": protocol.VERSION, "reason": error.message.replace("\n", " ")[:2000]}
            )

    def _state(self) -> dict[str, str]:
        state = self._ahead.state()
        return {
            "version": protocol.VERSION,
            "config": self._facts.config,
            "repository": self._facts.repository,
            "pid": str(os.getpid()),
            "ready": str(state.ready),
            "problem": state.problem.replace("\n", " ")[:2000],
        }

    def _durable(self, word: str, question: Mapping[str, str], connection: socket.socket) -> dict[str, str]:
        """Answer a question once the file is durable.

        Raises:
            WalError: the client is to go the slow way.
            OSError: it hung up.
        """
        asked = {name: question.get(name, "") for name in ("version", "config", "service", "name", "identity", "head")}
        if word != protocol.PUSH or asked["version"] != protocol.VERSION:
            raise WalError(f"this helper speaks version {protocol.VERSION}")
        if asked["config"] != self._facts.config:
            raise WalError("the helper has read another configuration, or an earlier state of it")
        if asked["service"] not in self._facts.services:
            raise WalError(f"this is the helper of {', '.join(sorted(self._facts.services))}")
        if not asked["name"] or "/" in asked["name"]:
            raise WalError("a name is asked for, not a path")

        def waiting() -> None:
            connection.sendall(protocol.encode(protocol.WAIT, {"version": protocol.VERSION}))

        durable = self._ahead.archived(asked["name"], identity=asked["identity"], head=asked["head"], waiting=waiting)
        return {**asked, "repository": self._facts.repository, "system_id": durable.system_id}
