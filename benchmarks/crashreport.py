"""Turns the result of the crash benchmark into the README's table, so that it is never typed by hand.

python benchmarks/crashreport.py       (reads benchmarks/results/crash.json, writes README.md)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from typing import Any

from report import README, ROOT, readme_with

RESULT = ROOT / "benchmarks/results/crash.json"
STREAM = ROOT / "benchmarks/results/stream.json"
MARKERS = ("<!-- crash: begin, written by benchmarks/crashreport.py -->", "<!-- crash: end -->")


def table(result: Mapping[str, Any]) -> str:
    """Return the README's table."""
    rows = [
        "| WAL goes | crashes | commits promised | lost | the oldest lost, before the crash | recovered in |",
        "|---|---:|---:|---:|---|---:|",
        *(_row(row) for row in result["rows"]),
    ]
    conditions = (
        f"Measured {result['made_at'][:10]} with seed {result['seed']}: server, shipping, store, writers and recovery"
        " share two cores and one disk. `make bench-crash` repeats it; [how it is measured](benchmarks/crash.py)."
    )
    return "\n".join([*rows, "", conditions])


def stream_table(result: Mapping[str, Any]) -> str:
    """Return the table of what streaming takes."""
    load, catching_up, idle = result["load"], result["catch_up"], result.get("idle")
    ages = [row["age"] for row in load]
    peak = max(catching_up["receiver_peak_mb"], *(row["receiver_peak_mb"] for row in load))
    tps = statistics.median(row["tps"] for row in load)
    half, most = (statistics.median(age[name] for age in ages) for name in ("p50_ms", "p99_ms"))
    alone, peer = result["tps_to_archive_command"], result["tps_to_pgbackrest"]
    shares = f"{alone:.2f} of those with `archive_command` alone, {peer:.2f} of those with pgBackRest archiving ahead"
    rounds = (
        f"{len(load)} on the same processors, {len(result['apart']['rounds'])} apart"
        if "apart" in result
        else len(load)
    )
    rows = [
        "| the stream under pgbench, into a bucket | |",
        "|---|---|",
        f"| age of the oldest byte that is not stored | p50 {half:.0f} ms, p99 {most:.0f} ms |",
        f"| transactions per second, with the receiver, everything on the same processors | {tps:,.0f}: {shares} |",
        *(_apart(result["apart"]) if "apart" in result else []),
        f"| a backlog of {catching_up['backlog_mb']:,} MB | {catching_up['mb_per_second']:.0f} MB/s |",
        f"| memory of the receiver, at most, with pgbench's WAL | {peak:.0f} MB |",
        *([f"| objects per minute of an idle server | {idle['objects_per_minute']:.1f} |"] if idle else []),
        "",
        f"Measured {result['made_at'][:10]}, rounds: {rounds} (medians); `make bench-stream` repeats it.",
    ]
    return "\n".join(rows)


def _apart(apart: Mapping[str, Any]) -> list[str]:
    """Return the rows of what commits pay where the database has processors of its own."""
    titles = {
        "beside_database": "the same, the store on processors of its own, as on another machine",
        "streamed": "the same, nothing read from the disk (`from_disk: false`)",
        "beside_store": "the same, receiver and store on processors of their own",
    }
    return [
        f"| {title} | {statistics.median(row[name]['tps'] for row in apart['rounds']):,.0f}:"
        f" {apart[f'{name}_to_pgbackrest']:.2f} of those with pgBackRest archiving ahead |"
        for name, title in titles.items()
    ]


def _row(row: Mapping[str, Any]) -> str:
    promised = f"{row['promised']:,} ({row['commits_per_second']:.0f}/s)"
    age = (
        f"p50 {_seconds(row['lost_seconds_p50'])}, most {_seconds(row['lost_seconds_most'])}" if row["lost"] else "none"
    )
    return (
        f"| {row['title']} | {row['repetitions']} | {promised} | {row['lost']:,} | {age} |"
        f" {row['restore_seconds']:.1f} s |"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the table and write nothing")
    arguments = parser.parse_args()
    part = table(json.loads(RESULT.read_text()))
    if STREAM.exists():
        part += f"\n\n{stream_table(json.loads(STREAM.read_text()))}"
    if arguments.only_print:
        print(part)
        return
    try:
        README.write_text(readme_with(README.read_text(), part, MARKERS))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
