"""The WAL helper of a node: it comes a while after the node, archives for the server, and goes with the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.operations.walsocket import helper_state
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import wait_for
from tests.doubles.nodes import NodeBench

pytestmark = pytest.mark.long


@pytest.fixture
def bench(tmp_path: Path, template_cache: Path) -> Iterator[NodeBench]:
    maker = ClusterMaker(cache=template_cache)
    made = NodeBench.make(maker, tmp_path)
    try:
        yield made
    finally:
        made.close()
        maker.close()


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_node_has_a_wal_helper_as_long_as_it_lives(bench: NodeBench, end: str) -> None:
    socket = bench.helper_place
    socket.unlink()
    node = bench.start()
    node.wait_said("WAL helper started")
    wait_for(lambda: helper_state(socket) is not None, "the helper")
    segment = bench.plant.switch_wal()
    assert not list(bench.estate.repository.rglob("wal/*/*/*")), "the gate holds the helper, too"
    bench.open_gate()
    done = bench.plant.data / "pg_wal" / "archive_status" / f"{segment}.done"
    wait_for(done.exists, "the segment to be archived", timeout_seconds=90)
    [stored] = bench.estate.repository.rglob(f"wal/*/*/{segment}")
    assert b'"key_id"' in stored.read_bytes()[:4096], "by the helper: sealed with the key of the day"
    if end == "stopped":
        assert node.stop() == 0
    else:
        node.kill9()
    wait_for(lambda: helper_state(socket) is None, "the helper to end")
