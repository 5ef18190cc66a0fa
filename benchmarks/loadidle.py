"""Measures what everything on one machine costs when nothing is to be done: memory, processor, statements.

    python benchmarks/loadidle.py --seconds 120

``drservice up`` over 200 services whose schedules have no slot meanwhile, with its embedded catalogue: the process with
node and pages, and PostgreSQL's processes. Memory is what the processes have for themselves and their share of the rest
(PSS). Ends with 1 if the goal of an idle node is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import psycopg  # noqa: E402 - beside what the lines above find
from loadplan import configuration, plan_services  # noqa: E402 - as above

from drservice.catalogue.embedded import EmbeddedCluster  # noqa: E402 - as above
from drservice.clock import SystemClock  # noqa: E402 - as above
from drservice.model.estate import SignerSettings  # noqa: E402 - as above
from drservice.objectstore.directory import DirectoryStore  # noqa: E402 - as above
from drservice.repository.hostkey import make_host_key  # noqa: E402 - as above
from drservice.repository.keys import make_identity  # noqa: E402 - as above
from drservice.repository.repository import create_repository  # noqa: E402 - as above

GOAL_MIB, GOAL_PERCENT = 150.0, 2.0
KIB_PER_MIB = 1024
SETTLING_SECONDS = 20.0
"""After the start: the first projection, the first look at all schedules."""
_TICKS = os.sysconf("SC_CLK_TCK")
_NEVER = "0 0 29 2 *"


def prepare(base: Path) -> Path:
    """Make keys, an empty repository and a configuration without slots; returns the configuration."""
    secret, recipient = make_identity()
    (base / "identity.age").write_text(secret + "\n")
    (base / "identity.age").chmod(0o600)
    for name in ("state", "repository"):
        (base / name).mkdir()
    document = configuration(
        plan_services(200), base=str(base), catalogue="embedded", recipient=recipient, runs=2, lease="60s"
    )
    for service in document["services"].values():
        service["schedule"] = dict.fromkeys(service["schedule"], _NEVER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        document["web"] = {"listen": f"127.0.0.1:{free.getsockname()[1]}"}
    config = base / "drservice.yaml"
    config.write_text(json.dumps(document, indent=1))
    key = make_host_key(base / "state")
    store = DirectoryStore(base / "repository")
    create_repository(
        store, signer=key, signers=[SignerSettings(name=key.host, public_key=key.public_key)], clock=SystemClock()
    )
    store.close()
    return config


def processor_seconds(pid: int) -> float:
    """Return what a process and those of its children that have ended have used; 0 if it has ended itself."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, stat[11:15])) / _TICKS


def pss_mib(pid: int) -> float:
    """Return the memory of a process: its own, and its share of what it shares; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / KIB_PER_MIB


def family(pid: int) -> list[int]:
    """Return a process and its living children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def switches(pid: int) -> int:
    """Return how often the threads of a process have given the processor away: how often they woke up."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        total += next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("voluntary"))
    return total


def measure(pid: int, postmaster: int, url: str, seconds: float) -> dict[str, Any]:
    """Look at the processes for some time."""
    with psycopg.connect(url, autocommit=True) as connection:
        transactions = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"

        def counted() -> int:
            connection.execute("SELECT pg_stat_clear_snapshot()")
            row = connection.execute(transactions).fetchone()
            assert row is not None
            return int(row[0])

        servers = family(postmaster)
        before = processor_seconds(pid), sum(map(processor_seconds, servers)), counted(), switches(pid)
        time.sleep(seconds)
        # Whoever came or went meanwhile (autovacuum) is in what the postmaster has used for its children.
        servers = [server for server in servers if Path(f"/proc/{server}").exists()]
        after = processor_seconds(pid), sum(map(processor_seconds, servers)), counted(), switches(pid)
    return {
        "node_and_pages": {
            "mib": round(pss_mib(pid), 1),
            "processor_percent": round(100 * (after[0] - before[0]) / seconds, 2),
            "wake_ups_per_second": round((after[3] - before[3]) / seconds, 1),
        },
        "catalogue": {
            "mib": round(sum(map(pss_mib, servers)), 1),
            "processor_percent": round(100 * (after[1] - before[1]) / seconds, 2),
            "transactions_per_minute": round((after[2] - before[2]) / seconds * 60),
        },
    }


def main() -> int:
    """Start everything, let it idle, and tell what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drs-idle-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        config = prepare(base)
        command: list[str | Path] = [sys.executable, "-m", "drservice", "--config", config, "up", "--name", "alpha"]
        with (base / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "HOME": folder})
        try:
            while b"serving http" not in (base / "log").read_bytes():
                if process.poll() is not None:
                    raise SystemExit((base / "log").read_text())
                time.sleep(0.2)
            time.sleep(SETTLING_SECONDS)
            with EmbeddedCluster(base / "state") as url:
                postmaster = int((base / "state/catalogue/data/postmaster.pid").read_text().split("\n", 1)[0])
                result = measure(process.pid, postmaster, url, options.seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    print(json.dumps(result, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    node = result["node_and_pages"]
    return 0 if node["mib"] <= GOAL_MIB and node["processor_percent"] <= GOAL_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
