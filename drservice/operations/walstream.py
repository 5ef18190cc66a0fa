"""The receiver: ships the WAL of one server as it is written, until it is told to stop.

One thread reads the stream, answers keepalives and reports what is durable; a few others upload, so a store that stalls
never makes the server believe that the receiver is gone (trap T23). Memory holds a bounded part of the stream; behind
it nothing is read any more, and PostgreSQL keeps its WAL in the slot. Whatever ends a connection, what was received is
stored before the next one begins, and that goes on from what is durable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.streaming import ReplicationConnection
from drservice.errors import BusyError, DrError, PostgresUnreachableError, WalRemovedError
from drservice.model.estate import PostgresSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.lineage import Lineage
from drservice.operations.livestate import held_alone
from drservice.operations.streamstate import StreamPhase, StreamState, lock_path
from drservice.operations.walboard import StreamBoard
from drservice.operations.walfollowing import Following
from drservice.operations.walreading import Patience
from drservice.operations.walresume import Resumption
from drservice.operations.walshipping import ClockPairs, Shipping
from drservice.operations.waluploads import Uploads
from drservice.operations.walwatch import SlotWatch
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.spool import Spools

IN_FLIGHT = 4
_IN_MEMORY_BYTES = 16 << 20
"""Larger segments are put together, and sealed, in files: memory does not depend on their size."""
_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.5, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContext:
    """Where WAL goes."""

    service: ServiceName
    repository: Repository
    state_dir: Path
    clock: Clock


def stream_wal(
    context: StreamContext,
    component: PostgresSettings,
    *,
    stop: threading.Event,
    observe: Callable[[StreamState], None] = lambda _: None,
) -> None:
    """Ship the WAL of a component until ``stop`` is set; what was received by then is stored first, if the store lets.

    Whatever goes wrong is told (state file, ``observe``, log) with its remedy, and tried again later: PostgreSQL keeps
    its WAL in the slot meanwhile. A crash anywhere loses nothing that the slot keeps.

    Args:
        context: where WAL goes.
        component: whose WAL.
        stop: ends it in order.
        observe: is told the state, at most four times a second.

    Raises:
        BusyError: a receiver of this component runs on this host already.
    """
    with only_receiver(context.state_dir, context.service, component.name, clock=context.clock):
        board = StreamBoard(
            service=context.service,
            component=component.name,
            synchronous=component.wal.synchronous,
            state_dir=context.state_dir,
            clock=context.clock,
            observe=observe,
        )
        _Receiver(context, component, board, stop).run()


@contextmanager
def only_receiver(state_dir: Path, service: ServiceName, component: ComponentName, *, clock: Clock) -> Iterator[None]:
    """Be the only receiver of a component on this host while the block runs.

    Raises:
        BusyError: there is one.
    """
    taken = BusyError(
        f"a WAL receiver of {service}/{component} is running already on this host",
        hint="One is enough: a node has one for each of its services, systemd may have another.",
    )
    with held_alone(lock_path(state_dir, service, component), clock=clock, taken=taken):
        yield


class _Receiver:
    """Connects, again and again."""

    def __init__(
        self, context: StreamContext, component: PostgresSettings, board: StreamBoard, stop: threading.Event
    ) -> None:
        self._context = context
        self._component = component
        self._board = board
        self._stop = stop
        self._hole: DrError | None = None
        self._pairs = ClockPairs()
        self._patience = Patience()
        self._proving = True

    def run(self) -> None:
        """Receive until told to stop."""
        pause = _LEAST_PAUSE_SECONDS
        while not self._stop.is_set():
            before = self._board.state.durable_lsn
            try:
                self._board.say(StreamPhase.CONNECTING, self._hole)
                self._board.publish()
                self._receive()
            except PostgresUnreachableError as error:
                self._board.say(StreamPhase.CONNECTING, error)
            except DrError as error:
                self._board.say(StreamPhase.FAILED, error)
            if self._board.state.durable_lsn != before:
                pause = _LEAST_PAUSE_SECONDS
            self._rest(pause)
            pause = min(pause * 2, _MOST_PAUSE_SECONDS)
        self._board.publish_last()

    def _rest(self, seconds: float) -> None:
        clock = self._context.clock
        deadline = clock.monotonic() + seconds
        self._board.publish()
        while (left := deadline - clock.monotonic()) > 0 and not self._stop.wait(min(1.0, left)):
            self._board.publish()

    def _receive(self) -> None:
        context, component = self._context, self._component
        scope = context.repository.scope(context.service, component.name)
        slot = self._board.state.slot
        with ReplicationConnection.open(component.production_dsn, application_name=slot) as connection:
            identity = connection.identify()
            Lineage(context.repository, scope, context.state_dir).require(identity.system_id)
            is_large = identity.wal_segment_bytes > _IN_MEMORY_BYTES
            spools = Spools(context.state_dir / "streams") if is_large else None
            shipping = self._shipping(scope, identity, spools)
            proving, self._proving = self._proving, True
            resume = Resumption(
                connection, identity, shipping, dsn=component.production_dsn, slot=slot, proving=proving
            ).resume()
            if self._board.state.system_id != identity.system_id:
                self._board.state = replace(
                    self._board.state,
                    system_id=identity.system_id,
                    received_lsn=None,
                    durable_lsn=None,
                    covered_lsn=None,
                    durable_server_time=None,
                )
            with (
                SlotWatch(component.production_dsn, slot, clock=context.clock) as watch,
                Uploads(shipping.put, threads=IN_FLIGHT, clock=context.clock) as uploads,
            ):
                stream = Following(
                    connection=connection,
                    identity=identity,
                    shipping=shipping,
                    spools=spools,
                    uploads=uploads,
                    watch=watch,
                    board=self._board,
                    component=component,
                    pairs=self._pairs,
                    patience=self._patience,
                    hole=self._hole,
                    kept_from=resume.kept_from,
                    clock=context.clock,
                    stop=self._stop,
                )
                try:
                    stream.run(resume.begin)
                except WalRemovedError:
                    if resume.otherwise is None:
                        raise
                    if resume.is_proof:  # recycled, as it may be: go on without
                        self._proving = False
                        return
                    self._hole = resume.hole()
                    telemetry.error("wal is lost", problem=self._hole.message, remedy=self._hole.hint)

    def _shipping(self, scope: Scope, identity: SystemIdentity, spools: Spools | None) -> Shipping:
        context = self._context
        return Shipping(
            archive=context.repository.wal(scope),
            tail=context.repository.tail(scope),
            clocks=context.repository.clocks(scope),
            day_keys=context.repository.day_keys(context.service),
            system_id=identity.system_id,
            segment_bytes=identity.wal_segment_bytes,
            clock=context.clock,
            spools=spools,
        )
