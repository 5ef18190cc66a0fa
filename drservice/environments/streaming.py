"""Running a program and handing over what it writes while it runs, in bounded memory."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import IO, BinaryIO

from drservice import processes

_PIECE_BYTES = 1 << 20
_LINE_BYTES = 8 << 10
_END_SECONDS = 15.0


def run_streaming(
    argv: Sequence[str],
    *,
    take: Callable[[bytes], object],
    hear: Callable[[str], object],
    source: BinaryIO | None = None,
    stall_seconds: float,
    pass_fds: Sequence[int] = (),
) -> int:
    """Run a program to its end and return its status, -9 if it was ended because it wrote nothing for too long.

    Args:
        argv: the program and its arguments.
        take: hears each piece of standard output; slow is fine, the program waits.
        hear: hears each line of standard error, without its end; what follows in a longer one is dropped.
        source: a file the program reads as standard input.
        stall_seconds: how long it may be silent.
        pass_fds: descriptors the program inherits.

    Raises:
        ProgramMissingError: there is no such program.
    """
    process = processes.start(
        argv,
        stdin=source if source is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout as out, process.stderr as err:
            if not _pump(out, err, take, _Lines(hear), stall_seconds):
                return -signal.SIGKILL
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL  # both ends are closed, and it lives on
    finally:
        if process.poll() is None:
            processes.kill_group(process)
            process.wait()


def _pump(out: IO[bytes], err: IO[bytes], take: Callable[[bytes], object], lines: _Lines, stall_seconds: float) -> bool:
    """Hand over until both streams end; return whether they did."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(out, selectors.EVENT_READ)
        waiting.register(err, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(stall_seconds)
            if not ready:
                return False
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE_BYTES)
                if not piece:
                    waiting.unregister(key.fileobj)
                elif key.fd == out.fileno():
                    take(piece)
                else:
                    lines.add(piece)
    lines.end()
    return True


class _Lines:
    """Cuts a stream into lines of bounded length."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        self._hear = hear
        self._unfinished = b""

    def add(self, piece: bytes) -> None:
        *lines, rest = (self._unfinished + piece).split(b"\n")
        for line in lines:
            self._tell(line)
        self._unfinished = rest[:_LINE_BYTES]

    def end(self) -> None:
        if self._unfinished:
            self._tell(self._unfinished)

    def _tell(self, line: bytes) -> None:
        self._hear(line[:_LINE_BYTES].decode("utf-8", "replace"))
