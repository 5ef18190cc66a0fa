"""WAL is received by the node that the configuration names, and by no other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.model.wal import Lsn
from drservice.operations.streamstate import StreamPhase, read_state
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
