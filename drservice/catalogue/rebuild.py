"""Filling the catalogue from the repository and the ledger: public headers and signed records, no identity.

A service is read completely first and written in one transaction then, so that pages never see half of it. What cannot
be read has no row and is told; a store that does not answer changes nothing of the service that was being read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import func, select

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.projection import (
    ComponentContents,
    Pruned,
    ServiceContents,
    project_records,
    project_service,
    prune_records,
)
from drservice.catalogue.tables import Record
from drservice.errors import DrError, LedgerMissingError, ObjectStoreError, UnknownSignerError
from drservice.evidence.authority import Authority
from drservice.evidence.ledger import Entry, Ledger
from drservice.model.continuity import Hole, holes_of
from drservice.model.estate import PostgresSettings, Service
from drservice.model.evidence import EvidenceKind
from drservice.operations.info import WindowInfo, windows_with_times
from drservice.operations.inventory import archive_of, newest_lineage
from drservice.operations.progress import Progress
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.snapshots import SnapshotListing

_BATCH = 200
_READERS = 8
_ARRIVING = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuiltService:
    """What a service has in the repository, as rows."""

    name: str
    snapshots: int
    points: int
    windows: int
    pruned: Pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Something that has no row because it cannot be read or believed."""

    key: str
    code: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild has written, and what it could not."""

    services: tuple[RebuiltService, ...]
    records: int
    pruned_records: int
    unreadable: tuple[Unreadable, ...]


def rebuild(
    database: Database, repository: Repository, ledger: Ledger, *, services: Sequence[Service], progress: Progress
) -> Rebuilt:
    """Make the catalogue say what repository and ledger say; safe to repeat, and while others project.

    Rows of services that are not in ``services`` are left alone.

    Raises:
        ObjectStoreError: the store did not answer; services that were read before are up to date.
        CatalogueUnreachableError: the database did not answer.
    """
    rebuilt: list[RebuiltService] = []
    unreadable: list[Unreadable] = []
    progress.step("read the repository", total_items=len(services))
    for service in services:
        contents = read_service(repository, service)
        with database.session() as session:
            pruned = project_service(session, contents)
        rebuilt.append(
            RebuiltService(
                name=service.name,
                snapshots=sum(len(component.snapshots) for component in contents.components),
                points=len(contents.points),
                windows=sum(len(component.windows) for component in contents.components),
                pruned=pruned,
            )
        )
        unreadable += [_unreadable(key, error) for key, error in contents.unreadable.items()]
        progress.advance(1)
    records, gone, unbelievable = _rebuild_records(database, ledger, progress)
    progress.done()
    return Rebuilt(
        services=tuple(rebuilt), records=records, pruned_records=gone, unreadable=(*unreadable, *unbelievable)
    )


def read_service(repository: Repository, service: Service) -> ServiceContents:
    """Read what the repository holds of a service: every header, no content.

    Raises:
        ObjectStoreError: the store did not answer; an incomplete list would let rows vanish.
    """
    unreadable: dict[str, DrError] = {}
    components: list[ComponentContents] = []
    for component in service.components.values():
        scope = repository.scope(service.name, component.name)
        listing = repository.snapshots(scope)
        unreadable.update(listing.unreadable)
        wal = _Wal()
        if isinstance(component, PostgresSettings):
            try:
                wal = _wal(repository, scope, listing)
            except ObjectStoreError:
                raise
            except DrError as error:
                unreadable[f"s/{scope.service}/{scope.component}/wal"] = error
        components.append(
            ComponentContents(name=component.name, snapshots=listing.records, windows=wal.windows, holes=wal.holes)
        )
    points = repository.points(service.name).listing()
    unreadable.update(points.unreadable)
    return ServiceContents(name=service.name, components=tuple(components), points=points.points, unreadable=unreadable)


def catch_up_records(database: Database, ledger: Ledger) -> int:
    """Project the records that follow the newest one in the catalogue; return how many.

    One that nobody can believe, or whose signer may not write it, has no row and is told; the others follow.

    Raises:
        LedgerError, ObjectStoreError: the ledger cannot be read; what was read before is projected.
    """
    with database.session() as session:
        newest = session.execute(select(func.max(Record.entry))).scalar_one()
        keys = list(session.scalars(select(Record.entry).where(Record.kind == EvidenceKind.KEY.value)))
    authority = Authority(ledger.policy)
    for number in sorted(keys):
        _judged(authority, _read(ledger, number))
    begin, size, count = 0 if newest is None else newest + 1, ledger.size(), 0
    for batch in _entries(ledger, begin, size):
        judged = {number: _judged(authority, found) for number, found in batch.items()}
        entries = [found for found in judged.values() if isinstance(found, Entry)]
        for number, found in judged.items():
            if isinstance(found, DrError):
                telemetry.warning("a record is not believed", entry=number, problem=found.message)
        with database.session() as session:
            project_records(session, entries)
        count += len(entries)
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wal:
    """What a cluster's archive comes to."""

    windows: tuple[WindowInfo, ...] = ()
    holes: tuple[Hole, ...] = ()


def _wal(repository: Repository, scope: Scope, listing: SnapshotListing) -> _Wal:
    newest = newest_lineage(listing.records)
    if newest is None:
        return _Wal()
    archived = archive_of(repository, newest)
    holes = holes_of(listing.records, archived.inventory)
    if holes:
        # Segments arrive out of order while several are on their way: what is behind a hole was there for a while.
        settled = repository.store.server_time() - _ARRIVING
        stored_at = archived.inventory.stored_at
        holes = [hole for hole in holes if (at := stored_at.get(hole.follower)) is None or at <= settled]
    return _Wal(
        windows=windows_with_times(repository, scope, archived, listing.records),
        holes=tuple(holes),
    )


def _rebuild_records(database: Database, ledger: Ledger, progress: Progress) -> tuple[int, int, list[Unreadable]]:
    """Project every record; return how many, how many rows went, and what could not be believed."""
    try:
        size = ledger.size()
    except ObjectStoreError:
        raise
    except LedgerMissingError:
        size = 0
    except DrError as error:
        return 0, 0, [_unreadable("ledger", error)]  # not whole: what the rows say is not made less
    progress.step("read the ledger", total_items=size)
    unbelievable: dict[int, DrError] = {}
    records = 0
    authority = Authority(ledger.policy)
    for batch in _entries(ledger, 0, size):
        judged = {number: _judged(authority, found) for number, found in batch.items()}
        entries = [entry for entry in judged.values() if isinstance(entry, Entry)]
        unbelievable.update({number: error for number, error in judged.items() if isinstance(error, DrError)})
        with database.session() as session:
            project_records(session, entries)
        records += len(entries)
        progress.advance(len(batch))
    with database.session() as session:
        gone = prune_records(session, size=size, unreadable=unbelievable)
    return records, gone.records, [_unreadable(f"entry {number}", error) for number, error in unbelievable.items()]


def _entries(ledger: Ledger, begin: int, size: int) -> Iterator[dict[int, Entry | DrError]]:
    """Yield the entries in batches, several read at once; one that cannot be believed is its error."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="ledger") as pool:
        for first in range(begin, size, _BATCH):
            numbers = range(first, min(first + _BATCH, size))
            yield dict(zip(numbers, pool.map(partial(_read, ledger), numbers), strict=True))


def _read(ledger: Ledger, number: int) -> Entry | DrError:
    try:
        return ledger.entry(number)
    except ObjectStoreError:
        raise
    except DrError as error:
        return error


def _judged(authority: Authority, found: Entry | DrError) -> Entry | DrError:
    """Return an entry that its signer may write; else why nobody has to believe it."""
    if isinstance(found, Entry):
        try:
            authority.judge(found)
        except UnknownSignerError as error:
            return error
    return found


def _unreadable(key: str, error: DrError) -> Unreadable:
    return Unreadable(key=key, code=error.code, problem=error.message)
