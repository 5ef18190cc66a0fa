"""Nodes that die at the worst moments, and what goes on while the catalogue is away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.catalogue.reading import Reading
from drservice.clock import SystemClock
from drservice.model.evidence import EvidenceKind
from drservice.model.runs import RunKind, RunState
from drservice.objectstore.locks import host_lock
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import SERVICE
from tests.doubles.nodes import NodeBench, NodeProcess, is_leader
from tests.faults.plantbench import predicates


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, template_cache: Path) -> Iterator[NodeBench]:
    """A service with a ledger and a recovery point; each test ends the nodes that it starts."""
    maker = ClusterMaker(cache=template_cache)
    made = NodeBench.make(maker, tmp_path_factory.mktemp("nodes"))
    made.open_gate()
    made.estate.json("evidence", "begin")
    made.estate.json("backup", SERVICE)
    yield made
    made.close()
    maker.close()


def kill_with_its_runs(node: NodeProcess) -> None:
    """Kill a node and the processes of its runs, as a power cut does."""
    runs = [pid for pid in node.children() if is_leader(pid)]
    node.kill9()
    for pid in runs:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_backup_whose_node_is_killed_while_it_writes_to_the_ledger_is_on_record_once(bench: NodeBench) -> None:
    before = {point.id for point in bench.points()}
    alpha = bench.start("alpha")
    with host_lock(bench.estate.state / "evidence" / "lock", clock=SystemClock(), patience_seconds=60.0):
        run = bench.request()
        bench.wait_for(lambda: len(bench.points()) > len(before), "the commit")
        kill_with_its_runs(alpha)  # its record waits for the lock
    (new,) = {point.id for point in bench.points()} - before
    later = bench.estate.json("backup", SERVICE)["point"]  # what somebody else took meanwhile is not the run's
    assert new not in {fields["point"] for fields in predicates(bench.estate.config, EvidenceKind.BACKUP).values()}
    beta = bench.start("beta")
    done = bench.wait_state(run, RunState.SUCCEEDED)
    assert done.epoch == 2
    assert done.result is not None
    assert done.result["point"] == new
    recorded = [fields["point"] for fields in predicates(bench.estate.config, EvidenceKind.BACKUP).values()]
    assert (recorded.count(new), recorded.count(later)) == (1, 1)
    assert {point.id for point in bench.points()} - before == {new, later}
    assert beta.stop() == 0


def test_a_drill_whose_node_is_killed_is_on_record_as_aborted_and_done_by_another(bench: NodeBench) -> None:
    alpha = bench.start("alpha")
    run = bench.request(RunKind.DRILL)
    bench.wait_for(lambda: predicates(bench.estate.config, EvidenceKind.OBLIGATION) != {}, "the obligation")
    kill_with_its_runs(alpha)
    beta = bench.start("beta")
    done = bench.wait_state(run, RunState.SUCCEEDED, 150)
    assert done.epoch == 2
    assert done.result is not None
    assert done.result["verdict"] == "passed"
    assert bench.estate.environments() == []
    drills = predicates(bench.estate.config, EvidenceKind.DRILL)
    assert [fields["outcome"] for fields in drills.values()] == ["aborted", "passed"]
    assert beta.stop() == 0


def test_wal_backup_and_restore_go_on_while_the_catalogue_is_away_and_it_hears_of_them_later(bench: NodeBench) -> None:
    node = bench.start("gamma")
    bench.database.close()
    bench.catalogue_cluster.stop("immediate")
    node.wait_said("the catalogue is away")
    bench.plant.sql("insert into orders values (4711)")
    segment = bench.plant.switch_wal()
    archived = bench.plant.data / "pg_wal" / "archive_status" / f"{segment}.done"
    bench.wait_for(archived.exists, "the WAL")
    made = bench.estate.json("backup", SERVICE)
    target = bench.folder / "restored"
    restored = bench.estate.json("restore", SERVICE, "--to", "latest", "--into", str(target))
    assert restored["target"]["reached_lsn"]
    assert (target / "global" / "pg_control").exists()
    bench.catalogue_cluster.start()
    node.wait_said("the catalogue is back")
    bench.wait_state(bench.request(RunKind.VERIFY), RunState.SUCCEEDED)  # after it the index is brought up to date
    bench.wait_for(
        lambda: made["point"] in {point.id for point in Reading(bench.database).points(SERVICE)}, "the point", 60
    )
    assert node.stop() == 0
