"""A receiver in a thread of this process, beside a real server, and what it has stored compared with the server's WAL.

world = StreamWorld.create(tmp_path, cluster)
with world.receiver() as running:
    cluster.sql("create table t(i int)")
    running.wait_durable(world.flushed())
world.require_stored(begin, end)                 # every byte of it, equal to pg_wal
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from drservice.components.postgres.slots import reader_name
from drservice.errors import SegmentAbsentError
from drservice.model.estate import PostgresSettings, WalMode, WalSettings
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_begin, segment_name
from drservice.objectstore.interface import ObjectStore
from drservice.operations.streamstate import StreamPhase, StreamState
from drservice.operations.walboard import stream_name
from drservice.operations.walstream import StreamContext, stream_wal
from tests.doubles.cluster import Cluster
from tests.doubles.repositories import Site

ERP, DATABASE = ServiceName("erp"), ComponentName("database")
SLOT = stream_name(ERP, DATABASE)
REPORTED = (
    f"coalesce((select flush_lsn from pg_stat_replication where application_name = '{SLOT}'),"
    " (select restart_lsn from pg_replication_slots, pg_stat_activity"
    f" where slot_name = '{SLOT}' and application_name = '{reader_name(SLOT)}'))"
)
"""SQL: what a receiver has reported, whether WAL is sent to it or it reads the files; null: there is no receiver."""


@dataclass(kw_only=True)
class Running:
    """A receiver that runs; its states as they were told."""

    stop: threading.Event
    states: list[StreamState] = field(default_factory=list)

    @property
    def state(self) -> StreamState:
        return self.states[-1]

    def wait(self, holds: Callable[[StreamState], bool], what: str, *, seconds: float = 30.0) -> StreamState:
        """Wait until a state that is told from now on, or the present one, is as it should be."""
        deadline = time.monotonic() + seconds
        while not (self.states and holds(self.state)):
            told = [(s.state.value, str(s.durable_lsn), str(s.server_lsn), s.problem) for s in self.states[-3:]]
            assert time.monotonic() < deadline, f"{what}: {told}"
            time.sleep(0.01)
        return self.state

    def wait_durable(self, lsn: Lsn, *, seconds: float = 30.0) -> StreamState:
        return self.wait(
            lambda s: s.durable_lsn is not None and s.durable_lsn >= lsn, f"{lsn} durable", seconds=seconds
        )

    def wait_streaming(self) -> StreamState:
        return self.wait(lambda s: s.state is StreamPhase.STREAMING and s.durable_lsn is not None, "to stream")


@dataclass(kw_only=True)
class StreamWorld:
    """A server and a repository."""

    site: Site
    cluster: Cluster
    settings: PostgresSettings

    @classmethod
    def create(
        cls,
        base: Path,
        cluster: Cluster,
        *,
        wal: WalSettings | None = None,
        dsn: str | None = None,
        store: ObjectStore | None = None,
    ) -> StreamWorld:
        site = Site.create(base, store=store, folder=base / "repository" if store is None else None)
        (site.state_dir / "run").mkdir(parents=True, exist_ok=True)
        settings = PostgresSettings(
            name=DATABASE,
            dsn=dsn or cluster.dsn(),
            wal=wal or WalSettings(mode=WalMode.STREAM, interval=timedelta(milliseconds=50)),
        )
        return cls(site=site, cluster=cluster, settings=settings)

    def context(self, store: ObjectStore | None = None) -> StreamContext:
        return StreamContext(
            service=ERP,
            repository=self.site.repository(store=store),
            state_dir=self.site.state_dir,
            clock=self.site.clock,
        )

    @contextmanager
    def receiver(
        self, *, store: ObjectStore | None = None, dsn: str | None = None, state_dir: Path | None = None
    ) -> Iterator[Running]:
        """Run a receiver for the block, on another host if that has a ``state_dir``; it drains at the end."""
        context = self.context(store)
        if state_dir is not None:
            context = replace(context, state_dir=state_dir)
        running = Running(stop=threading.Event())
        settings = self.settings if dsn is None else replace(self.settings, dsn=dsn)
        problems: list[BaseException] = []

        def run() -> None:
            try:
                stream_wal(context, settings, stop=running.stop, observe=running.states.append)
            except BaseException as error:  # noqa: BLE001 - handed to the test below
                problems.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.stop.set()
            thread.join(60)
        assert not thread.is_alive(), "the receiver does not end"
        if problems:
            raise problems[0]

    # --- the server -----------------------------------------------------------------------------------------

    @property
    def system_id(self) -> SystemId:
        found = self.cluster.value("select system_identifier::text from pg_control_system()")
        return SystemId(str(int(found) % (1 << 64)))

    @property
    def segment_bytes(self) -> int:
        return int(self.cluster.value("select setting from pg_settings where name = 'wal_segment_size'"))

    def flushed(self, cluster: Cluster | None = None) -> Lsn:
        return Lsn.parse((cluster or self.cluster).value("select pg_current_wal_flush_lsn()::text"))

    def write(self, kilobytes: int = 1, cluster: Cluster | None = None) -> Lsn:
        """Commit WAL of about this size and return where it ends."""
        chosen = cluster or self.cluster
        chosen.sql(
            "select pg_logical_emit_message(true, 'test', repeat(md5(random()::text), 32)) from generate_series(1, %s)",
            (kilobytes,),
        )
        return self.flushed(chosen)

    def slot(self) -> dict[str, object]:
        rows = self.cluster.sql(
            "select restart_lsn::text, wal_status, active, active_pid from pg_replication_slots where slot_name = %s",
            (SLOT,),
        )
        return dict(zip(("restart_lsn", "wal_status", "active", "pid"), rows[0], strict=True)) if rows else {}

    def drop_slot(self) -> None:
        deadline = time.monotonic() + 20
        while self.slot().get("active"):
            assert time.monotonic() < deadline, "the slot stays in use"
            time.sleep(0.02)
        self.cluster.sql(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", (SLOT,)
        )

    # --- what is stored -------------------------------------------------------------------------------------

    def stored(self, timeline: int, number: int, segment_bytes: int, system_id: SystemId) -> tuple[bytes, Lsn]:
        """Return a segment as the repository has it, and up to where: whole, or from its pieces."""
        repository = self.site.repository()
        name = WalFileName.parse(segment_name(Timeline(timeline), number, segment_bytes))
        begin = segment_begin(number, segment_bytes)
        try:
            whole = repository.wal(self.site.scope).fetch(name, system_id=system_id)
        except SegmentAbsentError:
            rebuilt = repository.tail(self.site.scope).rebuild(system_id, Timeline(timeline), number, segment_bytes)
            assert rebuilt.problem is None, rebuilt.problem
            return bytes(rebuilt.data), rebuilt.end
        return whole, begin + segment_bytes

    def require_stored(self, begin: Lsn, end: Lsn, *, timeline: int = 1, cluster: Cluster | None = None) -> None:
        """Compare every byte from the begin of ``begin``'s segment to ``end`` with the server's own files.

        Segments the server has recycled meanwhile are only required to be whole; all but the last have to be stored
        as wholes: the server may have recycled any of them.
        """
        chosen = cluster or self.cluster
        size, system_id = self.segment_bytes, self.system_id
        archive = self.site.repository().wal(self.site.scope)
        last = (end.value - 1) // size
        for number in range(begin.value // size, last + 1):
            name = segment_name(Timeline(timeline), number, size)
            data, reached = self.stored(timeline, number, size, system_id)
            wanted = min(end.value, (number + 1) * size)
            assert reached.value >= wanted, f"{name} is stored up to {reached}, not {Lsn(wanted)}"
            if number < last:
                assert archive.exists(WalFileName.parse(name), system_id=system_id), f"{name} is in pieces only"
            local = chosen.data / "pg_wal" / name
            if local.exists():
                length = wanted - number * size
                assert data[:length] == local.read_bytes()[:length], f"{name} differs"


def peak_memory_kb(pid: int | None = None) -> int:
    """Return the highest resident size of a process so far."""
    text = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])
