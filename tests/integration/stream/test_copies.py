"""Servers that share identity and timeline with the archive's and have another history: set back, or a clone."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from drservice.errors import StoreUnreachableError
from drservice.model.wal import Lsn, Timeline
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.stores import SlowStore
from tests.doubles.walstreams import StreamWorld


def test_a_server_that_was_set_back_is_refused_and_nothing_of_it_is_called_durable(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    """Its commits lie where others are stored: believed, they would be acknowledged and lost."""
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
    before = world.site.keys("s/")

    written = world.write(1)
    assert written < stored
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "which this server never wrote" in str(state.problem)
        assert "timeline of its own" in str(state.remedy)
    assert Lsn.parse(str(world.slot()["restart_lsn"])) <= written
    world.drop_slot()  # as a clone has none
    with world.receiver() as running:
        running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
    assert world.slot() == {}, "it would keep WAL for nobody"
    assert world.site.keys("s/") == before

    # It goes on: positions alone would fit now, the bytes do not. A whole segment would go before the true pieces.
    assert world.write(400) > stored
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "stored with other content" in str(state.problem)
        world.write(900)
        time.sleep(1.0)
    assert all(s.durable_lsn is None or s.durable_lsn <= stored for s in running.states)
    assert [key for key in world.site.keys("s/") if "/wal/" in key] == [key for key in before if "/wal/" in key]


def test_stored_pieces_that_cannot_be_believed_are_stored_once_more(clusters: ClusterMaker, tmp_path: Path) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    cluster.switch_wal()
    with world.receiver() as running:
        for _ in range(3):
            begin = world.write(5)
            running.wait_durable(begin)
    pieces = [key for key in world.site.keys("s/") if "/tail/" in key]
    for path in (tmp_path / "repository").rglob(pieces[-1].rsplit("/", 1)[1] + "*"):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-40])
    with world.receiver() as running:
        end = world.write(5)
        running.wait_durable(end)
    number = end.value // world.segment_bytes
    archive = world.site.repository().tail(world.site.scope)
    rebuilt = archive.rebuild(world.system_id, Timeline(1), number, world.segment_bytes)
    assert rebuilt.unusable, "the copy that was spoilt is there still"
    assert (rebuilt.problem, rebuilt.end >= end) == (None, True)


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
