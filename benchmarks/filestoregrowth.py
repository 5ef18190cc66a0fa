"""How the filestore component grows with the number of documents: time, processor time and memory, up to a million.

    python benchmarks/filestoregrowth.py --output benchmarks/results/filestore-million.json

Makes filestores of 40,000, 250,000 and 1,000,000 small documents (2 KB each on average, sizes and content as in
``filestore.py``) and has each backed up, backed up again with nothing changed, and restored: whole processes, as
there. restic does the same with the largest. A backup is told what rows refer to, which is every document: the set of
their names counts. Memory is asked of the kernel while a job runs: the peak of the process that had most
(``VmHWM``), and the most that all its processes had at one time (``Pss``, which counts a page that is shared once).
What is linear shows in microseconds per document. Nothing is deleted before the end (ext4 avoids inodes that were freed
a moment ago): all that is made takes about 21 GB (10 GB without restic).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filestore import JOBS, Drservice, Racer, fetch_peers, make_filestore, peers_below

COUNTS = (40_000, 250_000, 1_000_000)
MEAN_BYTES = 2_000
_SAMPLE_SECONDS = 0.25
_PROC = Path("/proc")


class Told(Drservice):
    """drservice, told before a backup which documents rows refer to."""

    def command(self, job: str) -> list[str]:
        """Return what to run and time."""
        return [*super().command(job), "told"]


@dataclass(slots=True)
class Memory:
    """What the processes below one have in memory, in bytes."""

    root: int
    largest_process_bytes: int = 0
    together_bytes: int = 0

    def look(self) -> None:
        """Take one sample."""
        together = 0
        for pid in _family(self.root):
            self.largest_process_bytes = max(self.largest_process_bytes, _kib(pid, "status", "VmHWM") << 10)
            together += _kib(pid, "smaps_rollup", "Pss") << 10
        self.together_bytes = max(self.together_bytes, together)


def _family(root: int) -> list[int]:
    """Return a process and all that came from it."""
    found = [root]
    for pid in found:
        try:
            for thread in (_PROC / str(pid) / "task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has ended
    return found


def _kib(pid: int, file: str, name: str) -> int:
    try:
        lines = (_PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def measured(racer: Racer, job: str, files: int) -> dict[str, float]:
    """Run one job and return what it took."""
    os.sync()
    command = racer.command(job)
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        before = os.times()
        process = subprocess.Popen(
            command, env={**os.environ, **racer.environment()}, cwd=racer.base, stdout=said, stderr=said
        )
        memory, ended = Memory(process.pid), threading.Event()
        watcher = threading.Thread(target=_watch, args=(memory, ended), daemon=True)
        watcher.start()
        status = process.wait()
        seconds = time.monotonic() - began
        after = os.times()
        ended.set()
        watcher.join()
        if status:
            said.seek(0)
            raise SystemExit(f"{command[0]} failed ({status}):\n{said.read().decode(errors='replace')}")
    os.sync()
    durable = time.monotonic() - began
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "durable_seconds": round(durable, 2),
        "microseconds_per_file": round(seconds / files * 1e6, 1),
        "processor_microseconds_per_file": round(processor / files * 1e6, 1),
        "largest_process_bytes": memory.largest_process_bytes,
        "processes_together_bytes": memory.together_bytes,
    }


def _watch(memory: Memory, ended: threading.Event) -> None:
    while not ended.wait(_SAMPLE_SECONDS):
        memory.look()


def grow(work: Path, counts: Sequence[int], mean_bytes: int, *, peers: Path | None) -> list[dict[str, object]]:
    """Measure every size and return a row for each program and job."""
    rows: list[dict[str, object]] = []
    for files in counts:
        source = work / f"filestore-{files}"
        make_filestore(source, files, files * mean_bytes)
        there = sum(len(names) for _, _, names in os.walk(source))  # of the shortest some are the same
        racers: list[Racer] = [Told(work / f"drservice-{files}", source)]
        if peers is not None and files == max(counts):
            racers.append(peers_below(peers)["restic"](work / f"restic-{files}", source))
        for racer in racers:
            racer.prepare()
            for job in JOBS:
                row = {"files": files, "program": racer.name, "job": job, **measured(racer, job, files)}
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
            restored = sum(len(names) for _, _, names in os.walk(racer.restored()))
            if restored != there:
                raise SystemExit(f"{racer.restored()} holds {restored} of {there} documents")
    return rows


def main() -> None:
    """Make the data, fetch the peer, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--mean-bytes", type=int, default=MEAN_BYTES)
    parser.add_argument("--peers", type=Path, help="a folder with unpacked packages of the peers")
    parser.add_argument("--alone", action="store_true", help="without restic")
    parser.add_argument("--work", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="drservice-grow-", dir=arguments.work))
    try:
        peers = arguments.peers
        if peers is None and not arguments.alone:
            fetch_peers(work)
            peers = work / "peers"
        rows = grow(work, arguments.files, arguments.mean_bytes, peers=None if arguments.alone else peers)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = json.dumps({"cores": os.cpu_count(), "mean_bytes": arguments.mean_bytes, "rows": rows}, indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
