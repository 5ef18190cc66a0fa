"""What 200 viewers of a running backup cost it, and how late they see what happens: the part ``viewers`` of ``web.py``.

The backup is a real one: a node takes it from the queue and backs a folder up that is written anew for each (otherwise
the second would find nothing to do). It begins some seconds after it was asked for, so that viewers are there before.
Viewers are one process of their own (``python -m benchmarks.webviewers``), each with a connection of its own. Rounds
with and without them alternate; what counts is the ratio of the medians.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.webpages import percentile
from benchmarks.webserver import ROOT, Visitors, program, served
from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunInfo, RunRequest, Runs
from drservice.catalogue.timetables import catalogue_now
from drservice.clock import SystemClock, from_iso, to_iso
from drservice.jobs.queue import Queue
from drservice.model.estate import SignerSettings
from drservice.model.runs import RunKind, RunState
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.hostkey import host_name, make_host_key
from drservice.repository.keys import make_identity
from drservice.repository.repository import create_repository
from drservice.settings.loading import load
from drservice.wiring.control_plane import open_control_plane

GOAL_RATIO = 1.05
_LEAD = timedelta(seconds=12)
"""From asking for a backup to its begin: time for viewers to come."""
_FILE_BYTES = 4 << 20
_PER_ADDRESS = 20
_ALLOWED_SECONDS = 300.0


def measure(folder: Path, *, viewers: int, pairs: int, source_bytes: int) -> dict[str, Any]:
    """Make everything, run the rounds, and return what was seen."""
    source = folder / "documents"
    source.mkdir()
    config = _configuration(folder, source)
    estate = load(config).estate
    rounds: list[dict[str, Any]] = []
    with open_control_plane(estate, pool_size=5) as database:
        queue = Queue(database)
        queue.install()
        people = Visitors.make(database, count=-(-viewers // _PER_ADDRESS), roles=("viewer",))
        with served(config) as (host, port), program(config, "node", "--name", host_name()) as node:
            assert node.stdout is not None, "it is a pipe"
            node.stdout.readline()  # it runs
            for number in range(2 * pairs + 1):  # the first warms up and is not counted
                _write(source, source_bytes, seed=number)
                watched = viewers if number % 2 == 0 else 0
                seen = _round(database, queue, (host, port), people, folder, viewers=watched)
                shown = {name: value for name, value in seen.items() if name != "late"}
                print(f"round {number}: {shown}", file=sys.stderr)
                if number:
                    rounds.append(seen)
    alone = [item["seconds"] for item in rounds if not item["viewers"]]
    watched_seconds = [item["seconds"] for item in rounds if item["viewers"]]
    late = sorted(second for item in rounds for second in item.pop("late", ()))
    ratio = statistics.median(watched_seconds) / statistics.median(alone)
    return {
        "viewers": viewers,
        "pairs": pairs,
        "source_bytes": source_bytes,
        "rounds": rounds,
        "seconds_alone": round(statistics.median(alone), 3),
        "seconds_watched": round(statistics.median(watched_seconds), 3),
        "ratio": round(ratio, 4),
        "events": len(late),
        "late_median_ms": round(statistics.median(late) * 1000, 1),
        "late_p99_ms": round(percentile(late, 99) * 1000, 1),
        "goals": [{"goal": f"a backup takes at most {GOAL_RATIO} times as long", "met": ratio <= GOAL_RATIO}],
    }


def _round(
    database: Database, queue: Queue, server: tuple[str, int], people: Visitors, folder: Path, *, viewers: int
) -> dict[str, Any]:
    """Run one backup, watched or not, and return how long it took and how late events came."""
    with database.session() as session:
        begins = catalogue_now(session) + _LEAD
    request = RunRequest(
        service="documents", kind=RunKind.BACKUP, requested_by="bench", parameters={"not_before": to_iso(begins)}
    )
    run = queue.enqueue(request)
    assert run is not None, "nothing is in its place"
    told = folder / f"{run}.json"
    wanted = {
        "host": server[0],
        "port": server[1],
        "run": run,
        "viewers": [
            {"address": visitor.address, "token": visitor.token}
            for visitor in people.visitors
            for _ in range(_PER_ADDRESS)
        ][:viewers],
        "result": str(told),
    }
    argv = [sys.executable, "-m", "benchmarks.webviewers"]
    if viewers:
        subprocess.run(argv, input=json.dumps(wanted), text=True, cwd=ROOT, timeout=_ALLOWED_SECONDS, check=True)
    ended = _wait(Runs(database), run)
    assert ended.started_at is not None, "it has run"
    assert ended.ended_at is not None, "as above"
    result: dict[str, Any] = {
        "viewers": viewers,
        "seconds": round((ended.ended_at - ended.started_at).total_seconds(), 3),
    }
    if viewers:
        seen = json.loads(told.read_text())
        if seen["whole"] != viewers:
            raise SystemExit(f"{seen['whole']} of {viewers} viewers saw the run to its end")
        result["late"] = seen["late"]
        result["late_p99_ms"] = round(percentile(sorted(seen["late"]), 99) * 1000, 1)
    return result


def _wait(runs: Runs, run: str) -> RunInfo:
    deadline = time.monotonic() + _ALLOWED_SECONDS
    while True:
        found = runs.get(run)
        if found is not None and found.state.is_over:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the backup does not end: {found}")
        time.sleep(0.2)
    if found.state is not RunState.SUCCEEDED:
        raise SystemExit(f"the backup ended otherwise: {found}")
    return found


def _configuration(folder: Path, source: Path) -> Path:
    secret, recipient = make_identity()
    (folder / "identity.age").write_text(f"{secret}\n")
    (folder / "identity.age").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "repository").mkdir()
    key = make_host_key(folder / "state")
    store = DirectoryStore(folder / "repository")
    try:
        own = SignerSettings(name=key.host, public_key=key.public_key)
        create_repository(store, signer=key, signers=[own], clock=SystemClock())
    finally:
        store.close()
    document = {
        "version": 1,
        "state_dir": str(folder / "state"),
        "repository": {
            "url": f"file://{folder}/repository",
            "recipients": [recipient],
            "identity": f"file:{folder}/identity.age",
        },
        "services": {"documents": {"components": {"files": {"kind": "directory", "path": str(source)}}}},
    }
    path = folder / "drservice.yaml"
    path.write_text(json.dumps(document, indent=1))
    return path


def _write(source: Path, size: int, *, seed: int) -> None:
    """Write the folder anew: half of each file is text that compresses, half is not."""
    made = random.Random(seed)
    for number in range(size // _FILE_BYTES):
        words = [made.randbytes(6).hex() for _ in range(2000)]
        text = " ".join(made.choices(words, k=_FILE_BYTES // 26)).encode()[: _FILE_BYTES // 2]
        (source / f"document-{number:05d}").write_bytes(text + made.randbytes(_FILE_BYTES - len(text)))
    os.sync()


# --- The viewers' process --------------------------------------------------------------------------------------


async def _watch(wanted: dict[str, Any]) -> dict[str, Any]:
    late: list[float] = []
    views = [_view(wanted, viewer, late) for viewer in wanted["viewers"]]
    return {"whole": sum(await asyncio.gather(*views)), "late": late}


async def _view(wanted: dict[str, Any], viewer: dict[str, str], late: list[float]) -> bool:
    """Follow the run; note how late each event came by the machine's clock; tell whether its end was seen."""
    reader, writer = await asyncio.open_connection(
        wanted["host"], wanted["port"], local_addr=(viewer["address"], 0), limit=1 << 20
    )
    head = (
        f"GET /api/v1/runs/{wanted['run']}/events HTTP/1.1\r\nHost: {wanted['host']}\r\n"
        f"Authorization: Bearer {viewer['token']}\r\nAccept: text/event-stream\r\n\r\n"
    )
    writer.write(head.encode())
    await writer.drain()
    begun = time.time()
    try:
        while line := await reader.readline():
            if line.startswith(b"event: end"):
                return True
            if line.startswith(b"data: ") and b'"number"' in line:
                happened: datetime = from_iso(json.loads(line[6:])["at"])
                if happened.timestamp() > begun:  # what was there before is no news
                    late.append(time.time() - happened.timestamp())
        return False
    finally:
        writer.close()


def main(arguments: Sequence[str]) -> None:
    """Watch as stdin asks for."""
    assert not arguments, "what is wanted comes over stdin"
    wanted = json.loads(sys.stdin.read())
    Path(wanted["result"]).write_text(json.dumps(asyncio.run(_watch(wanted))))


if __name__ == "__main__":
    main(sys.argv[1:])
