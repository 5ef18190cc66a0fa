"""Times the WAL receiver: how old the oldest byte is that is not in the store, catching up, memory, cost to commits.

    python benchmarks/stream.py [--seconds 20] [--rounds 5] [--rounds-apart 20] [--backlog-mb 1024]
                                [--idle-seconds 130] [--output FILE]

A real server under pgbench, ``drservice wal stream`` as a process of its own, ``rclone serve s3`` on loopback, with
TLS because pgBackRest wants it; it neither logs its requests nor reads its folders again for each. The age is taken
from outside, many times a second: the server's flushed position against what the receiver has reported. What commits
pay is compared in turns (A B C A B C) with archive_command alone, and with pgBackRest's asynchronous archiving into
the same bucket: first while everything shares all processors, then with two machines on one, as far as processors go.
The database, its clients and what archives for it have one half of them, the store the other, and the receiver runs on
the database's half or on the store's. Numbers of one run on one machine: compare within a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psycopg
from racepeers import Bucket, bucket_server, cache_folder, fetch_pgbackrest
from racewatch import quietly

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from streampeer import AsyncArchiver  # noqa: E402 - it uses the tests' servers, too

from tests.doubles.cluster import Cluster, ClusterMaker  # noqa: E402 - the tests' servers are in the checkout
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate  # noqa: E402 - as above
from tests.doubles.walstreams import REPORTED  # noqa: E402 - as above

_PATIENCE_SECONDS = 600.0
_SAMPLE_SECONDS = 0.004
_IDLE_BYTES = 1 << 20
"""The end of an idle server's WAL waits for a minute."""
_SETTINGS = {
    "fsync": "on",
    "shared_buffers": "'256MB'",
    "max_wal_size": "'8GB'",
    "min_wal_size": "'2GB'",
    "checkpoint_timeout": "'1h'",
    "archive_mode": "on",
    "archive_command": "''",
    "max_connections": "50",
    "autovacuum": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """Which processors the database's machine has, and which the store's: the same ones, or halves."""

    database: frozenset[int]
    store: frozenset[int]

    @classmethod
    def shared(cls) -> Processors:
        """Return all of them for both."""
        every = frozenset(os.sched_getaffinity(0))
        return cls(database=every, store=every)

    @classmethod
    def apart(cls) -> Processors:
        """Return a half for each."""
        every = sorted(os.sched_getaffinity(0))
        if len(every) < 2:
            raise SystemExit("one processor cannot be two machines: --rounds-apart 0")
        return cls(database=frozenset(every[: len(every) // 2]), store=frozenset(every[len(every) // 2 :]))


@contextlib.contextmanager
def kept_to(processors: frozenset[int]) -> Iterator[None]:
    """Let this process, and what it starts during the block, run on these alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(kw_only=True)
class Ages:
    """How old the oldest byte was that was flushed and not reported durable, in seconds, sample by sample."""

    dsn: str
    ages: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pending: deque[tuple[float, int]] = deque()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self._over.wait(_SAMPLE_SECONDS):
                row = connection.execute(
                    f"select (pg_current_wal_flush_lsn() - '0/0')::bigint, ({REPORTED} - '0/0')::bigint",
                ).fetchone()
                if row is None or row[1] is None:
                    continue
                now = time.monotonic()
                flushed, durable = row
                if not pending or flushed > pending[-1][1]:
                    pending.append((now, flushed))
                while pending and pending[0][1] <= durable:
                    pending.popleft()
                self.ages.append(now - pending[0][0] if pending else 0.0)

    def summary(self) -> dict[str, float]:
        """Return quantiles in milliseconds."""
        ordered = sorted(self.ages)
        at = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)  # noqa: E731 - three uses
        return {"p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "most_ms": at(1.0), "samples": len(ordered)}


class Bench:
    """One server, one bucket."""

    def __init__(self, base: Path, cluster: Cluster, estate: TempEstate, bucket: Path, processors: Processors) -> None:
        self.base, self.cluster, self.estate, self.bucket = base, cluster, estate, bucket
        self.processors = processors

    @contextlib.contextmanager
    def receiver(self, *, beside_store: bool = False, from_disk: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """Run the receiver for the block, from when it streams, on the database's machine or on the store's.

        There it must not see the database's files, which on this one machine it would.
        """
        self.estate.wal_settings = {"mode": "both", "from_disk": from_disk and not beside_store}
        self.estate.write_configuration(self.estate.config)
        argv = [*PROGRAM, "--config", str(self.estate.config), "wal", "stream", SERVICE]
        side = self.processors.store if beside_store else self.processors.database
        with (self.base / "stream.log").open("ab") as log, kept_to(side):
            process = subprocess.Popen(
                argv, env={**os.environ, **self.estate.variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.wait(lambda: self.flushed_by_receiver() > 0)
            yield process
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            if status:
                raise SystemExit(f"the receiver ended with {status}: {(self.base / 'stream.log').read_text()[-2000:]}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def flushed_by_receiver(self) -> int:
        """Return what the receiver has reported; 0 while it has not."""
        return int(self.cluster.value(f"select coalesce(({REPORTED} - '0/0')::bigint, 0)"))

    def position(self) -> int:
        """Return where the server's WAL ends."""
        return int(self.cluster.value("select (pg_current_wal_flush_lsn() - '0/0')::bigint"))

    def pgbench(self, seconds: int, clients: int = 4) -> float:
        """Run pgbench's own load and return its transactions per second."""
        done = self.cluster.run(
            "pgbench", "-n", "-T", str(seconds), "-c", str(clients), "-h", self.cluster.sock, "-U", "postgres",
            "postgres", timeout_seconds=seconds + 120,
        )  # fmt: skip
        if done.status:
            raise SystemExit(done.stderr.decode())
        line = next(line for line in done.stdout.decode().splitlines() if line.startswith("tps ="))
        return float(line.split()[2])

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {_PATIENCE_SECONDS:.0f} s in vain; the files are in {self.base}")
            time.sleep(0.02)

    def objects(self) -> int:
        """Return how many pieces, segments and clocks the bucket holds."""
        return sum(1 for path in (self.bucket).rglob("*") if path.is_file() and "/s/" in str(path))

    # --- what is measured -----------------------------------------------------------------------------------

    def load(self, seconds: int) -> dict[str, Any]:
        """Measure what the receiver costs, then ages under the same load: asking for them costs transactions, too."""
        with self.receiver() as process:
            told = self.cost(seconds, process)
            with Ages(dsn=self.cluster.dsn()) as ages:
                self.pgbench(seconds)
            return told | {"age": ages.summary(), "receiver_peak_mb": round(peak_kb(process.pid) / 1024, 1)}

    def load_apart(self, seconds: int, *, beside_store: bool = False, from_disk: bool = True) -> dict[str, Any]:
        """Measure what the receiver costs on one of the two machines."""
        with self.receiver(beside_store=beside_store, from_disk=from_disk) as process:
            return self.cost(seconds, process)

    def cost(self, seconds: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Measure transactions, and what a receiver takes for them."""
        self.await_receiver()
        begin, cpu = self.position(), cpu_seconds(process.pid)
        tps = self.pgbench(seconds)
        return {
            "tps": round(tps, 1),
            "wal_mb_per_second": round((self.position() - begin) / 1e6 / seconds, 1),
            "receiver_cpu_seconds_per_second": round((cpu_seconds(process.pid) - cpu) / seconds, 2),
        }

    def round(self, number: int, seconds: int, peer: AsyncArchiver) -> dict[str, Any]:
        """Measure all three, each round with another one first: tables grow, and the first turn meets the smallest."""
        return self._in_turns(
            number,
            {
                "receiver": lambda: self.load(seconds),
                "archive_command": lambda: {"archive_command_tps": self.archive_only(seconds)},
                "pgbackrest": lambda: {"pgbackrest_tps": self.peer_archives(seconds, peer)},
            },
        )

    def round_apart(self, number: int, seconds: int, peer: AsyncArchiver) -> dict[str, Any]:
        """Measure the receiver on either machine, one on the database's that reads no files, pgBackRest, and nobody."""
        return self._in_turns(
            number,
            {
                "beside_store": lambda: {"beside_store": self.load_apart(seconds, beside_store=True)},
                "beside_database": lambda: {"beside_database": self.load_apart(seconds)},
                "streamed": lambda: {"streamed": self.load_apart(seconds, from_disk=False)},
                "pgbackrest": lambda: {"pgbackrest_tps": self.peer_archives(seconds, peer)},
                "nobody": lambda: {"nobody_tps": round(self.pgbench(seconds), 1)},
            },
        )

    def _in_turns(self, number: int, turns: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
        names = list(turns)
        begin = number % len(names)
        told: dict[str, Any] = {"first": names[begin]}
        for name in (*names[begin:], *names[:begin]):
            self.settle()
            told |= turns[name]()
        return told

    def await_receiver(self) -> None:
        """Let the receiver ship what its slot kept while others archived: that is no work of this turn."""
        end = self.position()
        self.wait(lambda: self.flushed_by_receiver() >= end - _IDLE_BYTES)
        time.sleep(1.0)

    def settle(self) -> None:
        """Leave no turn the work of the one before: segments that nobody archived, pages that were written to.

        And give all of them segments to write over. The receiver's slot keeps what was not streamed, so that whoever
        came behind its turn found some, and everybody else, itself included, had to make new ones, 16 MB of zeros each.
        """
        self._archive_by("/bin/true")
        ready = self.cluster.data / "pg_wal" / "archive_status"
        self.wait(lambda: not any(ready.glob("*.ready")))
        self._archive_by("")
        with self.receiver():
            self.await_receiver()
        self.cluster.sql("checkpoint")

    def archive_only(self, seconds: int) -> float:
        """Return the transactions per second with archive_command alone."""
        self._archive_by(self.estate.push_command())
        try:
            return round(self.pgbench(seconds), 1)
        finally:
            self._archive_by("")

    def peer_archives(self, seconds: int, peer: AsyncArchiver) -> float:
        """Return the transactions per second while pgBackRest archives ahead."""
        self._archive_by(peer.archive_command)
        try:
            return round(self.pgbench(seconds), 1)
        finally:
            self._archive_by("")

    def _archive_by(self, command: str) -> None:
        text = command.replace("'", "''")
        self.cluster.sql(f"alter system set archive_command = '{text}'")
        self.cluster.sql("select pg_reload_conf()")

    def catch_up(self, backlog_bytes: int) -> dict[str, Any]:
        """Measure how fast a backlog goes up."""
        begin = self.position()
        rows = int(self.cluster.value("select count(*) from pgbench_accounts"))
        first = 0
        while self.position() - begin < backlog_bytes:  # as a batch job does; pgbench's own load writes too little
            self.cluster.sql(
                f"update pgbench_accounts set abalance = abalance + 1 where aid > {first} and aid <= {first + 50_000}"
            )
            first = (first + 50_000) % rows
        target = self.position()
        started = time.monotonic()
        with self.receiver() as process:
            streaming = time.monotonic()
            first = self.flushed_by_receiver()
            self.wait(lambda: self.flushed_by_receiver() >= target - (16 << 20))
            seconds = time.monotonic() - streaming
            megabytes = (target - (16 << 20) - first) / 1e6
            return {
                "backlog_mb": round((target - begin) / 1e6),
                "start_seconds": round(streaming - started, 2),
                "seconds": round(seconds, 2),
                "mb_per_second": round(megabytes / seconds, 1),
                "cpu_seconds": round(cpu_seconds(process.pid), 2),
                "receiver_peak_mb": round(peak_kb(process.pid) / 1024, 1),
            }

    def idle(self, seconds: int) -> dict[str, float]:
        """Count what a server stores per minute that does nothing but beat."""
        with self.receiver():
            end = self.position()
            self.wait(lambda: self.flushed_by_receiver() >= end)  # what the turns before left is no idle server's
            time.sleep(3)
            before, begin = self.objects(), time.monotonic()
            while time.monotonic() - begin < seconds:
                self.cluster.sql(
                    "begin read write; set local synchronous_commit = local;"
                    " select pg_logical_emit_message(true, 'drservice', 'heartbeat'); commit"
                )
                time.sleep(1.0)
            return {
                "seconds": seconds,
                "objects": self.objects() - before,
                "objects_per_minute": round((self.objects() - before) * 60 / seconds, 2),
            }


@contextlib.contextmanager
def prepared(
    peers: Path, *, scale: int, seconds: int, processors: Processors | None = None
) -> Iterator[tuple[Bench, Bucket, AsyncArchiver]]:
    """Make server, bucket, repository and pgBackRest's stanza, and segments to write over; a failure leaves its files.

    Args:
        peers: where pgBackRest is kept once fetched.
        scale: of pgbench's tables.
        seconds: of a turn: as long a load makes the segments.
        processors: that the two machines have; all are shared if none are named.
    """
    processors = processors or Processors.shared()
    peers.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="drservice-stream-"))
    base.chmod(0o755)
    (base / "templates").mkdir()
    maker = ClusterMaker(cache=base / "templates")
    try:
        cluster = maker.make(settings=_SETTINGS)
        program = fetch_pgbackrest(peers)
        with contextlib.ExitStack() as stack:
            with kept_to(processors.store):
                bucket = stack.enter_context(bucket_server(base, is_counting=False))
            stack.enter_context(kept_to(processors.database))
            estate = TempEstate.over(cluster, url=bucket.url("drservice"), variables=bucket.environment)
            estate.wal_settings = {"mode": "both"}
            estate.write_configuration(estate.config)
            estate.json("init")
            estate.hand_over_repository()
            cluster.start()
            cluster.pgbench_init(scale)
            bench = Bench(base, cluster, estate, bucket.folder("drservice"), processors)
            peer = AsyncArchiver(base=base / "pgbackrest", program=program, cluster=cluster)
            peer.prepare(bucket)
            bench.pgbench(seconds)
            yield bench, bucket, peer
    finally:
        maker.close()
    shutil.rmtree(base, ignore_errors=True)


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_kb(pid: int) -> int:
    """Return the highest resident size of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def ratio(rounds: list[dict[str, Any]], other: str, *, of: str | None = None) -> float:
    """Return the transactions with the receiver as a share of the other's, by medians.

    Args:
        rounds: what was measured.
        other: key of the other's.
        of: key of the receiver's turn where there are several.
    """
    ours = statistics.median((row if of is None else row[of])["tps"] for row in rounds)
    return round(ours / statistics.median(row[other] for row in rounds), 3)


def measure_shared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare while everything shares all processors; measure catching up and idleness."""
    document: dict[str, Any] = {"made_at": _now()}
    with prepared(chosen.peers, scale=chosen.scale, seconds=chosen.seconds) as (bench, _, peer):
        rounds = []
        for number in range(chosen.rounds):
            rounds.append(bench.round(number, chosen.seconds, peer))
            print(json.dumps(rounds[-1]), flush=True)
        document["load"] = rounds
        document["pgbackrest"] = quietly([str(peer.program), "version"], folder=bench.base).decode().strip()
        document["tps_to_archive_command"] = ratio(rounds, "archive_command_tps")
        document["tps_to_pgbackrest"] = ratio(rounds, "pgbackrest_tps")
        document["catch_up"] = bench.catch_up(chosen.backlog_mb << 20)
        print(json.dumps(document["catch_up"]), flush=True)
        if chosen.idle_seconds:
            document["idle"] = bench.idle(chosen.idle_seconds)
    return document


def measure_apart(peers: Path, *, scale: int, seconds: int, rounds: int) -> dict[str, Any]:
    """Compare with two machines on one."""
    processors = Processors.apart()
    told: list[dict[str, Any]] = []
    with prepared(peers, scale=scale, seconds=seconds, processors=processors) as (bench, _, peer):
        for number in range(rounds):
            told.append(bench.round_apart(number, seconds, peer))
            print(json.dumps(told[-1]), flush=True)
    return {
        "made_at": _now(),
        "processors": [len(processors.database), len(processors.store)],
        "rounds": told,
        "beside_store_to_pgbackrest": ratio(told, "pgbackrest_tps", of="beside_store"),
        "beside_database_to_pgbackrest": ratio(told, "pgbackrest_tps", of="beside_database"),
        "streamed_to_pgbackrest": ratio(told, "pgbackrest_tps", of="streamed"),
    }


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="of load in each turn")
    parser.add_argument("--rounds", type=int, default=5, help="0: only apart, beside what --output has")
    parser.add_argument("--rounds-apart", type=int, default=20, help="with two machines on one; 0: not measured")
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--backlog-mb", type=int, default=1024)
    parser.add_argument("--idle-seconds", type=int, default=130, help="0: not measured")
    parser.add_argument("--peers", type=Path, default=cache_folder(), help="where pgBackRest is kept once fetched")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    document: dict[str, Any] = {}
    if chosen.rounds:
        document = measure_shared(chosen)
    elif chosen.output and chosen.output.exists():
        document = json.loads(chosen.output.read_text())
    if chosen.rounds_apart:
        document["apart"] = measure_apart(
            chosen.peers, scale=chosen.scale, seconds=chosen.seconds, rounds=chosen.rounds_apart
        )
    if chosen.output:
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
