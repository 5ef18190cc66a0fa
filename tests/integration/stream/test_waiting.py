"""Commits that wait for the receiver: whatever a session commits, it is stored at once and never held back as idle."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.model.estate import WalMode, WalSettings
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import wait_for
from tests.doubles.walstreams import SLOT, StreamWorld

_STATEMENTS = (
    "create table made (i serial primary key, t text)",
    "insert into made (t) values ('a')",
    "select nextval('made_i_seq')",
    "select pg_logical_emit_message(true, 'somebody', 'x')",
    "select pg_logical_emit_message(false, 'somebody', 'x')",
    "begin; savepoint a; insert into made (t) values ('b'); release a; select txid_current(); commit",
    "begin; insert into made (t) values ('c'); prepare transaction 'one'",
    "commit prepared 'one'",
    "begin; insert into made (t) values ('d'); prepare transaction 'two'",
    "rollback prepared 'two'",
    "begin; insert into made (t) values ('e'); rollback",
    "select pg_current_xact_id()",
    "vacuum made",
    "create database other",
    "drop database other",
    "select pg_switch_wal()",
    "insert into made (t) values ('f')",
    "checkpoint",
    "truncate made",
    "alter system set work_mem = '5MB'",
    "drop table made",
)


_BEAT = (
    "begin; set local synchronous_commit = local;"
    " select pg_logical_emit_message(true, 'drservice', 'heartbeat'); commit"
)


@pytest.mark.long
def test_no_commit_of_a_synchronous_server_is_held_back_as_idle(clusters: ClusterMaker, tmp_path: Path) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"max_prepared_transactions": "5", "autovacuum": "off"})
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    wal = WalSettings(mode=WalMode.STREAM, synchronous=True, idle_interval=timedelta(hours=1))
    synchronous = replace(world, settings=replace(world.settings, wal=wal))
    took: dict[str, float] = {}

    def run(statement: str, name: str | None = None) -> None:
        before = time.monotonic()
        cluster.sql(statement)
        took[name or statement] = time.monotonic() - before

    with synchronous.receiver() as running:
        running.wait_streaming()
        cluster.sql(f"alter system set synchronous_standby_names = '{SLOT}'")
        cluster.sql("select pg_reload_conf()")
        wait_for(lambda: cluster.value("select sync_state from pg_stat_replication") == "sync", "commits to wait")
        for statement in _STATEMENTS:
            time.sleep(1.1)  # what follows work closely is sent without a look
            cluster.sql(_BEAT)
            run(statement)
        for number in range(40):  # over the ends of segments
            run("select pg_logical_emit_message(true, 'x', repeat('y', 100000))", f"across {number}")
        cluster.sql("alter system reset synchronous_standby_names")
        cluster.sql("select pg_reload_conf()")
    assert {name: seconds for name, seconds in took.items() if seconds > 5} == {}
