"""Real nodes for tests: processes of ``drservice node`` over a small plant and a catalogue of its own.

Backups wait at a gate that the test opens: the archiver ships no WAL before, and a backup is not committed without its
WAL. What a test started is ended by its own pid.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from drservice import processes
from drservice.catalogue.database import Database, migrate, open_catalogue
from drservice.catalogue.runs import RunInfo, RunRequest, Runs
from drservice.jobs.queue import Queue
from drservice.model.points import RecoveryPoint
from drservice.model.runs import RunKind, RunState
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.walsocket import socket_path
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import SERVICE, TempEstate, wait_for

LEASE_SECONDS = 5


@dataclass(kw_only=True)
class NodeProcess:
    """One ``drservice node`` process with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, words: str) -> bool:
        return words in self.log.read_text(encoding="utf-8", errors="replace")

    def wait_said(self, words: str, timeout_seconds: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.said(words):
            is_over = self.process.poll() is not None and not self.said(words)
            assert not is_over, f"{self.name} ended before it said {words!r}:\n{self.log.read_text()[-6000:]}"
            assert time.monotonic() < deadline, f"{self.name} did not say {words!r}:\n{self.log.read_text()[-6000:]}"
            time.sleep(0.05)

    def children(self) -> list[int]:
        with suppress(FileNotFoundError):
            found = Path(f"/proc/{self.pid}/task").glob("*/children")
            return [int(pid) for path in found for pid in path.read_text().split()]
        return []

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self, timeout_seconds: float = 60.0) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)


@dataclass(kw_only=True)
class NodeBench:
    """A plant whose backups are held at a gate, a catalogue, and nodes."""

    plant: Cluster
    catalogue_cluster: Cluster
    estate: TempEstate
    database: Database
    folder: Path
    nodes: list[NodeProcess] = field(default_factory=list)

    @classmethod
    def make(cls, maker: ClusterMaker, folder: Path, **changes: Any) -> NodeBench:
        plant = maker.make(wal_segment_mb=1)
        estate = TempEstate.over(plant)
        estate.initialise()
        gate = plant.root / "gate"
        estate.archive_by(f"test -e {gate} && {estate.push_command()}")
        plant.start()
        plant.sql("create table orders (id int); insert into orders select generate_series(1, 100)")
        catalogue = maker.make()
        catalogue.start()
        url = f"postgresql://postgres@/postgres?host={catalogue.sock}"
        migrate(url)
        bench = cls(
            plant=plant,
            catalogue_cluster=catalogue,
            estate=estate,
            database=open_catalogue(url, pool_size=10),
            folder=folder,
        )
        Queue(bench.database).install()
        bench.configure(**changes)
        # A node's WAL helper would carry WAL past the gate as soon as it is there: nothing can listen at its place.
        processes.make_folder(bench.helper_place.parent)
        bench.helper_place.touch()
        return bench

    @property
    def helper_place(self) -> Path:
        """Where a WAL helper would listen; who takes away what lies there lets one."""
        service, component = self.estate.parts()
        return socket_path(self.estate.state, service.name, component.name)

    # --- configuration ---------------------------------------------------------------------------------------

    def configure(self, **service: Any) -> None:
        """Write the configuration anew, with what is given at the service; ``drain`` and ``notify`` go elsewhere."""
        document = json.loads(self.estate.config.read_text())
        own = f"postgresql://postgres@/postgres?host={self.catalogue_cluster.sock}"
        document["catalogue"] = service.pop("catalogue", own)
        document["web"] = {"listen": service.pop("listen", "127.0.0.1:8484")}
        document["notify"] = service.pop("notify", [])
        document["node"] = {"lease": f"{LEASE_SECONDS}s", "drain": service.pop("drain", "30s")}
        components = document["services"][SERVICE]["components"] | service.pop("components_added", {})
        document["services"][SERVICE] = {"components": components, **service}
        beside = self.estate.config.with_suffix(".new")
        beside.write_text(json.dumps(document, indent=1))
        beside.chmod(0o644)
        beside.rename(self.estate.config)

    # --- nodes -----------------------------------------------------------------------------------------------

    def start(self, name: str = "alpha", *, wait: bool = True, command: str = "node") -> NodeProcess:
        log = self.folder / f"{name}-{len(self.nodes)}.log"
        argv: list[str | Path] = [sys.executable, "-m", "drservice", "--config", self.estate.config]
        argv += [command, "--name", name]
        with log.open("wb") as stream:
            process = processes.start(
                argv,
                environment={**os.environ, "HOME": str(self.estate.root)},
                cwd=Path(__file__).parents[2],
                stdout=stream,
                stderr=stream,
            )
        node = NodeProcess(name=name, process=process, log=log)
        self.nodes.append(node)
        if wait:
            node.wait_said(f"node {name} runs")
        return node

    def close(self) -> None:
        """End every node and what it started."""
        for node in self.nodes:
            if node.process.poll() is None:
                with suppress(ProcessLookupError):
                    node.signal(signal.SIGCONT)
                for pid in node.children():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                node.kill9()
        self.database.close()
        self.estate.close()

    # --- runs ------------------------------------------------------------------------------------------------

    def open_gate(self) -> None:
        """Let the archiver ship WAL."""
        (self.plant.root / "gate").touch()

    def close_gate(self) -> None:
        (self.plant.root / "gate").unlink(missing_ok=True)

    def request(self, kind: RunKind = RunKind.BACKUP, **changes: Any) -> str:
        run = Queue(self.database).enqueue(RunRequest(service=SERVICE, kind=kind, requested_by="ops", **changes))
        assert run is not None
        return run

    def run(self, run: str) -> RunInfo:
        found = Runs(self.database).get(run)
        assert found is not None
        return found

    def wait_run(
        self, run: str, condition: Callable[[RunInfo], bool], what: str, timeout_seconds: float = 90.0
    ) -> RunInfo:
        deadline = time.monotonic() + timeout_seconds
        while not condition(found := self.run(run)):
            logs = "\n".join(node.log.read_text()[-3000:] for node in self.nodes)
            assert time.monotonic() < deadline, f"waited for {what}: {found}\n{logs}"
            time.sleep(0.05)
        return found

    def wait_state(self, run: str, state: RunState, timeout_seconds: float = 90.0) -> RunInfo:
        ended = self.wait_run(
            run, lambda found: found.state is state or found.state.is_over, state.value, timeout_seconds
        )
        assert ended.state is state, f"it ended otherwise: {ended}"
        return ended

    def wait_at_gate(self, run: str) -> RunInfo:
        """Wait until a backup has captured everything and waits for its WAL."""
        return self.wait_run(
            run, lambda found: str(found.progress.get("step", "")).startswith("wait for the WAL"), "the gate"
        )

    def kill_run_process(self, node: NodeProcess) -> None:
        """Kill the process of the run at work on a node, without warning; its progress is forgotten for the next."""
        (pid,) = [pid for pid in node.children() if b"spawn_main" in command_of(pid) and is_leader(pid)]
        with self.database.connection() as connection:
            connection.execute(text("UPDATE run SET progress = '{}' WHERE state = 'running'"))
        os.kill(pid, signal.SIGKILL)

    def points(self) -> list[RecoveryPoint]:
        with self.estate.plane() as plane:
            return list(plane.repository.points(self.estate.parts()[0].name).listing().points)

    def snapshots(self) -> list[SnapshotRecord]:
        service, component = self.estate.parts()
        with self.estate.plane() as plane:
            return list(plane.repository.snapshots(plane.repository.scope(service.name, component.name)).records)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_seconds: float = 60.0) -> None:
        wait_for(condition, what, timeout_seconds)

    def shift_clock(self, seconds: float) -> None:
        """Let the catalogue's clock run ahead by so much from now on."""
        with self.database.connection() as connection:
            connection.execute(
                text(
                    "CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
                    f" AS $$SELECT clock_timestamp() + interval '{seconds} seconds'$$"
                )
            )


def command_of(pid: int) -> bytes:
    """Return the words a process was started with; none if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_leader(pid: int) -> bool:
    """Tell whether a process has a session of its own, as those of runs have."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
