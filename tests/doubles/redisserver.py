"""A real Redis for tests, on a port of its own; it keeps nothing on disk unless it is told to.

Debian's redis-tools has the server's program under the name redis-check-rdb: which one it is, its name decides. So no
package is needed that starts a server of the system.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drservice.components.redis.client import RedisServer
from drservice.credentials import Secret
from drservice.errors import RedisUnreachableError

PASSWORD = "hunter2 of redis"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRedis:
    """A Redis that runs."""

    port: int
    folder: Path
    password: str | None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def connect(self) -> RedisServer:
        return RedisServer(self.url, password=Secret(self.password) if self.password is not None else None)

    def ask(self, *words: str) -> object:
        with self.connect() as server:
            return server.ask(*words)


def server_program(folder: Path) -> Path:
    """Return redis-server; where only its tools are installed, a link with that name in ``folder``."""
    installed = shutil.which("redis-server")
    if installed is not None:
        return Path(installed)
    tool = shutil.which("redis-check-rdb")
    assert tool is not None, "redis-tools is not installed (deploy/install-system-packages tests)"
    link = folder / "redis-server"
    if not link.exists():
        link.symlink_to(tool)
    return link


@contextmanager
def redis_server(folder: Path, *options: str, password: str | None = None) -> Iterator[LocalRedis]:
    """Run a Redis that works in ``folder`` (it loads a dump.rdb that lies there) until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    given = ("--requirepass", password) if password is not None else ()
    tools = folder.parent / f"{folder.name}-tools"
    tools.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            server_program(tools), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "",
            "--appendonly", "no", "--repl-diskless-sync-delay", "0", *given, *options,
        ],
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    server = LocalRedis(port=port, folder=folder, password=password)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_ready(server: LocalRedis, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, "redis-server ended at once"
        try:
            with server.connect() as connection:
                if connection.info("persistence").get("loading") == "0":
                    return
        except RedisUnreachableError:
            pass
        assert time.monotonic() < deadline, "redis-server does not answer"
        time.sleep(0.01)
