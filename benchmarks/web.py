"""Measures pages, API and live viewers at the size that is promised, and ends with 1 if a goal is missed.

    make bench-web                                   (all parts)
    python benchmarks/web.py --only pages --requests 100
    python benchmarks/web.py --only viewers --pairs 5

pages:    a catalogue of 1,000 services, 100,000 runs with events and 10,000 records in the embedded PostgreSQL; the web
          server as deployed in a process of its own, with its limits; every page and every read of the API: median, p95
          and p99 of one request after the other (these have goals) and of 4 clients at once (they have none: two cores
          serve one process), the first request of all, and the queries of one request.
viewers:  a backup of 0.7 GB by a node, with and without 200 viewers who follow it, in turn.

What an idle node takes is measured by benchmarks/loadidle.py. Numbers are of one machine: compare within a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import webpages, webviewers
from benchmarks.webcatalogue import Size

PARTS = ("pages", "viewers")
_MIB = 1 << 20


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--clients", type=int, nargs="*", default=[4])
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=700)
    parser.add_argument("--work", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="a JSON file; parts that are not measured now stay in it")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    for part in PARTS:
        if arguments.only not in {None, part}:
            continue
        with tempfile.TemporaryDirectory(prefix="drservice-bench-", dir=arguments.work) as name:
            result[part] = _measured(part, Path(name), arguments)
        _print(part, result[part])
    if arguments.output:
        before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{json.dumps({**before, **result}, indent=1)}\n")
    missed = [goal["goal"] for part in PARTS for goal in result.get(part, {}).get("goals", ()) if not goal["met"]]
    for goal in missed:
        print(f"MISSED {goal}")
    return 1 if missed else 0


def _measured(part: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    folder.chmod(0o755)  # the embedded server runs as another user
    if part == "pages":
        size = Size(services=arguments.services, runs=arguments.runs, records=arguments.records)
        return webpages.measure(folder, size, requests=arguments.requests, clients=arguments.clients)
    source_bytes = arguments.megabytes * _MIB
    return webviewers.measure(folder, viewers=arguments.viewers, pairs=arguments.pairs, source_bytes=source_bytes)


def _print(part: str, found: dict[str, Any]) -> None:
    if part == "viewers":
        print(
            f"{found['viewers']} viewers: {found['seconds_watched']} s against {found['seconds_alone']} s alone, ratio "
            f"{found['ratio']}; {found['events']} events came late by {found['late_median_ms']} ms (median), "
            f"{found['late_p99_ms']} ms (p99)"
        )
        return
    print(f"{'':60} {'median':>8} {'p95':>8} {'p99':>8} {'first':>8} {'queries':>8}   4 clients: median, p95")
    for row in found["targets"]:
        crowd = row.get("with_4_clients", {})
        print(
            f"{row['kind']:6}{row['path']:54} {row['median_ms']:8} {row['p95_ms']:8} {row['p99_ms']:8} "
            f"{row['first_ms']:8} {row['queries']:8}   {crowd.get('median_ms', '')}, {crowd.get('p95_ms', '')}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
