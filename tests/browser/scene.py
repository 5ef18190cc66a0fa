"""What the browser looks at: a plant that is protected by a real ``drservice up``, beside services of other hosts.

`erp` is real: its cluster, documents, repository, ledger, node and web process; two of its orders stand around an
instant that a restore can be brought to. What the other services' hosts would have reported is written into the
catalogue (:mod:`tests.browser.others`), and their drills into the same ledger.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice import processes
from drservice.catalogue.accounts import Accounts
from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunInfo, RunRequest, Runs
from drservice.jobs.queue import Queue
from drservice.model.runs import RunKind, RunState
from drservice.web.auth.passwords import Passwords
from tests.browser import others
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, wait_for
from tests.doubles.plant import CHECKS, Plant

SERVICE = "erp"
PASSWORD = "a long enough password"
PEOPLE = {
    "vera": ("viewer",),
    "axel": ("auditor",),
    "olga": ("operator",),
    "rosa": ("restorer",),
    "rita": ("restorer",),
    "otto": ("operator", "restorer", "auditor"),
}
"""Accounts and their roles."""
HOST = "plant1"
STUCK = "stuck"
"""A state of stock moves that one of the checks refuses."""
EARLIER, LATER = "SO-1041", "SO-1042"
"""Orders before and after :attr:`Scene.instant`."""

_NOTHING_STUCK = {
    "name": "nothing-stuck",
    "component": "database",
    "sql": f"select count(*) from stock_move where state = '{STUCK}'",
    "expect": "= 0",
    "owner": "logistics",
}


@dataclass(kw_only=True)
class Scene:
    """The estate and its processes."""

    plant: Plant
    database: Database
    folder: Path
    process: subprocess.Popen[bytes]
    url: str
    instant: datetime | None = None
    """After the earlier and before the later order."""
    reported: others.Reported | None = None

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, *, cache: Path) -> Iterator[Scene]:
        """Make everything and let the process tree run for the block."""
        with ExitStack() as stack:
            maker = stack.enter_context(closing(ClusterMaker(cache=cache)))
            catalogues = stack.enter_context(closing(CatalogueServer(cache=cache)))
            plant = Plant.over(maker.make(), documents=30)
            stack.callback(plant.estate.close)
            database, url = catalogues.database(), catalogues.url("catalogue_1")
            _configure(plant, url)
            _accounts(database)
            scene = cls(plant=plant, database=database, folder=folder, process=_start(plant, folder / "up.log"), url="")
            stack.callback(scene.end)
            scene.url = scene.said(r"serving (http://127\.0\.0\.1:\d+)/")
            yield scene

    # --- what happens in it -----------------------------------------------------------------------------------

    def live_through_a_day(self) -> None:
        """Let other hosts report; fail in a drill, repair what it found; take two orders, and prove it all again."""
        self.reported = others.report(self.database)
        self.plant.sql("insert into stock_move (state, product_qty) values (%s, 1)", [STUCK])
        self.complete(RunKind.BACKUP)
        self.complete(RunKind.DRILL, plan="latest", state=RunState.FAILED)
        self.plant.sql("delete from stock_move where state = %s", [STUCK])
        self.plant.sql("create table sale_order (name text primary key, at timestamptz default clock_timestamp())")
        self.plant.sql("insert into sale_order (name) values (%s)", [EARLIER])
        time.sleep(1.1)
        self.instant = self.plant.now()
        time.sleep(1.1)
        self.plant.sql("insert into sale_order (name) values (%s)", [LATER])
        self.plant.archive()
        self.complete(RunKind.BACKUP)
        self.complete(RunKind.DRILL, plan="latest")

    def request(self, kind: RunKind, *, plan: str = "") -> str:
        run = Queue(self.database).enqueue(RunRequest(service=SERVICE, kind=kind, plan=plan, requested_by="olga"))
        assert run is not None
        return run

    def run(self, run: str) -> RunInfo:
        found = Runs(self.database).get(run)
        assert found is not None
        return found

    def complete(self, kind: RunKind, *, plan: str = "", state: RunState = RunState.SUCCEEDED) -> RunInfo:
        """Have a run made and wait for its end, which has to be as expected."""
        run = self.request(kind, plan=plan)
        self.wait(lambda: self.run(run).state.is_over, f"the {kind.value}")
        ended = self.run(run)
        assert ended.state is state, f"{ended}\n{self.log()}"
        return ended

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        def alive_and() -> bool:
            assert self.process.poll() is None, self.log()
            return condition()

        wait_for(alive_and, what, 60.0)

    # --- its processes ----------------------------------------------------------------------------------------

    def log(self) -> str:
        return (self.folder / "up.log").read_text(encoding="utf-8", errors="replace")[-8000:]

    def said(self, pattern: str) -> str:
        """Wait for a line of the log and return what its group matched."""
        found: list[str] = []

        def look() -> bool:
            found.extend(re.findall(pattern, self.log()))
            return bool(found)

        self.wait(look, pattern)
        return found[0]

    def end(self) -> None:
        """End the process tree; its environments go with the estate."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            processes.kill_group(self.process)
            raise


def _configure(plant: Plant, catalogue: str) -> None:
    document = plant.document(
        catalogue=catalogue,
        web={"listen": _free_address()},
        node={"lease": "10s", "drain": "2s"},
    )
    document["services"][SERVICE] |= {
        "tier": 1,
        "objectives": {"rpo": "1h", "rto": "15m"},
        "schedule": {"backup": "0 1 * * *", "drill": "0 6 1 1,4,7,10 *"},
        "checks": [*CHECKS, _NOTHING_STUCK],
    }
    document["services"] |= others.SERVICES
    plant.estate.config.write_text(json.dumps(document, indent=1))


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def _accounts(database: Database) -> None:
    accounts, hashed = Accounts(database), Passwords().hash(PASSWORD)
    for name, roles in PEOPLE.items():
        assert accounts.add(name, hashed, roles=roles)


def _start(plant: Plant, log: Path) -> subprocess.Popen[bytes]:
    argv: list[str | Path] = [*PROGRAM, "--config", plant.estate.config, "up", "--name", HOST]
    environment = processes.clean_environment({"HOME": str(plant.estate.root)})
    with log.open("wb") as stream:
        return processes.start(argv, environment=environment, stdout=stream, stderr=stream)
