"""``info``: what can be reached, what is at risk now, and what was proved. Needs no identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice.clock import Clock
from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import cluster_facts
from drservice.errors import DrError, PostgresError
from drservice.model.estate import PostgresSettings, Service, WalMode
from drservice.model.origin import IMPORTED
from drservice.model.reach import WalGap
from drservice.model.recovery import Window, gaps_of, windows_of
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.inventory import Archived, archive_of, last_write, newest_lineage
from drservice.operations.measured import Measured, recall
from drservice.operations.streamstate import STALE_SECONDS, StreamState, is_alive, read_state
from drservice.operations.walboard import stream_name
from drservice.repository.records import Scope
from drservice.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowInfo:
    """A reachable stretch with times; ``to_time`` is when its last segment was last written."""

    window: Window
    from_time: datetime
    to_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRisk:
    """What would be lost if the host burned now; ``None`` = production could not be asked."""

    bytes: int | None
    seconds: float | None
    problem: str | None
    proven_until: datetime | None = None
    """By a receiver's word: nothing that was committed up to here would be lost; by the server's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """How the receiver of this host is; ``state``: its last word, ``None`` if it never ran here."""

    name: str
    """Of its slot."""
    is_alive: bool
    state: StreamState | None
    problem: str | None
    """Why its state cannot be read."""
    heartbeat: timedelta | None
    """How often its server is to be given a commit with a time, by the configuration; ``None``: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentInfo:
    """What is known of one component."""

    scope: Scope
    snapshots: tuple[SnapshotRecord, ...]
    unreadable: dict[str, DrError]
    windows: tuple[WindowInfo, ...]
    gaps: tuple[WalGap, ...]
    unread_histories: tuple[str, ...]
    at_risk: AtRisk
    measured: Measured | None
    estimated_rto_seconds: float | None
    stream: StreamInfo | None = None
    """Of a component that streams its WAL."""


def component_info(
    repository: Repository, service: Service, component: PostgresSettings, *, state_dir: Path, clock: Clock
) -> ComponentInfo:
    """Collect what is known of a component.

    Raises:
        ObjectStoreError: the store did not answer; an unknown window is not an empty one.
    """
    scope = repository.scope(service.name, component.name)
    listing = repository.snapshots(scope)
    newest = newest_lineage(listing.records)
    measured = recall(state_dir, scope)
    if newest is None:
        nothing = AtRisk(bytes=None, seconds=None, problem="there is no snapshot: everything is at risk")
        return ComponentInfo(
            scope=scope,
            snapshots=listing.records,
            unreadable=dict(listing.unreadable),
            windows=(),
            gaps=(),
            unread_histories=(),
            at_risk=nothing,
            measured=measured,
            estimated_rto_seconds=None,
            stream=stream_info(scope, component, state_dir),
        )
    # Asked first: what it says is durable by now is in a listing that is made from now on, or it is not there.
    stream, asked_at = stream_info(scope, component, state_dir), clock.now()
    archived = archive_of(repository, newest)
    windows = windows_with_times(repository, scope, archived, listing.records)
    gaps = tuple(gaps_of(listing.records, archived.inventory))
    estimate = None
    if measured is not None and windows:
        behind = windows[-1].window.end.value - newest.postgres.start_lsn.value
        estimate = measured.estimate(
            source_bytes=newest.source_bytes, segments=max(0, behind) // newest.postgres.segment_bytes
        )
    return ComponentInfo(
        scope=scope,
        snapshots=listing.records,
        unreadable=dict(listing.unreadable),
        windows=windows,
        gaps=gaps,
        unread_histories=archived.unread_histories,
        at_risk=_imported_at_risk(newest)
        or _streamed_at_risk(stream, newest, windows, gaps, asked_at)
        or _at_risk(component, newest, windows, clock),
        measured=measured,
        estimated_rto_seconds=estimate,
        stream=stream,
    )


def windows_with_times(
    repository: Repository, scope: Scope, archived: Archived, records: Sequence[SnapshotRecord]
) -> tuple[WindowInfo, ...]:
    """Return the reachable stretches of a cluster, oldest first. Needs no identity.

    Raises:
        ObjectStoreError: the store did not answer.
    """
    return tuple(
        _window_info(repository, scope, archived, window) for window in windows_of(records, archived.inventory)
    )


def _window_info(repository: Repository, scope: Scope, archived: Archived, window: Window) -> WindowInfo:
    written = last_write(repository.wal(scope), archived, window.last_segment)
    return WindowInfo(
        window=window,
        from_time=window.first.stopped_at,
        to_time=max(written, window.first.stopped_at),
    )


def stream_info(scope: Scope, component: PostgresSettings, state_dir: Path) -> StreamInfo | None:
    """Return how the receiver of a component is, as it says on this host; ``None`` where none is to be."""
    if component.wal.mode is WalMode.ARCHIVE:
        return None
    name, heartbeat = stream_name(scope.service, scope.component), component.wal.heartbeat
    try:
        state = read_state(state_dir, scope.service, scope.component)
        alive = is_alive(state_dir, scope.service, scope.component)
    except (DrError, OSError) as error:
        problem = error.message if isinstance(error, DrError) else str(error)
        return StreamInfo(name=name, is_alive=False, state=None, problem=problem, heartbeat=heartbeat)
    return StreamInfo(name=name, is_alive=alive, state=state, problem=None, heartbeat=heartbeat)


def _streamed_at_risk(
    stream: StreamInfo | None,
    newest: SnapshotRecord,
    windows: tuple[WindowInfo, ...],
    gaps: tuple[WalGap, ...],
    asked_at: datetime,
) -> AtRisk | None:
    """Return what a receiver that gets on says is at risk; ``None``: ask the server, there is none to believe.

    What it made durable leads on from a snapshot only where nothing is missing before it, and is still there.
    """
    state = stream.state if stream is not None and stream.is_alive else None
    if state is None or not state.is_current or state.bytes_at_risk is None or state.seconds_at_risk is None:
        return None
    is_fresh = abs((asked_at - state.updated_at).total_seconds()) <= STALE_SECONDS
    if not is_fresh or state.system_id != newest.postgres.system_id or not windows or _ends_in_gap(windows, gaps):
        return None
    if state.durable_lsn is None or state.durable_lsn > windows[-1].window.end:
        return None
    return AtRisk(
        bytes=state.bytes_at_risk,
        seconds=state.seconds_at_risk,
        problem=None,
        proven_until=state.server_time if state.bytes_at_risk == 0 else state.durable_server_time,
    )


def _imported_at_risk(newest: SnapshotRecord) -> AtRisk | None:
    """Return that nobody knows what is at risk behind a dump; ``None`` of a cluster that was captured."""
    if newest.method != IMPORTED:
        return None
    problem = "the newest snapshot was imported from a dump, and nobody knows what was committed after that was made"
    return AtRisk(bytes=None, seconds=None, problem=problem)


def _ends_in_gap(windows: tuple[WindowInfo, ...], gaps: tuple[WalGap, ...]) -> bool:
    return any(gap.begin >= windows[-1].window.end for gap in gaps)


def _at_risk(
    component: PostgresSettings, newest: SnapshotRecord, windows: tuple[WindowInfo, ...], clock: Clock
) -> AtRisk:
    """Compare production's flushed position with the durable one: an idle server risks nothing, however old its WAL."""
    try:
        with connect(component.production_dsn, application_name="drservice info") as session:
            facts = cluster_facts(session)
    except PostgresError as error:
        return AtRisk(bytes=None, seconds=None, problem=error.message)
    if facts.in_recovery:
        return AtRisk(bytes=None, seconds=None, problem="dsn leads to a standby, which its primary may be ahead of")
    if facts.system_id != newest.postgres.system_id:
        return AtRisk(bytes=None, seconds=None, problem="the server is another cluster than the newest snapshot's")
    if not windows:
        return AtRisk(bytes=None, seconds=None, problem="no archived WAL follows a snapshot")
    behind = facts.current_lsn.value - windows[-1].window.end.value
    if behind <= 0:
        return AtRisk(bytes=0, seconds=0.0, problem=None)
    seconds = (clock.now() - windows[-1].to_time).total_seconds()
    return AtRisk(bytes=behind, seconds=max(0.0, seconds), problem=None)
