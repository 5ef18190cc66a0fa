"""Processes killed at random moments under load: nothing is lost or doubled, and what failed says so."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.catalogue.runs import Runs
from drservice.model.runs import RunKind, RunState
from tests.doubles.cluster import ClusterMaker
from tests.doubles.nodes import NodeBench, NodeProcess, is_leader

KILLS = 10
RUNS = 6


@pytest.fixture
def bench(tmp_path: Path, template_cache: Path) -> Iterator[NodeBench]:
    maker = ClusterMaker(cache=template_cache)
    made = NodeBench.make(maker, tmp_path)
    yield made
    made.close()
    maker.close()


def kill_something(chance: random.Random, nodes: dict[str, NodeProcess]) -> NodeProcess | None:
    """Kill a node or the process of a run without warning; returns the node if it was one."""
    victim = chance.choice(list(nodes.values()))
    works = [pid for pid in victim.children() if is_leader(pid)]
    if works and chance.random() < 0.5:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(works), signal.SIGKILL)
        return None
    victim.kill9()
    return victim


@pytest.mark.long
def test_ten_processes_killed_at_random_moments_lose_and_double_nothing(bench: NodeBench) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    bench.open_gate()
    nodes = {name: bench.start(name) for name in ("alpha", "beta")}
    runs = [bench.request(RunKind.BACKUP if number % 2 == 0 else RunKind.VERIFY) for number in range(RUNS)]
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.1, 3.0))
        killed = kill_something(chance, nodes)
        if killed is not None:
            nodes[killed.name] = bench.start(killed.name, wait=False)
    ended = [bench.wait_run(run, lambda found: found.state.is_over, "an end", 240) for run in runs]
    points = {str(point.id) for point in bench.points()}
    for run in ended:
        told = f"seed {seed}: {run}"
        if run.state is RunState.SUCCEEDED:
            assert run.result is not None, told
            assert run.kind is not RunKind.BACKUP or run.result["point"] in points, told
        else:
            assert run.state is RunState.FAILED, told
            assert run.error is not None, told
            assert run.error["code"] in {"DR910", "DR924"}, told
    assert len(points) <= RUNS // 2, f"seed {seed}: no run has committed twice"
    for run_id in runs:
        events = Runs(bench.database).events(run_id)
        assert [event.number for event in events] == list(range(1, len(events) + 1)), f"seed {seed}"
        epochs = [event.epoch for event in events]
        assert epochs == sorted(epochs), f"seed {seed}: an old claim wrote after a new one"
    bench.wait_state(bench.request(RunKind.VERIFY), RunState.SUCCEEDED)
