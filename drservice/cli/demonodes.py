"""The demo's nodes, and the place that is told when something goes wrong.

The nodes are the real programs with their process trees: ``drservice up`` on the production host, ``drservice node`` at
the recovery site. The place is what a chat or a pager would be: it takes messages over HTTP, and keeps them.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from drservice import processes
from drservice.cli.plant import family_of
from drservice.environments.proc import ProcessIdentity, is_alive, send_signal
from drservice.errors import DrError

_READY_SECONDS = 60.0
_DRAIN_SECONDS = 3.0
_END_SECONDS = 30.0
_POLL_SECONDS = 0.05
_IS_READY = " runs (pid "
_SERVES = "serving http://"
_LAST_LINES = 5
_LONGEST_MESSAGE = 1 << 20


@dataclass(slots=True, kw_only=True)
class NodeProgram:
    """One node and everything that it starts; it is ended by its pid. ``log`` has what it says."""

    argv: Sequence[str]
    log: Path
    _process: subprocess.Popen[bytes] | None = None
    _said: int = 0
    """Where in the log the present process began to speak."""

    @property
    def has_ended(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def start(self, *, serving: bool = False) -> None:
        """Start it and wait until it takes runs; with ``serving`` until its pages answer, too.

        Raises:
            DrError: it ended, or is not ready within a minute; with its last words.
        """
        self.launch()
        wanted = (_IS_READY, _SERVES) if serving else (_IS_READY,)
        deadline = time.monotonic() + _READY_SECONDS
        while not all(words in self.said() for words in wanted):
            if self.has_ended or time.monotonic() > deadline:
                raise DrError(f"`drservice {self.argv[-3]}` did not begin: {self.last_words()}")
            time.sleep(_POLL_SECONDS)

    def launch(self) -> None:
        """Start it and wait for nothing."""
        with self.log.open("ab") as log:
            self._said = log.tell()
            self._process = processes.start(self.argv, stdout=log, stderr=log)

    def said(self) -> str:
        """Return what the present process has said so far."""
        with self.log.open("rb") as log:
            log.seek(self._said)
            return log.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        """Return the end of what it said."""
        lines = [line for line in self.said().splitlines() if line.strip()]
        return " / ".join(lines[-_LAST_LINES:]) or "it said nothing"

    def kill(self) -> None:
        """End its main process with SIGKILL, as a power cut does: it can tell nobody. What it had started ends, too."""
        self._end(((signal.SIGKILL, _END_SECONDS),))

    def stop(self) -> None:
        """Let it drain and end; soon its runs are stopped, too (a second SIGTERM). One that does not run is fine."""
        self._end(
            (
                (signal.SIGTERM, _DRAIN_SECONDS),
                (signal.SIGTERM, _END_SECONDS),
                (signal.SIGKILL, _END_SECONDS),
            )
        )

    def _end(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        process = self._process
        if process is None:
            return
        family = family_of(process.pid)
        for number, seconds in steps:
            process.send_signal(number)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            break
        self._process = None
        _end_family(family)


def _end_family(family: Sequence[ProcessIdentity]) -> None:
    """Wait a moment for what a node had started; each ends by itself when it hears nothing more of its node."""
    deadline = time.monotonic() + _POLL_SECONDS * 20
    while (left := [member for member in family if is_alive(member)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for member in left:
        send_signal(member, signal.SIGKILL)


def free_port() -> int:
    """Return a port of loopback that nobody uses at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One message as it arrived."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A place that is told: it keeps what is posted to it. ``port``: on this machine's loopback."""

    port: int
    _messages: list[Told]

    @property
    def url(self) -> str:
        """What a node needs to reach it, in apprise's words."""
        return f"json://127.0.0.1:{self.port}/on-call"

    def messages(self) -> tuple[Told, ...]:
        """Return what has arrived so far."""
        return tuple(self._messages)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen on a free port of loopback while the block runs."""
    messages: list[Told] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Keep a message."""
            length = min(int(self.headers.get("Content-Length", "0")), _LONGEST_MESSAGE)
            try:
                told = json.loads(self.rfile.read(length))
                messages.append(Told(title=str(told["title"]), text=str(told["message"])))
            except (ValueError, KeyError, TypeError):
                self.send_error(400)
                return
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Say nothing: the story tells what arrived."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="receiver", daemon=True)
    thread.start()
    try:
        yield Receiver(port=server.server_address[1], _messages=messages)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
