"""A process that has loaded the program and lends itself: each request is a fork that goes on as the command line.

Loading its modules takes a command half a second of a processor, and a run of the tests starts thousands of them; the
fork takes milliseconds. What runs is the program's own ``main`` in a process of its own, with the client's user,
folder, environment, limits and three streams. Not the client's are its parent, session and cgroup, so tests that
look at processes start the program themselves, and so does everything that tests how it starts.

Started by ``warm.py`` with the path of a socket; ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import marshal
import os
import pkgutil
import resource
import selectors
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_PR_SET_DUMPABLE = 4
_STREAMS_AND_FOLDER = 4
_CHUNK = 1 << 20


def _load() -> None:
    """Import everything that a command may import, and spare the collector from it."""
    import drservice  # noqa: PLC0415 - after the environment says how

    for module in pkgutil.walk_packages(drservice.__path__, "drservice."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("drservice.__main__")
    gc.collect()
    gc.freeze()


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, streams, _, _ = socket.recv_fds(connection, 4, _STREAMS_AND_FOLDER)
    (size,) = struct.unpack("!I", header)
    body = bytearray()
    while len(body) < size:
        piece = connection.recv(min(size - len(body), _CHUNK))
        if not piece:
            for stream in streams:  # who reads from them would wait for ever
                os.close(stream)
            raise EOFError
        body += piece
    return marshal.loads(bytes(body)), streams  # of our own client


def _become(asked: dict[str, Any], streams: list[int], user: int, group: int) -> None:
    """Make this process, just forked, what the client's would be."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the others are as Python begins
    for place, stream in enumerate(streams[:3]):
        os.dup2(stream, place)
    os.fchdir(streams[3])
    for stream in streams:
        os.close(stream)
    os.umask(asked["umask"])
    for number, limits in asked["limits"].items():
        resource.setrlimit(number, limits)
    if (user, group) != (os.geteuid(), os.getegid()):
        os.setgroups(asked["groups"])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # an exec would have: else /proc/self is root's
    os.environ.clear()
    os.environb.update(asked["environment"])
    import drservice.__main__ as program  # noqa: PLC0415 - loaded long since

    sys.modules["__main__"] = program  # what its own workers load first
    sys.argv = [str(program.__file__), *asked["words"]]


class Server:
    """Serves until its standard input ends. :meth:`serve` comes back in a child only."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        Path(path).chmod(0o666)  # PostgreSQL's user asks too, and gets a process of its own user
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = wake
        self._children: dict[int, socket.socket] = {}
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        for source in (self._listener, self._woken, sys.stdin.fileno()):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Fork for each request; in the child, return ready to run the program."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    if self._fork(connection):
                        return
                elif key.fileobj == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                    self._reap()
                elif key.fileobj == sys.stdin.fileno():
                    self._end()
                else:
                    self._gone(key.data)

    def _fork(self, connection: socket.socket) -> bool:
        try:
            asked, streams = _request(connection)
        except (EOFError, struct.error, OSError):  # it was killed before it had asked
            connection.close()
            return False
        _, user, group = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            for other in (self._listener, connection, *self._children.values()):
                other.close()
            os.close(self._woken)
            os.close(self._wake)
            _become(asked, streams, user, group)
            return True
        for stream in streams:
            os.close(stream)
        self._children[child] = connection
        self._selector.register(connection, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):  # it is gone: told by the selector next
            connection.sendall(struct.pack("!i", child))
        return False

    def _reap(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            connection = self._children.pop(child)
            with contextlib.suppress(KeyError):  # its client is gone
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
            connection.close()

    def _gone(self, child: int) -> None:
        """Kill the process of a client that was killed: nobody else would."""
        if child in self._children:
            self._selector.unregister(self._children[child])
            _kill(child)

    def _end(self) -> None:
        for child in self._children:
            _kill(child)
        os._exit(0)


def _kill(child: int) -> None:
    """Kill a process with its session; one that has no session yet alone."""
    os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads would not survive the fork
    _load()
    server = Server(sys.argv[1])
    os.write(1, b"ready\n")
    server.serve()
    sys.modules["__main__"].main()
