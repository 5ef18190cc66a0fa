"""Tells the catalogue every few seconds how receivers of WAL and captures of documents of this host are.

It is read from the files they leave (``operations.livestate``). One that lives and says nothing is told as stalled: its
last word is not true any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.streams import ABSENT, STARTING, ToldDocuments, ToldStream, ToldWal, tell_documents, tell_wal
from drservice.clock import Clock
from drservice.errors import CatalogueUnreachableError, DrError
from drservice.model.estate import Estate
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.documentstreams import wanted_captures
from drservice.node.walstreams import wanted_receivers
from drservice.operations import documentstate, streamstate
from drservice.operations.documentstate import DocumentState
from drservice.operations.streamstate import StreamPhase, StreamState

_TELL_SECONDS = 3.0
_State = TypeVar("_State", StreamState, DocumentState)
_Told = TypeVar("_Told", bound=ToldStream)


class StreamTeller:
    """Tells of the processes that a host has by the configuration in force.

    Args:
        database: the catalogue.
        estate: returns the configuration.
        host: whose they are.
        clock: of the host.
    """

    def __init__(self, database: Database, *, estate: Callable[[], Estate], host: str, clock: Clock) -> None:
        self._receivers: _Telling[ToldWal] = _Telling(lambda found: tell_wal(database, host, found))
        self._captures: _Telling[ToldDocuments] = _Telling(lambda found: tell_documents(database, host, found))
        self._estate = estate
        self._host = host
        self._clock = clock
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
        """Tell once; a host without such processes asks the catalogue nothing.

        Raises:
            CatalogueUnreachableError: it is told the next time.
        """
        estate, now = self._estate(), self._clock.now()
        self._receivers.tell(told_streams(estate, self._host, now))
        self._captures.tell(told_documents(estate, self._host, now))

    def _run(self) -> None:
        while not self._stop.wait(_TELL_SECONDS):
            try:
                self.tell()
            except CatalogueUnreachableError:
                continue  # the main thread tells
            except Exception as error:  # noqa: BLE001 - the node's catch-all: it tells again
                telemetry.error("receivers of WAL and captures of documents were not told of", exception=error)


class _Telling(Generic[_Told]):
    """Tells of one kind of process while there is one, and once that there is none."""

    def __init__(self, write: Callable[[Sequence[_Told]], None]) -> None:
        self._write = write
        self._has_told = True
        """So that what an earlier process of this host told is cleared away once."""

    def tell(self, found: Sequence[_Told]) -> None:
        if found or self._has_told:
            self._write(found)
        self._has_told = bool(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word(Generic[_State]):
    """What is known on its host of a process that streams."""

    service: ServiceName
    component: ComponentName
    state: _State | None = None
    """Its last word; ``None``: there is none, or it cannot be read."""
    is_alive: bool = False
    is_silent: bool = False
    """It lives, and its last word is too old to be believed."""
    problem: str | None = None
    remedy: str | None = None

    @property
    def is_heard(self) -> bool:
        """Whether what it says of the present is true."""
        return self.is_alive and not self.is_silent

    def phase(self, *, wordless: str) -> str:
        """Return the state that is told; ``wordless``: of one that lives and has not said anything yet."""
        if not self.is_alive:
            return ABSENT
        if self.is_silent:
            return StreamPhase.STALLED.value
        return wordless if self.state is None else self.state.state.value


def told_streams(estate: Estate, host: str, now: datetime) -> Sequence[ToldWal]:
    """Return the receivers of a host as they are told."""
    patience = timedelta(seconds=streamstate.STALE_SECONDS)
    return [
        _told_wal(
            _word_of(estate, name, streamstate.read_state, streamstate.is_alive, now=now, patience=patience),
            synchronous=settings.wal.synchronous,
        )
        for name, settings in wanted_receivers(estate, host).items()
    ]


def told_documents(estate: Estate, host: str, now: datetime) -> Sequence[ToldDocuments]:
    """Return the captures of documents of a host as they are told."""
    found = []
    for name, settings in wanted_captures(estate, host).items():
        patience = documentstate.patience(settings.interval)
        word = _word_of(estate, name, documentstate.read_state, documentstate.is_alive, now=now, patience=patience)
        found.append(_told_documents(word, now))
    return found


def _word_of(
    estate: Estate,
    name: str,
    read: Callable[[Path, ServiceName, ComponentName], _State | None],
    is_alive: Callable[[Path, ServiceName, ComponentName], bool],
    *,
    now: datetime,
    patience: timedelta,
) -> _Word[_State]:
    """Ask the files that a process leaves; one that cannot be asked counts as one that does not run."""
    service, component = ServiceName(name.partition("/")[0]), ComponentName(name.partition("/")[2])
    try:
        state = read(estate.state_dir, service, component)
        alive = is_alive(estate.state_dir, service, component)
    except (DrError, OSError) as error:
        problem, remedy = (error.message, error.hint) if isinstance(error, DrError) else (str(error), None)
        return _Word(service=service, component=component, problem=problem, remedy=remedy)
    if state is None:
        return _Word(service=service, component=component, is_alive=alive)
    silent = now - state.updated_at
    if alive and silent > patience:
        return _Word(
            service=service,
            component=component,
            state=state,
            is_alive=True,
            is_silent=True,
            problem=f"alive (pid {state.pid}) and silent for {silent.total_seconds():.0f} s",
            remedy="Look at its log; end it: it starts anew.",
        )
    return _Word(
        service=service,
        component=component,
        state=state,
        is_alive=alive,
        problem=state.problem,
        remedy=state.remedy,
    )


def _told_wal(word: _Word[StreamState], *, synchronous: bool) -> ToldWal:
    """Return a receiver as it is told; what one that ended has made durable stays durable."""
    told = ToldWal(
        service=word.service,
        component=word.component,
        state=word.phase(wordless=StreamPhase.CONNECTING.value),
        is_synchronous=synchronous,
        problem=word.problem,
        remedy=word.remedy,
    )
    state = word.state
    if state is None:
        return told
    is_current = word.is_heard and state.is_current
    return replace(
        told,
        timeline=state.timeline,
        durable_lsn=None if state.durable_lsn is None else state.durable_lsn.value,
        server_lsn=None if state.server_lsn is None else state.server_lsn.value,
        durable_until=state.server_time if state.bytes_at_risk == 0 else state.durable_server_time,
        seconds_at_risk=state.seconds_at_risk if is_current else None,
        bytes_at_risk=state.bytes_at_risk if is_current else None,
        slot_status=state.slot_status,
        safe_wal_bytes=state.safe_wal_bytes,
    )


def _told_documents(word: _Word[DocumentState], now: datetime) -> ToldDocuments:
    """Return a capture as it is told; what it counted before it has compared everything once says nothing."""
    told = ToldDocuments(
        service=word.service,
        component=word.component,
        state=word.phase(wordless=STARTING),
        problem=word.problem,
        remedy=word.remedy,
    )
    state = word.state
    if state is None:
        return told
    if word.is_heard:
        told = replace(told, seconds_at_risk=state.lag_seconds(now), pending=state.pending)
    if state.durable_server_time is None:
        return told
    return replace(
        told,
        # The database's clock may be ahead: what ended would look young for as long.
        durable_until=min(state.durable_server_time, state.looked_at or state.durable_server_time),
        missing=state.missing,
        corrupt=state.corrupt,
        in_database=state.in_database,
        not_covered=state.not_covered,
    )
