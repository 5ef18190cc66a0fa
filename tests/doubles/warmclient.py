"""Runs one command in a process of :mod:`warmserver`: ``python -I -S warmclient.py SOCKET WORD ...``.

It passes on its streams, folder, environment, limits and signals, and ends as that process does. Only what starts in
ten milliseconds is imported here.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_LIMITS = range(resource.RLIMIT_CPU, 16)
_WITHOUT_SERVER = 125


def main() -> None:
    """Ask, wait, and end alike."""
    umask = os.umask(0)
    os.umask(umask)
    asked = marshal.dumps(
        {
            "words": sys.argv[2:],
            "environment": dict(os.environb),
            "umask": umask,
            "groups": os.getgroups(),
            "limits": {number: resource.getrlimit(number) for number in _LIMITS},
        }
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    socket.send_fds(connection, [struct.pack("!I", len(asked))], [0, 1, 2, folder])
    connection.sendall(asked)
    child = _number(connection)
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell)  # a handler alone may run just before the wait that it ought to interrupt
    for number in _PASSED_ON:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while connection.fileno() not in select.select([connection.fileno(), told], [], [])[0]:
        for passed in os.read(told, 64):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(child, passed)
    status = _number(connection)
    if status < 0:
        if -status in _PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _number(connection: socket.socket) -> int:
    answer = b""
    while len(answer) < 4:
        piece = connection.recv(4 - len(answer))
        if not piece:
            os.write(2, b"the process that lends itself for tests has ended\n")
            os._exit(_WITHOUT_SERVER)
        answer += piece
    return int(struct.unpack("!i", answer)[0])


if __name__ == "__main__":
    main()
