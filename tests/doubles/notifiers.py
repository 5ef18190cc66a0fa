"""Places that are told: a real HTTP server that behaves as it is bidden, and a notifier that keeps what it is told.

with HookServer() as hook:
    hook.behave(Behaviour.REFUSE)
    notifier = AppriseNotifier(name="ops", reference=...)   # a reference of hook.url(password)
    hook.heard()                                            # [(title, body), ...] that were answered with 200
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from drservice.errors import NotifyDeliveryError
from drservice.notify.interface import Notice


class Behaviour(Enum):
    """What a place does with what it is told."""

    TAKE = "take"
    REFUSE = "refuse"
    """Answers 500."""
    HANG = "hang"
    """Takes the connection and says nothing."""
    DRIP = "drip"
    """Answers one byte at a time, for ever: no single read is late."""
    REDIRECT = "redirect"
    """Sends the caller to ``/elsewhere``."""


class HookServer:
    """An HTTP server on loopback that takes JSON."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, bytes]] = []
        """Path, Authorization and body of each request, as they came."""
        self._heard: list[tuple[str, str]] = []
        self._behaviour = Behaviour.TAKE
        self._during: Callable[[], object] = lambda: None
        self._closed = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.serve(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, password: str, *, more: str = "") -> str:
        """Return the apprise URL of this server."""
        return f"json://user:{password}@127.0.0.1:{self._server.server_address[1]}/hook{more}"

    def behave(self, behaviour: Behaviour) -> None:
        """Answer so from now on."""
        self._behaviour = behaviour

    def during(self, action: Callable[[], object]) -> None:
        """Do something while each request is being answered."""
        self._during = action

    def heard(self) -> list[tuple[str, str]]:
        """Return title and body of each message that was taken."""
        return list(self._heard)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests.append((request.path, request.headers["Authorization"], body))
        self._during()
        if self._behaviour is Behaviour.HANG:
            self._closed.wait()
            return
        if self._behaviour is Behaviour.DRIP:
            self._drip(request)
            return
        if self._behaviour is Behaviour.REDIRECT and request.path != "/elsewhere":
            request.send_response(307)
            request.send_header("Location", "/elsewhere")
        elif self._behaviour is Behaviour.REFUSE:
            request.send_response(500)
        else:
            document = json.loads(body)
            self._heard.append((document["title"], document["message"]))
            request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _drip(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        try:
            while not self._closed.wait(0.1):
                request.wfile.write(b".")
        except (BrokenPipeError, ConnectionResetError):
            return


class RecordingNotifier:
    """Keeps what it is told, or refuses; passes the contract of notifiers."""

    def __init__(self, *, deadline_seconds: float = 0.5) -> None:
        self.told: list[Notice] = []
        self._deadline_seconds = deadline_seconds
        self._behaviour = Behaviour.TAKE
        self._during: Callable[[Notice], object] = lambda _: None

    def behave(self, behaviour: Behaviour) -> None:
        """Behave so from now on."""
        self._behaviour = behaviour

    def during(self, action: Callable[[Notice], object]) -> None:
        """Do something while each notice is being told."""
        self._during = action

    def send(self, notice: Notice) -> None:
        """Take the notice, or raise."""
        self._during(notice)
        if self._behaviour in {Behaviour.HANG, Behaviour.DRIP}:
            time.sleep(self._deadline_seconds)
            raise NotifyDeliveryError("the double did not answer in time")
        if self._behaviour is not Behaviour.TAKE:
            raise NotifyDeliveryError("the double refuses")
        self.told.append(notice)

    def heard(self) -> list[tuple[str, str]]:
        """Return subject and text of each notice."""
        return [(notice.subject(), notice.text()) for notice in self.told]
