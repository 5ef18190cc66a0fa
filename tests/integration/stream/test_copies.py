"""Servers that share identity and timeline with the archive's and have another history: set back, or a clone."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice.errors import StoreUnreachableError
from drservice.model.wal import Lsn, Timeline
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.stores import SlowStore
from tests.doubles.walstreams import StreamWorld


@dataclass(frozen=True)
class SetBack:
    """A server on the data directory of a moment before what is stored."""

    world: StreamWorld
    stored: Lsn


@pytest.fixture
def set_back(clusters: ClusterMaker, tmp_path: Path) -> SetBack:
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    cluster.switch_wal()
    with world.receiver() as running:
        running.wait_durable(world.write(20))
    cluster.stop()
    shutil.copytree(cluster.data, tmp_path / "before", symlinks=True)
    cluster.start()
    with world.receiver() as running:
        stored = world.write(200)
        running.wait_durable(stored)
    cluster.kill9()
    shutil.rmtree(cluster.data)
    shutil.copytree(tmp_path / "before", cluster.data, symlinks=True)
    hand_over(cluster.data)
    cluster.start()
    return SetBack(world, stored)


def test_a_server_that_was_set_back_is_refused_and_nothing_of_it_is_called_durable(set_back: SetBack) -> None:
    """Its commits lie where others are stored: believed, they would be acknowledged and lost."""
    world = set_back.world
    before = world.site.keys("s/")
    written = world.write(1)
    assert written < set_back.stored
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "which this server never wrote" in str(state.problem)
        assert "timeline of its own" in str(state.remedy)
    assert world.slot()["restart_lsn"] is not None
    assert Lsn.parse(str(world.slot()["restart_lsn"])) <= written
    assert world.site.keys("s/") == before


def test_a_server_that_was_set_back_and_went_on_further_than_what_is_stored_is_refused(set_back: SetBack) -> None:
    """Positions alone would fit; the bytes do not. Not the whole segment either: it would go before the true pieces."""
    world = set_back.world
    assert world.write(400) > set_back.stored
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "stored with other content" in str(state.problem)
        world.write(900)
        time.sleep(1.0)
    assert all(s.durable_lsn is None or s.durable_lsn <= set_back.stored for s in running.states)
    assert Lsn.parse(str(world.slot()["restart_lsn"])) < set_back.stored
    number = set_back.stored.value // world.segment_bytes
    rebuilt = (
        world.site.repository()
        .tail(world.site.scope)
        .rebuild(world.system_id, Timeline(1), number, world.segment_bytes)
    )
    assert rebuilt.end >= set_back.stored or rebuilt.problem is not None


def test_a_receiver_whose_server_and_store_are_gone_does_not_say_that_it_streams(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    away = threading.Event()

    def gate(operation: str) -> None:
        if operation == "create" and away.is_set():
            raise StoreUnreachableError("the store is away")

    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        running.wait_durable(world.write(1))
        away.set()
        world.write(20)
        cluster.kill9()
        state = running.wait(lambda s: s.state is not StreamPhase.STREAMING, "to say so", seconds=4.0)
        assert state.problem is not None
        away.clear()
