"""A real Odoo 19 in production, of the tests' own: cluster, documents, two workers, scheduled jobs, a mail relay.

``install-odoo`` makes the folder with the code; ``DRSERVICE_ODOO`` names it (`make test-odoo` does both). The database,
a manufacturing company with demo data, is made at the first use, which takes two minutes, and kept beside the code.
Everything listens on loopback or on Unix sockets, and ends with :meth:`Production.close`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from drservice import processes
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.s3server import free_port

DATABASE = "plant"
OWNER = "odoo"
"""The database's role: Odoo refuses to work as ``postgres``."""
MODULES = "mrp,stock,purchase,sale_management,account"
_MAKING_SECONDS = 900.0
_READY_SECONDS = 180.0


def folder() -> Path | None:
    """Return where Odoo's code is, ``None`` where no test may start it."""
    named = os.environ.get("DRSERVICE_ODOO")
    return Path(named) if named else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What ``install-odoo`` made."""

    root: Path

    @property
    def unpacked(self) -> Path:
        return self.root / "dist"

    @property
    def program(self) -> Path:
        return self.root / "dist/usr/bin/odoo"

    @property
    def packages(self) -> Path:
        return self.root / "dist/usr/lib/python3/dist-packages"

    @property
    def addons(self) -> Path:
        return self.packages / "odoo/addons"

    @property
    def python(self) -> Path:
        return self.root / "venv"


class Sink(socketserver.ThreadingTCPServer):
    """A mail relay that takes everything and counts it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Mail)
        self.subjects: list[str] = []
        threading.Thread(target=self.serve_forever, name="sink", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Mail(socketserver.StreamRequestHandler):
    """One connection to the relay."""

    server: Sink

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        while line := self.rfile.readline():
            word = line.strip().upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self._take()
                self.wfile.write(b"250 taken\r\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 sink\r\n")

    def _take(self) -> None:
        subject = ""
        while (line := self.rfile.readline()) not in {b".\r\n", b""}:
            if line.lower().startswith(b"subject:"):
                subject = line.decode("utf-8", "replace").strip()
        self.server.subjects.append(subject)


class Rpc:
    """One client of Odoo's JSON-RPC."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/jsonrpc"
        self._uid = 0

    def call(self, service: str, method: str, *arguments: Any) -> Any:
        params = {"service": service, "method": method, "args": arguments}
        body = json.dumps({"jsonrpc": "2.0", "method": "call", "id": 1, "params": params}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.loads(answer.read())
        if "error" in told:
            raise OdooError(told["error"].get("data", {}).get("message") or str(told["error"]))
        return told.get("result")

    def on(self, model: str, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of a model as the administrator: one call is one transaction, answered after its commit."""
        if not self._uid:
            self._uid = self.call("common", "login", DATABASE, "admin", "admin")
        return self.call("object", "execute_kw", DATABASE, self._uid, "admin", model, method, list(arguments), named)


class OdooError(Exception):
    """Odoo refused a call; nothing of it was committed."""


@dataclass(kw_only=True)
class Production:
    """The running company."""

    code: Code
    maker: ClusterMaker
    cluster: Cluster
    home: Path
    sink: Sink
    http_port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, code: Code, cache: Path) -> Self:
        """Start a copy of the company that was made once."""
        template = code.root / "company"
        maker = ClusterMaker(cache=cache)
        if not (template / ".whole").exists():
            _make_company(code, template, maker)
        cluster = maker.make(settings=SETTINGS)
        shutil.rmtree(cluster.data)
        subprocess.run(["cp", "-a", "--reflink=auto", str(template / "data"), str(cluster.data)], check=True)
        home = cluster.root / "odoo"
        subprocess.run(["cp", "-a", "--reflink=auto", str(template / "home"), str(home)], check=True)
        made = cls(code=code, maker=maker, cluster=cluster, home=home, sink=Sink(), http_port=free_port())
        write_configuration(made)
        cluster.start()
        made.start()
        return made

    @property
    def documents(self) -> Path:
        return self.home / "filestore" / DATABASE

    @property
    def configuration(self) -> Path:
        """The folder that ``directory`` protects."""
        return self.home / "etc"

    def rpc(self) -> Rpc:
        return Rpc(self.http_port)

    def start(self) -> None:
        """Start Odoo and wait until it answers with a page that needs database and documents."""
        with (self.home / "output").open("ab") as output:
            self.process = processes.start(
                odoo_words(self.code, "-c", self.configuration / "odoo.conf"),
                account=self.cluster.account,
                environment=odoo_variables(self.code),
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/web/login", timeout=60):
                    return
            except OSError:
                assert self.process.poll() is None, f"Odoo ended: {(self.home / 'output').read_text()[-3000:]}"
                assert time.monotonic() < deadline, "Odoo does not answer"
                time.sleep(0.2)

    def shell(self, text: str) -> str:
        """Run a script in Odoo's own shell, as the garbage collection is."""
        done = processes.run(
            odoo_words(self.code, "shell", "-c", self.configuration / "odoo.conf", "--no-http", "--log-level=error"),
            account=self.cluster.account,
            environment=odoo_variables(self.code),
            stdin=text.encode(),
            timeout_seconds=180,
        )
        assert done.status == 0, done.stderr.decode()
        return done.stdout.decode()

    def lose(self) -> None:
        """Lose the host: every process is killed, cluster, documents and configuration are gone."""
        self._kill()
        self.cluster.kill9()
        shutil.rmtree(self.cluster.data)
        shutil.rmtree(self.home)

    def close(self) -> None:
        self._kill()
        self.sink.shutdown()
        self.sink.server_close()
        self.maker.close()

    def _kill(self) -> None:
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self.process = None


SETTINGS: Mapping[str, str] = {"max_connections": "60", "shared_buffers": "'128MB'", "max_wal_size": "'1GB'"}


def odoo_words(code: Code, *words: str | Path) -> list[str | Path]:
    return [code.python / "bin/python", code.program, *words]


def odoo_variables(code: Code) -> dict[str, str]:
    return processes.clean_environment(
        {"PYTHONPATH": str(code.packages), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"}
    )


def write_configuration(made: Production) -> None:
    """Write Odoo's configuration: two workers and one that runs scheduled jobs, as people run it."""
    made.configuration.mkdir(exist_ok=True)
    lines = {
        "data_dir": made.home,
        "db_host": made.cluster.sock,
        "db_user": OWNER,
        "db_name": DATABASE,
        "list_db": False,
        "http_interface": "127.0.0.1",
        "http_port": made.http_port,
        "gevent_port": free_port(),
        "workers": 2,
        "max_cron_threads": 1,
        "smtp_server": "127.0.0.1",
        "smtp_port": made.sink.port,
        "logfile": made.home / "odoo.log",
        "admin_passwd": "production-master-password",
    }
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    (made.configuration / "odoo.conf").write_text(f"[options]\n{text}")
    hand_over(made.home)


def _make_company(code: Code, template: Path, maker: ClusterMaker) -> None:
    """Make the database and its documents, once."""
    shutil.rmtree(template, ignore_errors=True)
    (template / "home").mkdir(parents=True)
    hand_over(template)
    cluster = maker.make(fresh=True, settings=SETTINGS)
    cluster.start()
    cluster.sql(f"create role {OWNER} login createdb")
    done = processes.run(
        odoo_words(
            code, "-d", DATABASE, "-i", MODULES, "--with-demo", "--stop-after-init", "--no-http", "--workers=0",
            "--max-cron-threads=0", "--db_host", cluster.sock, "--db_user", OWNER, "--data-dir", template / "home",
        ),
        account=cluster.account,
        environment=odoo_variables(code),
        timeout_seconds=_MAKING_SECONDS,
    )  # fmt: skip
    assert done.status == 0, done.stderr.decode()[-3000:]
    with cluster.connect(DATABASE) as connection:
        # Nobody outside is told that this exists, and the people of the demo company get no mail.
        connection.execute(
            "update ir_cron set active = false where id in"
            " (select res_id from ir_model_data where module = 'mail' and name = 'ir_cron_module_update_notification')"
        )
        connection.execute("update mail_mail set state = 'cancel' where state = 'outgoing'")
    cluster.stop()
    subprocess.run(["cp", "-a", str(cluster.data), str(template / "data")], check=True)
    (template / ".whole").touch()
