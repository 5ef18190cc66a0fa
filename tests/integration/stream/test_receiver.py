"""The receiver on a real server: whatever happens, every byte from the slot's begin to "durable" is in the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from drservice.components.postgres.streaming import ReplicationConnection
from drservice.errors import BusyError, SlotBusyError, StoreUnreachableError
from drservice.model.estate import WalMode, WalSettings
from drservice.model.tail import TailPiece
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.opening import open_store
from drservice.operations import walfollowing
from drservice.operations.lineage import Lineage
from drservice.operations.streamstate import StreamPhase, StreamState, is_alive, read_state, write_state
from drservice.operations.walstream import stream_wal
from tests.doubles.cluster import Cluster
from tests.doubles.repositories import SYSTEM_ID
from tests.doubles.s3server import rclone_server
from tests.doubles.stores import RecordingStore, SlowStore
from tests.doubles.walstreams import DATABASE, ERP, SLOT, StreamWorld


@pytest.fixture
def world(tmp_path: Path, server: Cluster) -> Iterator[StreamWorld]:
    made = StreamWorld.create(tmp_path, server)
    yield made
    made.drop_slot()


class Gate:
    """A store that is away while it is closed, or slow."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.seconds = 0.0

    def __call__(self, operation: str) -> None:
        if operation == "create":
            if self.seconds:
                time.sleep(self.seconds)
            if self.away.is_set():
                raise StoreUnreachableError("the store is away")


# --- the normal way -------------------------------------------------------------------------------------------


def test_what_is_durable_is_stored_byte_for_byte_and_segments_as_wholes(world: StreamWorld) -> None:
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        ends = [world.write(kilobytes) for kilobytes in (1, 700, 1500, 3)]
        state = running.wait_durable(ends[-1])
        assert (state.state, state.timeline, state.slot, state.problem) == (StreamPhase.STREAMING, 1, SLOT, None)
        assert read_state(world.site.state_dir, ERP, DATABASE) is not None
        assert is_alive(world.site.state_dir, ERP, DATABASE)
        settled = running.wait(lambda s: s.durable_server_time is not None and s.bytes_at_risk == 0, "to be proved")
        assert settled.seconds_at_risk == 0.0
    assert not is_alive(world.site.state_dir, ERP, DATABASE)
    world.require_stored(begin, ends[-1])


def test_a_disk_that_stalls_under_the_state_file_keeps_no_answer_from_the_server(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gives up who is silent for a second; it took a disk longer to replace a small file, once."""
    written = threading.Event()

    def stalled(state_dir: Path, state: StreamState) -> None:
        time.sleep(2.5)
        write_state(state_dir, state)
        written.set()

    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        monkeypatch.setattr("drservice.operations.walboard.write_state", stalled)
        first = len(running.states)
        assert written.wait(10)
        running.wait_durable(world.write(30))
        assert written.wait(10)
        assert {state.state for state in running.states[first:]} == {StreamPhase.STREAMING}
    last = read_state(world.site.state_dir, ERP, DATABASE)
    assert last is not None
    assert last.durable_lsn == running.state.durable_lsn, "the last one is waited for"


def test_on_a_real_s3_server_what_is_durable_is_stored_and_a_bucket_that_is_away_is_caught_up_with(
    server: Cluster, tmp_path: Path
) -> None:
    """Through the real client over HTTP, on a bucket that ignores conditional creates."""
    gate = Gate()
    with rclone_server(tmp_path / "buckets") as s3, s3.credentials():
        store = open_store(s3.url_for("wal"), lock_dir=tmp_path / "locks")
        world = StreamWorld.create(tmp_path, server, store=store)
        try:
            with world.receiver(store=SlowStore(store, wait=gate)) as running:
                begin = running.wait_durable(world.write(30)).durable_lsn
                assert begin is not None
                gate.away.set()
                waiting = world.write(1500)
                state = running.wait(lambda s: (s.received_lsn or begin) >= waiting, "to receive")
                assert state.durable_lsn is not None
                assert state.durable_lsn < waiting
                gate.away.clear()
                end = world.write(20)
                assert running.wait_durable(end).problem is None
            world.require_stored(begin, end)
        finally:
            world.drop_slot()
            store.close()
    assert any(path.is_file() for path in (tmp_path / "buckets" / "wal").rglob("*"))


def test_the_clock_of_each_segment_is_stored_with_it(world: StreamWorld) -> None:
    with world.receiver() as running:
        running.wait_streaming()
        world.write(1)
        world.cluster.switch_wal()
        end = world.write(1)
        running.wait_durable(end)
    clocks = world.site.repository().clocks(world.site.scope)
    (name, *_) = [key.rsplit("/", 1)[1] for key in world.site.keys("s/") if "/clock/" in key]
    number = int(name[8:16], 16) * 4096 + int(name[16:], 16)
    pairs = clocks.read(
        system_id=world.system_id, timeline=Timeline(1), segment=number, segment_bytes=world.segment_bytes
    )
    assert pairs
    assert all(abs((pair.server_time - world.site.clock.now()).total_seconds()) < 60 for pair in pairs)


def test_one_receiver_on_a_host_is_enough(world: StreamWorld) -> None:
    with world.receiver() as running:
        running.wait_streaming()
        with pytest.raises(BusyError, match="running already"):
            stream_wal(world.context(), world.settings, stop=threading.Event())


def test_a_second_receiver_on_another_host_is_refused_and_takes_over_when_the_first_is_gone(
    world: StreamWorld, tmp_path: Path
) -> None:
    with world.receiver() as first:
        first.wait_streaming()
        elsewhere = world.context()
        states: list[StreamState] = []
        stop = threading.Event()
        moved = replace(elsewhere, state_dir=tmp_path / "elsewhere")
        thread = threading.Thread(
            target=stream_wal, args=(moved, world.settings), kwargs={"stop": stop, "observe": states.append}
        )
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not any(s.state is StreamPhase.FAILED for s in states):
                assert time.monotonic() < deadline, states
                time.sleep(0.02)
            refused = next(s for s in states if s.state is StreamPhase.FAILED)
            assert "is active for PID" in str(refused.problem)
            assert refused.remedy == SlotBusyError.hint
            lsn = world.write(20)
            first.wait_durable(lsn)
            first.stop.set()
            end = world.write(5)
            deadline = time.monotonic() + 30
            while not any(s.durable_lsn is not None and s.durable_lsn >= end for s in states):
                assert time.monotonic() < deadline, states[-1]
                time.sleep(0.02)
        finally:
            stop.set()
            thread.join(30)
    world.require_stored(lsn, end)


def test_a_server_of_another_cluster_is_refused_and_nothing_of_it_is_stored(world: StreamWorld) -> None:
    Lineage(world.site.repository(), world.site.scope, world.site.state_dir).pin(SYSTEM_ID)
    with world.receiver() as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert f"is cluster {SYSTEM_ID}" in str(state.problem)
    assert [key for key in world.site.keys("s/") if "/tail/" in key or "/wal/" in key] == []
    assert world.slot() == {}


# --- traps ----------------------------------------------------------------------------------------------------


def test_t22_a_receiver_goes_on_where_the_slot_is_and_what_was_written_meanwhile_is_there(world: StreamWorld) -> None:
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        running.wait_durable(world.write(300))
    restart = Lsn.parse(str(world.slot()["restart_lsn"]))
    assert restart >= begin
    world.write(2500)  # nobody listens
    end = world.write(10)
    pieces = len([key for key in world.site.keys("s/") if "/tail/" in key])
    with world.receiver() as running:
        running.wait_durable(end)
    world.require_stored(begin, end)
    assert len([key for key in world.site.keys("s/") if "/tail/" in key]) >= pieces


def test_t22_a_dropped_slot_is_made_anew_and_the_wal_between_is_fetched_while_the_server_has_it(
    world: StreamWorld,
) -> None:
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        running.wait_durable(world.write(1200))
    world.drop_slot()
    world.cluster.sql("alter system set wal_keep_size = '32MB'")
    world.cluster.sql("select pg_reload_conf()")
    try:
        world.write(2000)
        world.cluster.sql("checkpoint")  # a new slot keeps WAL from here on
        end = world.write(10)
        gate = Gate()
        gate.away.set()
        with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
            running.wait(lambda s: s.received_lsn is not None and s.received_lsn >= end, "all of it to be received")
            redo = Lsn.parse(world.cluster.value("select redo_lsn::text from pg_control_checkpoint()"))
            assert Lsn.parse(str(world.slot()["restart_lsn"])) >= redo, "the slot was set back to what nobody keeps"
            gate.away.clear()
            state = running.wait_durable(end)
            assert state.problem is None
    finally:
        world.cluster.sql("alter system reset wal_keep_size")
        world.cluster.sql("select pg_reload_conf()")
    world.require_stored(begin, end)


def test_t22_wal_that_the_server_has_no_longer_is_a_hole_and_the_new_slot_is_not_set_back_into_it(
    world: StreamWorld,
) -> None:
    with world.receiver() as running:
        running.wait_durable(world.write(1200))
    world.drop_slot()
    world.write(2000)
    world.cluster.sql("checkpoint")  # recycles what nobody keeps
    end = world.write(10)
    with world.receiver() as running:
        state = running.wait_durable(end)
        assert "neither in the repository nor on the server" in str(state.problem)
        begin = Lsn.parse(str(world.slot()["restart_lsn"]))
    world.require_stored(begin, end)


def test_t22_wal_that_went_with_a_lost_slot_is_a_hole_that_is_told_with_a_new_snapshot_asked_for(
    world: StreamWorld,
) -> None:
    with world.receiver() as running:
        running.wait_durable(world.write(100))
    for _ in range(80):  # beyond max_slot_wal_keep_size
        world.cluster.switch_wal()
    world.cluster.sql("checkpoint")
    assert world.slot()["wal_status"] == "lost"
    with world.receiver() as running:
        state = running.wait(lambda s: s.problem is not None and "neither" in s.problem, "the hole to be told")
        assert "Take a new snapshot now" in str(state.remedy)
        end = world.write(10)
        state = running.wait_durable(end)
        assert state.problem is not None, "it is told as long as the receiver lives"
        begin = Lsn.parse(str(world.slot()["restart_lsn"]))
    world.require_stored(begin, end)


def test_t23_keepalives_are_answered_while_uploads_stall(world: StreamWorld) -> None:
    gate = Gate()
    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        running.wait_durable(world.write(1))
        pid = world.slot()["pid"]
        gate.away.set()
        end = world.write(10)
        time.sleep(2.5)  # wal_sender_timeout is 1 s
        assert world.slot()["pid"] == pid, "the server gave the receiver up"
        gate.away.clear()
        running.wait_durable(end)


def test_t23_a_clean_shutdown_of_the_primary_is_not_held_up_and_everything_is_durable_then(world: StreamWorld) -> None:
    with world.receiver() as running:
        begin = running.wait_streaming().durable_lsn
        assert begin is not None
        world.write(500)
        before = time.monotonic()
        world.cluster.stop()
        assert time.monotonic() - before < 10
        running.wait(lambda s: s.state is StreamPhase.CONNECTING, "to notice")
        stopped_at = running.state.durable_lsn
        world.cluster.start()
        end = world.write(10)
        running.wait_durable(end)
        assert stopped_at is not None
    world.require_stored(begin, end)


def test_t26_the_receiver_reports_written_and_flushed_and_holds_no_vacuum_back(world: StreamWorld) -> None:
    with world.receiver() as running:
        end = world.write(10)
        running.wait_durable(end)
        time.sleep(0.1)
        ((written, flushed, replayed, xmin, slot_xmin),) = world.cluster.sql(
            "select r.write_lsn::text, r.flush_lsn::text, r.replay_lsn::text, r.backend_xmin::text, s.xmin::text"
            " from pg_stat_replication r, pg_replication_slots s"
            " where r.application_name = %s and s.slot_name = r.application_name",
            (SLOT,),
        )
    assert Lsn.parse(written) == Lsn.parse(flushed) >= end
    assert (replayed, xmin, slot_xmin) == (None, None, None)


# --- the store ------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_loses_nothing_and_is_caught_up_with(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drservice.operations.walfollowing._STALLED_SECONDS", 0.7)
    gate = Gate()
    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        begin = running.wait_durable(world.write(1)).durable_lsn
        assert begin is not None
        gate.away.set()
        world.write(6000)
        state = running.wait(lambda s: s.state is StreamPhase.STALLED, "to be stalled")
        assert "the store is away" in str(state.problem)
        assert state.bytes_at_risk
        assert state.bytes_at_risk > 5 << 20
        gate.away.clear()
        end = world.write(1)
        state = running.wait_durable(end)
        running.wait(lambda s: s.state is StreamPhase.STREAMING and s.problem is None, "to be well again")
    world.require_stored(begin, end)


def test_memory_is_bounded_while_the_store_is_away(world: StreamWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the bound the socket is not read; the server keeps the rest, and does not give the receiver up."""
    monkeypatch.setattr("drservice.operations.walfollowing._HELD_BYTES", 2 << 20)
    monkeypatch.setattr("drservice.operations.walfollowing._BESIDE_BYTES", 1 << 20)
    monkeypatch.setattr("drservice.operations.walfollowing._TAKEN_BYTES", 256 << 10)
    gate = Gate()
    with world.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
        begin = running.wait_durable(world.write(1)).durable_lsn
        assert begin is not None
        gate.away.set()
        world.write(12_000)
        pid = world.slot()["pid"]
        time.sleep(1.5)
        state = running.state
        assert state.received_lsn is not None
        assert state.received_lsn.value - begin.value < (4 << 20), "it went on reading"
        assert world.slot()["pid"] == pid
        gate.away.clear()
        end = world.flushed()
        running.wait_durable(end)
    world.require_stored(begin, end)


def test_a_busy_servers_wal_is_read_some_times_in_an_interval_and_not_for_each_commit(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, fill = 0, ReplicationConnection.fill

    def looking(connection: ReplicationConnection) -> None:
        nonlocal looks
        looks += 1
        fill(connection)

    monkeypatch.setattr(ReplicationConnection, "fill", looking)
    wal = WalSettings(mode=WalMode.STREAM, interval=timedelta(milliseconds=250))
    calm = replace(world, settings=replace(world.settings, wal=wal))
    with calm.receiver() as running, psycopg.connect(world.cluster.dsn(), autocommit=True) as session:
        running.wait_durable(world.write(1))
        before, commits, until = looks, 0, time.monotonic() + 1.0
        while time.monotonic() < until:
            session.execute("select pg_logical_emit_message(true, 'test', 'x')")
            commits += 1
        assert commits > 300
        assert looks - before < commits / 3, f"{looks - before} looks for {commits} commits"
        running.wait_durable(world.flushed(), seconds=2.0)


def test_a_server_that_is_behind_with_sending_is_read_without_a_rest(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walfollowing, "_GATHER_SECONDS", 3.0)
    wal = WalSettings(mode=WalMode.STREAM, interval=timedelta(seconds=30))
    calm = replace(world, settings=replace(world.settings, wal=wal))
    with world.receiver() as running:
        running.wait_durable(world.write(1))
    end = world.write(6000)
    begun = time.monotonic()
    with calm.receiver() as running:
        running.wait(lambda s: s.received_lsn is not None and s.received_lsn >= end, "to be received")
        assert time.monotonic() - begun < 3.0


def test_a_backlog_goes_up_as_whole_segments_only(world: StreamWorld) -> None:
    with world.receiver() as running:
        running.wait_durable(world.write(1))
    world.write(8000)
    end = world.write(1)
    store = RecordingStore(world.site.store)
    with world.receiver(store=store) as running:
        running.wait_durable(end)
    created = [key for operation, key in store.calls if operation == "create"]
    wholes = [key for key in created if "/wal/" in key]
    pieces = [key for key in created if "/tail/" in key]
    assert len(wholes) >= 7
    assert len(pieces) <= 3, pieces


def test_an_idle_servers_wal_waits_and_the_first_commit_takes_it_along(world: StreamWorld) -> None:
    settings = WalSettings(mode=WalMode.STREAM, interval=timedelta(milliseconds=20), idle_interval=timedelta(hours=1))
    idle = replace(world, settings=replace(world.settings, wal=settings))
    store = RecordingStore(world.site.store)

    def pieces() -> list[TailPiece]:
        names = [key.rsplit("/", 1)[-1] for operation, key in store.calls if operation == "create" and "/tail/" in key]
        return [TailPiece.parse(name, Timeline(1)) for name in names]

    def beat_once() -> None:
        world.cluster.sql("begin read write; select pg_logical_emit_message(true, 'drservice', 'heartbeat'); commit")

    with idle.receiver(store=store) as running:
        beat_once()  # and the hint bits that only the first of a kind writes
        running.wait_durable(world.write(1))
        time.sleep(1.2)  # what follows work closely counts as work
        before = pieces()
        for _ in range(5):
            beat_once()
            time.sleep(0.1)
        beat = world.flushed()
        state = running.wait(lambda s: s.covered_lsn is not None and s.covered_lsn >= beat, "heartbeats to be covered")
        assert state.durable_lsn is not None
        assert state.durable_lsn < beat
        assert (state.bytes_at_risk, state.seconds_at_risk, pieces()) == (0, 0.0, before)
        end = world.write(1)
        running.wait_durable(end)
        # A busy machine may cut what the commit wrote in two; all that had waited goes with the first.
        first = min(pieces()[len(before) :], key=lambda piece: piece.start)
        assert (first.start, first.end > beat) == (state.durable_lsn, True)
    world.require_stored(beat, end)


# --- the connection -------------------------------------------------------------------------------------------


def test_a_server_that_crashes_and_comes_back_is_streamed_on(world: StreamWorld) -> None:
    with world.receiver() as running:
        begin = running.wait_durable(world.write(200)).durable_lsn
        assert begin is not None
        world.write(300)
        world.cluster.kill9()
        running.wait(lambda s: s.state is StreamPhase.CONNECTING, "to notice")
        world.cluster.start()
        end = world.write(700)
        running.wait_durable(end)
    world.require_stored(begin, end)


def test_a_terminated_wal_sender_leaves_no_gap(world: StreamWorld) -> None:
    with world.receiver() as running:
        begin = running.wait_durable(world.write(200)).durable_lsn
        assert begin is not None
        for _ in range(3):
            world.write(150)
            world.cluster.sql("select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid > 0")
            end = world.write(150)
        running.wait_durable(end)
    world.require_stored(begin, end)


@pytest.mark.parametrize(
    ("statement", "undo", "told", "remedy"),
    [
        (
            "alter role receiver noreplication",
            "alter role receiver replication",
            "refused the connection|does not stream",
            "REPLICATION",
        ),
    ],
)
def test_a_refusal_is_told_with_its_remedy(
    world: StreamWorld, statement: str, undo: str, told: str, remedy: str
) -> None:
    world.cluster.sql("drop role if exists receiver")
    world.cluster.sql("create role receiver login replication")
    world.cluster.sql(statement)
    dsn = world.cluster.dsn(user="receiver")
    with world.receiver(dsn=dsn) as running:
        state = running.wait(lambda s: s.state is StreamPhase.FAILED, "to be refused")
        assert any(word in str(state.problem) for word in told.split("|"))
        assert remedy in str(state.remedy)
        world.cluster.sql(undo)
        running.wait_durable(world.write(1))


def test_a_role_that_may_only_replicate_streams(world: StreamWorld) -> None:
    world.cluster.sql("drop role if exists mere")
    world.cluster.sql("create role mere login replication")
    with world.receiver(dsn=world.cluster.dsn(user="mere")) as running:
        running.wait_durable(world.write(1))


# --- synchronous ----------------------------------------------------------------------------------------------


def test_a_synchronous_commit_is_acknowledged_only_when_it_is_stored(
    world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drservice.operations.walwatch._LOOK_SECONDS", 0.2)
    wal = WalSettings(mode=WalMode.STREAM, synchronous=True)
    synchronous = replace(world, settings=replace(world.settings, wal=wal))
    gate = Gate()
    world.cluster.sql("create table if not exists promised (i int)")
    try:
        with synchronous.receiver(store=SlowStore(world.site.store, wait=gate)) as running:
            running.wait_streaming()
            world.cluster.sql(f"alter system set synchronous_standby_names = '{SLOT}'")
            world.cluster.sql("select pg_reload_conf()")
            running.wait(lambda s: s.problem is None and s.slot_status is not None, "commits to wait", seconds=20)
            world.cluster.sql("insert into promised values (1)")
            gate.seconds = 0.4
            before = time.monotonic()
            world.cluster.sql("insert into promised values (2)")
            assert time.monotonic() - before >= 0.4, "the commit did not wait for the store"
            gate.seconds = 0.0
            promised = world.flushed()
            assert running.wait_durable(promised)
            world.cluster.sql("alter system set synchronous_commit = 'remote_apply'")
            world.cluster.sql("select pg_reload_conf()")
            state = running.wait(lambda s: s.state is StreamPhase.FAILED, "remote_apply to be refused", seconds=20)
            assert "remote_apply" in str(state.problem)
    finally:
        world.cluster.sql("alter system reset synchronous_standby_names")
        world.cluster.sql("alter system reset synchronous_commit")
        world.cluster.sql("select pg_reload_conf()")
    world.require_stored(promised, promised)


# --- the protocol ---------------------------------------------------------------------------------------------


def test_the_protocol_says_who_the_server_is(server: Cluster) -> None:
    with ReplicationConnection.open(server.dsn(), application_name="asking") as connection:
        identity = connection.identify()
        assert (identity.timeline, identity.wal_segment_bytes, identity.in_recovery) == (1, 1 << 20, False)
        assert connection.sender_timeout_seconds() == 1.0
        assert connection.slot("nobody") is None
