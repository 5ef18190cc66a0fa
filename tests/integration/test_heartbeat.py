"""The heartbeat in the WAL: flushed, small, without a table, and never in anybody's way."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from drservice.operations.walheartbeat import BEAT_BYTES, Heartbeat, beating
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import wait_for

POSITION = "select pg_current_wal_flush_lsn() - '0/0'::pg_lsn"


@pytest.fixture(scope="module")
def maker(template_cache: Path) -> Iterator[ClusterMaker]:
    made = ClusterMaker(cache=template_cache)
    yield made
    made.close()


@pytest.fixture(scope="module")
def primary(maker: ClusterMaker) -> Cluster:
    cluster = maker.make(settings={"autovacuum": "off"})
    cluster.start()
    cluster.sql("create role plain login")
    return cluster


def test_heartbeats_are_flushed_commits_of_a_bounded_size_by_a_role_without_rights(primary: Cluster) -> None:
    primary.sql("checkpoint")
    begin, next_xid = (
        primary.value(POSITION),
        primary.value("select pg_snapshot_xmax(pg_current_snapshot())::text::int"),
    )
    with beating(primary.dsn(user="plain"), seconds=0.01):
        wait_for(
            lambda: primary.value("select pg_snapshot_xmax(pg_current_snapshot())::text::int") >= next_xid + 20, "beats"
        )
    time.sleep(0.05)
    beats = primary.value("select pg_snapshot_xmax(pg_current_snapshot())::text::int") - next_xid
    assert beats >= 20
    written = primary.value(POSITION) - begin
    assert written >= BEAT_BYTES * (beats - 1), "flushed, whatever synchronous_commit says"
    dumped = primary.run("pg_waldump", "-p", primary.data / "pg_wal", "-s", lsn(begin), "-e", lsn(begin + written))
    text = dumped.stdout.decode()
    beating_records = re.findall(r"(?:LogicalMessage|Transaction) .*lsn: 0/([0-9A-F]+),", text)
    assert text.count('prefix "drservice"') == text.count("COMMIT") == beats
    assert len(beating_records) == 2 * beats
    sizes = [int(later, 16) - int(earlier, 16) for earlier, later in pairwise(beating_records[::2])]
    assert statistics.median(sizes) == BEAT_BYTES


def lsn(value: int) -> str:
    return f"{int(value) >> 32:X}/{int(value) & 0xFFFFFFFF:X}"


def test_a_heartbeat_does_not_wait_for_a_synchronous_standby_that_is_not_there(primary: Cluster) -> None:
    primary.sql("alter system set synchronous_standby_names = 'drservice'")
    primary.sql("select pg_reload_conf()")
    try:
        before = primary.value(POSITION)
        with beating(primary.dsn(), seconds=0.01) as heartbeat:
            wait_for(lambda: primary.value(POSITION) > before + 10 * 64, "beats while commits wait")
            assert heartbeat.problem == ""
    finally:
        primary.sql("alter system reset synchronous_standby_names")
        primary.sql("select pg_reload_conf()")


def test_a_heartbeat_rests_on_a_standby_and_comes_back_after_a_restart(
    maker: ClusterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drservice.operations.walheartbeat._RESTING_SECONDS", 0.05)
    cluster = maker.make(settings={"max_connections": "100", "max_wal_senders": "10", "max_worker_processes": "8"})
    (cluster.data / "standby.signal").touch()
    os.chown(cluster.data / "standby.signal", cluster.data.stat().st_uid, -1)
    cluster.configure(restore_command="'false'")
    cluster.start()
    with beating(cluster.dsn(), seconds=0.01) as heartbeat:
        wait_for(
            lambda: cluster.value("select count(*) from pg_stat_activity where application_name ~ 'beat'") == 1, "it"
        )
        time.sleep(0.2)
        assert heartbeat.problem == ""
        cluster.sql("select pg_promote()")
        promoted = cluster.value(POSITION)
        wait_for(lambda: cluster.value(POSITION) > promoted + 10 * 64, "beats of the new primary")
        cluster.stop("immediate")
        wait_for(lambda: heartbeat.problem != "", "the loss to be noticed")
        cluster.start()
        started = cluster.value(POSITION)
        wait_for(lambda: cluster.value(POSITION) > started + 5 * 64, "beats after the restart")
        assert heartbeat.problem == ""


def test_a_heartbeat_that_waits_for_long_keeps_no_session_which_a_smart_shutdown_would_wait_for(
    maker: ClusterMaker,
) -> None:
    cluster = maker.make()
    cluster.start()
    before = cluster.value(POSITION)
    with beating(cluster.dsn(), seconds=60.0) as heartbeat:
        wait_for(lambda: cluster.value(POSITION) >= before + BEAT_BYTES, "the first beat")
        sessions = "select count(*) from pg_stat_activity where application_name ~ 'beat'"
        wait_for(lambda: cluster.value(sessions) == 0, "its session to end", timeout_seconds=5.0)
        assert heartbeat.problem == ""


def test_a_heartbeat_that_cannot_connect_ends_when_it_is_told_to() -> None:
    heartbeat = Heartbeat("host=/nowhere dbname=x user=y", seconds=1.0)
    heartbeat.start()
    wait_for(lambda: heartbeat.problem, "the problem")
    begin = time.monotonic()
    heartbeat.stop()
    assert time.monotonic() - begin < 1.0
