"""Times the archiving of many segments that are ready: PostgreSQL's own archiver with any archive_command.

    python benchmarks/walpush.py --segments 200 --rounds 2 [--store s3] [--output FILE]

A real server writes pgbench WAL while nothing archives it. Then archive_command is set, and the time is taken until
``archive_status`` holds nothing that is ready. The same segments are made ready again for the next round and the next
contender (A B A B), each round into a repository of its own. Prints JSON. Numbers of one run on one machine: compare
within a run. Another benchmark uses :class:`ReadyServer` and :func:`push_ready_segments` for the tools it races.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(sys.executable)
PG = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
CLIENT = ROOT / "drservice" / "walclient" / "push.py"


class ReadyServer:
    """A server with so many segments ready for its archive, each full of pgbench's records."""

    def __init__(self, base: Path, segments: int) -> None:
        self.base, self.data, self.sock = base, base / "pg", base / "sock"
        self.segments = segments
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        for folder, mode in ((self.data, 0o700), (self.sock, 0o755)):
            self.folder(folder, mode)
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--data-checksums")
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.sock}'\narchive_mode = on\n"
                "archive_command = ''\ncheckpoint_timeout = 1d\nmax_wal_size = 64GB\nwal_keep_size = 32GB\n"
                "shared_buffers = 256MB\nsynchronous_commit = off\nlog_checkpoints = off\nautovacuum = off\n"
            )
        self.run("pg_ctl", "-D", self.data, "-l", self.data / "log", "-w", "start")
        self.sql("create table load (id bigint, filler text)")
        self.run("pgbench", "-i", "-q", "-s", "10", *self.where)
        self._fill()

    @property
    def where(self) -> tuple[str, ...]:
        """What a client needs to connect."""
        return ("-h", str(self.sock), "-U", "postgres", "postgres")

    @property
    def status(self) -> Path:
        """The folder of the archiver's marks."""
        return self.data / "pg_wal" / "archive_status"

    def _fill(self) -> None:
        """Write WAL as pgbench does (updates with full pages first, then small records) until enough is ready."""
        while len(self.ready()) < self.segments:
            self.run("pgbench", "-n", "-T", "5", "-c", "4", *self.where)
            self.sql("checkpoint")  # full pages again: the mixture of a busy server
        for name in self.ready()[self.segments :]:
            (self.status / f"{name}.ready").rename(self.status / f"{name}.done")
        self.names = self.ready()

    def folder(self, path: Path, mode: int = 0o755) -> Path:
        """Make a folder of the server's user."""
        path.mkdir(mode=mode)
        path.chmod(mode)
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def run(self, program: str, *words: str | Path) -> None:
        """Run one of PostgreSQL's programs as the server's user."""
        done = subprocess.run([PG / program, *words], capture_output=True, check=False, cwd="/", **self.identity())
        if done.returncode:
            raise SystemExit(f"{program}: {done.stderr.decode()[-2000:]}")

    def identity(self) -> dict[str, Any]:
        """Return what makes a program run as the server's user."""
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}

    def sql(self, statement: str) -> None:
        """Run one statement."""
        self.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement, *self.where)

    def ready(self) -> list[str]:
        """Return the names of what is ready."""
        return sorted(path.stem for path in self.status.glob("*.ready"))

    def rearm(self) -> None:
        """Make the same segments ready again."""
        for name in self.names:
            (self.status / f"{name}.done").rename(self.status / f"{name}.ready")

    def close(self) -> None:
        """Stop the server."""
        subprocess.run([PG / "pg_ctl", "-D", self.data, "-m", "immediate", "stop"], check=False, cwd="/",
                       stdout=subprocess.DEVNULL, **self.identity())  # fmt: skip


def push_ready_segments(server: ReadyServer, archive_command: str, *, patience_seconds: float = 600.0) -> float:
    """Let the server's own archiver run ``archive_command`` for all that is ready; returns the seconds it took.

    What was archived is made ready again afterwards.
    """
    names = server.ready()
    quoted = archive_command.replace("'", "''")
    server.sql(f"alter system set archive_command = '{quoted}'")
    begin = time.monotonic()
    server.sql("select pg_reload_conf()")
    while any((server.status / f"{name}.ready").exists() for name in names[-1:] + names[:1]) or server.ready():
        if time.monotonic() - begin > patience_seconds:
            raise SystemExit(f"{len(server.ready())} segments are still ready; see {server.data}/log")
        time.sleep(0.02)
    seconds = time.monotonic() - begin
    server.sql("alter system set archive_command = ''")
    server.sql("select pg_reload_conf()")
    time.sleep(0.5)
    server.rearm()
    return seconds


class Ours:
    """drservice with a helper, one repository for each round."""

    def __init__(
        self,
        server: ReadyServer,
        in_flight: int,
        url: Callable[[str], str],
        variables: Mapping[str, str],
        *,
        counting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.server, self.in_flight, self.url, self.counting = server, in_flight, url, counting
        self.environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
        self.round = 0

    def config(self, base: Path) -> Path:
        """Write keys and configuration, and create the repository."""
        identity = subprocess.run(["age-keygen"], capture_output=True, check=True, text=True).stdout
        (base / "identity.age").write_text(identity)
        recipient = next(line.split()[-1] for line in identity.splitlines() if "public key" in line)
        config = base / "drservice.yaml"
        component = {"kind": "postgres", "dsn": f"host={self.server.sock} dbname=postgres user=postgres"}
        document = {
            "version": 1,
            "state_dir": str(self.server.folder(base / "state")),
            "repository": {"url": self.url(str(base / "repository")), "recipients": [recipient]},
            "services": {"erp": {"components": {"database": {**component, "data_directory": str(self.server.data)}}}},
        }
        config.write_text(json.dumps(document))
        self.program(config, "init", check=True)
        return config

    def program(self, config: Path, *words: str, check: bool) -> subprocess.CompletedProcess[bytes]:
        """Run a command as the server's user."""
        return subprocess.run(
            [PYTHON, "-m", "drservice", "--config", config, *words], env=self.environment, check=check, cwd="/",
            stdout=subprocess.DEVNULL, **self.server.identity(),
        )  # fmt: skip

    def command(self, config: Path, base: Path) -> str:
        """Return the archive_command that ``drservice check`` prints."""
        socket = base / "state" / "run" / "wal-erp-database.sock"
        return f"{PYTHON} -I -S {CLIENT} --config {config} --service erp --socket {socket} %p"

    def __call__(self) -> dict[str, float]:
        """Archive everything once."""
        self.round += 1
        base = self.server.folder(self.server.base / f"ours-{self.in_flight}-{self.round}")
        config = self.config(base)
        with self.helper(config, base) as process:
            with self.counting():
                seconds = push_ready_segments(self.server, self.command(config, base))
            usage = Path(f"/proc/{process.pid}/status").read_text()
            memory = next(int(line.split()[1]) for line in usage.splitlines() if line.startswith("VmHWM"))
            ticks = sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            clients = self.clients(config, base)
        shutil.rmtree(base)
        cpu = ticks / os.sysconf("SC_CLK_TCK")
        return {"seconds": seconds, "memory_kib": memory, "helper_cpu_seconds": cpu, **clients}

    @contextmanager
    def helper(self, config: Path, base: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run the helper for the block."""
        with (base / "helper.log").open("wb") as log:
            process = subprocess.Popen(
                [PYTHON, "-m", "drservice", "--config", config, "wal", "helper", "erp", "--in-flight",
                 str(self.in_flight)],
                env=self.environment, cwd="/", stdout=log, stderr=log, **self.server.identity(),
            )  # fmt: skip
            socket = base / "state" / "run" / "wal-erp-database.sock"
            while not socket.exists():
                if process.poll() is not None:
                    raise SystemExit((base / "helper.log").read_text())
                time.sleep(0.02)
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def clients(self, config: Path, base: Path, starts: int = 200) -> dict[str, float]:
        """Start the client so often for a segment that is durable already; milliseconds each."""
        words = self.command(config, base).split()
        words[-1] = str(self.server.data / "pg_wal" / self.server.names[-1])
        times = []
        for _ in range(starts):
            begin = time.monotonic()
            subprocess.run(words, check=True, cwd="/", env={}, **self.server.identity())
            times.append((time.monotonic() - begin) * 1000)
        times.sort()
        return {"client_ms_p50": times[starts // 2], "client_ms_p99": times[starts * 99 // 100]}


@contextmanager
def object_store(base: Path, kind: str) -> Iterator[tuple[Callable[[str], str], Mapping[str, str]]]:
    """Yield how a repository in a new place of this kind is addressed, and what the program needs for it."""
    if kind == "directory":
        yield (lambda folder: f"file://{folder}"), {}
        return
    sys.path.insert(0, str(ROOT))
    from tests.doubles.s3server import rclone_server  # noqa: PLC0415 - only with --store s3

    with rclone_server(base / "s3") as s3:
        yield (lambda folder: s3.url_for("bench", Path(folder).parent.name)), s3.environment


def main() -> None:
    """Race the given numbers of files in flight against each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[3])
    parser.add_argument("--store", choices=("directory", "s3"), default="directory")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="drservice-walpush-"))
    base.chmod(0o755)
    results: dict[str, list[dict[str, float]]] = {}
    try:
        server = ReadyServer(base, chosen.segments)
        try:
            with object_store(base, chosen.store) as (url, variables):
                contenders = {f"in flight {n}": Ours(server, n, url, variables) for n in chosen.in_flight}
                for _ in range(chosen.rounds):
                    for name, contender in contenders.items():
                        results.setdefault(name, []).append(contender())
        finally:
            server.close()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    document = {
        "segments": chosen.segments,
        "store": chosen.store,
        "cores": os.cpu_count(),
        "contenders": {
            name: {
                "segments_per_second": round(chosen.segments / statistics.median(r["seconds"] for r in rounds), 1),
                "rounds": rounds,
            }
            for name, rounds in results.items()
        },
    }
    text = json.dumps(document, indent=1)
    print(text)
    if chosen.output:
        chosen.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
