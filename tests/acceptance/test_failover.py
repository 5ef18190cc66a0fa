"""A standby is promoted under load while the WAL is streamed: what comes back is what the new primary has."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from drservice.clock import to_iso
from drservice.model.wal import Lsn
from drservice.operations.streamstate import StreamState, read_state
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate
from tests.doubles.promises import TABLE, Writers, require_in_order


def make_standby(maker: ClusterMaker, primary: Cluster) -> Cluster:
    copy = maker.folder("standby")
    copy.rmdir()
    done = primary.run("pg_basebackup", "-h", primary.sock, "-U", "postgres", "-D", copy, "-c", "fast", "-R")
    assert done.status == 0, done.stderr
    standby = maker.over(copy)
    standby.start()
    return standby


def wait_for(is_so: object, what: str, seconds: float = 60.0) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@contextmanager
def receiver(estate: TempEstate) -> Iterator[None]:
    """Run ``drservice wal stream`` while the block runs."""
    with (estate.root / "stream.log").open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, "--config", str(estate.config), "wal", "stream", SERVICE],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0, (estate.root / "stream.log").read_text()


def state_of(estate: TempEstate) -> StreamState | None:
    service, component = estate.parts()
    return read_state(estate.state, service.name, component.name)


def wait_durable(estate: TempEstate, server: Cluster, timeline: int) -> None:
    """Wait until everything that a server has written is in the repository."""
    flushed = Lsn.parse(server.value("select pg_current_wal_flush_lsn()::text"))

    def is_durable() -> bool:
        state = state_of(estate)
        if state is None or state.timeline != timeline or state.durable_lsn is None:
            return False
        return state.durable_lsn >= flushed

    wait_for(is_durable, f"{flushed} on timeline {timeline} is not durable: {state_of(estate)}")


def rows_at(estate: TempEstate, target: str, config: Path) -> set[int]:
    """Restore elsewhere and return the rows that are there."""
    document = estate.json("restore", SERVICE, "--to", target, "--start", config=config)
    try:
        with psycopg.connect(document["environment"]["dsn"]) as connection:
            return {row[0] for row in connection.execute("select id from promises")}
    finally:
        estate.json("environment", "destroy", document["environment"]["id"], config=config)


@pytest.mark.long
def test_a_standby_promoted_under_load_is_followed_and_restored_across_the_switch(clusters: ClusterMaker) -> None:
    primary = clusters.make(settings={"wal_keep_size": "'256MB'"})
    primary.start()
    primary.sql(TABLE)
    standby = make_standby(clusters, primary)
    estate = TempEstate.over(primary, method="pg_basebackup")
    estate.wal_settings = {"mode": "stream"}
    estate.dsn = (
        f"host={primary.sock},{standby.sock} dbname=postgres user={primary.user} target_session_attrs=read-write"
    )
    estate.write_configuration(estate.config)
    signer = estate.json("init")["signer"]
    elsewhere = clusters.folder("elsewhere")
    config = estate.write_configuration(
        elsewhere / "drservice.yaml", state=elsewhere / "state", signers={signer["name"]: signer["key"]}
    )
    hand_over(elsewhere)
    with receiver(estate):
        wait_for(lambda: (seen := state_of(estate)) is not None and seen.durable_lsn is not None, "it does not stream")
        estate.json("backup", SERVICE)
        with Writers(dsn=primary.dsn(), count=3) as before:
            time.sleep(1.5)
            instant = datetime.now(UTC)
            mark = time.monotonic()
            time.sleep(1.0)
            primary.kill9()
        standby.sql("select pg_promote()")
        with Writers(dsn=standby.dsn(), count=3, first=10) as after:
            time.sleep(2.0)
        wait_durable(estate, standby, 2)
        standing = {row[0] for row in standby.sql("select id from promises")}
        standby.kill9()
    assert len(before.promised) > 100
    assert len(after.promised) > 100
    assert set(after.promised) <= standing
    found = rows_at(estate, "latest", config)
    assert found == standing, "exactly what the new primary had, whatever the old one had beyond the switch"
    require_in_order(found)
    earlier = rows_at(estate, to_iso(instant), config)
    require_in_order(earlier)
    # A commit is stamped before it is acknowledged; what was promised by the instant is there, the rest came later.
    assert {row for row, at in before.promised.items() if at <= mark} <= earlier
    assert not earlier & set(after.promised)
    assert not earlier & {row for row, at in before.promised.items() if at > mark + 0.5}
