"""Times the main job on a pgbench cluster: full backup, unchanged backup, backup after load, restore, with phases.

    make bench SCALE=130        (about 2 GB)

Makes everything in one temporary folder, runs the real command line, prints a table and writes JSON. Numbers of one run
on one machine: compare within a run, never across machines. The race against other tools is a later benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
PG = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


class Bench:
    """One temporary estate."""

    def __init__(self, scale: int, method: str, checksums: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="drservice-bench-"))
        self.base.chmod(0o755)
        self.scale = scale
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        for name in ("pg", "sock", "state", "repo"):
            (self.base / name).mkdir(mode=0o700 if name == "pg" else 0o755)
            if self.user:
                os.chown(self.base / name, self.user.pw_uid, self.user.pw_gid)
        flags = ["--data-checksums"] if checksums == "on" else []
        self.pg("initdb", "-D", self.base / "pg", "-A", "trust", "-U", "postgres", *flags)
        identity = subprocess.run(["age-keygen"], capture_output=True, check=True, text=True).stdout
        (self.base / "identity.age").write_text(identity)
        recipient = next(line.split()[-1] for line in identity.splitlines() if "public key" in line)
        self.config = self.base / "drservice.yaml"
        self.config.write_text(
            f"""version: 1
state_dir: {self.base}/state
repository: {{url: "file://{self.base}/repo", recipients: [{recipient}], identity: "file:{self.base}/identity.age"}}
services:
  erp:
    components:
      database: {{kind: postgres, dsn: "host={self.base}/sock dbname=postgres user=postgres",
                 data_directory: {self.base}/pg, method: {method}}}
"""
        )
        push = f"{BIN}/drservice --config {self.config} wal push --service erp %p"
        with (self.base / "pg" / "postgresql.conf").open("a") as stream:
            stream.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.base}/sock'\narchive_mode = on\n"
                f"archive_command = '{push}'\n"
                "shared_buffers = 512MB\nmax_wal_size = 4GB\nsynchronous_commit = off\n"
            )

    def pg(self, program: str, *arguments: object) -> None:
        """Run a PostgreSQL program as the server's user."""
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if self.user else []
        subprocess.run(
            [*prefix, str(PG / program), *map(str, arguments)],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def drservice(self, *arguments: str) -> tuple[dict[str, object], float]:
        """Run the command line and return its JSON and whole-process seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [str(BIN / "drservice"), "--config", str(self.config), "--json", "--quiet", *arguments],
            check=True,
            stdout=subprocess.PIPE,
        )
        return json.loads(done.stdout), time.monotonic() - began

    def run(self) -> dict[str, object]:
        """Run the story."""
        self.pg("pg_ctl", "-D", self.base / "pg", "-l", self.base / "pg" / "log", "-w", "start")
        try:
            return self._measure()
        finally:
            self.pg("pg_ctl", "-D", self.base / "pg", "-m", "immediate", "stop")

    def _measure(self) -> dict[str, object]:
        socket = ["-h", self.base / "sock", "-U", "postgres"]
        self.drservice("init")
        self.pg("pgbench", *socket, "-i", "-q", "-s", self.scale, "postgres")
        self._settle()
        rows: dict[str, object] = {}
        for name in ("full", "unchanged"):
            document, seconds = self.drservice("backup", "erp")
            rows[name] = self._row(document["snapshots"][0], seconds)  # type: ignore[index]
            time.sleep(3)
        self.pg("pgbench", *socket, "-c", "4", "-T", "20", "postgres")
        self._settle()
        document, seconds = self.drservice("backup", "erp")
        rows["after 20 s of pgbench"] = self._row(document["snapshots"][0], seconds)  # type: ignore[index]
        document, seconds = self.drservice("restore", "erp", "--to", "latest", "--into", f"{self.base}/restored")
        rows["restore"] = {"seconds": round(seconds, 2), "phases": document["phases"]}
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return {"scale": self.scale, "peak_process_mib": round(peak), "rows": rows}

    def _settle(self) -> None:
        """Wait until everything is archived, so that a backup's own time is measured and not the archiver's."""
        query = "checkpoint; select pg_switch_wal()"
        subprocess.run(
            ["psql", "-qAt", "-h", str(self.base / "sock"), "-U", "postgres", "-c", query, "postgres"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        while list((self.base / "pg" / "pg_wal" / "archive_status").glob("*.ready")):
            time.sleep(0.2)
        time.sleep(2.5)

    @staticmethod
    def _row(snapshot: dict[str, object], seconds: float) -> dict[str, object]:
        kept = ("source_bytes", "read_bytes", "stored_bytes", "phases", "seconds", "reused_files", "files")
        return {"process_seconds": round(seconds, 2), **{name: snapshot[name] for name in kept}}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=130)
    parser.add_argument("--method", default="local", choices=["local", "pg_basebackup"])
    parser.add_argument("--checksums", default="on", choices=["on", "off"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.scale, arguments.method, arguments.checksums)
    try:
        result = {"method": arguments.method, "checksums": arguments.checksums, **bench.run()}
    finally:
        shutil.rmtree(bench.base, ignore_errors=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
