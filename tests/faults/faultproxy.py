"""A proxy between boto3 and a real S3 server that misbehaves as told, request by request.

It counts what it did, so that a test can show that its fault fired.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Behaviour(Enum):
    """What becomes of one request."""

    PASS = auto()
    UNAVAILABLE = auto()
    """503 SlowDown; the request never reaches the server."""
    EXPIRED = auto()
    """400 ExpiredToken; the request never reaches the server."""
    SKEWED = auto()
    """403 RequestTimeTooSkewed; the request never reaches the server."""
    DENIED = auto()
    """403 AccessDenied; the request never reaches the server."""
    LOSE_REPLY = auto()
    """The server carries it out; the connection is cut before any answer."""
    CUT_ANSWER = auto()
    """Headers and half of the body arrive, then the connection is cut."""


_REFUSALS = {
    Behaviour.UNAVAILABLE: (503, "SlowDown"),
    Behaviour.EXPIRED: (400, "ExpiredToken"),
    Behaviour.SKEWED: (403, "RequestTimeTooSkewed"),
    Behaviour.DENIED: (403, "AccessDenied"),
}

Decide = Callable[[str, str, int], Behaviour]
"""(method, path with query, number of the request from 1) -> behaviour."""


@dataclass
class FaultProxy:
    """A running proxy; exchange ``decide`` while it runs."""

    endpoint: str
    decide: Decide = field(default=lambda _method, _path, _number: Behaviour.PASS)
    did: Counter[Behaviour] = field(default_factory=Counter)
    requests: int = 0
    signed_by: str = ""
    """The access key of the request that is being judged."""
    owner: str = ""
    """The account that the request expects to own the bucket."""
    pause_seconds: dict[str, float] = field(default_factory=dict)
    """How long a request of a method waits before it is passed on; requests wait side by side."""
    page_keys: int | None = None
    """How many keys the server puts into one page of a listing; ``None`` = as many as it likes."""
    pages: int = 0
    """Pages after the first of a listing."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, method: str, path: str, *, signed_by: str, owner: str) -> Behaviour:
        """Decide and count."""
        with self.lock:
            self.signed_by, self.owner = signed_by, owner
            self.requests += 1
            behaviour = self.decide(method, path, self.requests)
            self.did[behaviour] += 1
            return behaviour

    def reset(self, decide: Decide) -> None:
        """Begin anew with another behaviour."""
        with self.lock:
            self.decide = decide
            self.did.clear()
            self.requests = 0


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:  # noqa: C901 - the handler class needs its surroundings
    """Run a proxy on loopback in front of ``upstream``."""
    target = urlsplit(upstream)
    proxy = FaultProxy(endpoint="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            signed_by = re.search("Credential=([^/]+)/", self.headers.get("Authorization") or "")
            behaviour = proxy.judge(
                self.command,
                self.path,
                signed_by=signed_by[1] if signed_by else "",
                owner=self.headers.get("x-amz-expected-bucket-owner") or "",
            )
            if behaviour in _REFUSALS:
                self._refuse(behaviour)
                return
            time.sleep(proxy.pause_seconds.get(self.command, 0.0))
            status, headers, answer = self._forward(body)
            if behaviour is Behaviour.LOSE_REPLY:
                self._hang_up()
                return
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            length_header = next((value for name, value in headers if name.lower() == "content-length"), None)
            size = length_header if self.command == "HEAD" and length_header else str(len(answer))
            self.send_header("Content-Length", size)
            self.end_headers()
            if behaviour is Behaviour.CUT_ANSWER:
                self.wfile.write(answer[: len(answer) // 2])
                self._hang_up()
            elif self.command != "HEAD":
                self.wfile.write(answer)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                path = self.path
                if proxy.page_keys is not None and "list-type=2" in path:
                    path += f"&max-keys={proxy.page_keys}"
                    proxy.pages += "continuation-token=" in path
                connection.request(self.command, path, body=body or None, headers=headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

        def _refuse(self, behaviour: Behaviour) -> None:
            status, code = _REFUSALS[behaviour]
            text = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815 - the base class's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Listen, let connections in, and never say a word; yields the endpoint."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
