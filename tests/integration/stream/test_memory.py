"""What a receiver, a process of its own, takes of memory while it catches up with WAL that does not compress."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate
from tests.doubles.s3server import rclone_server
from tests.doubles.walstreams import REPORTED, peak_memory_kb

MOST_KB = 150 << 10
PIECES = 100
"""Of 4 MiB."""


def durable(cluster: Cluster) -> int:
    """Return the position that the receiver has reported; 0 while there is none."""
    return int(cluster.value(f"select coalesce(({REPORTED} - '0/0')::bigint, 0)"))


def peak_of_catching_up(cluster: Cluster, estate: TempEstate, sql: str) -> int:
    """Return the highest resident size, in KB, of a receiver that finds 400 MB waiting in its slot."""
    estate.wal_settings = {"mode": "stream"}
    estate.write_configuration(estate.config)
    estate.json("init")
    estate.hand_over_repository()
    cluster.start()
    cluster.sql("create table documents (content bytea)")
    cluster.sql("alter table documents alter column content set storage external")
    peak = 0
    for is_backlog in (False, True):  # the first one makes the slot
        if is_backlog:
            for _ in range(PIECES):
                cluster.sql(sql, (os.urandom(4 << 20),))
        target = int(cluster.value("select (pg_current_wal_flush_lsn() - '0/0')::bigint")) - (1 << 20)
        argv = [*PROGRAM, "--config", str(estate.config), "wal", "stream", SERVICE]
        process = subprocess.Popen(
            argv, env={**os.environ, **estate.variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 120
            while durable(cluster) < target:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            peak = peak_memory_kb(process.pid)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    return peak


@pytest.mark.long
def test_t25_memory_does_not_grow_with_the_size_of_a_segment(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=64, settings={"min_wal_size": "'128MB'", "max_wal_size": "'1GB'"})
    sql = "select pg_logical_emit_message(true, 'noise', %s::bytea)"
    peak = peak_of_catching_up(cluster, TempEstate.over(cluster), sql)
    assert peak < MOST_KB, f"{peak >> 10} MB, with segments of 64 MB"


@pytest.mark.long
def test_memory_does_not_grow_with_wal_that_hardly_compresses(clusters: ClusterMaker, tmp_path: Path) -> None:
    """Documents in rows: their frames are a little smaller than those that do not compress at all."""
    cluster = clusters.make(settings={"min_wal_size": "'128MB'", "max_wal_size": "'1GB'"})
    with rclone_server(tmp_path / "buckets", tells_md5=False) as server:
        url = server.url_for("drservice", path_style="true")
        estate = TempEstate.over(cluster, url=url, variables=server.environment)
        peak = peak_of_catching_up(cluster, estate, "insert into documents select %s::bytea")
    assert peak < MOST_KB, f"{peak >> 10} MB"
