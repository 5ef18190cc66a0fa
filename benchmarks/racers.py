"""The programs that race: each knows how to make its repository, and what to run for a job.

All encrypt, compress with zstd level 1, work with two processes and verify page checksums while they read.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import psycopg
from racecluster import Cluster
from racepeers import Bucket
from racewatch import Cost, quietly, timed

ROOT = Path(__file__).resolve().parents[1]
PASSPHRASE = "benchmark-benchmark-benchmark"
KINDS = ("put", "get", "head", "list", "delete")
ROWS = ("full", "unchanged", "restore", "delta", "incremental", "pitr", "push")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that was taken."""

    label: str
    cost: Cost
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A restore that ended in a server that answers."""

    placed_seconds: float
    """Until every file was in its place."""
    answering_seconds: float
    """Until the server had recovered and took connections that write."""
    cost: Cost
    phases: Mapping[str, float]
    fingerprint: str


class Asked:
    """Counts what the server of a bucket was asked for while a block ran; nothing for a folder."""

    def __init__(self, bucket: Bucket | None) -> None:
        self._bucket = bucket
        self.requests: Mapping[str, int] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is asked for during the block, by whomever."""
        if self._bucket is None:
            yield
            return
        before = self._bucket.requests()
        yield
        found = self._bucket.requests() - before
        self.requests = {"requests": found.total(), **{f"{kind}_requests": found[kind] for kind in KINDS}}


class Drservice:
    """This project, by its command line."""

    name = "drservice"
    rows: Collection[str] = ROWS

    def __init__(self, base: Path, cluster: Cluster, bucket: Bucket | None) -> None:
        self.base, self.cluster, self.bucket = base, cluster, bucket
        self.asked = Asked(bucket)
        self.config = base / "drservice.yaml"
        self.program = str(Path(sys.executable).parent / "drservice")

    @property
    def environment(self) -> Mapping[str, str]:
        """Return variables of every command."""
        credentials = self.bucket.environment if self.bucket else {}
        return {**credentials, "HOME": str(self.base), "PYTHONPATH": str(ROOT)}

    @property
    def archive_command(self) -> str:
        """Return what PostgreSQL runs for each segment: the client that ``drservice check`` recommends."""
        client = ROOT / "drservice" / "walclient" / "push.py"
        return f"{sys.executable} -I -S {client} --config {self.config} --service erp --socket {self._socket} %p"

    @property
    def _socket(self) -> Path:
        return self.base / "state" / "run" / "wal-erp-database.sock"

    @contextmanager
    def helping(self) -> Iterator[None]:
        """Run the helper that uploads WAL, as the server's user, for the block."""
        with (self.base / "helper.log").open("wb") as log:
            process = subprocess.Popen(
                [self.program, "--config", str(self.config), "wal", "helper", "erp"],
                env={**os.environ, **self.environment},
                cwd=self.base,
                user=self.cluster.user,
                group=self.cluster.user,
                extra_groups=None if self.cluster.user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 60
            while not self._socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"no helper:\n{(self.base / 'helper.log').read_text()}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait()

    def prepare(self) -> None:
        """Make keys, configuration and repository; have bytecode as an installed program has it."""
        compileall.compile_dir(ROOT / "drservice", quiet=1)
        self.cluster.own(self.base)
        for name in ("repo", "state"):
            self.cluster.own(self.base / name)
        identity = self._quietly("age-keygen").decode()
        (self.base / "identity.age").write_text(identity)
        (self.base / "identity.age").chmod(0o644)  # of a benchmark, for whoever restores
        recipient = next(line.split()[-1] for line in identity.splitlines() if "public key" in line)
        url = self.bucket.url("drservice") if self.bucket else f"file://{self.base}/repo"
        self.config.write_text(
            f"""version: 1
state_dir: {self.base}/state
repository: {{url: "{url}", recipients: [{recipient}], identity: "file:{self.base}/identity.age"}}
services:
  erp:
    components:
      database: {{kind: postgres, dsn: "host={self.cluster.sock} dbname=postgres user=postgres",
                 data_directory: {self.cluster.data}, method: local, workers: 2, compression_level: 1}}
"""
        )
        self._quietly(*self._command("init"))

    def backup(self, *, full: bool) -> Backup:
        """Take a backup; the first of a repository is full by itself."""
        del full
        cost, printed = self._timed(self._command("backup", "erp"))
        (snapshot,) = json.loads(printed)["snapshots"]
        return Backup(label=snapshot["snapshot"], cost=cost, phases=snapshot["phases"])

    def restore(self, label: str | None, into: Path, *, delta: bool) -> Restored:
        """Restore a snapshot, or everything up to the latest position, and wait for the server."""
        target = ("--to", "latest") if label is None else ("--snapshot", label)
        onto = ("--into", str(into), *(["--delta"] if delta else []))
        cost, printed = self._timed(self._command("restore", "erp", *target, *onto, "--start"))
        document = json.loads(printed)
        phases = document["phases"]
        behind = sum(phases[name] for name in ("start", "replay", "check"))
        fingerprint = self.cluster.fingerprint(document["environment"]["dsn"])
        self._quietly(*self._command("environment", "destroy", document["environment"]["id"]))
        return Restored(
            placed_seconds=cost.seconds - behind,
            answering_seconds=cost.seconds,
            cost=cost,
            phases=phases,
            fingerprint=fingerprint,
        )

    def push(self, segments: Sequence[Path]) -> None:
        """Archive segments that were held, while nobody is timed."""
        for segment in segments:
            command = [str(segment) if word == "%p" else word for word in self.archive_command.split()]
            quietly(command, user=self.cluster.user, folder=self.base)

    def stored(self) -> Path:
        """Return where backups lie, and nothing else of size but WAL."""
        return self.bucket.folder("drservice") if self.bucket else self.base / "repo"

    def is_wal(self, path: Path) -> bool:
        """Tell whether a file of the repository is WAL."""
        return "wal" in path.relative_to(self.stored()).parts

    def version(self) -> str:
        """Return which version it is."""
        return f"drservice {metadata.version('drservice')}"

    def _command(self, *arguments: str) -> list[str]:
        return [self.program, "--config", str(self.config), "--json", "--quiet", *arguments]

    def _timed(self, command: Sequence[str]) -> tuple[Cost, bytes]:
        with self.asked.counting():
            return timed(command, environment=self.environment, user=None, folder=self.base)

    def _quietly(self, *command: str) -> bytes:
        return quietly(command, environment=self.environment, folder=self.base)


class PgBackRest:
    """pgBackRest with bundles and block incrementals, its fastest way of doing the same."""

    name = "pgbackrest"
    rows: Collection[str] = ROWS

    def __init__(self, base: Path, cluster: Cluster, bucket: Bucket | None, *, program: Path) -> None:
        self.base, self.cluster, self.bucket, self.program = base, cluster, bucket, program
        self.asked = Asked(bucket)
        self.config = base / "pgbackrest.conf"

    @property
    def archive_command(self) -> str:
        """Return what PostgreSQL runs for each segment."""
        return f"{self.program} --config={self.config} --stanza=main archive-push %p"

    def prepare(self) -> None:
        """Make configuration and repository."""
        self.cluster.own(self.base)
        for name in ("repo", "log", "lock", "spool"):
            self.cluster.own(self.base / name)
        text = pgbackrest_configuration(
            self.base, self.program, data=self.cluster.data, sock=self.cluster.sock, bucket=self.bucket
        )
        self.config.write_text(text)
        self._quietly("stanza-create")

    @contextmanager
    def helping(self) -> Iterator[None]:
        """Run nothing: it starts what it needs by itself."""
        yield

    def backup(self, *, full: bool) -> Backup:
        """Take a full or incremental backup."""
        cost, _ = self._timed("backup", f"--type={'full' if full else 'incr'}")
        known = json.loads(self._quietly("info", "--output=json"))
        return Backup(label=known[0]["backup"][-1]["label"], cost=cost, phases={})

    def restore(self, label: str | None, into: Path, *, delta: bool) -> Restored:
        """Restore a backup, or everything up to the latest position, start the server and wait for it."""
        if not delta:
            self.cluster.own(into, mode=0o700)
        target = (
            ["--type=default"] if label is None else [f"--set={label}", "--type=immediate", "--target-action=promote"]
        )
        options = [f"--pg1-path={into}", "--archive-mode=off", *(["--delta"] if delta else [])]
        began = time.monotonic()
        cost, _ = self._timed("restore", *options, *target)
        placed = time.monotonic() - began
        started, fingerprint = recovered(self.cluster, into)
        return Restored(
            placed_seconds=cost.seconds,
            answering_seconds=cost.seconds + started,
            cost=cost,
            phases={"place": placed, "start and replay": started},
            fingerprint=fingerprint,
        )

    def push(self, segments: Sequence[Path]) -> None:
        """Archive segments that were held, while nobody is timed."""
        for segment in segments:
            self._quietly("archive-push", str(segment))

    def stored(self) -> Path:
        """Return where backups lie, and nothing else of size but WAL."""
        return self.bucket.folder("pgbackrest") if self.bucket else self.base / "repo"

    def is_wal(self, path: Path) -> bool:
        """Tell whether a file of the repository is WAL."""
        return path.relative_to(self.stored()).parts[0] == "archive"

    def version(self) -> str:
        """Return which version it is."""
        return quietly([str(self.program), "version"], folder=self.base).decode().strip()

    def _timed(self, command: str, *options: str) -> tuple[Cost, bytes]:
        with self.asked.counting():
            return timed(self._command(command, *options), environment={}, user=self.cluster.user, folder=self.base)

    def _quietly(self, command: str, *options: str) -> bytes:
        return quietly(self._command(command, *options), user=self.cluster.user, folder=self.base)

    def _command(self, command: str, *options: str) -> list[str]:
        return [str(self.program), f"--config={self.config}", "--stanza=main", command, *options]


def pgbackrest_configuration(
    base: Path, program: Path, *, data: Path, sock: Path, bucket: Bucket | None, asynchronous: bool = False
) -> str:
    """Return a configuration file: everything that makes it fast is on; ``asynchronous``: WAL is pushed ahead."""
    if bucket is None:
        place = [f"repo1-path={base}/repo"]
    else:
        place = [
            "repo1-type=s3",
            f"repo1-path=/{base.name}",
            f"repo1-s3-bucket={bucket.name}",
            f"repo1-s3-endpoint={bucket.address}",
            "repo1-s3-region=us-east-1",
            "repo1-s3-uri-style=path",
            f"repo1-s3-key={bucket.key}",
            f"repo1-s3-key-secret={bucket.secret}",
            f"repo1-storage-ca-file={bucket.certificate}",
        ]
    lines = [
        "[global]",
        f"cmd={program}",
        "repo1-cipher-type=aes-256-cbc",
        f"repo1-cipher-pass={PASSPHRASE}",
        "repo1-bundle=y",
        "repo1-block=y",
        "repo1-retention-full=99",
        "compress-type=zst",
        "compress-level=1",
        "process-max=2",
        "start-fast=y",
        f"log-path={base}/log",
        "log-level-file=off",
        "log-level-console=warn",
        f"lock-path={base}/lock",
        f"spool-path={base}/spool",
        *place,
        *(["[global:archive-push]", "archive-async=y"] if asynchronous else []),
        "[global:archive-get]",
        "archive-async=y",
        "[main]",
        f"pg1-path={data}",
        f"pg1-socket-path={sock}",
        "pg1-user=postgres",
    ]
    return "\n".join(lines) + "\n"


def recovered(cluster: Cluster, into: Path) -> tuple[float, str]:
    """Start a server on what was restored until it takes writes: how long that took, and what it holds."""
    sock = into.with_name(f"{into.name}-sock")
    if not sock.is_dir():
        cluster.own(sock, mode=0o700)
    began = time.monotonic()
    log = into.with_name(f"{into.name}.log")
    cluster.run("pg_ctl", "-D", into, "-l", log, "-s", "-W", "-o", f"-k {sock}", "start")
    dsn = f"host={sock} dbname=postgres user=postgres"
    _await_writable(dsn)
    started = time.monotonic() - began
    fingerprint = cluster.fingerprint(dsn)
    cluster.run("pg_ctl", "-D", into, "-s", "-w", "-m", "fast", "stop")
    return started, fingerprint


class Racer(Protocol):
    """What each program can do."""

    name: str
    asked: Asked
    rows: Collection[str]
    """What it takes part in."""

    @property
    def archive_command(self) -> str:
        """Return what PostgreSQL runs for each segment."""
        ...

    def helping(self) -> AbstractContextManager[None]:
        """Run what else is needed, for the block."""
        ...

    def prepare(self) -> None:
        """Make keys, configuration and repository."""
        ...

    def backup(self, *, full: bool) -> Backup:
        """Take a backup."""
        ...

    def restore(self, label: str | None, into: Path, *, delta: bool) -> Restored:
        """Restore a backup, or all there is, and wait for the server."""
        ...

    def push(self, segments: Sequence[Path]) -> None:
        """Archive segments that were held, while nobody is timed."""
        ...

    def stored(self) -> Path:
        """Return where backups lie, and nothing else of size but WAL."""
        ...

    def is_wal(self, path: Path) -> bool:
        """Tell whether a file of the repository is WAL."""
        ...

    def version(self) -> str:
        """Return which version it is."""
        ...


def _await_writable(dsn: str) -> None:
    """Wait until a server has recovered to the end and lets transactions write."""
    deadline = time.monotonic() + 600
    while True:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                row = connection.execute("select pg_is_in_recovery()").fetchone()
            if row == (False,):
                return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"the restored server does not come up: {error}") from error
        time.sleep(0.02)


def stored(racer: Racer) -> tuple[int, int]:
    """Return how many bytes and objects a repository holds without WAL; each object of a bucket was a request."""
    files = (path for path in racer.stored().rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files if not racer.is_wal(path)]
    return sum(sizes), len(sizes)
