"""What breaks around a receiver: another primary, a clone, a server set back, its shutdown, its network, its slot."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drservice.errors import StoreUnreachableError
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_name
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import Cluster, ClusterMaker, StopMode, hand_over
from tests.doubles.stores import SlowStore
from tests.doubles.tcpproxy import free_port
from tests.doubles.walstreams import StreamWorld

_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of setns(2)."""


class Gate:
    """A store that is away while it is closed."""

    def __init__(self) -> None:
        self.away = threading.Event()

    def __call__(self, operation: str) -> None:
        if operation == "create" and self.away.is_set():
            raise StoreUnreachableError("the store is away")


def wholes(world: StreamWorld) -> list[str]:
    return [key for key in world.site.keys("s/") if "/wal/" in key]


# --- other servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [pytest.param("piece", marks=pytest.mark.long), "segment"])
def test_a_receiver_on_the_old_primary_stops_when_another_server_was_promoted(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It holds its connection and would go on for ever; the history that the new primary's receiver stored tells."""
    if what == "piece":
        monkeypatch.setattr("drservice.operations.walshipping._FENCE_SECONDS", 0.0)
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    with world.receiver() as running:
        stored = world.write(50)
        running.wait_durable(stored)
        size, system_id = world.segment_bytes, world.system_id
        begin = Lsn((stored.value // size + 1) * size)
        history = f"1\t{begin}\tno recovery target specified\n".encode()
        world.site.repository().wal(world.site.scope).put(
            WalFileName.parse("00000002.history"), history, system_id=system_id, last_write=world.site.clock.now()
        )
        before = world.site.keys("s/")
        told = len(running.states)
        end = world.write(20 if what == "piece" else 1500)
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to stop")
        assert "on timeline 1, and the repository has the history of timeline 2" in str(state.problem)
        assert "present primary" in str(state.remedy)
        assert all(s.durable_lsn is None or s.durable_lsn < end for s in running.states[told:])
    added = [key for key in world.site.keys("s/") if key not in before]
    assert [key for key in added if what == "piece" or "/wal/" in key] == []


@pytest.mark.long
def test_of_two_live_clones_the_second_is_refused_and_the_first_goes_on(clusters: ClusterMaker, tmp_path: Path) -> None:
    first = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    first.start()
    world = StreamWorld.create(tmp_path, first)
    with world.receiver() as running:
        running.wait_durable(world.write(20))
    first.stop()
    folder = clusters.folder("clone") / "data"
    shutil.copytree(first.data, folder, symlinks=True)
    hand_over(folder)
    second = clusters.over(folder)
    first.start()
    second.start()
    with world.receiver() as running:
        begin = running.wait_durable(world.write(30)).durable_lsn
        assert begin is not None
        with world.receiver(dsn=second.dsn(), state_dir=tmp_path / "elsewhere") as other:
            world.write(1500, cluster=second)
            state = other.wait(lambda s: s.state is StreamPhase.FAILED, "the clone to be refused")
            assert "other content" in str(state.problem) or "never" in str(state.problem)
            end = world.write(1500)
            assert running.wait_durable(end).problem is None
    world.require_stored(begin, end)


@pytest.mark.long
def test_a_server_set_back_to_before_an_archive_that_ends_with_a_segment_is_refused(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    """Nothing of the next segment is stored, so no position contradicts it: the bytes of the one before do."""
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    cluster.switch_wal()
    with world.receiver() as running:
        running.wait_durable(world.write(20))
    cluster.stop()
    shutil.copytree(cluster.data, tmp_path / "before", symlinks=True)
    cluster.start()
    size = world.segment_bytes
    with world.receiver() as running:
        last = world.write(200)
        end = Lsn((last.value // size + 1) * size)
        cluster.switch_wal()
        running.wait_durable(end)
    system_id = world.system_id
    cluster.kill9()
    archive, tail = world.site.repository().wal(world.site.scope), world.site.repository().tail(world.site.scope)
    assert archive.exists(WalFileName.parse(segment_name(Timeline(1), last.value // size, size)), system_id=system_id)
    assert tail.pieces(system_id, Timeline(1), begin=end) == [], "the archive ends with the segment"
    shutil.rmtree(cluster.data)
    shutil.copytree(tmp_path / "before", cluster.data, symlinks=True)
    hand_over(cluster.data)
    cluster.start()
    before = world.site.keys("s/")
    assert world.write(2500) > end + 1
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "other content" in str(state.problem)
        time.sleep(0.5)
    assert world.site.keys("s/") == before


# --- the server's own end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param("smart", marks=pytest.mark.long), "fast"])
def test_t23_a_primary_shuts_down_although_the_store_is_away(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: StopMode
) -> None:
    """It waits for what it sent to be flushed, and a smart one for every session too; nothing is lost by letting go."""
    monkeypatch.setattr("drservice.operations.walfollowing._DRAIN_SECONDS", 1.5)
    monkeypatch.setattr("drservice.operations.walwatch._LOOK_SECONDS", 0.5)
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    gate = Gate()
    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        begin = running.wait_durable(world.write(1)).durable_lsn
        assert begin is not None
        gate.away.set()
        world.write(300)
        began = time.monotonic()
        cluster.stop(mode, timeout_seconds=40)
        assert time.monotonic() - began >= 1.0, "it is given the time to store what was sent"
        gate.away.clear()
        cluster.start()
        end = world.write(10)
        running.wait_durable(end, seconds=60)
    world.require_stored(begin, end)


# --- what the server keeps ------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_alarm_comes_while_half_of_what_the_server_may_keep_is_left(clusters: ClusterMaker, tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "'24MB'", "autovacuum": "off", "max_wal_size": "'4MB'"}
    cluster = clusters.make(wal_segment_mb=1, settings={**settings, "min_wal_size": "'2MB'"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    gate = Gate()
    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        begin = running.wait_durable(world.write(1)).durable_lsn
        assert begin is not None
        gate.away.set()
        for _ in range(14):
            world.write(1000)
        state = running.wait(lambda s: "until the slot may be lost" in str(s.problem), "the alarm", seconds=40)
        assert "max_slot_wal_keep_size" in str(state.remedy)
        assert world.slot()["wal_status"] in {"reserved", "extended"}
        assert state.safe_wal_bytes is not None
        assert state.safe_wal_bytes > 4 << 20, "there is time to do something"
        time.sleep(5.5)
        assert running.state.state is StreamPhase.STALLED
        assert "until the slot may be lost" in str(running.state.problem), "a stalled store does not hide it"
        gate.away.clear()
        end = world.write(1)
        running.wait_durable(end)
    world.require_stored(begin, end)


@pytest.mark.long
def test_a_role_that_sql_is_refused_to_streams_and_its_slot_is_found_again(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    (cluster.data / "pg_hba.conf").write_text(
        "local replication all trust\nlocal all mere reject\nlocal all all trust\n"
    )
    cluster.start()
    cluster.sql("create role mere login replication")
    world = StreamWorld.create(tmp_path, cluster, dsn=cluster.dsn(user="mere"))
    with world.receiver() as running:
        begin = running.wait_durable(world.write(1)).durable_lsn
        assert begin is not None
    restart = world.slot()["restart_lsn"]
    world.write(1200)
    assert world.slot()["restart_lsn"] == restart, "the slot keeps it"
    with world.receiver() as running:
        end = world.write(1)
        state = running.wait_durable(end)
        assert (state.problem, state.slot_status) == (None, None)
    world.require_stored(begin, end)


# --- the network ----------------------------------------------------------------------------------------------


def ip(*words: str) -> None:
    subprocess.run(["/usr/sbin/ip", *words], check=True, capture_output=True, timeout=20)


def inside(namespace: str, action: Callable[[], None]) -> None:
    """Do something in a thread of another network namespace; what it starts stays there."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{namespace}").open("rb") as file:
                assert ctypes.CDLL(None).setns(file.fileno(), _NEW_NETWORK) == 0
            action()
        except BaseException as error:  # noqa: BLE001 - handed to the test below
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


@contextmanager
def cable() -> Iterator[tuple[str, str, str]]:
    """Yield a namespace, our end of a cable to it and the prefix of both addresses (.1 is ours)."""
    name = f"drs{os.getpid() % 100_000}"
    prefix = f"10.213.{os.getpid() % 250}"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        ip("addr", "add", f"{prefix}.1/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", f"{prefix}.2/30", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, f"{name}b", prefix
    finally:
        ip("netns", "del", name)


@pytest.mark.long
def test_a_cable_that_is_pulled_is_noticed_and_nothing_is_missing_when_it_is_back(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lives in a network namespace of its own; its Unix socket is the test's way to it meanwhile."""
    monkeypatch.setattr("drservice.operations.walfollowing._SILENT_SECONDS", 2.0)
    with cable() as (namespace, device, prefix):
        port = free_port()
        cluster = clusters.make(
            wal_segment_mb=1,
            settings={"listen_addresses": f"'{prefix}.2'", "port": str(port), "wal_sender_timeout": "'3s'"},
        )
        (cluster.data / "pg_hba.conf").write_text(
            f"local all all trust\nhost all all {prefix}.1/32 trust\nhost replication all {prefix}.1/32 trust\n"
        )
        inner = f"host={cluster.sock} port={port} dbname=postgres user=postgres"
        monkeypatch.setattr(Cluster, "dsn", lambda *_, **__: inner)
        inside(namespace, cluster.start)
        world = StreamWorld.create(tmp_path, cluster)
        dsn = f"host={prefix}.2 port={port} dbname=postgres user=postgres connect_timeout=2"
        with world.receiver(dsn=dsn) as running:
            begin = running.wait_durable(world.write(50)).durable_lsn
            assert begin is not None
            ip("-n", namespace, "link", "set", device, "down")
            unheard = world.write(700)
            state = running.wait(lambda s: s.state is StreamPhase.CONNECTING, "to notice", seconds=30)
            assert state.durable_lsn is not None
            assert state.durable_lsn < unheard
            ip("-n", namespace, "link", "set", device, "up")
            end = world.write(50)
            running.wait_durable(end, seconds=60)
        world.require_stored(begin, end)
        cluster.stop()
