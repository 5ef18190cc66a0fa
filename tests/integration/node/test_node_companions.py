"""A node's WAL helper and receiver: they come a while after the node, ship WAL for the server, and go with the node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.model.wal import Lsn
from drservice.operations.streamstate import StreamPhase, read_state
from drservice.operations.walsocket import helper_state
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import SERVICE, wait_for
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


def test_the_node_that_is_named_receives_while_the_databases_own_node_does_not(bench: NodeBench) -> None:
    document = json.loads(bench.estate.config.read_text())
    database = document["services"][SERVICE]["components"]["database"]
    database |= {"node": "alpha", "wal": {"mode": "stream", "interval": "50ms", "node": "vault1"}}
    bench.configure(components_added={"database": database})
    service, component = bench.estate.parts()
    alpha, vault = bench.start("alpha"), bench.start("vault1")
    vault.wait_said("WAL receiver started")

    def durable() -> Lsn:
        state = read_state(bench.estate.state, service.name, component.name)
        streams = state is not None and state.state is StreamPhase.STREAMING
        return (state.durable_lsn if streams and state is not None else None) or Lsn(0)

    bench.plant.sql("insert into orders values (101)")
    written = Lsn.parse(bench.plant.value("select pg_current_wal_flush_lsn()::text"))
    wait_for(lambda: durable() >= written, "the commit to be in the repository")
    assert list(bench.estate.repository.rglob("tail/*/*/*")), "as pieces: nothing was archived here"
    assert not alpha.said("WAL receiver started")
    assert (vault.stop(), alpha.stop()) == (0, 0)
