"""Lives through a day of 200 services with three nodes and counts every slot: lost, doubled, late.

    make bench-load          (about a quarter of an hour; --hours 2 for a look)

The catalogue is a real PostgreSQL server (fsync on), the nodes are real ``drservice node`` processes. Time is the
catalogue's ``drservice_now()``: shortly before each instant at which something starts the clock is put there, and then
it runs as fast as any clock until everything has ended, so that what is measured in an instant is real time, and only
the empty minutes between are left out. The day is the one on which Europe's clocks go back. What has to happen is
counted by ``loadplan.py`` minute by minute, without the program's code.

Real: catalogue, nodes, scheduler, queue, leases, projection, and backups and verifications of eight services (each a
process over a real folder and repository). Not real: the runs of the others, which ``loadnode.py`` lets sleep for a
moment where a process would work; their databases do not exist. Meanwhile a node is killed and started again, another
drains and is started again, and the catalogue is stopped at once and started again.

Prints a table, writes JSON, and ends with 1 if a goal is missed. Numbers of one machine: compare within a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from loadplan import HOSTS, PlannedService, Slot, configuration, plan_services, slots_between

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drservice.catalogue.database import migrate, open_catalogue  # noqa: E402 - the tests' servers are in the checkout
from drservice.clock import SystemClock  # noqa: E402 - as above
from drservice.jobs.queue import Queue  # noqa: E402 - as above
from drservice.model.estate import SignerSettings  # noqa: E402 - as above
from drservice.objectstore.directory import DirectoryStore  # noqa: E402 - as above
from drservice.repository.hostkey import make_host_key  # noqa: E402 - as above
from drservice.repository.keys import make_identity  # noqa: E402 - as above
from drservice.repository.repository import create_repository  # noqa: E402 - as above
from drservice.settings.loading import load  # noqa: E402 - as above
from drservice.wiring.data_plane import open_data_plane  # noqa: E402 - as above
from tests.doubles.cluster import Cluster, ClusterMaker  # noqa: E402 - as above

BEGIN = datetime(2026, 10, 24, 12, 0, 30, tzinfo=UTC)
LEASE = "6s"
RUNS_PER_NODE = 16
LEAD_SECONDS = 1.5
"""From a jump to the next slot: nodes look at the catalogue's clock every second."""
LONGEST_SECONDS = 90.0
"""For everything that started in an instant to end; then the benchmark fails."""
GOAL_CLAIM_SECONDS = 1.0
KIB, MIB = 1024, 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")


# --- The world -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class NodeProcess:
    """One node, and what it has used in all its lives."""

    name: str
    process: subprocess.Popen[bytes]
    own_seconds: float = 0.0
    with_children_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(kw_only=True)
class World:
    """Catalogue, repository, configuration and nodes in one temporary folder."""

    base: Path
    cluster: Cluster
    services: Sequence[PlannedService]
    control: psycopg.Connection[Any] | None = None
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    used: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))

    @property
    def url(self) -> str:
        """Return the catalogue's URL."""
        return f"postgresql://postgres@/postgres?host={self.cluster.sock}"

    @property
    def config(self) -> Path:
        """Return the configuration file."""
        return self.base / "drservice.yaml"

    @property
    def journal(self) -> Path:
        """Return where stand-ins note what they did."""
        return self.base / "journal"

    def prepare(self) -> None:
        """Make repository, folders, configuration and the catalogue's schema."""
        secret, recipient = make_identity()
        (self.base / "identity.age").write_text(secret + "\n")
        (self.base / "identity.age").chmod(0o600)
        for name in ("state", "repository"):
            (self.base / name).mkdir()
        for service in self.services:
            if service.is_real:
                folder = self.base / "folders" / service.name
                folder.mkdir(parents=True)
                for number in range(5):
                    (folder / f"label-{number}.txt").write_text(f"{service.name} {number}\n" * 100)
        document = configuration(
            self.services,
            base=str(self.base),
            catalogue=self.url,
            recipient=recipient,
            runs=RUNS_PER_NODE,
            lease=LEASE,
        )
        self.config.write_text(json.dumps(document, indent=1))
        key = make_host_key(self.base / "state")
        store = DirectoryStore(self.base / "repository")
        own = SignerSettings(name=key.host, public_key=key.public_key)
        create_repository(store, signer=key, signers=[own], clock=SystemClock())
        store.close()
        program: list[str | Path] = [sys.executable, "-m", "drservice", "--config", self.config, "evidence", "begin"]
        subprocess.run(program, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        migrate(self.url)
        database = open_catalogue(self.url)
        Queue(database).install()
        database.close()
        self.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def sql(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the catalogue over a connection that is kept, and made again after the server was away."""
        if self.control is None or self.control.closed:
            self.control = self.cluster.connect()
        cursor = self.control.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def now(self) -> datetime:
        """Return the time by the catalogue's clock."""
        found = self.sql("SELECT drservice_now()")[0][0]
        assert isinstance(found, datetime)
        return found

    def put_clock(self, instant: datetime) -> None:
        """Let the catalogue's clock go on from an instant."""
        seconds = (instant - datetime.now(UTC)).total_seconds()
        self.sql(
            "CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
            f" AS $$SELECT clock_timestamp() + interval '{seconds:.6f} seconds'$$"
        )

    def start_node(self, name: str) -> None:
        """Start a node under a name."""
        with (self.base / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, ROOT / "benchmarks" / "loadnode.py", "--config", self.config, "node", "--name", name],
                env={
                    **os.environ,
                    "HOME": str(self.base),
                    "PYTHONPATH": str(ROOT),
                    "DRSERVICE_LOAD_JOURNAL": str(self.journal),
                    "DRSERVICE_LOAD_REAL": ",".join(item.name for item in self.services if item.is_real),
                },
                stdout=log,
                stderr=log,
            )
        self.nodes[name] = NodeProcess(name=name, process=process)

    def wait_nodes(self) -> None:
        """Wait until every node has its name."""
        self.wait(
            lambda: (
                self.sql(
                    "SELECT count(*) FROM host WHERE incarnation <> '' AND seen_at > drservice_now() - "
                    "interval '5 seconds'"
                )[0][0]
                == len(HOSTS)
            ),
            "the nodes",
        )

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = LONGEST_SECONDS) -> None:
        """Wait until a condition holds.

        Raises:
            SystemExit: it did not in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {seconds:.0f} s for {what}; the nodes' logs are in {self.base}")
            time.sleep(0.03)

    def measure(self, name: str) -> None:
        """Add to what a node has used so far."""
        node = self.nodes[name]
        stat = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
        own, children = (int(stat[11]) + int(stat[12])) / _TICKS, (int(stat[13]) + int(stat[14])) / _TICKS
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * KIB
        total = self.used[name]
        total[0] += own - node.own_seconds
        total[1] += own + children - node.with_children_seconds
        total[2] = max(total[2], peak)
        node.own_seconds, node.with_children_seconds = own, own + children

    def close(self) -> None:
        """End the nodes."""
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        for node in self.nodes.values():
            try:
                node.process.wait(40)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
        if self.control is not None:
            self.control.close()


# --- The day ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something that happens in an instant, shortly after its slots have come."""

    what: str
    act: Callable[[World], None]


def wait_at_work(world: World, name: str) -> None:
    """Wait until a node has a run, if it gets one at all in this instant."""
    until = time.monotonic() + 3.0
    query = "SELECT count(*) FROM run WHERE state = 'running' AND claimed_by = %s"
    while not world.sql(query, name)[0][0] and time.monotonic() < until:
        time.sleep(0.005)


def kill_node(world: World) -> None:
    """Kill a node at work and start it again after two seconds, as a supervisor does."""
    wait_at_work(world, "beta")
    world.measure("beta")
    world.nodes["beta"].process.kill()
    world.nodes["beta"].process.wait()
    time.sleep(2.0)
    world.start_node("beta")


def drain_node(world: World) -> None:
    """Let a node drain, and start it again."""
    wait_at_work(world, "gamma")
    world.measure("gamma")
    world.nodes["gamma"].process.send_signal(signal.SIGTERM)
    world.nodes["gamma"].process.wait(60)
    world.start_node("gamma")


def restart_catalogue(world: World) -> None:
    """Stop the catalogue without asking anybody, and start it again after three seconds."""
    wait_at_work(world, "alpha")
    world.cluster.stop("immediate")
    time.sleep(3.0)
    world.cluster.start()


DISTURBANCES = {
    0.3: Disturbance("a node is killed (-9) and started again after 2 s", kill_node),
    0.5: Disturbance("the catalogue is stopped at once and started again after 3 s", restart_catalogue),
    0.7: Disturbance("a node drains and is started again", drain_node),
}


def live(world: World, slots: Sequence[Slot]) -> dict[datetime, str]:
    """Live through every instant; returns those that were disturbed, and how."""
    instants = sorted({slot.at for slot in slots} | {slot.not_before for slot in slots})
    planned = {instants[int(part * len(instants))]: found for part, found in DISTURBANCES.items()}
    disturbed: dict[datetime, str] = {}
    due = Counter(slot.at for slot in slots)
    expected = 0
    for number, instant in enumerate(instants):
        expected += due[instant]
        world.put_clock(instant - timedelta(seconds=LEAD_SECONDS))
        time.sleep(LEAD_SECONDS)
        if instant in planned:
            disturbed[instant] = planned[instant].what
            planned[instant].act(world)
        world.wait(lambda: is_quiet(world, expected), f"the runs of {instant}")  # noqa: B023 - called at once
        if instant in planned:
            world.wait_nodes()
        if number % 12 == 0:
            print(f"{instant:%d %H:%M}  {expected:5d} of {len(slots)} slots", file=sys.stderr, flush=True)
    return disturbed


def is_quiet(world: World, expected: int) -> bool:
    """Tell whether every slot up to now has its run, and all that may run has ended."""
    try:
        ((there, open_now),) = world.sql(
            "SELECT count(*) FILTER (WHERE scheduled_for IS NOT NULL), count(*) FILTER (WHERE state IN"
            " ('queued', 'running') AND coalesce((parameters->>'not_before')::timestamptz, '-infinity')"
            " <= drservice_now()) FROM run"
        )
    except psycopg.OperationalError:
        return False
    return bool(there >= expected and open_now == 0)


# --- What came of it -------------------------------------------------------------------------------------------------


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p99 and the longest, in seconds."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    return {
        name: round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 4)
        for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def judge(world: World, slots: Sequence[Slot], disturbed: dict[datetime, str]) -> dict[str, Any]:
    """Compare the catalogue, the journal and the repository with what had to happen."""
    rows = world.sql(
        "SELECT id, scheduled_for, service, kind, state, epoch, requested_at, started_at, ended_at FROM run"
        " WHERE requested_by = 'schedule' AND scheduled_for IS NOT NULL"
    )
    runs: dict[tuple[datetime, str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        runs[row[1], row[2], row[3]].append(row)
    wanted = {(slot.at, slot.service, slot.kind): slot for slot in slots}
    lines = [line.split() for line in world.journal.read_text().splitlines()]
    executed = Counter(line[1] for line in lines if line[0] == "end")
    points = points_of(world)
    real_backups: Counter[str] = Counter()
    early: list[str] = []
    ticks: list[float] = []
    calm: list[float] = []
    stormy: list[float] = []
    slot_to_claim: list[float] = []
    delayed: list[float] = []
    states: Counter[str] = Counter()
    for key, slot in wanted.items():
        for _, at, service, kind, state, _, requested, started, _ in runs.get(key, []):
            states[state] += 1
            if started is None:
                continue
            if service in points and kind == "backup" and state == "succeeded":
                real_backups[service] += 1
            if started < slot.not_before:
                early.append(f"{service} {kind} {at}")
            if slot.not_before != at:
                delayed.append((started - slot.not_before).total_seconds())
                continue
            seconds = (started - requested).total_seconds()
            (stormy if at in disturbed else calm).append(seconds)
            if at not in disturbed:
                ticks.append((requested - at).total_seconds())
                slot_to_claim.append((started - at).total_seconds())
    return {
        "slots": {
            "expected": len(wanted),
            "queued": sum(len(runs.get(key, ())) for key in wanted),
            "claimed": len(calm) + len(stormy) + len(delayed),
            **{state: states[state] for state in ("succeeded", "partial", "failed", "cancelled", "missed")},
            "lost": sum(key not in runs for key in wanted),
            "unfinished": states["queued"] + states["running"],
            "doubled": sum(len(found) > 1 for found in runs.values()) + sum(times > 1 for times in executed.values()),
            "nobody_asked_for": sum(key not in wanted for key in runs),
            "before_their_time": len(early),
            "claimed_again": sum(row[5] > 1 for row in rows),
        },
        "commits": {
            "real_backups": sum(real_backups.values()),
            "recovery_points": sum(points.values()),
            "differ": sorted(name for name in points if points[name] != real_backups[name]),
        },
        "seconds": {
            "slot_to_tick": quantiles(ticks),
            "tick_to_claim": quantiles(calm),
            "slot_to_claim": quantiles(slot_to_claim),
            "tick_to_claim_while_disturbed": quantiles(stormy),
            "end_of_window_to_claim": quantiles(delayed),
        },
        "disturbances": {at.isoformat(): what for at, what in disturbed.items()},
    }


def points_of(world: World) -> dict[str, int]:
    """Count the recovery points of each real service, in the repository itself."""
    estate = load(world.config).estate
    with open_data_plane(estate) as plane:
        return {
            item.name: len(plane.repository.points(estate.service(item.name).name).listing().points)
            for item in world.services
            if item.is_real
        }


def statements(world: World) -> dict[str, Any]:
    """Return how many statements the catalogue has carried out, and which took longest together."""
    ((calls, seconds),) = world.sql("SELECT sum(calls)::bigint, sum(total_exec_time) / 1000 FROM pg_stat_statements")
    rows = world.sql(
        "SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 110), calls, total_exec_time / 1000"
        " FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 12"
    )
    return {
        "calls": int(calls),
        "seconds": round(seconds, 1),
        "longest": [{"query": row[0], "calls": row[1], "seconds": round(row[2], 2)} for row in rows],
    }


def missed_goals(result: dict[str, Any]) -> list[str]:
    """Return the goals that were not reached."""
    slots, seconds = result["slots"], result["seconds"]
    problems = [
        f"{slots[name]} slots {name.replace('_', ' ')}"
        for name in ("lost", "doubled", "missed", "failed", "unfinished", "nobody_asked_for", "before_their_time")
        if slots[name]
    ]
    if slots["claimed"] != slots["expected"]:
        problems.append(f"{slots['claimed']} of {slots['expected']} slots claimed")
    if result["commits"]["differ"]:
        problems.append(f"backups and recovery points differ: {result['commits']['differ']}")
    if not seconds["tick_to_claim"]["p99"] <= GOAL_CLAIM_SECONDS:
        problems.append(f"tick to claim p99 {seconds['tick_to_claim']['p99']} s, not within {GOAL_CLAIM_SECONDS} s")
    return problems


def print_table(result: dict[str, Any]) -> None:
    """Print what was measured, for people."""
    for group in ("slots", "commits"):
        for name, value in result[group].items():
            print(f"{group + ' ' + name.replace('_', ' '):45} {value}")
    for name, value in result["seconds"].items():
        print(f"{name.replace('_', ' ') + ', p50 / p99 / max s':45} {value['p50']} / {value['p99']} / {value['max']}")
    for name, value in result["nodes"].items():
        print(f"{'node ' + name:45} {value}")
    print(f"{'statements in the catalogue':45} {result['statements']['calls']} ({result['statements']['seconds']} s)")
    print(f"{'the day took':45} {result['lived_seconds']} s for {result['hours']} hours")


def main() -> int:
    """Live through the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the folder with the nodes' logs")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="drs-load-"))
    base.chmod(0o755)
    maker = ClusterMaker(cache=base)
    settings = {"fsync": "on", "max_connections": "200", "shared_buffers": "'64MB'"}
    cluster = maker.make(settings={**settings, "shared_preload_libraries": "pg_stat_statements"})
    cluster.start()
    world = World(base=base, cluster=cluster, services=plan_services(options.services))
    try:
        world.prepare()
        result = one_day(world, options.hours)
    finally:
        world.close()
        maker.close()
        if not options.keep:
            shutil.rmtree(base, ignore_errors=True)
    print_table(result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    for problem in result["missed_goals"]:
        print(f"MISSED: {problem}")
    return 1 if result["missed_goals"] else 0


def one_day(world: World, hours: float) -> dict[str, Any]:
    """Start the nodes, live through the hours, and return what came of it."""
    world.put_clock(BEGIN)
    for name in HOSTS:
        world.start_node(name)
    world.wait_nodes()
    schedules = sum(len(service.schedules) for service in world.services)
    world.wait(
        lambda: world.sql("SELECT count(*) FROM timetable")[0][0] >= schedules, "the first look at all schedules"
    )
    after, until = world.now(), BEGIN + timedelta(hours=hours)
    slots = sorted(slot for service in world.services for slot in slots_between(service, after, until))
    slots = [slot for slot in slots if slot.not_before <= until]
    world.sql("SELECT pg_stat_statements_reset()")
    for name in HOSTS:
        world.measure(name)
    world.used.clear()
    began = time.monotonic()
    disturbed = live(world, slots)
    lived = time.monotonic() - began
    for name in HOSTS:
        world.measure(name)
    result = {
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "services": len(world.services),
        "hours": hours,
        "lived_seconds": round(lived, 1),
        **judge(world, slots, disturbed),
        "nodes": {
            name: {
                "processor_seconds": round(used[0], 1),
                "with_children_processor_seconds": round(used[1], 1),
                "peak_mib": round(used[2] / MIB, 1),
            }
            for name, used in sorted(world.used.items())
        },
        "statements": statements(world),
    }
    result["missed_goals"] = missed_goals(result)
    return result


if __name__ == "__main__":
    sys.exit(main())
