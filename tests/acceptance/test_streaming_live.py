"""A node's receiver at work, as people see it: `info`, `check`, and what is at risk."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drservice.clock import from_iso
from drservice.node.companions import Companions
from drservice.node.streamtelling import told_streams
from drservice.node.walstreams import RECEIVING
from drservice.operations.streamstate import StreamPhase, StreamState, is_alive, read_state
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import SERVICE, TempEstate, wait_for


@pytest.fixture(scope="module")
def estate(template_cache: Path) -> Iterator[TempEstate]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"max_slot_wal_keep_size": "'2GB'"})
    made = TempEstate.over(cluster)
    made.wal_settings = {"mode": "stream", "idle_interval": "1s"}
    made.write_configuration(made.config)
    made.initialise()
    cluster.start()
    cluster.sql("create table orders(id int primary key)")
    yield made
    made.close()
    maker.close()


def state_of(estate: TempEstate) -> StreamState | None:
    service, component = estate.parts()
    return read_state(estate.state, service.name, component.name)


def is_streaming(estate: TempEstate) -> bool:
    state = state_of(estate)
    return state is not None and state.state is StreamPhase.STREAMING and state.bytes_at_risk is not None


def checks(estate: TempEstate, *, status: int) -> dict[str, dict[str, Any]]:
    found = estate.json("check", SERVICE, status=status)["checks"]
    return {item["name"].removeprefix(f"{SERVICE}/database: "): item for item in found}


def test_a_node_streams_and_people_see_what_is_at_risk(estate: TempEstate) -> None:
    service, component = estate.parts()
    receivers = Companions(RECEIVING, estate=estate.estate, host="db1", log_level="info", first_seconds=0.0)
    receivers.start()
    try:
        wait_for(lambda: is_streaming(estate), "the receiver", timeout_seconds=60)
        estate.json("backup", SERVICE)
        estate.cluster.sql("insert into orders values (1)")
        written = estate.cluster.value("select pg_current_wal_flush_lsn() - '0/0'::pg_lsn")

        def durable() -> int:
            state = state_of(estate)
            return 0 if state is None or state.durable_lsn is None else state.durable_lsn.value

        wait_for(lambda: durable() >= written, "the row to be durable")
        beats = "select count(*) from pg_stat_activity where application_name = 'drservice heartbeat'"
        assert estate.cluster.value(beats) == 1, "an idle server's loss is known"

        [known] = estate.json("info", SERVICE)["services"]
        [stream] = known["streams"]
        assert (stream["state"], stream["slot_status"], stream["problem"]) == ("streaming", "reserved", None)
        assert stream["lag_seconds"] < 5
        assert known["seconds_at_risk"] == stream["lag_seconds"]
        assert known["bytes_at_risk"] == stream["lag_bytes"]
        assert abs((from_iso(known["proven_until"]) - datetime.now(UTC)).total_seconds()) < 10
        told = checks(estate, status=0)
        assert told["WAL receiver"]["detail"].startswith("streaming (pid ")
        assert "archive_command" not in told, "nothing is archived by the server: nothing is asked"
        [receiver] = told_streams(estate.estate(), "db1", datetime.now(UTC))
        assert (receiver.service, receiver.state) == ("erp", "streaming")

        [pid] = receivers.running.values()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: receivers.running.get("erp/database", pid) != pid, "another receiver", timeout_seconds=60)
        wait_for(lambda: (state := state_of(estate)) is not None and state.pid != pid, "its word", timeout_seconds=60)
    finally:
        receivers.stop()
    assert not is_alive(estate.state, service.name, component.name)
    [known] = estate.json("info", SERVICE)["services"]
    assert known["streams"][0]["state"] == "absent"
    assert [item.state for item in told_streams(estate.estate(), "db1", datetime.now(UTC))] == ["absent"]
    assert checks(estate, status=1)["WAL receiver"]["state"] == "failed"
