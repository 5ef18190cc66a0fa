"""A server that only streams, killed with its disk: what a real receiver had stored is what comes back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn
from drservice.operations.streamstate import StreamState
from drservice.operations.walstream import StreamContext, stream_wal
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import TempEstate, wait_for

LATEST = Target(kind=TargetKind.LATEST)


@pytest.fixture
def estate(template_cache: Path) -> Iterator[TempEstate]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "off", "wal_sender_timeout": "'5s'"})
    made = TempEstate.over(cluster)
    made.wal_settings = {"mode": "stream", "interval": "50ms"}
    made.write_configuration(made.config)
    made.initialise()
    (made.state / "run").mkdir(exist_ok=True)
    cluster.start()
    yield made
    made.close()
    maker.close()


@contextmanager
def receiving(estate: TempEstate) -> Iterator[list[StreamState]]:
    """Run a receiver for the block; told states come at the end of the list."""
    states: list[StreamState] = []
    stop = threading.Event()
    with estate.plane() as plane:
        service, component = estate.parts()
        context = StreamContext(
            service=service.name, repository=plane.repository, state_dir=estate.state, clock=plane.clock
        )
        thread = threading.Thread(
            target=stream_wal,
            args=(context, component),
            kwargs={"stop": stop, "observe": states.append},
            daemon=True,
        )
        thread.start()
        try:
            wait_for(lambda: bool(states) and states[-1].durable_lsn is not None, "the receiver to stream")
            yield states
        finally:
            stop.set()
            thread.join(60)


def commit(cluster: Cluster, *numbers: int) -> Lsn:
    with cluster.connect() as connection:
        for number in numbers:
            connection.execute("insert into notes values (%s, repeat(md5(random()::text), 60))", (number,))
    return Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text"))


@pytest.mark.long
def test_everything_that_was_durable_comes_back_and_an_instant_in_any_segment_is_reached(estate: TempEstate) -> None:
    cluster = estate.cluster
    cluster.sql("create table notes (id int primary key, text text)")
    with receiving(estate) as states:

        def durable(lsn: Lsn) -> None:
            wait_for(lambda: (states[-1].durable_lsn or Lsn(0)) >= lsn, f"{lsn} to be durable")

        estate.backup()
        durable(commit(cluster, *range(1, 1501)))  # more than two segments
        early = cluster.value("select clock_timestamp()")
        durable(commit(cluster, *range(2001, 3501)))
        late = cluster.value("select clock_timestamp()")
        durable(commit(cluster, 4000))
        cluster.sql("drop table notes")
        cluster.sql("create table after (id int)")
        durable(Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text")))
        cluster.kill9()
        shutil.rmtree(cluster.data)
    with estate.restored(LATEST) as (result, connection):
        row = connection.execute("select count(*) from pg_class where relname in ('notes', 'after')").fetchone()
        assert row == (1,), "the last commit, which no segment was archived of"
        assert result.planned.resolved.plan.reach.tail is not None
    for instant, newest in ((early, 1500), (late, 3500)):
        with estate.restored(Target(kind=TargetKind.TIME, time=instant)) as (_, connection):
            assert connection.execute("select max(id) from notes").fetchone() == (newest,)
