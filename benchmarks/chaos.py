"""Kills processes at random moments under load and counts what became of everything: lost, doubled, resumed, failed.

    make chaos KILLS=100 SEED=7          (a quarter of an hour; writes docs/chaos.md)

Two nodes, the pages and the catalogue run as processes of their own over a small plant and five folders, each with a
backup every minute and a verification every two, while backups, drills and runs that have to fail are asked for. Then
kill -9 comes, again and again: a node, the process of a run, the process that keeps the index, the one that delivers a
notice, the pages, one server process of the catalogue, the catalogue as a whole. What a supervisor would start again
(nodes, pages, catalogue) is started again after up to two seconds. In the end everything has to be accounted for; the
table says by kind of process what was under way and how it ended. A seed fixes what is killed and the waits between;
what the processes are doing in that moment it cannot fix.

Ends with 1 if anything was lost, doubled, or ended without saying so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from chaosworld import EVERY, FOLDERS, NOBODY, ON_DEMAND, WEIGHTS, WORDS, Chaos  # noqa: E402 - found by the line above

from drservice.catalogue.runs import RunInfo, Runs  # noqa: E402 - as above
from drservice.errors import CatalogueUnreachableError  # noqa: E402 - as above
from drservice.model.runs import RunKind, RunState  # noqa: E402 - as above
from drservice.notify.outbox import backlog  # noqa: E402 - as above
from tests.doubles.cluster import ClusterMaker  # noqa: E402 - as above
from tests.doubles.estate import SERVICE  # noqa: E402 - as above
from tests.doubles.nodes import NodeBench  # noqa: E402 - as above
from tests.doubles.notifiers import HookServer  # noqa: E402 - as above

END_SECONDS = 300.0

# --- What came of it -------------------------------------------------------------------------------------------------

ASKED: Mapping[str, str] = {
    "slot": "slots without a run, or with two",
    "commit": "recovery points of no run, points that are named and not there, or that serve a run they must not",
    "end": "runs that have not ended, or failed without a reason; a verification in the end that finds anything",
    "epoch": "runs on which an old claim wrote after a new one, or whose events have a gap",
    "told": "failed runs that nobody was told about",
    "left": "environments and processes of runs that are left",
    "back": "processes that were killed and do not work again",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not be, by the question it answers."""

    asked: str
    text: str


def settle_down(chaos: Chaos) -> dict[tuple[str, str], datetime]:
    """Take the schedules away, wait until everything works again and every run has ended; returns the last slots."""

    def is_still() -> bool:
        chaos.supervise()
        with suppress(CatalogueUnreachableError):
            runs = Runs(chaos.bench.database)
            open_now = [*runs.list(state=RunState.QUEUED, limit=10), *runs.list(state=RunState.RUNNING, limit=10)]
            # A notice whose delivery was killed is tried again after half a minute: who was told is counted then.
            waiting = backlog(chaos.bench.database).waiting
            return not open_now and not waiting and not chaos.awaited and not chaos.restarts
        return False

    chaos.rest(5.0)
    while datetime.now(UTC).second > 40:  # the configuration shall not change while a slot comes
        chaos.rest(0.5)
    config = json.loads(chaos.bench.estate.config.read_text())
    for name in FOLDERS:
        del config["services"][name]["schedule"]
    wait_until(chaos.is_catalogue_up, chaos)
    until = chaos.settled()
    beside = chaos.bench.estate.config.with_suffix(".new")
    beside.write_text(json.dumps(config, indent=1))
    beside.rename(chaos.bench.estate.config)
    wait_until(is_still, chaos)
    chaos.request(SERVICE, RunKind.VERIFY)  # whatever happened, the data is whole, and nodes take runs
    wait_until(is_still, chaos)
    chaos.rest(6.0)  # every five seconds a node looks for what failed
    wait_until(is_still, chaos)
    for node in chaos.nodes.values():
        node.stop()
    return until


def wait_until(condition: Callable[[], bool], chaos: Chaos) -> None:
    """Wait until something holds, for as long as the end may take; what does not come is seen by whoever judges."""
    deadline = time.monotonic() + END_SECONDS
    while not condition() and time.monotonic() < deadline:
        chaos.rest(0.3)


def judge(chaos: Chaos, until: Mapping[tuple[str, str], datetime]) -> list[Problem]:
    """Return what must not be."""
    runs = all_runs(chaos)
    problems = [*slot_problems(chaos, runs, until), *commit_problems(chaos, runs), *event_problems(chaos, runs)]
    told = "\n".join(title + body for title, body in chaos.hook.heard())
    for run in runs:
        if not run.state.is_over:
            problems.append(Problem("end", f"run {run.id} of {run.service} is {run.state.value}"))
        elif run.state is RunState.FAILED:
            if not (run.error or {}).get("code"):
                problems.append(Problem("end", f"run {run.id} of {run.service} failed without a reason"))
            if run.id not in told:
                problems.append(Problem("told", f"run {run.id} of {run.service} failed"))
    if runs[-1].kind is not RunKind.VERIFY or runs[-1].state is not RunState.SUCCEEDED:
        problems.append(Problem("end", f"the verification at the end is {runs[-1].state.value}"))
    problems += [Problem("left", name) for name in (*chaos.bench.estate.environments(), *chaos.left_processes())]
    problems += [Problem("back", awaited.kill.kind) for awaited in chaos.awaited]
    return problems


def all_runs(chaos: Chaos) -> list[RunInfo]:
    """Return every run, oldest first."""
    return list(reversed(Runs(chaos.bench.database).list(limit=100_000)))


def slot_problems(
    chaos: Chaos, runs: Sequence[RunInfo], until: Mapping[tuple[str, str], datetime]
) -> Iterator[Problem]:
    """Compare the runs with the minutes that passed."""
    found = Counter((run.service, run.kind.value, run.scheduled_for) for run in runs if run.scheduled_for is not None)
    for key, times in found.items():
        if times > 1:
            yield Problem("slot", f"{key} has {times} runs")
    assert chaos.begin is not None
    for (service, kind), last in until.items():
        minute = chaos.begin.replace(second=0, microsecond=0) + timedelta(minutes=1)
        while minute <= last:
            if minute.minute % EVERY[kind] == 0 and (service, kind, minute) not in found:
                yield Problem("slot", f"{service} {kind} {minute:%H:%M} is lost")
            minute += timedelta(minutes=1)


def commit_problems(chaos: Chaos, runs: Sequence[RunInfo]) -> Iterator[Problem]:
    """Compare what runs say they committed with the recovery points in the repository.

    A run that is claimed again may find a point that was begun after its first claim and take it for its own
    (``node.handlers``): so a point may serve several runs, of which one at most was not resumed.
    """
    with chaos.bench.estate.plane() as plane:
        estate = chaos.bench.estate.estate()
        for name in (SERVICE, *FOLDERS):
            backups = [run for run in runs if run.service == name and run.kind is RunKind.BACKUP]
            listing = plane.repository.points(estate.service(name).name).listing().points
            begun = {str(point.id): min(member.started_at for member in point.members) for point in listing}
            served: dict[str, list[RunInfo]] = defaultdict(list)
            for run in backups:
                if run.state in {RunState.SUCCEEDED, RunState.PARTIAL}:
                    served[str((run.result or {})["point"])].append(run)
            for point, served_runs in served.items():
                if point not in begun:
                    yield Problem("commit", f"{name}: point {point} is named and not there")
                elif sum(run.epoch == 1 for run in served_runs) > 1:
                    yield Problem("commit", f"{name}: point {point} has several runs that were never resumed")
                elif any(run.started_at is None or run.started_at > begun[point] for run in served_runs):
                    yield Problem("commit", f"{name}: point {point} was begun before a run that names it")
            orphans, failed = begun.keys() - served.keys(), sum(run.state is RunState.FAILED for run in backups)
            if len(orphans) > failed:  # a run may commit in its last claim and die before it can say so
                yield Problem("commit", f"{name}: {len(orphans)} points of no run, with {failed} failed runs")


def event_problems(chaos: Chaos, runs: Sequence[RunInfo]) -> Iterator[Problem]:
    """Look for writes of old claims."""
    for run in runs:
        events = Runs(chaos.bench.database).events(run.id, limit=10_000)
        epochs = [event.epoch for event in events]
        if [event.number for event in events] != list(range(1, len(events) + 1)) or epochs != sorted(epochs):
            yield Problem("epoch", f"run {run.id} of {run.service}")


def row_of(chaos: Chaos, kind: str, ends: Mapping[str, RunInfo]) -> list[str]:
    """Return one line of the table: what was under way in what was killed, and how that ended."""
    kills = [kill for kill in chaos.kills if kill.kind == kind]
    hit = [ends[run] for kill in kills for run in kill.under_way]
    back = [kill.back_after for kill in kills if kill.back_after is not None]
    failed = Counter(str((run.error or {}).get("code")) for run in hit if run.state is RunState.FAILED)
    return [
        WORDS[kind],
        str(len(kills)),
        str(len(hit)),
        str(sum(run.epoch > 1 for run in hit)),
        str(sum(run.state in {RunState.SUCCEEDED, RunState.PARTIAL} for run in hit)),
        ", ".join(f"{code} {number}" for code, number in sorted(failed.items())) or "0",
        f"{statistics.median(back):.1f} s, {max(back):.1f} s" if back and kind not in ON_DEMAND else "when needed",
    ]


COLUMNS = (
    "killed",
    "times",
    "runs at work then",
    "claimed again",
    "ended well",
    "failed, with the reason",
    "works again after (median, longest)",
)


def document_of(chaos: Chaos, seed: int, seconds: float, problems: Sequence[Problem]) -> str:
    """Return docs/chaos.md."""
    runs = all_runs(chaos)
    ends = {run.id: run for run in runs}
    states = Counter(run.state.value for run in runs)
    codes = Counter(str((run.error or {}).get("code")) for run in runs if run.state is RunState.FAILED)
    asked_to_fail = sum(run.service == NOBODY for run in runs)
    kills = len(chaos.kills)
    when = f"{datetime.now(UTC):%Y-%m-%d}, version {chaos.version}"
    ended = ", ".join(f"{name} {number}" for name, number in sorted(states.items()))
    reasons = ", ".join(f"{code} {number}" for code, number in sorted(codes.items())) or "none"
    lines = [
        f"# {kills} times kill -9",
        "",
        "Written by `make chaos`; `benchmarks/chaos.py` says what it does. Processes under load are killed at random",
        "moments, and what is killed is started again by whoever has to: nodes, pages and catalogue by a supervisor",
        "after up to 2 s, everything else by the program itself.",
        "",
        f"* {when}, {os.cpu_count()} processors, Python {platform.python_version()}",
        f"* `make chaos KILLS={kills} SEED={seed}`, {seconds:.0f} s",
        f"* {len(runs)} runs, {sum(run.epoch > 1 for run in runs)} of them claimed more than once; ended as: {ended}",
        f"* reasons of failed runs: {reasons} (of these {asked_to_fail} were asked for in order to fail)",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row_of(chaos, kind, ends))} |" for kind in WORDS),
        "",
        "A run counts once for each kill that met it. When the process of a run is killed, all runs of its node count.",
        "DR910: the process of the run died in three claims. DR924: the run lost its host in eight claims. Other codes",
        "are in [the list of errors](reference/errors.md).",
        "",
        "| looked for in the end | found |",
        "|---|---|",
    ]
    found = Counter(problem.asked for problem in problems)
    lines += [f"| {question} | {found[key]} |" for key, question in ASKED.items()]
    return "\n".join([*lines, ""])


def version_of_checkout() -> str:
    """Return the program's version and, in a git checkout, its commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return f"{metadata.version('drservice')} ({commit})" if commit else metadata.version("drservice")


def main() -> int:
    """Kill, wait, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--output", type=Path, help="where the page goes that docs/chaos.md is")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs of the processes")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10_000)
    folder = Path(tempfile.mkdtemp(prefix="drs-chaos-"))
    maker = ClusterMaker(cache=folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with HookServer() as hook:
        bench = NodeBench.make(maker, folder)
        chaos = Chaos(bench=bench, hook=hook, chance=random.Random(seed), port=port, version=version_of_checkout())
        try:
            document, problems = live(chaos, options.kills, seed)
        finally:
            if chaos.web is not None:
                chaos.web.kill()
                chaos.web.wait()
            bench.close()
            maker.close()
    if options.keep or problems:
        print(f"the logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    print(document)
    if options.output is not None:
        options.output.write_text(document)
    for problem in problems:
        print(f"WRONG ({ASKED[problem.asked]}): {problem.text}")
    return 1 if problems else 0


def live(chaos: Chaos, kills: int, seed: int) -> tuple[str, list[Problem]]:
    """Start everything, kill so many times, and judge."""
    chaos.configure()
    chaos.start()
    began = time.monotonic()
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    for number in range(kills):
        chaos.ask(number)
        chaos.rest(chaos.chance.uniform(0.2, 5.0))
        kind = chaos.chance.choices(names, weights)[0]
        chaos.kill(kind)
        print(f"{number + 1:4d} {kind:10} {len(chaos.kills[-1].under_way)} runs at work", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    until = settle_down(chaos)
    problems = judge(chaos, until)
    return document_of(chaos, seed, seconds, problems), problems


if __name__ == "__main__":
    sys.exit(main())
