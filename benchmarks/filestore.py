"""Races the filestore component against restic and borg: first backup, nothing changed, restore, one after the other.

    python benchmarks/filestore.py --rounds 3 --output benchmarks/results/filestore.json

Makes 40,000 documents (2.3 GB, log-normal sizes, 60 % of them incompressible) named by their SHA-1 and, in each
round, lets every program do the same work on the same disk, encryption on for all, whole processes timed. The order
turns from round to round (A B C, C B A). What a job reads is read once before it: the system remembers of one
program's files and not of another's (drservice tells it not to keep packs), and nobody shall be the one who waits for
the disk. drservice runs as a process of its own through the interface of the component, without the command line and
without PostgreSQL, because the others know neither rows nor clusters; its restore checks every document against its
name and makes it durable. The others leave that to the system, so what it takes after they have ended is measured as
well (``durable_seconds``): a restore is done when the power may fail. Peers come from Debian's archive, into a
temporary folder, unless they are named. Nothing that a run made is deleted before the end: ext4 avoids inodes that
were freed a moment ago, and whoever ran next would pay for it. Memory is made ready as in ``racewatch``. Numbers of one
run on one machine: compare within a run, never across machines.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from racewatch import ready_memory

ROOT = Path(__file__).resolve().parents[1]
FILES = 40_000
TOTAL_BYTES = 2_300_000_000
INCOMPRESSIBLE = 0.6
JOBS = ("first", "unchanged", "restore")
WORDS = ("Stückliste", "Auftrag", "Lieferung", "Menge", "Preis", "Artikel", "Kunde", "quality", "order", "invoice")
ARCHIVES = {
    "trixie": ["restic"],
    "bookworm": ["borgbackup", "python3-msgpack", "libxxhash0", "python3-packaging"],
}


# --- The data ---------------------------------------------------------------------------------------------------


def make_filestore(root: Path, files: int, total_bytes: int) -> None:
    """Write documents as Odoo does, the same for the same numbers, and make them look old."""
    chance = random.Random(42)
    sizes = [chance.lognormvariate(9.8, 1.4) for _ in range(files)]
    scale = total_bytes / sum(sizes)
    text = " ".join(f"{chance.choice(WORDS)}{chance.randrange(9999)}" for _ in range(400_000)).encode()
    for number in range(256):
        (root / f"{number:02x}").mkdir(parents=True)
    for number, size in enumerate(sizes):
        length = int(size * scale) + 1
        if chance.random() < INCOMPRESSIBLE:
            content = chance.randbytes(length)
        else:
            begin = chance.randrange(len(text))
            content = (b"%d " % number + text[begin:] + text * (length // len(text) + 1))[:length]
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        path = root / digest[:2] / digest
        path.write_bytes(content)
        os.utime(path, (1.7e9, 1.7e9))


# --- The programs -----------------------------------------------------------------------------------------------


class Drservice:
    """This project, one process per job (``filestorejob.py``), with its bytecode at hand as where it is installed."""

    name = "drservice"

    def __init__(self, base: Path, source: Path) -> None:
        self.base = base
        self.source = source
        base.mkdir()

    def command(self, job: str) -> list[str]:
        """Return what to run and time."""
        return [sys.executable, str(ROOT / "benchmarks/filestorejob.py"), job, str(self.base), str(self.source)]

    def environment(self) -> Mapping[str, str]:
        """Return variables of the process."""
        return {"PYTHONPATH": str(ROOT)}

    def prepare(self) -> None:
        """Make the repository."""
        compileall.compile_dir(ROOT / "drservice", quiet=1)
        prepare_drservice(self.base)
        names = (str(path.relative_to(self.source)) for path in self.source.rglob("*") if path.is_file())
        (self.base / "wanted").write_text("\n".join(names))

    def restored(self) -> Path:
        """Return where documents were restored to."""
        return self.base / "out"


class Restic:
    """restic with its defaults: encryption, compression ``auto``."""

    name = "restic"

    def __init__(self, base: Path, source: Path, program: Path) -> None:
        self.base = base
        self.source = source
        self.program = program
        base.mkdir()

    def _restic(self, *arguments: str) -> list[str]:
        return [str(self.program), "--quiet", "-r", f"{self.base}/repo", *arguments]

    def command(self, job: str) -> list[str]:
        """Return what to run and time."""
        if job == "restore":
            return self._restic("restore", "latest", "--target", f"{self.base}/out")
        return self._restic("backup", str(self.source))

    def environment(self) -> Mapping[str, str]:
        """Return variables of the process."""
        return {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": f"{self.base}/cache"}

    def prepare(self) -> None:
        """Make the repository."""
        run_quietly(self._restic("init"), self.environment(), self.base)

    def restored(self) -> Path:
        """Return where documents were restored to."""
        return self.base / "out" / self.source.relative_to("/")


class Borg:
    """borg with encryption and zstd level 1."""

    name = "borg"

    def __init__(self, base: Path, source: Path, program: list[str], variables: Mapping[str, str]) -> None:
        self.base = base
        self.source = source
        self.program = program
        self.variables = variables
        self.archives = 0
        (base / "out").mkdir(parents=True)

    def command(self, job: str) -> list[str]:
        """Return what to run and time."""
        if job == "restore":
            return [*self.program, "extract", f"{self.base}/repo::{self.archives}"]
        self.archives += 1
        return [
            *self.program,
            "create",
            "--compression",
            "zstd,1",
            f"{self.base}/repo::{self.archives}",
            str(self.source),
        ]

    def environment(self) -> Mapping[str, str]:
        """Return variables of the process."""
        return {**self.variables, "BORG_PASSPHRASE": "benchmark", "BORG_BASE_DIR": f"{self.base}/home"}

    def prepare(self) -> None:
        """Make the repository."""
        command = [*self.program, "init", "--encryption", "repokey-blake2", f"{self.base}/repo"]
        run_quietly(command, self.environment(), self.base)

    def restored(self) -> Path:
        """Return where documents were restored to."""
        return self.base / "out" / self.source.relative_to("/")


Racer = Drservice | Restic | Borg


def run_quietly(command: list[str], variables: Mapping[str, str], folder: Path) -> None:
    """Run a command; its output is told only if it fails."""
    done = subprocess.run(
        command, env={**os.environ, **variables}, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed ({done.returncode}):\n{done.stdout}{done.stderr}")


def fetch_peers(folder: Path) -> None:
    """Download the peers' packages with apt, touching nothing of the system, and unpack them."""
    for suite, packages in ARCHIVES.items():
        place = folder / suite
        for name in ("lists/partial", "archives/partial"):
            (place / name).mkdir(parents=True)
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (place / "sources.list").write_text(f"deb [signed-by={keyring}] http://deb.debian.org/debian {suite} main\n")
        options = {
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": "/nonexistent",
            "Dir::State::lists": place / "lists",
            "Dir::Cache": place,
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
        run_quietly([*apt, "update"], {}, place)
        run_quietly([*apt, "download", *packages], {}, place)
        for package in place.glob("*.deb"):
            run_quietly(["dpkg", "-x", str(package), str(folder / "peers")], {}, place)


def peers_below(folder: Path) -> dict[str, Callable[[Path, Path], Racer]]:
    """Return the peers that were unpacked into a folder."""
    python = ["/usr/bin/python3", str(folder / "usr/bin/borg")]
    variables = {
        "PYTHONPATH": str(folder / "usr/lib/python3/dist-packages"),
        "LD_LIBRARY_PATH": str(folder / "usr/lib/x86_64-linux-gnu"),
    }
    return {
        "restic": partial(Restic, program=folder / "usr/bin/restic"),
        "borg": partial(Borg, program=python, variables=variables),
    }


# --- Our side ---------------------------------------------------------------------------------------------------


def prepare_drservice(base: Path) -> None:
    """Make a repository and the keys of a host."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # not timed

    from drservice.clock import SystemClock  # noqa: PLC0415  # not timed
    from drservice.objectstore.directory import DirectoryStore  # noqa: PLC0415  # not timed
    from drservice.repository.envelope import HostKey  # noqa: PLC0415  # not timed
    from drservice.repository.keys import make_identity  # noqa: PLC0415  # not timed
    from drservice.repository.repository import create_repository  # noqa: PLC0415  # not timed

    (base / "repo").mkdir()
    secret, recipient = make_identity()
    (base / "identity").write_text(f"{secret}\n")
    (base / "recipient").write_text(recipient)
    key = Ed25519PrivateKey.generate()
    (base / "host").write_bytes(key.private_bytes_raw())
    host = HostKey("bench", key)
    create_repository(DirectoryStore(base / "repo"), signer=host, signers=[], clock=SystemClock())


# --- The race ---------------------------------------------------------------------------------------------------


def timed(racer: Racer, job: str, source: Path) -> dict[str, float]:
    """Run one job and return wall and processor seconds of the whole process with its children.

    ``durable_seconds`` (of restores) is the wall time until what was restored is on the disk.
    """
    for path in (racer.base / "repo" if job == "restore" else source).rglob("*"):
        if path.is_file():
            path.read_bytes()
    os.sync()
    ready_memory()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = racer.command(job)
    folder = racer.base / "out" if isinstance(racer, Borg) else racer.base
    began = time.monotonic()
    run_quietly(command, racer.environment(), folder)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = {"seconds": round(seconds, 3), "processor_seconds": round(processor, 3)}
    if job == "restore":
        began_sync = time.monotonic()
        os.sync()
        result["durable_seconds"] = round(seconds + time.monotonic() - began_sync, 3)
    return result


def check_restored(source: Path, restored: Path) -> None:
    """Compare names and sizes: a fast restore of something else is no victory."""
    there = {str(path.relative_to(restored)): path.stat().st_size for path in restored.rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(source)): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    if there != wanted:
        raise SystemExit(f"{restored} does not hold what was backed up")


def race(
    makers: Mapping[str, Callable[[Path, Path], Racer]], source: Path, work: Path, rounds: int
) -> dict[str, object]:
    """Run all rounds and return every measurement and the medians."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {job: {name: [] for name in makers} for job in JOBS}
    stored: dict[str, int] = {}
    for number in range(rounds):
        order = list(makers)[:: -1 if number % 2 else 1]
        racers = {name: makers[name](work / f"{name}-{number}", source) for name in order}
        for racer in racers.values():
            racer.prepare()
        for job in JOBS:
            for name in order:
                runs[job][name].append(timed(racers[name], job, source))
                print(f"round {number + 1}  {job:10} {name:10} {runs[job][name][-1]}", file=sys.stderr)
        for name, racer in racers.items():
            check_restored(source, racer.restored())
            repository = (path for path in (racer.base / "repo").rglob("*") if path.is_file())
            stored[name] = sum(path.stat().st_size for path in repository)
    return {"stored_bytes": stored, "jobs": {job: summary(results) for job, results in runs.items()}}


def summary(results: Mapping[str, list[dict[str, float]]]) -> dict[str, object]:
    """Return medians with minimum and maximum, and ours as a share of each peer's."""
    rows: dict[str, object] = {}
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        rows[name] = {
            "median_seconds": statistics.median(seconds),
            "min_seconds": min(seconds),
            "max_seconds": max(seconds),
            **{f"median_{what}": statistics.median(run[what] for run in runs) for what in runs[0] if what != "seconds"},
        }
    ratios = {
        f"{label}to {name}": round(
            statistics.median(run[what] for run in results["drservice"]) / statistics.median(run[what] for run in runs),
            3,
        )
        for name, runs in results.items()
        for what, label in (("seconds", ""), ("durable_seconds", "durable, "))
        if name != "drservice" and what in runs[0]
    }
    return {"programs": rows, "drservice": ratios}


def main() -> None:
    """Make the data, fetch the peers, race, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--bytes", type=int, default=TOTAL_BYTES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="a folder with unpacked packages of the peers")
    parser.add_argument("--source", type=Path, help="a filestore to use instead of a made one")
    parser.add_argument("--work", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="drservice-bench-", dir=arguments.work))
    try:
        source = arguments.source or work / "filestore"
        if arguments.source is None:
            make_filestore(source, arguments.files, arguments.bytes)
        if arguments.peers is None:
            fetch_peers(work)
        peers = peers_below(arguments.peers or work / "peers")
        result = {
            "files": arguments.files,
            "source_bytes": sum(path.stat().st_size for path in source.rglob("*") if path.is_file()),
            "cores": os.cpu_count(),
            "rounds": arguments.rounds,
            **race({"drservice": Drservice, **peers}, source, work, arguments.rounds),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
