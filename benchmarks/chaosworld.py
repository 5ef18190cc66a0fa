"""The processes that ``chaos.py`` kills: started, killed, and started again as a supervisor does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drservice import processes  # noqa: E402 - the tests' servers are in the checkout
from drservice.catalogue.runs import RunInfo, RunRequest, Runs  # noqa: E402 - as above
from drservice.errors import CatalogueUnreachableError  # noqa: E402 - as above
from drservice.jobs.queue import Queue  # noqa: E402 - as above
from drservice.model.runs import RunKind, RunState  # noqa: E402 - as above
from tests.doubles.cluster import hand_over  # noqa: E402 - as above
from tests.doubles.estate import PROGRAM, SERVICE  # noqa: E402 - as above
from tests.doubles.nodes import NodeBench, NodeProcess, command_of, is_leader  # noqa: E402 - as above
from tests.doubles.notifiers import HookServer  # noqa: E402 - as above

NODES = ("alpha", "beta")
FOLDERS = tuple(f"labels-{number}" for number in range(5))
EVERY = {"backup": 1, "verify": 2}
"""Minutes between the slots of each folder."""
NOBODY = "gone"
"""A service that no configuration has: its runs fail, which somebody has to be told."""
_AT_WORK = 4
"""Runs that wait or work at any time."""
ON_DEMAND = frozenset({"index", "notifier"})
"""Kinds of processes that are started when there is something for them to do."""
WORDS: Mapping[str, str] = {
    "node": "a node (`drservice node`)",
    "run": "the process of a run",
    "backend": "one server process of the catalogue (PostgreSQL then ends all sessions and recovers)",
    "catalogue": "the catalogue's server with all its processes",
    "web": "the pages (`drservice web`)",
    "index": "a helper of a node: what keeps the index of the repository, or writes to the ledger",
    "notifier": "the process that delivers a notice",
}
WEIGHTS: Mapping[str, int] = {
    "node": 24, "run": 30, "backend": 14, "catalogue": 8, "web": 8, "index": 8, "notifier": 8,
}  # fmt: skip


@dataclass(kw_only=True)
class Kill:
    """One kill and what it met."""

    kind: str
    at: float
    under_way: tuple[str, ...]
    """Runs that were at work in what was killed."""
    back_after: float | None = None
    """Until what was killed worked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """Something that was killed and is to work again."""

    kill: Kill
    is_back: Callable[[], bool]


@dataclass(kw_only=True)
class Chaos:
    """The processes, and what was done to them."""

    bench: NodeBench
    hook: HookServer
    chance: random.Random
    port: int
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    web: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    awaited: list[Awaited] = field(default_factory=list)
    restarts: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    whims: random.Random = field(default_factory=random.Random)
    """Of what people ask for: how often depends on the moment, so it must not draw from the seed's chances."""
    begin: datetime | None = None
    version: str = ""

    # --- The world ---------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Add folders with schedules and a place that is told to the small plant's configuration."""
        config = self.bench.estate.config
        document = json.loads(config.read_text())
        root = self.bench.estate.root
        (root / "place").write_text(self.hook.url("secret"))
        document["notify"] = [{"name": "on-call", "url": f"file:{root / 'place'}", "on": ["failure"]}]
        document["node"]["runs"] = 4
        for name in FOLDERS:
            folder = self.bench.plant.root / name
            folder.mkdir()
            for number in range(20):
                (folder / f"{number}.txt").write_text(f"{name} {number}\n" * 200)
            hand_over(folder)
            document["services"][name] = {
                "components": {"files": {"kind": "directory", "path": str(folder)}},
                "objectives": {"rpo": "1h"},
                "schedule": {kind: f"*/{minutes} * * * *" for kind, minutes in EVERY.items()},
            }
        config.write_text(json.dumps(document, indent=1))
        config.chmod(0o644)

    def start(self) -> None:
        """Start everything and wait until each schedule has been looked at."""
        self.bench.estate.json("evidence", "begin")
        self.bench.open_gate()
        self.start_web()
        for name in NODES:
            self.nodes[name] = self.bench.start(name)
        schedules = len(FOLDERS) * len(EVERY)
        self.bench.wait_for(lambda: len(self.settled()) == schedules, "the first look at the schedules")
        self.begin = max(self.settled().values())
        self.bench.wait_for(self.is_web_up, "the pages")

    def start_web(self) -> None:
        """Start the pages."""
        log = (self.bench.folder / "web.log").open("ab")
        with log:
            self.web = processes.start(
                [*PROGRAM, "--config", self.bench.estate.config, "web", "--listen", f"127.0.0.1:{self.port}"],
                environment={**os.environ, "HOME": str(self.bench.estate.root)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def start_node(self, name: str) -> None:
        """Start a node under the name of a dead one."""
        self.nodes[name] = self.bench.start(name, wait=False)

    def settled(self) -> dict[tuple[str, str], datetime]:
        """Return up to when the schedules of the folders were carried out."""
        with self.bench.database.connection() as connection:
            rows = connection.execute(text("SELECT service, kind, settled_until FROM timetable")).all()
        return {(row[0], row[1]): row[2] for row in rows if row[0] in FOLDERS and row[1] in EVERY}

    def running(self) -> list[RunInfo]:
        """Return the runs at work; none are known while the catalogue is away."""
        return self.open(RunState.RUNNING)

    def open(self, *states: RunState) -> list[RunInfo]:
        """Return the runs in some states (those that wait or work); none are known while the catalogue is away."""
        runs = Runs(self.bench.database)
        with suppress(CatalogueUnreachableError):
            wanted = states or (RunState.QUEUED, RunState.RUNNING)
            return [run for state in wanted for run in runs.list(state=state, limit=100)]
        return []

    def ask(self, number: int) -> None:
        """Ask for runs beside those of the schedules, as people do, so that there is always something at work."""
        if number % 25 == 10:
            self.request(SERVICE, RunKind.DRILL)
        for _ in range(_AT_WORK - len(self.open())):
            kind = self.whims.choice((RunKind.BACKUP, RunKind.BACKUP, RunKind.VERIFY))
            self.request(self.whims.choice((SERVICE, *FOLDERS)), kind)

    def request(self, service: str, kind: RunKind) -> None:
        """Ask for a run as soon as the catalogue answers."""
        while True:
            try:
                Queue(self.bench.database).enqueue(RunRequest(service=service, kind=kind, requested_by="ops"))
            except CatalogueUnreachableError:
                self.rest(0.2)
            else:
                return

    # --- Time --------------------------------------------------------------------------------------------------------

    def rest(self, seconds: float) -> None:
        """Let time pass; what a supervisor does meanwhile is done."""
        until = time.monotonic() + seconds
        while True:
            self.supervise()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.05, left))

    def supervise(self) -> None:
        """Start again what is due, and see what works again."""
        now = time.monotonic()
        for entry in [entry for entry in self.restarts if entry[0] <= now]:
            self.restarts.remove(entry)
            entry[1]()
        for awaited in [awaited for awaited in self.awaited if awaited.is_back()]:
            self.awaited.remove(awaited)
            awaited.kill.back_after = time.monotonic() - awaited.kill.at

    def start_again(self, work: Callable[[], None]) -> None:
        """Start something again in a moment, as a supervisor does."""
        self.restarts.append((time.monotonic() + self.chance.uniform(0.2, 2.0), work))

    def left_processes(self) -> list[str]:
        """Return what nodes have started and left; to be asked when they have ended."""
        home = f"HOME={self.bench.estate.root}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                pid = int(path.parent.name)
                if home in path.read_bytes() + b"\0" and b"spawn_main" in command_of(pid):
                    found.append(f"process {pid}")
        return found

    # --- Kills -------------------------------------------------------------------------------------------------------

    def kill(self, kind: str) -> None:
        """Kill a process of a kind; waits for one to be there."""
        deadline = time.monotonic() + 60.0
        while not getattr(self, f"kill_{kind}")():
            if time.monotonic() > deadline:
                raise SystemExit(f"no process of the kind {kind!r} came for a minute")
            self.rest(0.02)

    def killed(self, kind: str, under_way: Sequence[RunInfo], is_back: Callable[[], bool]) -> None:
        """Note a kill."""
        made = Kill(kind=kind, at=time.monotonic(), under_way=tuple(run.id for run in under_way))
        self.kills.append(made)
        self.awaited.append(Awaited(kill=made, is_back=is_back))

    def kill_node(self) -> bool:
        """Kill a node; the processes of its runs notice by themselves."""
        alive = [node for node in self.nodes.values() if node.process.poll() is None]
        if not alive:
            return False
        victim = self.chance.choice(alive)
        working = [run for run in self.running() if run.claimed_by == victim.name]
        victim.kill9()
        self.start_again(lambda: self.start_node(victim.name))
        self.killed("node", working, lambda: self.is_node_up(victim))
        return True

    def is_node_up(self, before: NodeProcess) -> bool:
        """Tell whether another process has a name and takes runs."""
        now = self.nodes[before.name]
        return now is not before and now.said(f"node {now.name} runs")

    def kill_run(self) -> bool:
        """Kill the process of a run."""
        found = [
            (node, pid)
            for node in self.nodes.values()
            for pid in node.children()
            if is_leader(pid) and b"spawn_main" in command_of(pid)
        ]
        if not found:
            return False
        node, pid = self.chance.choice(found)
        working = [run for run in self.running() if run.claimed_by == node.name]
        if not working or not killed9(pid):
            return False
        # Which of the runs of its node it worked for, the process's name does not say: the first to change tells.
        before = {run.id: run.epoch for run in working}
        self.killed("run", working, lambda: self.has_moved(before))
        return True

    def has_moved(self, before: Mapping[str, int]) -> bool:
        """Tell whether one of these runs was claimed again or has ended."""
        with suppress(CatalogueUnreachableError):
            now = {run: Runs(self.bench.database).get(run) for run in before}
            return any(
                found is not None and (found.epoch > before[run] or found.state.is_over) for run, found in now.items()
            )
        return False

    def kill_index(self) -> bool:
        """Kill the process that projects the repository into the catalogue."""
        for node in self.nodes.values():
            for pid in node.children():
                if not is_leader(pid) and b"spawn_main" in command_of(pid) and killed9(pid):
                    self.killed("index", (), lambda: True)
                    return True
        return False

    def kill_notifier(self) -> bool:
        """Have something to tell, and kill the process that tells it."""
        if not any(run.state is RunState.QUEUED for run in self.list_of(NOBODY)):
            self.request(NOBODY, RunKind.BACKUP)
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            for node in self.nodes.values():
                for pid in node.children():
                    if b"drservice.notify" in command_of(pid) and killed9(pid):
                        self.killed("notifier", (), lambda: True)
                        return True
            self.rest(0.01)
        return False

    def list_of(self, service: str) -> Sequence[RunInfo]:
        """Return the newest runs of a service."""
        with suppress(CatalogueUnreachableError):
            return Runs(self.bench.database).list(service=service, limit=10)
        return ()

    def kill_web(self) -> bool:
        """Kill the pages."""
        if self.web is None or self.web.poll() is not None:
            return False
        self.web.kill()
        self.web.wait()
        self.start_again(self.start_web)
        self.killed("web", (), self.is_web_up)
        return True

    def is_web_up(self) -> bool:
        """Tell whether the pages answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:  # URLError is one
            return False

    def kill_backend(self) -> bool:
        """Kill one server process of the catalogue that serves a node or the pages."""
        working = self.running()
        try:
            with self.bench.database.connection() as connection:
                rows = connection.execute(
                    text(
                        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
                        " AND application_name = 'drservice' AND pid <> pg_backend_pid() ORDER BY pid"
                    )
                ).all()
        except CatalogueUnreachableError:
            return False
        if not rows or not killed9(self.chance.choice(rows)[0]):
            return False
        self.killed("backend", working, self.is_catalogue_up)
        return True

    def kill_catalogue(self) -> bool:
        """Kill the catalogue's server and all its processes."""
        if self.bench.catalogue_cluster.process is None:
            return False
        working = self.running()
        self.bench.catalogue_cluster.kill9()
        self.start_again(self.bench.catalogue_cluster.start)
        self.killed("catalogue", working, self.is_catalogue_up)
        return True

    def is_catalogue_up(self) -> bool:
        """Tell whether the catalogue answers and a node has been seen since it was away."""
        with suppress(CatalogueUnreachableError), self.bench.database.connection() as connection:
            return bool(
                connection.execute(
                    text("SELECT max(seen_at) > pg_postmaster_start_time() AND NOT pg_is_in_recovery() FROM host")
                ).scalar()
            )
        return False


def killed9(pid: int) -> bool:
    """Kill a process; ``False`` if it had ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
