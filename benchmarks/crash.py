"""What a crash costs: a host is destroyed under load, and what it had promised is looked for elsewhere.

    python benchmarks/crash.py [--only stream-s3] [--repetitions 20] [--seed 7] [--output FILE]

Each repetition makes a cluster, its repository and a first snapshot, lets writers commit, and kills the server and what
ships its WAL at once (SIGKILL) at a random moment; the data directory is removed. A machine that never saw the plant,
with nothing but the address of the store and an identity, restores ``--to latest``. The writers live outside of what
dies and remember each commit from the moment its acknowledgement came: what the recovered database does not hold of
that was lost. The age of a loss is the time from the oldest lost acknowledgement to the kill. Each writer commits in
order: a row that is missing before one that is there would be damage, not loss, and ends the benchmark.

Prints a line per repetition and a table, and writes JSON. Times are of one run on one machine: compare within a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.doubles.cluster import Cluster, ClusterMaker, hand_over  # noqa: E402 - the tests' servers are in the checkout
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate  # noqa: E402 - as above
from tests.doubles.promises import (  # noqa: E402 - as above
    TABLE,
    Writers,
    age_of_loss,
    kill_at_once,
    require_in_order,
)
from tests.doubles.s3server import S3Server, rclone_server  # noqa: E402 - as above
from tests.faults.faultproxy import Behaviour, FaultProxy, fault_proxy  # noqa: E402 - as above

_PATIENCE_SECONDS = 60.0
_RECEIVER = "drservice_erp_database"
_FAILING = 0.1
"""The share of requests that the store which fails answers with 503."""
_SLOW_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How WAL is shipped, and to what kind of store."""

    name: str
    title: str
    mode: str
    store: str
    repetitions: int
    synchronous: bool = False
    pause_seconds: float = 0.0
    """What each of the writers waits between two commits."""
    load_seconds: tuple[float, float] = (3.0, 7.0)
    """The kill comes at a random moment of this span after the first commit."""
    settings: Mapping[str, str] = field(default_factory=dict)


SCENARIOS = (
    Scenario(name="stream-s3", title="stream, S3", mode="stream", store="s3", repetitions=20),
    Scenario(name="stream-slow", title="stream, S3 with 100 ms per PUT", mode="stream", store="slow", repetitions=5),
    Scenario(name="stream-failing", title="stream, S3 that fails 10 %", mode="stream", store="failing", repetitions=5),
    Scenario(name="stream-folder", title="stream, folder", mode="stream", store="folder", repetitions=5),
    Scenario(
        name="synchronous", title="synchronous, S3", mode="stream", store="s3", repetitions=5, synchronous=True,
        settings={"synchronous_standby_names": f"'{_RECEIVER}'"},
    ),
    Scenario(
        name="archive", title="archive_command, S3, archive_timeout 30 s", mode="archive", store="s3", repetitions=5,
        pause_seconds=0.05, load_seconds=(15.0, 45.0), settings={"archive_timeout": "30s"},
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one repetition found."""

    promised: int
    commits_per_second: float
    lost: int
    lost_seconds: float
    """From the oldest lost acknowledgement to the kill."""
    restore_seconds: float


class Bench:
    """The servers and folders of a run."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base = base
        self.maker = ClusterMaker(cache=base / "templates")
        self.random = random.Random(seed)
        (base / "templates").mkdir()
        self._runs = 0

    def repeat(self, scenario: Scenario) -> Outcome:
        """Build, load, destroy, recover, compare."""
        self._runs += 1
        with self._store(scenario) as (url, environment):
            cluster = self.maker.make(settings={"fsync": "on", "synchronous_commit": "on", **scenario.settings})
            try:
                return self._crash(scenario, cluster, url, environment)
            finally:
                self.maker.close()

    @contextlib.contextmanager
    def _store(self, scenario: Scenario) -> Iterator[tuple[str | None, Mapping[str, str]]]:
        if scenario.store == "folder":
            yield None, {}
            return
        with rclone_server(self.base / f"s3-{self._runs}") as server, contextlib.ExitStack() as stack:
            front = self._front(server, scenario.store, stack)
            server.make_bucket("plant")
            yield front.url_for("plant", "drservice"), server.environment
        shutil.rmtree(self.base / f"s3-{self._runs}")

    def _front(self, server: S3Server, store: str, stack: contextlib.ExitStack) -> S3Server:
        """Return the server as the plant sees it."""
        if store == "s3":
            return server
        proxy = stack.enter_context(fault_proxy(server.endpoint))
        if store == "slow":
            proxy.pause_seconds["PUT"] = _SLOW_SECONDS
        else:
            self._fail(proxy)
        return S3Server(
            endpoint=proxy.endpoint, make_bucket=server.make_bucket, plant=server.plant, environment=server.environment
        )

    def _fail(self, proxy: FaultProxy) -> None:
        dice = random.Random(self.random.random())
        proxy.reset(lambda *_: Behaviour.UNAVAILABLE if dice.random() < _FAILING else Behaviour.PASS)

    def _crash(self, scenario: Scenario, cluster: Cluster, url: str | None, environment: Mapping[str, str]) -> Outcome:
        estate = TempEstate.over(cluster, url=url, variables=environment)
        estate.wal_settings = {"mode": scenario.mode, "synchronous": scenario.synchronous}
        estate.write_configuration(estate.config)
        signer = estate.json("init")["signer"]
        estate.hand_over_repository()
        if scenario.mode == "archive":
            estate.archive_with_the_program()
        # Until a receiver is there, commits of the set-up must not wait for one.
        cluster.start([("synchronous_standby_names", "")] if scenario.synchronous else [])
        cluster.sql(TABLE)
        with self._shipping(estate, scenario) as groups:
            estate.json("backup", SERVICE)
            if scenario.synchronous:
                self._restart_synchronous(cluster)
            with Writers(dsn=cluster.dsn(), pause_seconds=scenario.pause_seconds) as writers:
                killed_at, seconds = self._load_and_kill(scenario, cluster, writers, groups)
        cluster.kill9()
        shutil.rmtree(cluster.data)
        found, restore_seconds = self._recover(estate, {signer["name"]: signer["key"]})
        lost, age = age_of_loss(writers.promised, found, killed_at)
        require_in_order(found)
        return Outcome(
            promised=len(writers.promised),
            commits_per_second=round(len(writers.promised) / seconds, 1),
            lost=lost,
            lost_seconds=round(age, 3),
            restore_seconds=round(restore_seconds, 2),
        )

    @contextlib.contextmanager
    def _shipping(self, estate: TempEstate, scenario: Scenario) -> Iterator[list[int]]:
        """Run the receiver where there is one; yields the process groups that die with the host."""
        if scenario.mode == "archive":
            yield []
            return
        log = (estate.root / "stream.log").open("wb")
        argv = [*PROGRAM, "--config", str(estate.config), "wal", "stream", SERVICE]
        with log, subprocess.Popen(
            argv, env={**os.environ, **estate.variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        ) as receiver:  # fmt: skip
            try:
                self._await(lambda: self._receivers(estate.cluster, "state = 'streaming'") == 1)
                yield [receiver.pid]
            finally:
                receiver.kill()

    def _restart_synchronous(self, cluster: Cluster) -> None:
        """Let commits wait for the repository from now on."""
        cluster.stop()
        cluster.start()
        self._await(lambda: self._receivers(cluster, "sync_state = 'sync'") == 1)

    def _receivers(self, cluster: Cluster, condition: str) -> int:
        return int(cluster.value(f"select count(*) from pg_stat_replication where {condition}"))

    def _load_and_kill(
        self, scenario: Scenario, cluster: Cluster, writers: Writers, groups: list[int]
    ) -> tuple[float, float]:
        self._await(lambda: len(writers.promised) > 0)
        begun = time.monotonic()
        time.sleep(self.random.uniform(*scenario.load_seconds))
        writers.require_all_at_work()
        children = cluster.children()
        assert cluster.process is not None
        killed_at = kill_at_once(cluster.process, children, groups)
        return killed_at, killed_at - begun

    def _recover(self, estate: TempEstate, signers: Mapping[str, str]) -> tuple[set[int], float]:
        elsewhere = estate.cluster.root / "elsewhere"
        elsewhere.mkdir()
        config = estate.write_configuration(
            elsewhere / "drservice.yaml", state=elsewhere / "state", signers=dict(signers)
        )
        hand_over(elsewhere)
        begun = time.monotonic()
        document = estate.json("restore", SERVICE, "--to", "latest", "--start", config=config)
        seconds = time.monotonic() - begun
        try:
            with psycopg.connect(document["environment"]["dsn"]) as connection:
                return {row[0] for row in connection.execute("select id from promises")}, seconds
        finally:
            estate.json("environment", "destroy", document["environment"]["id"], config=config)

    def _await(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {_PATIENCE_SECONDS:.0f} s in vain; the files are in {self.base}")
            time.sleep(0.02)


def summary(scenario: Scenario, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return a row of the table."""
    ages = [outcome.lost_seconds for outcome in outcomes]
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "repetitions": len(outcomes),
        "promised": sum(outcome.promised for outcome in outcomes),
        "commits_per_second": round(statistics.median(outcome.commits_per_second for outcome in outcomes), 1),
        "lost": sum(outcome.lost for outcome in outcomes),
        "lost_most": max(outcome.lost for outcome in outcomes),
        "lost_seconds_p50": round(statistics.median(ages), 3),
        "lost_seconds_most": max(ages),
        "restore_seconds": round(statistics.median(outcome.restore_seconds for outcome in outcomes), 2),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def main() -> None:
    """Run the scenarios and say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--repetitions", type=int, help="instead of 20 and 5")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="drservice-crash-"))
    base.chmod(0o755)
    bench = Bench(base, chosen.seed)
    rows: list[dict[str, Any]] = []
    for scenario in SCENARIOS:
        if chosen.only and scenario.name not in chosen.only:
            continue
        outcomes: list[Outcome] = []
        for number in range(chosen.repetitions or scenario.repetitions):
            outcome = bench.repeat(scenario)
            outcomes.append(outcome)
            print(
                f"{scenario.title} {number + 1}: {outcome.promised} promised ({outcome.commits_per_second:.0f}/s), "
                f"{outcome.lost} lost, the oldest {outcome.lost_seconds:.3f} s before the crash; "
                f"restored in {outcome.restore_seconds:.1f} s",
                flush=True,
            )
        rows.append(summary(scenario, outcomes))
    document = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), "seed": chosen.seed, "rows": rows}
    if chosen.output:
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(json.dumps({name: value for name, value in row.items() if name != "outcomes"}))
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
