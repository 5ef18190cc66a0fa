"""The real web server as a process, and visitors who keep within its limits: for the parts of ``web.py``."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from drservice.catalogue.accounts import Accounts, TokenRequest
from drservice.catalogue.database import Database
from drservice.web.auth.identity import new_secret

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 150
"""So many requests in a row are answered to one address and account without a wait (``Rates``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Somebody: with an address of this machine and a token."""

    address: str
    token: str


@dataclass(slots=True, kw_only=True)
class Visitors:
    """Many people, one after the other: the server's limits stay as they are deployed."""

    visitors: Sequence[Visitor]
    patience: int = _PATIENCE
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: Iterator[Visitor] = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.visitors)

    def next(self) -> Visitor:
        """Return whose turn it is."""
        with self._lock:
            return next(self._turn)

    @classmethod
    def make(cls, database: Database, *, count: int, roles: tuple[str, ...]) -> Visitors:
        """Make accounts with a token each; their addresses are of the loopback network."""
        accounts = Accounts(database)
        made = []
        for number in range(count):
            secret, sha256 = new_secret()
            name = f"visitor-{number}"
            accounts.add(name, "no password", roles=roles)
            request = TokenRequest(
                kind="api",
                name="bench",
                account=name,
                roles=roles,
                services=(),
                lifetime=timedelta(days=1),
                secret_sha256=sha256,
            )
            if accounts.issue(request) is None:
                raise SystemExit(f"{name} got no token")
            made.append(Visitor(address=f"127.0.{1 + number // 250}.{1 + number % 250}", token=secret))
        return cls(visitors=made)


@contextmanager
def program(config: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of the program until the end of the block; its first line of output has been printed then."""
    argv = [sys.executable, "-m", "drservice", "--config", str(config), "--json", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def served(config: Path) -> Iterator[tuple[str, int]]:
    """Serve pages and API as deployed and return the address."""
    with program(config, "web", "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None, "it is a pipe"
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the web server ended with {process.wait(60)}")
        address = urlsplit(json.loads(line)["url"])
        assert address.hostname is not None, "the server tells host and port"
        assert address.port is not None, "as above"
        yield address.hostname, address.port
