"""Races the main job against pgBackRest: backup, restore and WAL of one PostgreSQL cluster, one after the other.

    make bench               (two rounds, about a quarter of an hour on two cores; ROUNDS=3)
    python benchmarks/race.py --small --rounds 1 --anyway       to try it
    python benchmarks/race.py --large --rounds 1 --stores directory --rows full unchanged
                             (20 GB, for the memory at ten times the size; 20 minutes, 40 GB of disk)

Makes a cluster of 2.2 GB with page checksums (``racecluster.py``) and, in each round, lets each program do the same
with a fresh repository: the first backup, one more of the unchanged cluster, a restore of the first, a restore onto
that copy after one in a hundred of its pages was overwritten, a backup after pgbench has run, a recovery through 1 GB
of WAL, and the archiving of 200 segments that are ready. The order turns from round to round (A B, B A). First in a
folder, then in a bucket (``rclone serve s3`` behind TLS), where the requests that each asked for are counted from the
server's log, and barman-cloud takes part in the first backup and its restore (``racebarman.py``).

Equal for all: zstd level 1, encryption, two processes, page checksums verified, files read once before, nothing else
dirty (a checkpoint and a switch of segments before each backup, so that neither waits for the other's), whole processes
timed, each with its own ``archive_command`` while it is timed. Both make their files durable: pgBackRest by fsync of
each file, drservice by fsync in its repository and syncfs after a restore.

A restore is told twice. *Placed*: until every file is there and durable, which is where pgBackRest's restore ends;
drservice goes on, so that its phases behind it are taken off. *Answering*: until a server on it has recovered and takes
connections that write; for pgBackRest the start of a server is added.

What others used of the processors in the moment before each job is on record; where it was too much, the result says
that it is none (``quiet``) unless ``--anyway`` was given. Numbers of one machine: compare within a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from racebarman import BarmanCloud
from racecluster import LARGE, REFERENCE, SMALL, Cluster, Size, remove, warm
from racepeers import Bucket, bucket_server, cache_folder, fetch_barman, fetch_pgbackrest, machine
from racepush import PushRace
from racers import ROWS, Backup, Drservice, PgBackRest, Racer, Restored, stored
from racewatch import Cost, busy_share

STORES = ("directory", "s3")
_DAMAGED_SHARE = 0.01
_PAGE_BYTES = 8192
_QUIET_SHARE = 0.08
"""What others may use of the processors for a result to count."""
_EXPECTED_SECONDS = {"full": 20, "unchanged": 12, "restore": 30, "delta": 25, "incremental": 40, "pitr": 90, "push": 60}
_CLUSTER_SECONDS = 60


# --- What was measured --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Results:
    """Every measurement, by store, row and program."""

    samples: dict[str, dict[str, dict[str, list[dict[str, float]]]]] = field(default_factory=dict)
    foreign: list[float] = field(default_factory=list)

    def add(self, store: str, row: str, name: str, cost: Cost | None, **more: float) -> None:
        """Note one run."""
        sample = {**asdict(cost), **more} if cost is not None else more
        if cost is not None:
            self.foreign.append(cost.foreign_share)
        self.samples.setdefault(store, {}).setdefault(row, {}).setdefault(name, []).append(sample)
        shown = " ".join(f"{key} {value:,.2f}" for key, value in sample.items() if "seconds" in key)
        say(f"  {store:9} {row:11} {name:10} {shown}")

    def summary(self) -> dict[str, object]:
        """Return medians with minimum and maximum, and ours as a share of the peer's."""
        return {
            store: {row: _row_summary(programs) for row, programs in rows.items()}
            for store, rows in self.samples.items()
        }

    @property
    def is_quiet(self) -> bool:
        """Tell whether the machine was ours."""
        return statistics.median(self.foreign) <= _QUIET_SHARE if self.foreign else False


def _row_summary(programs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, object]:
    medians = {
        name: {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for name, samples in programs.items()
    }
    ours = medians.get("drservice", {})
    return {
        "programs": {
            name: {
                **{f"median_{key}": _rounded(value) for key, value in medians[name].items()},
                **{
                    f"{word}_{key}": _rounded(choose(sample[key] for sample in samples))
                    for key in samples[0]
                    if "seconds" in key
                    for word, choose in (("min", min), ("max", max))
                },
            }
            for name, samples in programs.items()
        },
        "ratios": {
            f"{key} to {name}": _rounded(ours[key] / values[key])
            for name, values in medians.items()
            if name != "drservice"
            for key in ours.keys() & values.keys()
            if values[key]
        },
    }


def _rounded(value: float) -> float:
    return int(value) if float(value).is_integer() and value > 100 else round(value, 3)


def say(text: str) -> None:
    """Tell how it goes."""
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Clock:
    """Tells how far the race is, by what each step is expected to take and what those before it took."""

    expected: float
    done: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, title: str, seconds: float) -> Iterator[None]:
        """Announce a step and count it when it ends."""
        passed = time.monotonic() - self.began
        pace = passed / self.done if self.done else 1.0
        left = (self.expected - self.done) * pace
        say(f"[{passed / 60:4.1f} min, about {left / 60:.1f} min left] {title}")
        yield
        self.done += seconds


# --- The race -----------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Round:
    """One round on one store: fresh repositories, all rows."""

    store: str
    base: Path
    cluster: Cluster
    racers: Sequence[Racer]
    bucket: Bucket | None
    pushes: PushRace
    results: Results
    held: list[Path] = field(default_factory=list)
    first: dict[str, Backup] = field(default_factory=dict)
    stored: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run(self, rows: Sequence[str], clock: Clock, scale: float) -> None:
        """Do the rows asked for, in the order that they need."""
        steps: Mapping[str, Callable[[], None]] = {
            "full": partial(self._backups, "full"),
            "unchanged": partial(self._backups, "unchanged"),
            "restore": self._restores,
            "delta": self._deltas,
            "incremental": self._incrementals,
            "pitr": self._recoveries,
            "push": self._pushes,
        }
        with ExitStack() as stack:
            for racer in self.racers:
                racer.prepare()
                stack.enter_context(racer.helping())
            stack.callback(self.cluster.archive_by, None)
            for row in ROWS:
                if row in rows:
                    with clock.step(f"{self.store}: {row}", _EXPECTED_SECONDS[row] * scale):
                        steps[row]()
        for racer in self.racers:
            remove(self._place(racer, "restored"))

    def _place(self, racer: Racer, name: str) -> Path:
        return self.base / f"{name}-{racer.name}"

    def _taking(self, row: str) -> list[Racer]:
        return [racer for racer in self.racers if row in racer.rows]

    def _backups(self, row: str) -> None:
        for racer in self._taking(row):
            self.cluster.archive_by(racer.archive_command)
            self.cluster.settle()
            self.cluster.warm()
            backup = racer.backup(full=row == "full")
            size, objects = stored(racer)
            known_size, known_objects = self.stored.get(racer.name, (0, 0))
            self.stored[racer.name] = size, objects
            added = {"stored_bytes": size - known_size, "stored_objects": objects - known_objects}
            self.results.add(self.store, row, racer.name, backup.cost, **added, **racer.asked.requests)
            if backup.phases:
                say(f"    {_phases(backup.phases)}")
            self.first.setdefault(racer.name, backup)
        self.cluster.archive_by(None)

    def _restores(self) -> None:
        for racer in self._taking("restore"):
            self._restore("restore", racer, self.first[racer.name].label, self._place(racer, "restored"), delta=False)

    def _deltas(self) -> None:
        for racer in self._taking("delta"):
            into = self._place(racer, "restored")
            damage(into, self.cluster.relation_files())
            warm(into)
            self._restore("delta", racer, self.first[racer.name].label, into, delta=True)

    def _incrementals(self) -> None:
        transactions = self.cluster.load()
        say(f"    {transactions} transactions")
        self._backups("incremental")

    def _recoveries(self) -> None:
        written = self.cluster.write_wal()
        self.cluster.settle()
        segments = self.cluster.take_held()
        say(f"    {written / 1e6:.0f} MB of WAL; {len(segments)} segments are given to both")
        for racer in self.racers:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda segment, racer=racer: racer.push([segment]), segments))
        for racer in self.racers:
            into = self._place(racer, "recovered")
            self._restore("pitr", racer, None, into, delta=False)
            remove(into)

    def _restore(self, row: str, racer: Racer, label: str | None, into: Path, *, delta: bool) -> None:
        warm(racer.stored())
        os.sync()
        restored: Restored = racer.restore(label, into, delta=delta)
        expected = self.cluster.fingerprint()
        if restored.fingerprint != expected:
            raise SystemExit(f"{racer.name} restored {restored.fingerprint} instead of {expected}: no race is won so")
        self.results.add(
            self.store,
            row,
            racer.name,
            restored.cost,
            placed_seconds=restored.placed_seconds,
            answering_seconds=restored.answering_seconds,
            **racer.asked.requests,
        )
        say(f"    {_phases(restored.phases)}")

    def _pushes(self) -> None:
        self.pushes.server()
        jobs = {"drservice": self.pushes.drservice, "pgbackrest": self.pushes.pgbackrest}
        for racer in self._taking("push"):
            os.sync()
            self.results.add(self.store, "push", racer.name, None, **jobs[racer.name](self.bucket))


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items() if isinstance(seconds, float))


def damage(folder: Path, files: Sequence[str]) -> None:
    """Overwrite one page in a hundred, the same pages in each copy."""
    chance = random.Random(7)
    for name in files:
        path = folder / name
        pages = path.stat().st_size // _PAGE_BYTES if path.exists() else 0
        chosen = [page for page in range(pages) if chance.random() < _DAMAGED_SHARE]
        if chosen:
            with path.open("r+b") as stream:
                for page in chosen:
                    stream.seek(page * _PAGE_BYTES)
                    stream.write(chance.randbytes(_PAGE_BYTES))
    os.sync()


def race(arguments: argparse.Namespace, size: Size, work: Path) -> dict[str, object]:
    """Make the cluster, run all rounds, and return the document."""
    program = fetch_pgbackrest(arguments.peers)
    barman = fetch_barman(arguments.peers) if "s3" in arguments.stores else None
    results = Results()
    scale = size.scale / REFERENCE.scale if size is LARGE else 1.0 if size is REFERENCE else 0.3
    rows = {store: [row for row in _rows_of(store) if row in arguments.rows] for store in arguments.stores}
    per_round = sum(_EXPECTED_SECONDS[row] for chosen in rows.values() for row in chosen)
    clock = Clock(expected=(_CLUSTER_SECONDS + per_round * arguments.rounds) * scale)
    cluster = Cluster(work / "cluster", size)
    pushes = PushRace(work / "push", size.segments, program)
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        with clock.step("make the cluster", _CLUSTER_SECONDS * scale):
            stack.callback(pushes.close)
            stack.callback(cluster.stop)
            cluster.make()
        source_bytes = cluster.source_bytes()
        say(f"    {source_bytes / 1e9:.2f} GB")
        for number in range(arguments.rounds):
            for store in arguments.stores:
                with ExitStack() as inner:
                    base = work / f"{store}-{number}"
                    cluster.own(base, mode=0o755)
                    bucket = inner.enter_context(bucket_server(base)) if store == "s3" else None
                    racers = make_racers(base, cluster, bucket, program, barman)[:: -1 if number % 2 else 1]
                    one = Round(
                        store=store,
                        base=base,
                        cluster=cluster,
                        racers=racers,
                        bucket=bucket,
                        pushes=pushes,
                        results=results,
                    )
                    one.run(rows[store], clock, scale)
                    versions |= {racer.name: racer.version() for racer in racers}
                remove(base)
        versions["postgres"] = cluster.sql("show server_version")
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quiet": results.is_quiet,
        "foreign_share": {
            "median": round(statistics.median(results.foreign), 3),
            "max": round(max(results.foreign), 3),
        },
        "machine": machine(),
        "versions": versions,
        "rounds": arguments.rounds,
        "source_bytes": source_bytes,
        "size": asdict(size),
        "seconds": round(time.monotonic() - clock.began),
        "stores": results.summary(),
        "samples": results.samples,
    }


def _rows_of(store: str) -> tuple[str, ...]:
    """Return what is raced on a store: on a bucket only what touches it."""
    return ROWS if store == "directory" else ("full", "unchanged", "restore", "incremental", "push")


def make_racers(base: Path, cluster: Cluster, bucket: Bucket | None, program: Path, barman: Path | None) -> list[Racer]:
    """Return the programs with repositories of their own."""
    racers: list[Racer] = [
        Drservice(base / "drservice", cluster, bucket),
        PgBackRest(base / "pgbackrest", cluster, bucket, program=program),
    ]
    if bucket is not None and barman is not None:
        racers.append(BarmanCloud(base / "barman", cluster, bucket, root=barman))
    return racers


def main() -> None:
    """Race and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--small", action="store_true", help="a cluster of a tenth, to try it")
    sizes.add_argument("--large", action="store_true", help="a cluster of ten times the size, for the memory")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--peers", type=Path, default=cache_folder(), help="where fetched peers are kept")
    parser.add_argument("--work", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--anyway", action="store_true", help="count the result although the machine was busy")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.rows != ["full"] and "full" not in arguments.rows:
        parser.error("every row needs `full` before it")
    share = busy_share(3.0)
    if share > _QUIET_SHARE and not arguments.anyway:
        raise SystemExit(
            f"others use {share:.0%} of the processors: wait, or give --anyway for numbers that mean little"
        )
    arguments.peers.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="drservice-race-", dir=arguments.work))
    work.chmod(0o755)
    try:
        result = race(arguments, SMALL if arguments.small else LARGE if arguments.large else REFERENCE, work)
    finally:
        remove(work)
    text = json.dumps(result, indent=1)
    print(json.dumps({key: result[key] for key in ("quiet", "foreign_share", "versions", "stores")}, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{text}\n")
    if not result["quiet"] and not arguments.anyway:
        raise SystemExit("others used the processors meanwhile: this is no result")


if __name__ == "__main__":
    main()
