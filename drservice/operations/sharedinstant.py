"""The newest instant that rows and documents share, and how far documents are behind the WAL. Needs no identity.

A whole set of documents, and the pass of a recovery point, each say up to which position of the database every document
that rows refer to is stored. WAL is stored more often than that, so the newest rows may refer to documents that nobody
has. What both share ends at the position, of those that lie on the history that is recovered, that leads furthest; with
several filestores, at the least of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.clock import to_iso
from drservice.errors import DocumentsUnprovenError
from drservice.model.documents import Look, StoredSet, newest_look, stands_on
from drservice.model.estate import FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, SystemId
from drservice.model.points import RecoveryPoint
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import Lsn, TimelineSpan
from drservice.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """How far the documents of one component are proven along a history; ``look``: ``None`` if nobody has looked."""

    component: ComponentName
    look: Look | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """How far the documents that follow one cluster are proven along its history; of one component at least."""

    proven: tuple[Proven, ...]

    @property
    def look(self) -> Look | None:
        """The one that ends what rows and documents share; ``None``: nothing is proven of one of them."""
        looks = [item.look for item in self.proven if item.look is not None]
        return min(looks, key=lambda look: look.lsn) if len(looks) == len(self.proven) else None

    def required(self) -> Look:
        """Return :attr:`look`.

        Raises:
            DocumentsUnprovenError: there is none; it names the components.
        """
        if (found := self.look) is not None:
            return found
        raise DocumentsUnprovenError(f"nobody has looked at all documents of {self.lacking} on this history yet")

    @property
    def lacking(self) -> str:
        """The components of whose documents nothing is proven."""
        return ", ".join(item.component for item in self.proven if item.look is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where the WAL of a history ends, and up to where documents are proven along it."""

    shared: Shared
    wal_end: Lsn
    written_at: datetime
    """When the last of that WAL was, by the server's clock."""

    @property
    def at(self) -> datetime | None:
        """When what rows and documents share ends, by the server's clock; ``None``: they share nothing.

        Documents may be ahead of the WAL: then it ends with that.
        """
        if (look := self.shared.look) is None:
            return None
        return look.at if look.lsn < self.wal_end else min(look.at, self.written_at)

    @property
    def behind_seconds(self) -> float | None:
        """How far what rows and documents share ends before the WAL does; ``None``: they share nothing."""
        if (look := self.shared.look) is None:
            return None
        return max(0.0, (self.written_at - look.at).total_seconds()) if look.lsn < self.wal_end else 0.0

    def describe_latest(self) -> str | None:
        """Return what the latest position may lack, in words; ``None``: nothing that anybody knows of."""
        look, seconds = self.shared.look, self.behind_seconds
        if look is None or seconds is None:
            return f"nobody has looked at all documents of {self.shared.lacking} yet: any of them may be missing"
        if not seconds:
            return None
        return (
            f"documents are proven up to {to_iso(look.at)}, {seconds:.2f} s before the end of the WAL: those of newer"
            " rows may be missing; for the newest instant that both share: --to consistent"
        )

    def as_document(self) -> dict[str, object]:
        """Return it as JSON has it; what is not known is ``null``."""
        look, seconds = self.shared.look, self.behind_seconds
        return {
            "lsn": str(min(look.lsn, self.wal_end)) if look is not None else None,
            "timeline": int(look.timeline) if look is not None else None,
            "at": to_iso(self.at) if self.at is not None else None,
            "wal_end_lsn": str(self.wal_end),
            "wal_end_at": to_iso(self.written_at),
            "behind_seconds": None if seconds is None else round(seconds, 3),
            "documents": [
                {
                    "component": item.component,
                    "lsn": str(item.look.lsn) if item.look is not None else None,
                    "at": to_iso(item.look.at) if item.look is not None else None,
                    "by": item.look.by if item.look is not None else None,
                }
                for item in self.shared.proven
            ],
        }


def followers(service: Service, component: PostgresSettings, database: str | None = None) -> list[FilesSettings]:
    """Return the filestores whose rows are in a cluster, or only in one database of it."""
    return [
        item
        for item in service.filestores()
        if item.follows in {None, component.name} and database in {None, item.database}
    ]


def shared_along(
    repository: Repository,
    service: Service,
    filestores: Sequence[FilesSettings],
    records: Sequence[SnapshotRecord],
    *,
    system_id: SystemId,
    path: Sequence[TimelineSpan],
) -> Shared | None:
    """Return how far documents are proven along a history; ``None``: no documents follow it.

    Args:
        repository: where they are.
        service: whose.
        filestores: that follow the cluster.
        records: snapshots of the cluster.
        system_id: of the cluster.
        path: the history.

    Raises:
        ObjectStoreError: a listing is not complete, or the store did not answer.
    """
    if not filestores:
        return None

    def fits(stored: StoredSet) -> bool:
        position = stored.position
        return position.system_id == system_id and stands_on(position.timeline, position.lsn, path)

    ends = [item.postgres.stop_lsn for item in records if item.postgres.system_id == system_id]
    points: Sequence[RecoveryPoint] | None = None
    proven: list[Proven] = []
    for component in filestores:
        newest = repository.document_sets(repository.scope(service.name, component.name)).newest(fits=fits)
        looks = [] if newest is None else [_look_of(newest)]
        if newest is None or any(end > newest.position.lsn for end in ends):  # else no pass leads further
            points = repository.points(service.name).listing().points if points is None else points
            looks += _passes(repository, component, records, points, system_id)
        proven.append(Proven(component=component.name, look=newest_look(looks, path)))
    return Shared(proven=tuple(proven))


def _look_of(stored: StoredSet) -> Look:
    position = stored.position
    return Look(timeline=position.timeline, lsn=position.lsn, at=stored.looked_at, by=stored.id)


def _passes(
    repository: Repository,
    component: FilesSettings,
    records: Sequence[SnapshotRecord],
    points: Sequence[RecoveryPoint],
    system_id: SystemId,
) -> list[Look]:
    """Return what the passes of recovery points say: each began behind the end of its point's cluster snapshot.

    One that could not read everything says nothing, nor does one that is not there any more.
    """
    if not points or not records:
        return []
    service, cluster = points[-1].service, records[-1].component
    listed = repository.snapshots(repository.scope(service, component.name)).records
    passes = {item.id: item.documents for item in listed if item.state is not SnapshotState.PARTIAL}
    looks: list[Look] = []
    for point in points:
        taken, database = point.member(component.name), point.member(cluster)
        position = database.position if database is not None else None
        facts = passes.get(taken.snapshot) if taken is not None else None
        if taken is None or database is None or position is None or facts is None or position.system_id != system_id:
            continue
        at = min(database.stopped_at, facts.walk_began_at)
        looks.append(Look(timeline=position.timeline, lsn=position.lsn, at=at, by=taken.snapshot))
    return looks
