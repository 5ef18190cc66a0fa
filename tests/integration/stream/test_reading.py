"""WAL that is read from ``pg_wal`` while a server writes much: every byte is stored, whatever ends the reading."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.clock import SystemClock
from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import ClusterState, read_control_file
from drservice.components.postgres.localwal import LocalWal, WalFolder, end_after_shutdown
from drservice.components.postgres.replication import identify_system
from drservice.components.postgres.slots import reader_name, slot_facts
from drservice.components.postgres.streaming import ReplicationConnection
from drservice.errors import DrError, PostgresUnreachableError, StoreUnreachableError, StreamError
from drservice.model.estate import WalMode, WalSettings
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, parse_history
from drservice.operations import walreading
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import Cluster, ClusterMaker, StopMode
from tests.doubles.stores import SlowStore
from tests.doubles.walstreams import SLOT, Running, StreamWorld
from tests.integration.stream.test_switches import standby_of, wait_replayed

READER = reader_name(SLOT)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is much here, and soon."""
    monkeypatch.setattr(walreading, "_MUCH_SECONDS", 0.5)
    monkeypatch.setattr(walreading, "_MUCH_BYTES_PER_SECOND", 100 << 10)
    monkeypatch.setattr(walreading, "_LITTLE_SECONDS", 1.5)
    monkeypatch.setattr(walreading, "_AGAIN_SECONDS", 0.5)
    monkeypatch.setattr("drservice.operations.walwatch._LOOK_SECONDS", 0.3)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is slow, or away, soon keeps the receiver from taking more."""
    monkeypatch.setattr("drservice.operations.walfollowing._HELD_BYTES", 2 << 20)
    monkeypatch.setattr("drservice.operations.walfollowing._BESIDE_BYTES", 1 << 20)


def world_of(tmp_path: Path, cluster: Cluster, **wal: object) -> StreamWorld:
    world = StreamWorld.create(tmp_path, cluster)
    settings = replace(WalSettings(mode=WalMode.STREAM, interval=timedelta(milliseconds=50)), **wal)  # type: ignore[arg-type]
    world.settings = replace(world.settings, data_directory=cluster.data, wal=settings)
    return world


def made(clusters: ClusterMaker, tmp_path: Path, *, wal_segment_mb: int = 1, **wal: Any) -> StreamWorld:
    settings = {"autovacuum": "off", "min_wal_size": f"'{max(80, 2 * wal_segment_mb)}MB'"}
    cluster = clusters.make(wal_segment_mb=wal_segment_mb, settings=settings)
    cluster.start()
    return world_of(tmp_path, cluster, **wal)


@contextmanager
def busy(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """Write WAL for the block, or until what is yielded is called; a server that goes away is fine."""
    over = threading.Event()

    def write() -> None:
        with psycopg.connect(cluster.dsn(), autocommit=True) as session:
            while not over.wait(0.02):
                session.execute(
                    "select pg_logical_emit_message(true, 'load', repeat(md5(random()::text), 320))"
                    " from generate_series(1, 4)"
                )

    def run() -> None:
        try:
            write()
        except psycopg.OperationalError:
            over.wait()

    def stop() -> None:
        over.set()
        thread.join()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop()


def readers(cluster: Cluster) -> int:
    return int(cluster.value(f"select count(*) from pg_stat_activity where application_name = '{READER}'"))


def senders(cluster: Cluster) -> int:
    return int(cluster.value(f"select count(*) from pg_stat_replication where application_name = '{SLOT}'"))


def wait(holds: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_reading(world: StreamWorld) -> None:
    wait(lambda: readers(world.cluster) == 1 and senders(world.cluster) == 0, "WAL is not read from the disk")


def require_streamed(cluster: Cluster) -> None:
    """Look for two seconds, four times as long as it takes to go over to reading."""
    for _ in range(20):
        time.sleep(0.1)
        assert (readers(cluster), senders(cluster)) == (0, 1)


def begin_of(running: Running) -> Lsn:
    begin = running.wait_streaming().durable_lsn
    assert begin is not None
    return begin


def test_under_load_the_files_are_read_and_when_it_ends_wal_is_streamed_again(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    world = made(clusters, tmp_path)
    cluster = world.cluster
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(cluster) as stop:
            wait_reading(world)
            first = Lsn.parse(str(world.slot()["restart_lsn"]))
            end = world.flushed()
            state = running.wait_durable(end)
            assert (state.state, state.problem) == (StreamPhase.STREAMING, None)
            wait(lambda: Lsn.parse(str(world.slot()["restart_lsn"])) > first + (1 << 20), "the slot to move")
            assert readers(cluster) == 1, "it went on reading"
            with connect(cluster.dsn()) as session:
                facts = slot_facts(session, SLOT)
            assert facts is not None
            assert facts.active_pid is not None, "the slot has a receiver, for whoever asks"
            stop()
        state = running.wait_durable(world.flushed())
        assert state.seconds_at_risk is not None
        wait(lambda: senders(cluster) == 1 and readers(cluster) == 0, "WAL is not streamed again")
        end = world.write(50)
        running.wait_durable(end)
    world.require_stored(begin, end)


@pytest.mark.parametrize("mode", ["fast", "smart"])
def test_what_a_server_writes_until_it_is_down_is_stored_to_the_last_byte(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: StopMode
) -> None:
    """A WAL sender waits for its receiver then; whoever reads files has to look for the end."""
    monkeypatch.setattr(walreading, "_LITTLE_SECONDS", 1000.0)  # the session must go because the server does
    world = made(clusters, tmp_path)
    cluster = world.cluster
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(cluster) as stop:
            wait_reading(world)
            if mode == "smart":
                stopping = threading.Timer(1.0, stop)  # it waits for every session, the writer's as well
                stopping.start()
            cluster.stop(mode, timeout_seconds=30)
        control = read_control_file(cluster.data)
        assert control.state is ClusterState.SHUT_DOWN
        running.wait_durable(control.checkpoint + 1)
        cluster.start()
        end = world.write(10)
        running.wait_durable(end)
    world.require_stored(begin, end)


def test_after_a_crash_it_goes_on_from_what_is_stored(clusters: ClusterMaker, tmp_path: Path) -> None:
    world = made(clusters, tmp_path)
    cluster = world.cluster
    with world.receiver() as running:
        begin = begin_of(running)
        for _ in range(2):
            with busy(cluster):
                wait_reading(world)
                cluster.kill9()
                running.wait(lambda s: s.state is StreamPhase.CONNECTING, "to notice")
            cluster.start()
            end = world.write(10)
            running.wait_durable(end)
    world.require_stored(begin, end)


@pytest.mark.usefixtures("little_room")
def test_a_store_that_is_away_holds_back_the_slot_and_bounds_what_is_read(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    world = made(clusters, tmp_path)
    away = threading.Event()

    def gate(operation: str) -> None:
        if operation == "create" and away.is_set():
            raise StoreUnreachableError("the store is away")

    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        begin = begin_of(running)
        with busy(world.cluster):
            wait_reading(world)
            away.set()
            time.sleep(0.5)
            kept = Lsn.parse(str(world.slot()["restart_lsn"]))
            before = world.flushed()
            wait(lambda: world.flushed() > before + (6 << 20), "to write more than is held")
            state = running.state
            assert state.received_lsn is not None
            assert state.durable_lsn is not None
            assert state.received_lsn.value - state.durable_lsn.value < 4 << 20
            assert Lsn.parse(str(world.slot()["restart_lsn"])).value - kept.value < 2 << 20
            away.clear()
            running.wait_durable(world.flushed())
        end = world.write(10)
        running.wait_durable(end)
    world.require_stored(begin, end)


def test_what_broke_reading_is_not_tried_again_at_once_by_the_next_connection(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that cannot be read would break it every second; a stream does not care."""
    world = made(clusters, tmp_path)
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(world.cluster):
            wait_reading(world)

            def break_it(*_: object) -> memoryview:
                raise PostgresUnreachableError("the segment cannot be read")

            monkeypatch.setattr(walreading, "_AGAIN_SECONDS", 300.0)
            monkeypatch.setattr(WalFolder, "read", break_it)
            wait(lambda: senders(world.cluster) == 1, "to stream again")
            require_streamed(world.cluster)
            running.wait_durable(world.flushed())
            assert running.state.problem is None
        end = world.write(10)
        running.wait_durable(end)
    assert any("cannot be read" in str(state.problem) for state in running.states), "it is told"
    world.require_stored(begin, end)


def test_somebody_who_streams_from_the_slot_ends_the_reading(clusters: ClusterMaker, tmp_path: Path) -> None:
    world = made(clusters, tmp_path)
    with world.receiver() as running, busy(world.cluster):
        begin = begin_of(running)
        wait_reading(world)
        time.sleep(5.5)  # until then the slot may be the own sender's that leaves
        with ReplicationConnection.open(world.cluster.dsn(), application_name="other") as other:
            other.start(slot=SLOT, begin=world.flushed(), timeline=1)  # type: ignore[arg-type]
            state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be told")
            assert "active for PID" in str(state.problem)
        end = world.write(10)
        running.wait_durable(end, seconds=60)
    world.require_stored(begin, end)


def test_a_receiver_on_another_host_waits_for_one_that_reads_and_takes_over_when_that_ends(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    """The slot is not active meanwhile, so the server would let it in."""
    world = made(clusters, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "run").mkdir(parents=True)
    with busy(world.cluster), world.receiver() as running:
        begin = begin_of(running)
        wait_reading(world)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("drservice.operations.walstream._MOST_PAUSE_SECONDS", 0.5)
            with world.receiver(state_dir=elsewhere) as other:
                state = other.wait(lambda s: s.state is StreamPhase.FAILED, "to wait")
                assert "reads the WAL that the slot" in str(state.problem)
                time.sleep(2)
                assert readers(world.cluster) == 1
                assert running.state.state is StreamPhase.STREAMING
                running.stop.set()
                end = world.write(10)
                other.wait_durable(end, seconds=60)
    world.require_stored(begin, end)


def test_a_slot_that_is_dropped_while_files_are_read_is_made_again(clusters: ClusterMaker, tmp_path: Path) -> None:
    world = made(clusters, tmp_path)
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(world.cluster):
            wait_reading(world)
            world.cluster.sql("select pg_drop_replication_slot(%s)", (SLOT,))
            wait(lambda: bool(world.slot()), "the slot to be there again")
            end = world.write(10)
            running.wait_durable(end, seconds=60)
        end = world.write(10)
        running.wait_durable(end)
    world.require_stored(begin, end)


def test_wal_that_is_read_is_stored_as_soon_as_the_interval_says(clusters: ClusterMaker, tmp_path: Path) -> None:
    """What is asked for too early waits for the piece behind the next one: twice as long."""
    interval = 0.4
    world = made(clusters, tmp_path, wal_segment_mb=16, interval=timedelta(seconds=interval))
    ages: list[float] = []
    pending: deque[tuple[float, int]] = deque()
    with (
        world.receiver() as running,
        busy(world.cluster),
        psycopg.connect(world.cluster.dsn(), autocommit=True) as session,
    ):
        begin_of(running)
        wait_reading(world)
        over = time.monotonic() + 6
        while (now := time.monotonic()) < over:
            row = session.execute(
                "select (pg_current_wal_flush_lsn() - '0/0')::bigint, (restart_lsn - '0/0')::bigint"
                " from pg_replication_slots where slot_name = %s",
                (SLOT,),
            ).fetchone()
            assert row is not None
            flushed, stored = row
            pending.append((now, flushed))
            while pending and pending[0][1] <= stored:
                pending.popleft()
            ages.append(now - pending[0][0] if pending else 0.0)
            time.sleep(0.01)
    ages.sort()
    assert ages[len(ages) * 9 // 10] < 1.5 * interval, [ages[len(ages) * tenth // 10] for tenth in range(10)]


def test_a_receiver_that_is_stopped_while_it_reads_leaves_the_slot_where_it_stored_to(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    world = made(clusters, tmp_path)
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(world.cluster):
            wait_reading(world)
            running.stop.set()
            wait(lambda: readers(world.cluster) == 0, "its session to end")
    end = running.state.durable_lsn
    assert end is not None
    assert Lsn.parse(str(world.slot()["restart_lsn"])) == end, "the last piece as well"
    world.require_stored(begin, end)


@pytest.mark.usefixtures("little_room")
def test_timelines_that_a_promoted_server_has_left_are_streamed(clusters: ClusterMaker, tmp_path: Path) -> None:
    """Their files have other names than those it writes; what it sends of them is much."""
    primary = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off", "wal_keep_size": "'64MB'"})
    primary.start()
    standby = standby_of(clusters, primary)
    world = world_of(tmp_path, primary)
    with world.receiver() as running:
        begin = begin_of(running)
        running.wait_durable(world.write(10))
    end = world.write(20_000)
    wait_replayed(standby, end)
    primary.stop()
    standby.sql("select pg_promote()")
    wait(lambda: standby.value("select pg_is_in_recovery()") is False, "to be promoted")
    world.cluster = standby
    world.settings = replace(world.settings, dsn=standby.dsn(), data_directory=standby.data)
    store = SlowStore(world.site.store, wait=lambda operation: time.sleep(0.2 if operation == "create" else 0.0))
    with world.receiver(store=store) as running, busy(standby):
        running.wait(lambda s: s.timeline == 2, "to come to the new timeline", seconds=60)
        wait_reading(world)
        last = world.flushed()
        running.wait_durable(last, seconds=60)
        assert [state.problem for state in running.states if state.problem] == []
    switched = parse_history((standby.data / "pg_wal" / "00000002.history").read_text())[-1].end
    world.require_stored(begin, switched, timeline=1, cluster=standby)
    world.require_stored(switched, last, timeline=2)


@pytest.mark.parametrize(
    "wal", [{"from_disk": False}, {"synchronous": True}], ids=["it may not", "commits wait for it"]
)
def test_it_is_streamed_where_that_is_wanted(clusters: ClusterMaker, tmp_path: Path, wal: dict[str, Any]) -> None:
    world = made(clusters, tmp_path, **wal)
    with world.receiver() as running, busy(world.cluster):
        begin_of(running)
        require_streamed(world.cluster)


def test_a_server_for_which_commits_wait_is_streamed_although_the_configuration_does_not_say_so(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    world = made(clusters, tmp_path)
    world.cluster.sql(f"alter system set synchronous_standby_names = '{SLOT}'")
    world.cluster.sql("select pg_reload_conf()")
    with world.receiver() as running, busy(world.cluster):
        begin_of(running)
        require_streamed(world.cluster)


def test_the_directory_of_another_server_of_the_cluster_is_not_read(clusters: ClusterMaker, tmp_path: Path) -> None:
    """A standby's has the same files under the same names, and not yet the same bytes in them."""
    primary = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    primary.start()
    standby = standby_of(clusters, primary)
    world = world_of(tmp_path, primary)
    world.settings = replace(world.settings, data_directory=standby.data)
    with world.receiver() as running, busy(primary):
        begin_of(running)
        require_streamed(primary)
        assert running.state.problem is None


@pytest.mark.parametrize("wal_segment_mb", [16, pytest.param(64, marks=pytest.mark.long)])
def test_segments_of_other_sizes_are_read(clusters: ClusterMaker, tmp_path: Path, wal_segment_mb: int) -> None:
    world = made(clusters, tmp_path, wal_segment_mb=wal_segment_mb)
    with world.receiver() as running:
        begin = begin_of(running)
        with busy(world.cluster):
            wait_reading(world)
            world.cluster.switch_wal()
            world.write(20_000)
        end = world.write(10)
        running.wait_durable(end, seconds=60)
    world.require_stored(begin, end)


# --- the pieces -----------------------------------------------------------------------------------------------


def reader_of(cluster: Cluster, directory: Path) -> LocalWal:
    identity = identify_system(cluster.dsn())
    return LocalWal.open(
        cluster.dsn(), directory=directory, identity=identity, slot="none", begin=identity.flushed, least_seconds=0.0
    )


def test_only_the_directory_in_which_the_session_s_own_process_works_is_read(
    clusters: ClusterMaker, tmp_path: Path
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    reader_of(cluster, cluster.data).close()
    copy = tmp_path / "copy"
    for name in ("global/pg_control", "postmaster.pid"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((cluster.data / name).read_bytes())
    with pytest.raises(StreamError, match="does not work in"):
        reader_of(cluster, copy)
    other = clusters.make(wal_segment_mb=1)
    with pytest.raises(StreamError, match="is not of the primary that the dsn leads to"):
        reader_of(cluster, other.data)
    with pytest.raises(StreamError, match="cannot be read"):
        reader_of(cluster, tmp_path / "nothing")


def test_a_page_that_does_not_say_that_it_belongs_there_is_never_taken(clusters: ClusterMaker, tmp_path: Path) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    cluster.sql("select pg_logical_emit_message(true, 'test', repeat('x', 300000))")
    cluster.stop()
    control = read_control_file(cluster.data)
    copy = tmp_path / "copy" / "pg_wal"
    copy.mkdir(parents=True)
    size = control.wal_segment_bytes
    begin = Lsn(control.checkpoint.value - control.checkpoint.value % size)
    name = sorted(path.name for path in (cluster.data / "pg_wal").glob("0*"))
    segment = next(item for item in name if int(item[16:], 16) == begin.value // size)
    good = (cluster.data / "pg_wal" / segment).read_bytes()
    (copy / segment).write_bytes(good)
    folder = WalFolder(copy.parent, control)
    assert bytes(folder.read(begin, control.checkpoint)) == good[: control.checkpoint.value - begin.value]
    middle = begin + 8192 + 100
    assert bytes(folder.read(middle, middle + 10)) == good[8292:8302], "a stretch that begins in a page"
    (copy / segment).write_bytes(good[:8192] + bytes(8192) + good[16384:])
    assert bytes(folder.read(begin, begin + 8192)) == good[:8192]
    for first in (begin, middle):
        with pytest.raises(PostgresUnreachableError, match="the page at 8192 is of 0/0"):
            folder.read(first, begin + 16384)
    (copy / segment).write_bytes(good[:20000])
    with pytest.raises(PostgresUnreachableError, match="it ends at 20000 bytes"):
        folder.read(begin + 16384, begin + 24576)
    (copy / segment).unlink()
    folder.close()
    with pytest.raises(PostgresUnreachableError, match="No such file"):
        folder.read(begin, begin + 1)
    folder.close()


def test_a_session_that_breaks_while_it_is_looked_at_is_told_as_such(
    clusters: ClusterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()

    def break_it(session: psycopg.Connection[Any], _: Path) -> None:
        cluster.sql("select pg_terminate_backend(%s)", (session.info.backend_pid,))
        session.execute("select 1")

    monkeypatch.setattr("drservice.components.postgres.localwal._require_here", break_it)
    with pytest.raises(PostgresUnreachableError, match="administrator command"):
        reader_of(cluster, cluster.data)


def test_a_server_that_does_not_answer_keeps_nobody_waiting_with_what_is_here(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    reader = reader_of(cluster, cluster.data)
    pid = int(cluster.value("select pid from pg_stat_activity where application_name = 'none reader'"))
    os.kill(pid, signal.SIGSTOP)
    is_behind: list[bool] = []
    try:
        reader.want(time.monotonic())
        is_behind.append(reader.is_behind)
        reader.fill()
        is_behind.append(reader.is_behind)
        time.sleep(0.1)
        reader.fill()
        is_behind.append(reader.is_behind)
        assert is_behind == [True, True, False], "wanted, about to be answered as a rule, not answered"
        assert reader.receive() is None
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while (heard := reader.receive()) is None:
        assert time.monotonic() < deadline
        reader.fill()
    assert heard.server_end == Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text"))
    reader.close()


@pytest.mark.parametrize(
    ("state", "waited"),
    [
        (ClusterState.SHUTTING_DOWN, [0.0, 3.0, 50.0]),
        (ClusterState.IN_PRODUCTION, [0.0, 3.0]),
        (ClusterState.SHUT_DOWN, []),
        (ClusterState.IN_CRASH_RECOVERY, []),
    ],
)
def test_a_server_that_died_over_its_last_checkpoint_is_not_waited_for_for_ever(
    clusters: ClusterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: ClusterState,
    waited: list[float],
) -> None:
    """Another one may be the primary by now, and the receiver would never look for it."""
    cluster = clusters.make(wal_segment_mb=1)
    control = replace(read_control_file(cluster.data), state=state)
    monkeypatch.setattr(walreading, "read_control_file", lambda _: control)
    nobody: Any = None  # the server is not asked any more
    reading = walreading.Reading(
        world_of(tmp_path, cluster).settings,
        nobody,
        slot=SLOT,
        watch=nobody,
        patience=walreading.Patience(),
        clock=SystemClock(),
    )
    words = PostgresUnreachableError("terminating connection due to administrator command")
    assert [seconds for seconds in (0.0, 3.0, 50.0, 70.0) if reading.is_going_down(words, seconds)] == waited


def test_a_long_slot_has_a_reader_of_its_own() -> None:
    assert reader_name(SLOT) == f"{SLOT} reader"
    slots = [f"drservice_{'x' * 45}_{digest:08x}" for digest in range(3)]
    names = {reader_name(slot) for slot in slots}
    assert len(names) == len(slots)
    assert max(map(len, names)) <= 63


def test_load_is_judged_by_what_was_watched_long_enough() -> None:
    load = walreading.Load()

    def judged() -> tuple[bool, bool]:
        return load.is_much, load.is_little

    assert judged() == (False, False)
    load.note(10.0, Lsn(0))
    load.note(10.4, Lsn(10 << 20))
    assert judged() == (False, False), "half a second is asked for"
    load.note(10.6, Lsn(10 << 20))
    assert judged() == (True, False)
    for step in range(1, 20):
        load.note(10.6 + step / 10, Lsn(10 << 20))
    assert judged() == (False, True)


def test_after_a_refusal_it_is_not_asked_again_at_once(
    clusters: ClusterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = made(clusters, tmp_path)
    asked: list[object] = []

    def refuse(*_: object, directory: Path, **__: object) -> LocalWal:
        asked.append(directory)
        raise StreamError("not here")

    monkeypatch.setattr(LocalWal, "open", refuse)
    monkeypatch.setattr(walreading, "_AGAIN_SECONDS", 300.0)
    with world.receiver() as running, busy(world.cluster):
        begin_of(running)
        wait(lambda: bool(asked), "to be asked")
        time.sleep(1.5)
        assert asked == [world.cluster.data]
        assert running.state.problem is None


def test_where_wal_ends_is_told_of_a_server_that_is_down_and_of_no_other_cluster(clusters: ClusterMaker) -> None:
    """What is in the directory by the time a server is down may be another cluster's."""
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    identity = identify_system(cluster.dsn())
    with pytest.raises(DrError, match="another cluster"):
        end_after_shutdown(cluster.data, replace(identity, system_id=SystemId("1")))
    assert end_after_shutdown(cluster.data, identity) is None, "it runs"
    cluster.stop()
    found = end_after_shutdown(cluster.data, identity)
    assert found is not None
    end, folder = found
    folder.close()
    inserted = read_control_file(cluster.data).checkpoint
    assert end > inserted
    read = cluster.run("pg_waldump", "-p", cluster.data / "pg_wal", "-s", str(inserted))
    assert re.search(
        rf"invalid record length at {end}\b|end of WAL at {end}\b", read.stdout.decode() + read.stderr.decode()
    )
