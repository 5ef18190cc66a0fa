"""Tells the catalogue every few seconds how the WAL receivers of this host are, from the files they leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.walstreams import ABSENT, ToldStream, WalStreams
from drservice.errors import CatalogueUnreachableError, DrError
from drservice.model.estate import Estate
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.walstreams import wanted_receivers
from drservice.operations.streamstate import StreamState, is_alive, read_state

_TELL_SECONDS = 3.0


class StreamTeller:
    """Tells of the receivers that a host has by the configuration in force.

    Args:
        database: the catalogue.
        estate: returns the configuration.
        host: whose they are.
    """

    def __init__(self, database: Database, *, estate: Callable[[], Estate], host: str) -> None:
        self._streams = WalStreams(database)
        self._estate = estate
        self._host = host
        self._has_told = True
        """So that what an earlier process of this host told is cleared away once."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; the rows stay, and age."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_TELL_SECONDS)

    def tell(self) -> None:
        """Tell once; a host without receivers asks the catalogue nothing.

        Raises:
            CatalogueUnreachableError: it is told the next time.
        """
        found = told_streams(self._estate(), self._host)
        if found or self._has_told:
            self._streams.tell(self._host, found)
        self._has_told = bool(found)

    def _run(self) -> None:
        while not self._stop.wait(_TELL_SECONDS):
            try:
                self.tell()
            except CatalogueUnreachableError:
                continue  # the main thread tells
            except Exception as error:  # noqa: BLE001 - the node's catch-all: it tells again
                telemetry.error("receivers of WAL were not told of", exception=error)


def told_streams(estate: Estate, host: str) -> Sequence[ToldStream]:
    """Return the receivers of a host as they are told."""
    return list(_told(estate, host))


def _told(estate: Estate, host: str) -> Iterator[ToldStream]:
    for name, settings in wanted_receivers(estate, host).items():
        service, component = ServiceName(name.partition("/")[0]), ComponentName(settings.name)
        try:
            state = read_state(estate.state_dir, service, component)
            alive = is_alive(estate.state_dir, service, component)
        except (DrError, OSError) as error:
            yield ToldStream(
                service=service,
                component=component,
                state=ABSENT,
                is_synchronous=settings.wal.synchronous,
                problem=error.message if isinstance(error, DrError) else str(error),
                remedy=error.hint if isinstance(error, DrError) else None,
            )
        else:
            yield told_of(service, component, state, alive=alive, synchronous=settings.wal.synchronous)


def told_of(service: str, component: str, state: StreamState | None, *, alive: bool, synchronous: bool) -> ToldStream:
    """Return a receiver as it is told; what one that ended has made durable stays durable."""
    if state is None:
        return ToldStream(service=service, component=component, state=ABSENT, is_synchronous=synchronous)
    return ToldStream(
        service=service,
        component=component,
        state=state.state.value if alive else ABSENT,
        is_synchronous=synchronous,
        timeline=state.timeline,
        durable_lsn=None if state.durable_lsn is None else state.durable_lsn.value,
        server_lsn=None if state.server_lsn is None else state.server_lsn.value,
        durable_until=state.server_time if state.bytes_at_risk == 0 else state.durable_server_time,
        seconds_at_risk=state.seconds_at_risk if alive else None,
        bytes_at_risk=state.bytes_at_risk if alive else None,
        slot_status=state.slot_status,
        safe_wal_bytes=state.safe_wal_bytes,
        problem=state.problem,
        remedy=state.remedy,
    )
