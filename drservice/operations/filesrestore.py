"""Restoring files beside a recovered cluster: the documents its rows refer to, and folders as they were.

The rows decide. A row without a file is never silent: what is missing because we lost it, what was missing in
production already, and what cannot be read any more are three different numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice import processes
from drservice.clock import to_iso
from drservice.components.odoo_filestore.placing import (
    PlaceContext,
    PlacedDocuments,
    place_documents,
    place_folder,
)
from drservice.components.postgres.asking import asking
from drservice.environments.interface import Environment
from drservice.model.documents import Covered, RowsAt, StoredSet, covered_at, nearest_sets
from drservice.model.estate import FilesComponent, FilesKind, FilesSettings, Service
from drservice.model.points import files_at, order_for_documents
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.production import References, read_references
from drservice.operations.progress import Progress
from drservice.processes import Account
from drservice.repository.repository import Repository

_REFERENCES_SECONDS = 600.0
_FOLDER = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCounts:
    """What became of the documents that a recovered database refers to."""

    expected: int = 0
    missing: int = 0
    """In no snapshot and no set, and not known to have been missing in production."""
    corrupt: int = 0
    extra: int = 0
    """In the snapshot, and no row refers to them: not placed."""
    missing_in_production: int = 0
    """Production had no good copy when it was captured: nothing there, or other content than the name says."""
    behind_seconds: float = 0.0
    """How much older than the recovered rows the newest look at the documents is; behind it a document may be lost."""
    is_unproven: bool = False
    """Nobody has looked at all documents of the rows' history yet: how far behind they are is not known."""

    def __add__(self, other: DocumentCounts) -> DocumentCounts:
        """Add the counts of two folders."""
        return DocumentCounts(
            expected=self.expected + other.expected,
            missing=self.missing + other.missing,
            corrupt=self.corrupt + other.corrupt,
            extra=self.extra + other.extra,
            missing_in_production=self.missing_in_production + other.missing_in_production,
            behind_seconds=max(self.behind_seconds, other.behind_seconds),
            is_unproven=self.is_unproven or other.is_unproven,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredFiles:
    """One folder of files that was restored."""

    component: FilesComponent
    root: Path
    records: tuple[SnapshotRecord, ...]
    """The preferred snapshot, and the others that documents were placed from; empty if there is none."""
    files: int = 0
    written_bytes: int = 0
    fetched_bytes: int = 0
    documents: PlacedDocuments | None = None
    """``None`` for a plain folder."""
    covered: Covered | None = None
    """How far the documents follow the recovered rows; ``None`` for a plain folder."""
    notes: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    """What the snapshot should have and has not, in sentences."""

    @property
    def counts(self) -> DocumentCounts | None:
        """The documents in numbers; ``None`` for a plain folder."""
        placed = self.documents
        if placed is None:
            return None
        return DocumentCounts(
            expected=placed.expected,
            missing=len(placed.missing),
            corrupt=len(placed.corrupt),
            extra=placed.extra,
            missing_in_production=len(placed.missing_in_production) + len(placed.corrupt_in_production),
            behind_seconds=self.covered.behind_seconds if self.covered is not None else 0.0,
            is_unproven=self.covered is not None and self.covered.newest is None,
        )

    def problems(self) -> tuple[str, ...]:
        """Return what is not as it was, in sentences; empty if nothing is."""
        name = self.component.name
        found = [*self.lacking] if self.records else [f"there is no snapshot of {name}"]
        placed = self.documents
        if placed is not None:
            if placed.missing:
                found.append(f"{len(placed.missing)} documents of {name} are in no snapshot")
            if placed.corrupt:
                found.append(f"{len(placed.corrupt)} documents of {name} cannot be restored as they were")
            if placed.missing_in_production:
                found.append(f"{len(placed.missing_in_production)} documents of {name} were missing in production too")
            if placed.corrupt_in_production:
                found.append(f"{len(placed.corrupt_in_production)} documents of {name} were damaged in production too")
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRestore:
    """What restoring files works with."""

    repository: Repository
    service: Service
    progress: Progress

    def beside(
        self,
        environment: Environment,
        component: FilesComponent,
        *,
        instant: datetime | None,
        rows: RowsAt,
        into: Path | None,
    ) -> RestoredFiles:
        """Restore one folder beside a recovered cluster.

        Args:
            environment: where the recovered server runs; files go below it unless ``into`` says otherwise.
            component: the folder.
            instant: what the database was recovered to; ``None`` for the latest position.
            rows: which position the database shows.
            into: the folder to make; its parent exists. It belongs to the present user, one in an environment to the
                server account.

        Raises:
            RecoveryError, ObjectStoreError, KeyProblemError: nothing is under the final name.
            PostgresError: the recovered database does not say what it refers to.
        """
        self.progress.step(f"restore {component.name}")
        if component.kind is not FilesKind.ODOO_FILESTORE:
            root = into or environment.folder(component.name) / _FOLDER
            return self._folder(component, instant=instant, root=root, account=_owner(into))
        assert component.database is not None
        environment.require_own_socket()
        with asking(
            environment.dsn,
            seconds=_REFERENCES_SECONDS,
            database=component.database,
            application_name="drservice restore",
        ) as session:
            references = read_references(session)
        root = into or environment.folder(component.name) / component.database
        return self._documents(component, references, root, instant=instant, rows=rows, account=_owner(into))

    def _documents(
        self,
        component: FilesComponent,
        references: References,
        root: Path,
        *,
        instant: datetime | None,
        rows: RowsAt,
        account: Account | None,
    ) -> RestoredFiles:
        """Place what the rows refer to, from passes and then from sets, each the nearest first."""
        records = order_for_documents(self._records(component), instant)
        sets = self._sets(component)
        placed = place_documents(
            self._context(component, account),
            [record.id for record in records],
            root,
            wanted=references.documents,
            sets=nearest_sets(sets, instant),
        )
        covered = covered_at(records, sets, rows)
        for text in placed.unreadable:
            self.progress.note(f"WARNING: {text}")
        back = len(placed.recovered_from_older)
        recovered = f"{back} documents of {component.name} were lost in production; they are from an older snapshot"
        return RestoredFiles(
            component=component,
            root=root,
            records=tuple(record for record in records if record is records[0] or record.id in placed.used),
            files=placed.placed,
            written_bytes=placed.written_bytes,
            fetched_bytes=placed.fetched_bytes,
            documents=placed,
            covered=covered,
            notes=(
                *references.notes,
                *placed.unreadable,
                *((recovered,) if back else ()),
                *_behind(component, covered, rows),
                *self._instead(placed, covered),
            ),
        )

    def _instead(self, placed: PlacedDocuments, covered: Covered) -> tuple[str, ...]:
        """Say how to restore without missing documents, where some are missing because the rows are newer."""
        if not placed.missing or covered.newest is None or not covered.behind_seconds:
            return ()
        command = f"drservice restore {self.service.name} --to consistent"
        return (f"the newest instant that rows and documents share is restored by: {command}",)

    def folder(self, component: FilesComponent, *, instant: datetime | None, root: Path) -> RestoredFiles:
        """Restore a folder as the snapshot has it that stands for the instant (``None`` = the latest).

        It belongs to the present user: whose it was, nobody knows on another host.

        Raises:
            RecoveryError, DamagedObjectError, MissingObjectError: nothing is under the final name.
        """
        return self._folder(component, instant=instant, root=root, account=None)

    def _folder(
        self, component: FilesComponent, *, instant: datetime | None, root: Path, account: Account | None
    ) -> RestoredFiles:
        from drservice.operations.preparedrestore import (  # noqa: PLC0415 - 20 modules that a cluster does not need
            place_prepared,
            usable,
        )

        chosen = files_at(usable(component, self._records(component)), instant)
        if chosen is None:
            return RestoredFiles(component=component, root=root, records=())
        context = self._context(component, account)
        if isinstance(component, FilesSettings):
            placed, notes, lacking = place_folder(context, chosen.id, root), tuple[str, ...](), tuple[str, ...]()
        else:
            placed, notes, lacking = place_prepared(context, component, chosen, root)
        late = instant is not None and chosen.stopped_at > instant
        note = f"there is no snapshot of {component.name} from before the target; the first one after it was taken"
        return RestoredFiles(
            component=component,
            root=root,
            records=(chosen,),
            files=placed.files,
            written_bytes=placed.written_bytes,
            fetched_bytes=placed.fetched_bytes,
            notes=(*notes, *((note,) if late else ())),
            lacking=lacking,
        )

    def _context(self, component: FilesComponent, account: Account | None) -> PlaceContext:
        return PlaceContext(
            repository=self.repository,
            scope=self.repository.scope(self.service.name, component.name),
            account=account,
            workers=component.workers,
            progress=self.progress,
        )

    def _records(self, component: FilesComponent) -> Sequence[SnapshotRecord]:
        listing = self.repository.snapshots(self.repository.scope(self.service.name, component.name))
        for key, error in listing.unreadable.items():
            self.progress.note(f"WARNING: a snapshot cannot be read and is left out: {key}: {error.message}")
        return listing.records

    def _sets(self, component: FilesComponent) -> Sequence[StoredSet]:
        scope = self.repository.scope(self.service.name, component.name)
        listing = self.repository.document_sets(scope).listing()
        for key, error in listing.unreadable.items():
            self.progress.note(f"WARNING: a document set cannot be read and is left out: {key}: {error.message}")
        return listing.sets


def _behind(component: FilesComponent, covered: Covered, rows: RowsAt) -> tuple[str, ...]:
    """Say which rows are newer than the newest look at the documents."""
    if covered.newest is None:
        return (f"nobody has looked at all documents of {component.name} yet: any of them may be missing",)
    if not covered.behind_seconds:
        return ()
    text = (
        f"the rows are newer than the documents: {component.name} was looked at {to_iso(covered.newest)}, rows were"
        f" committed until {to_iso(rows.instant)}: documents of these {covered.behind_seconds:.1f} s may be missing"
    )
    return (text,)


def _owner(into: Path | None) -> Account | None:
    """Return whose the files are: inside an environment the server account must be able to read them."""
    return processes.server_account(None) if into is None else None
