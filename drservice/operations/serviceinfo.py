"""``info`` of a service: its clusters, its files, its recovery points, and when recovery was last proved.

"Backed up" and "verified" are different states and stand apart: the first is read from snapshots and WAL, the second
from drills in the ledger of evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from drservice.clock import Clock, from_iso
from drservice.errors import DrError, ObjectStoreError
from drservice.model.documents import StoredSet
from drservice.model.estate import FilesComponent, FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.points import RecoveryPoint
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.documentstate import DocumentState, is_alive, read_state
from drservice.operations.evidence import Evidence
from drservice.operations.info import AtRisk, ComponentInfo, component_info
from drservice.operations.ledgernotes import ledger_notes
from drservice.operations.preparedrestore import is_flushed, usable
from drservice.operations.sharedinstant import Ends, followers, shared_along
from drservice.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentStreamInfo:
    """How the capture of documents on this host is; ``state``: its last word, ``None`` if it never ran here."""

    is_alive: bool
    state: DocumentState | None
    problem: str | None
    """Why its state cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesInfo:
    """What is known of a folder of files."""

    component: FilesComponent
    snapshots: tuple[SnapshotRecord, ...]
    unreadable: dict[str, DrError]
    seconds_at_risk: float | None
    """Since the newest pass began (over documents: none that is partial), or the newest whole set was taken, or the
    capture that runs here found everything stored: files made since then would be lost; ``None``: there is none of
    them."""
    stream: DocumentStreamInfo | None = None
    """Of documents that are captured as they come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """When recovery was last shown to work, and by what: a ``drill`` on record, or a ``restore`` on this host."""

    at: datetime
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillEntry:
    """A drill on record; one that was meant to fail is none of these."""

    number: int
    at: datetime
    outcome: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What is known of a service."""

    service: Service
    proved: Proved | None
    last_drill: DrillEntry | None
    ledger_problem: str | None
    """Why the ledger could not be asked; ``None`` if it could."""
    databases: tuple[ComponentInfo, ...]
    files: tuple[FilesInfo, ...]
    points: tuple[RecoveryPoint, ...]
    unreadable_points: dict[str, DrError]
    ends: Mapping[ComponentName, Ends] = field(default_factory=dict)
    """Where rows and documents end in the newest window, of each cluster with documents that follow it."""

    @property
    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """Every snapshot of every component."""
        clusters = tuple(record for item in self.databases for record in item.snapshots)
        return clusters + tuple(record for item in self.files for record in item.snapshots)

    @property
    def unreadable(self) -> dict[str, DrError]:
        """Snapshots and points that cannot be read, by key."""
        found = dict(self.unreadable_points)
        for database in self.databases:
            found.update(database.unreadable)
        for item in self.files:
            found.update(item.unreadable)
        return found

    @property
    def at_risk(self) -> AtRisk:
        """The worst of the clusters; unknown if one is unknown."""
        unknown = [item.at_risk for item in self.databases if item.at_risk.seconds is None]
        if unknown:
            return unknown[0]
        known = [item.at_risk for item in self.databases]
        return max(known, key=lambda item: item.seconds or 0.0) if known else AtRisk(bytes=0, seconds=0.0, problem=None)

    @property
    def documents_at_risk_seconds(self) -> float | None:
        """The oldest of the newest passes; ``None`` if there are no files, or one was never captured."""
        ages = [item.seconds_at_risk for item in self.files if not is_flushed(item.component)]
        known = [age for age in ages if age is not None]
        return max(known) if known and len(known) == len(ages) else None

    @property
    def filestores_at_risk_seconds(self) -> float | None:
        """The worst of the filestores; ``None`` if there are none, or one was never captured."""
        ages = [item.seconds_at_risk for item in self.files if item.component.kind is FilesKind.ODOO_FILESTORE]
        known = [age for age in ages if age is not None]
        return max(known) if known and len(known) == len(ages) else None

    @property
    def effective_rpo_seconds(self) -> float | None:
        """What the service as a whole would lose now: the larger of database and documents; ``None`` if unknown."""
        if not self.service.filestores():
            return self.at_risk.seconds
        documents = self.filestores_at_risk_seconds
        if self.at_risk.seconds is None or documents is None:
            return None
        return max(self.at_risk.seconds, documents)

    @property
    def estimated_rto_seconds(self) -> float | None:
        """What the clusters take one after the other; ``None`` if one was never restored here."""
        known = [item.estimated_rto_seconds for item in self.databases]
        times = [seconds for seconds in known if seconds is not None]
        return sum(times) if times and len(times) == len(known) else None


def service_info(
    repository: Repository, service: Service, *, evidence: Evidence, state_dir: Path, clock: Clock
) -> ServiceInfo:
    """Collect what is known of a service. Needs no identity.

    Raises:
        ObjectStoreError: the store did not answer; an unknown window is not an empty one.
    """
    now = clock.now()
    points = repository.points(service.name).listing()
    databases = tuple(
        component_info(repository, service, component, state_dir=state_dir, clock=clock)
        for component in service.databases()
    )
    drills, problem = _drills(evidence, service)
    return ServiceInfo(
        service=service,
        proved=_proved(databases, drills),
        last_drill=drills[0] if drills else None,
        ledger_problem=problem,
        databases=databases,
        files=tuple(_files_info(repository, service, component, state_dir, now) for component in service.files()),
        points=points.points,
        unreadable_points=dict(points.unreadable),
        ends=dict(_ends(repository, service, databases)),
    )


def _ends(
    repository: Repository, service: Service, databases: Sequence[ComponentInfo]
) -> Iterator[tuple[ComponentName, Ends]]:
    for known in databases:
        component = known.scope.component
        if not known.windows:
            continue
        newest = known.windows[-1]
        shared = shared_along(
            repository,
            service,
            followers(service, service.database(component)),
            known.snapshots,
            system_id=newest.window.first.postgres.system_id,
            path=newest.window.path,
        )
        if shared is not None:
            yield component, Ends(shared=shared, wal_end=newest.window.end, written_at=newest.to_time)


def _drills(evidence: Evidence, service: Service) -> tuple[list[DrillEntry], str | None]:
    """Return the newest drill and the newest that passed, and why the ledger could not be asked, if so.

    A record that nobody can believe matters where it is newer than the proof: a drill that failed may stand there.
    """
    try:
        notes = ledger_notes(evidence.ledger)
    except ObjectStoreError:
        raise
    except DrError as error:
        return [], error.message
    known = notes.of(service.name)
    last = notes.last_unbelieved
    begin = 0 if last is None else last[0]
    newest = [note for note in (known.last_drill, known.passed_drill) if note is not None and note.number >= begin]
    drills = [
        DrillEntry(number=note.number, at=from_iso(note.at), outcome=note.outcome, target=note.target)
        for note in dict.fromkeys(newest)
    ]
    return drills, notes.doubt_about(service.name)


def _proved(databases: Sequence[ComponentInfo], drills: Sequence[DrillEntry]) -> Proved | None:
    """Return the newest proof: a passed drill, or a proven restore of every cluster on this host.

    A newer drill that did not pass takes it away: what could be recovered then may not be now.
    """
    proofs = [Proved(at=drill.at, how="drill") for drill in drills if drill.outcome == "passed"]
    restored = [known.measured.restored_at for known in databases if known.measured and known.measured.proved]
    if restored and len(restored) == len(databases):
        proofs.append(Proved(at=from_iso(min(restored)), how="restore"))
    newest = max(proofs, key=lambda proof: proof.at, default=None)
    if newest is not None and drills and drills[0].outcome != "passed" and drills[0].at > newest.at:
        return None
    return newest


def _files_info(
    repository: Repository, service: Service, component: FilesComponent, state_dir: Path, now: datetime
) -> FilesInfo:
    scope = repository.scope(service.name, component.name)
    stream = document_stream_info(service.name, component, state_dir)  # asked first: what it says is stored is by now
    listing = repository.snapshots(scope)
    return FilesInfo(
        component=component,
        snapshots=listing.records,
        unreadable=dict(listing.unreadable),
        seconds_at_risk=_age(_looks(component, listing.records), now, repository.document_sets(scope).newest(), stream),
        stream=stream,
    )


def _looks(component: FilesComponent, records: Sequence[SnapshotRecord]) -> Sequence[SnapshotRecord]:
    """Return the passes that have what was there when they began; of documents one has that no partial pass has."""
    if component.kind is not FilesKind.ODOO_FILESTORE:
        return usable(component, records)
    return [record for record in records if record.state is not SnapshotState.PARTIAL]


def document_stream_info(service: ServiceName, component: FilesComponent, state_dir: Path) -> DocumentStreamInfo | None:
    """Return how the capture of a component's documents is, as it says on this host; ``None`` where none is to be."""
    if not isinstance(component, FilesSettings) or not component.stream:
        return None
    try:
        state = read_state(state_dir, service, component.name)
        alive = is_alive(state_dir, service, component.name)
    except (DrError, OSError) as error:
        problem = error.message if isinstance(error, DrError) else str(error)
        return DocumentStreamInfo(is_alive=False, state=None, problem=problem)
    return DocumentStreamInfo(is_alive=alive, state=state, problem=None)


def _age(
    records: Sequence[SnapshotRecord], now: datetime, newest: StoredSet | None, stream: DocumentStreamInfo | None
) -> float | None:
    """Return how old the newest look is that found everything stored.

    A capture's word counts only beside a set or a pass that is there: where the store lost everything, it is wrong.
    """
    looks = [record.documents.walk_began_at for record in records]
    looks += [newest.looked_at] if newest is not None else []
    state = stream.state if stream is not None and stream.is_alive else None
    if looks and state is not None and state.looked_at is not None:
        looks.append(state.looked_at)
    return max(0.0, (now - max(looks)).total_seconds()) if looks else None
