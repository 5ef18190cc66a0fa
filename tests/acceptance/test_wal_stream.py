"""``drservice wal stream`` as a process: killed at any moment it leaves no gap, and SIGTERM ends it in order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from drservice.errors import BusyError, ExitStatus
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_begin, segment_name
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate

SLOT = "drservice_erp_database"


@pytest.fixture(scope="module")
def estate(template_cache: Path) -> Iterator[TempEstate]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    made = TempEstate.over(cluster)
    made.wal_settings = {"mode": "stream", "interval": "20ms"}
    made.write_configuration(made.config)
    made.json("init")
    made.hand_over_repository()
    cluster.start()
    yield made
    maker.close()


@contextmanager
def streaming(estate: TempEstate, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command until the block ends; it is killed then unless it has ended."""
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(estate.config), "wal", "stream", SERVICE, *words],
        env={**os.environ, **estate.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def reported(cluster: Cluster) -> Lsn:
    rows = cluster.sql("select restart_lsn::text from pg_replication_slots where slot_name = %s", (SLOT,))
    return Lsn.parse(rows[0][0]) if rows and rows[0][0] else Lsn(0)


def write(cluster: Cluster, kilobytes: int) -> Lsn:
    cluster.sql(
        "select pg_logical_emit_message(true, 'test', repeat(md5(random()::text), 32)) from generate_series(1, %s)",
        (kilobytes,),
    )
    return Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text"))


def wait_reported(cluster: Cluster, lsn: Lsn) -> None:
    deadline = time.monotonic() + 60
    while reported(cluster) < lsn:
        assert time.monotonic() < deadline, f"{reported(cluster)} of {lsn}"
        time.sleep(0.02)


def require_stored(estate: TempEstate, begin: Lsn, end: Lsn) -> None:
    """Compare what is stored with the server's own files; all but the last segment have to be wholes."""
    cluster, size = estate.cluster, 1 << 20
    with estate.plane() as plane:
        service, component = estate.parts()
        scope = plane.repository.scope(service.name, component.name)
        archive, tail = plane.repository.wal(scope), plane.repository.tail(scope)
        (system_id,) = set(archive.system_ids()) | set(tail.system_ids())
        last = (end.value - 1) // size
        for number in range(begin.value // size, last + 1):
            name = segment_name(Timeline(1), number, size)
            if number < last:
                data = archive.fetch(WalFileName.parse(name), system_id=system_id)
            else:
                rebuilt = tail.rebuild(system_id, Timeline(1), number, size)
                assert rebuilt.problem is None
                assert rebuilt.end >= end
                data = bytes(rebuilt.data[: end.value - segment_begin(number, size).value])
            local = cluster.data / "pg_wal" / name
            if local.exists():
                assert data == local.read_bytes()[: len(data)], name


def test_a_receiver_that_is_killed_at_any_moment_goes_on_without_a_gap(estate: TempEstate) -> None:
    cluster = estate.cluster
    dice = random.Random(7)
    begin: Lsn | None = None
    for pause in (0.0, 0.05, 0.3, dice.uniform(0.0, 0.6)):
        with streaming(estate) as process:
            # It is connected before there is a slot, and a slot that is not there keeps no position.
            while not cluster.sql(
                "select 1 from pg_stat_replication where application_name = %s and state <> 'startup'", (SLOT,)
            ):
                time.sleep(0.01)
            begin = begin or reported(cluster)
            write(cluster, dice.randrange(50, 1500))
            time.sleep(pause)
            process.kill()
            process.wait()
        stored = reported(cluster)
        if stored > begin:  # else it was killed before it had stored anything
            require_stored(estate, begin, stored)
    end = write(cluster, 10)
    with streaming(estate):
        wait_reported(cluster, end)
    assert begin is not None
    require_stored(estate, begin, end)


def test_sigterm_stores_what_was_received_and_ends_with_0_and_json_is_a_line_a_state(estate: TempEstate) -> None:
    cluster = estate.cluster
    with streaming(estate, "--json") as process:
        wait_reported(cluster, write(cluster, 300))
        end = write(cluster, 20)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    states = [json.loads(line) for line in stdout.splitlines()]
    assert {state["schema"] for state in states} == {"drservice/wal-stream/v1"}
    assert "streaming" in {state["state"] for state in states}
    assert states[-1]["slot"] == SLOT
    assert states[-1]["bytes_at_risk"] is not None
    assert reported(cluster) >= end
    require_stored(estate, end, end)


def test_a_second_receiver_on_the_host_is_refused_as_busy(estate: TempEstate) -> None:
    with streaming(estate):
        wait_reported(estate.cluster, write(estate.cluster, 1))
        refused = estate.refusal("wal", "stream", SERVICE, status=ExitStatus.BUSY)
    assert refused["code"] == BusyError.code
    assert "running already" in refused["message"]


def test_what_is_not_configured_to_be_streamed_is_refused(estate: TempEstate, tmp_path: Path) -> None:
    before = estate.wal_settings
    try:
        estate.wal_settings = {"mode": "archive"}
        config = estate.write_configuration(tmp_path / "archive.yaml")
    finally:
        estate.wal_settings = before
    refused = estate.refusal("wal", "stream", SERVICE, status=ExitStatus.USAGE, config=config)
    assert "wal.mode is archive" in refused["message"]
