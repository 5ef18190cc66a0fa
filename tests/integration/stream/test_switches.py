"""Timelines, segment sizes, cut networks, refusing servers: what needs servers of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.model.estate import WalMode, WalSettings
from drservice.model.wal import Lsn, Timeline, WalFileName, parse_history, segment_name
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.tcpproxy import free_port, proxy
from tests.doubles.walstreams import SLOT, StreamWorld


def standby_of(clusters: ClusterMaker, primary: Cluster) -> Cluster:
    """Start a standby that streams from ``primary``."""
    folder = clusters.folder("standby")
    done = primary.run(
        "pg_basebackup", "-D", folder / "data", "-h", primary.sock, "-U", primary.user, "-X", "stream", "-c", "fast"
    )
    assert done.status == 0, done.stderr.decode()
    made = clusters.over(folder / "data")
    made.configure(primary_conninfo=f"'host={primary.sock} user={primary.user} application_name=standby'")
    (made.data / "standby.signal").touch()
    hand_over(made.data)
    made.start()
    return made


def wait_replayed(standby: Cluster, lsn: Lsn) -> None:
    deadline = time.monotonic() + 30
    while Lsn.parse(standby.value("select coalesce(pg_last_wal_replay_lsn(), '0/0')::text")) < lsn:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_t24_a_standby_that_is_promoted_while_it_is_streamed_goes_on_on_its_new_timeline_without_a_gap(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    primary = clusters.make(wal_segment_mb=1)
    primary.start()
    standby = standby_of(clusters, primary)
    world = StreamWorld.create(tmp_path, primary)
    with world.receiver(dsn=standby.dsn()) as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        middle = world.write(400)
        running.wait_durable(middle)
        primary.stop()
        standby.sql("select pg_promote()")
        world.cluster = standby
        end = world.write(1500)
        state = running.wait_durable(end)
        assert (state.timeline, state.problem) == (2, None)
    archive = world.site.repository().wal(world.site.scope)
    history = archive.fetch(WalFileName.parse("00000002.history"), system_id=world.system_id).decode()
    assert history == (standby.data / "pg_wal" / "00000002.history").read_text()
    switched = parse_history(history)[-1].end
    world.require_stored(begin, switched, timeline=1, cluster=primary)
    world.require_stored(switched, end, timeline=2)
    last = segment_name(Timeline(1), (switched.value - 1) // world.segment_bytes, world.segment_bytes)
    partial = archive.fetch(WalFileName.parse(f"{last}.partial"), system_id=world.system_id)
    length = (switched.value - 1) % world.segment_bytes + 1
    assert partial[:length] == (primary.data / "pg_wal" / last).read_bytes()[:length]


def test_t24_after_a_failover_the_new_primary_without_a_slot_fills_what_the_old_one_left(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    primary = clusters.make(wal_segment_mb=1, settings={"wal_keep_size": "'64MB'"})
    primary.start()
    standby = standby_of(clusters, primary)
    world = StreamWorld.create(tmp_path, primary)
    with world.receiver() as running:
        begin = running.wait_durable(world.write(300)).durable_lsn
        assert begin is not None
    unseen = world.write(1300)  # by the receiver, not by the standby
    wait_replayed(standby, unseen)
    primary.kill9()
    standby.sql("select pg_promote()")
    standby.sql("checkpoint")  # the slot of the new primary begins behind the switch
    world.cluster = standby
    end = world.write(1200)
    with world.receiver(dsn=standby.dsn()) as running:
        state = running.wait_durable(end)
        assert (state.timeline, state.problem) == (2, None)
    history = (standby.data / "pg_wal" / "00000002.history").read_text()
    switched = parse_history(history)[-1].end
    world.require_stored(begin, switched, timeline=1, cluster=standby)
    world.require_stored(switched, end, timeline=2)
    # The old primary comes back: it is refused, and nothing of it is stored.
    before = world.site.keys("s/")
    primary.start()
    world.write(100, cluster=primary)
    with world.receiver(dsn=primary.dsn()) as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "on timeline 1, and the repository has the history of timeline 2" in str(state.problem)
        assert "present primary" in str(state.remedy)
    assert world.site.keys("s/") == before


@pytest.mark.long
def test_t25_segments_of_64_mb_are_streamed_and_stored_whole(clusters: ClusterMaker, tmp_path: Path) -> None:
    cluster = clusters.make(wal_segment_mb=64, settings={"min_wal_size": "'128MB'"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        running.wait_durable(world.write(5000))
        cluster.switch_wal()
        end = world.write(100)
        running.wait_durable(end, seconds=120)
    world.require_stored(begin, end)


def test_a_cut_network_is_noticed_and_nothing_is_missing_when_it_is_back(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drservice.operations.walfollowing._SILENT_SECONDS", 1.5)
    port = free_port()
    cluster = clusters.make(
        wal_segment_mb=1,
        settings={"listen_addresses": "'127.0.0.1'", "port": str(port), "wal_sender_timeout": "'2s'"},
    )
    (cluster.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n"
                                              "host replication all 127.0.0.1/32 trust\n")  # fmt: skip
    cluster_dsn = f"host={cluster.sock} port={port} dbname=postgres user=postgres"
    monkeypatch.setattr(cluster, "dsn", lambda *_: cluster_dsn)
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    with proxy(port) as network:
        dsn = f"host=127.0.0.1 port={network.port} dbname=postgres user=postgres connect_timeout=2"
        with world.receiver(dsn=dsn) as running:
            begin = running.wait_durable(world.write(50)).durable_lsn
            assert begin is not None
            network.silent.set()
            unheard = world.write(700)
            state = running.wait(lambda s: s.state is StreamPhase.CONNECTING, "to notice", seconds=20)
            assert state.durable_lsn is not None
            assert state.durable_lsn < unheard
            network.silent.clear()
            end = world.write(50)
            running.wait_durable(end)
    world.require_stored(begin, end)


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "told", "remedy"),
    [
        ({"wal_level": "minimal", "max_wal_senders": "0"}, "max_wal_senders", "max_wal_senders"),
        ({"max_wal_senders": "0"}, "max_wal_senders", "max_wal_senders"),
        ({"max_replication_slots": "0"}, "max_replication_slots", "max_replication_slots"),
    ],
)
def test_a_server_that_does_not_stream_says_what_to_set(
    clusters: ClusterMaker, tmp_path: Path, settings: dict[str, str], told: str, remedy: str
) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings=settings)
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    with world.receiver() as running:
        state = running.wait(lambda s: s.problem is not None, "to be refused")
        assert state.state is StreamPhase.FAILED
        assert told in str(state.problem)
        assert remedy in str(state.remedy)


def test_pg_hba_without_a_line_for_replication_is_told_with_the_line(clusters: ClusterMaker, tmp_path: Path) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    (cluster.data / "pg_hba.conf").write_text("local all all trust\n")
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert "pg_hba.conf" in str(state.problem)
        assert "pg_hba.conf" in str(state.remedy)


@pytest.mark.long
def test_archive_command_beside_the_stream_stores_the_same(clusters: ClusterMaker, tmp_path: Path) -> None:
    """Mode both: whichever comes second finds the same bytes there."""
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    world = replace(world, settings=replace(world.settings, wal=WalSettings(mode=WalMode.BOTH)))
    archive = world.site.repository().wal(world.site.scope)
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        for _ in range(4):
            world.write(200)
            name = cluster.switch_wal()
            archive.put(
                WalFileName.parse(name),
                (cluster.data / "pg_wal" / name).read_bytes(),
                system_id=world.system_id,
                last_write=world.site.clock.now(),
            )
        end = world.write(10)
        state = running.wait_durable(end)
        assert state.problem is None
    world.require_stored(begin, end)
    assert world.slot()["wal_status"] == "reserved"
    assert SLOT == "drservice_erp_database"
