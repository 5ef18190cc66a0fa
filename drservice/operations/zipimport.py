"""``import``: a zip that Odoo made as the recovery point of a service whose server nobody can reach (yet).

The dump is loaded into a new cluster in a sandbox and has to be whole; the documents are unpacked beside it and
compared with what its rows refer to. Then both are captured as a backup captures them, and from there on a restore, a
drill and an extract know no difference. What is different is said: snapshot and point name their origin, there is no
WAL behind them, and what may be lost counts from the newest row of the dump.

Nothing is committed before everything was read, loaded, compared and captured; the environment is gone in any case.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from drservice.canonical import Json
from drservice.components.odoo.gathering import gather_odoo
from drservice.components.odoo.zipreading import Inventory, OdooZipFile
from drservice.components.postgres.asking import asking
from drservice.components.postgres.baseline import measure_baseline
from drservice.components.postgres.loading import Loaded
from drservice.errors import (
    DrError,
    EnvironmentFailedError,
    ExitStatus,
    ImportTakenError,
    IncompleteImportError,
    InterruptedRunError,
    UsageError,
)
from drservice.model.estate import FilesSettings, PostgresSettings, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid
from drservice.model.origin import Origin, own_snapshots
from drservice.model.points import RecoveryPoint
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.evidence import Evidence, snapshot_subjects
from drservice.operations.lineage import Lineage
from drservice.operations.neutralsource import read_scripts, require_production
from drservice.operations.production import database_in, read_references
from drservice.operations.records import backup_fields
from drservice.operations.restorerequest import RestoreContext
from drservice.operations.zipimportasking import Manifest, newest_row, read_manifest, require_modules
from drservice.operations.zipimportcluster import LoadingCluster, choose_programs, head_versions, loading_cluster
from drservice.operations.zipimportdocuments import Compared, compare, unpack_documents
from drservice.operations.zipimportstoring import Checked, ImportRequest, store_import

_ASK_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import brought."""

    run: str
    origin: Origin
    point: RecoveryPoint
    cluster: SnapshotRecord
    documents: SnapshotRecord
    manifest: Manifest
    server_major: int
    loaded: Loaded
    compared: Compared
    notes: tuple[str, ...]
    seconds: float

    @property
    def is_partial(self) -> bool:
        """Whether something of what the rows refer to is not in it."""
        return not self.compared.is_whole


def documents_of(service: Service, database: str | None) -> FilesSettings:
    """Return the component with the documents of a database, or the only one with documents.

    Raises:
        UsageError: there is none, or the database has to be named.
    """
    found = [item for item in service.filestores() if database in {None, item.database}]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{item.database} ({item.name})" for item in service.filestores())
    what = f"of a database {database}" if database is not None else "of one database"
    raise UsageError(
        f"service {service.name} has no odoo-filestore component that is the one {what}",
        hint=f"Name one with --database: {known}." if known else "The configuration needs one, with its database.",
    )


def import_zip(context: RestoreContext, evidence: Evidence, request: ImportRequest) -> ImportResult:
    """Make a recovery point of a zip that Odoo made, and put it on record, a failure too.

    The point exists when this returns. What fails before leaves no snapshot, no point and no environment.

    Raises:
        ImportTakenError: the service has snapshots of a cluster of its own; nothing was begun.
        ImportRefusedError: the zip is not whole, not of Odoo's, or hostile.
        IncompleteImportError: it lacks documents, and that was not accepted.
        ProgramMissingError, ProgramVersionError: no server here is as new as the one the dump was taken from.
        NeutralizedSourceError: it is of a neutralized copy.
        IsolationError, EnvironmentFailedError, CaptureError, PostgresError, ObjectStoreError: see the message.
    """
    require_importable(context, request)
    run = make_ulid(context.clock.now(), os.urandom(10))
    started_at, mark = context.clock.now(), context.clock.monotonic()
    evidence.expect(EvidenceKind.BACKUP)

    def record(outcome: str, result: ImportResult | None, error: DrError | None) -> None:
        records = (result.cluster, result.documents) if result is not None else ()
        evidence.record(
            EvidenceKind.BACKUP,
            service=request.service.name,
            run=run,
            subject=snapshot_subjects(records),
            fields=backup_fields(
                outcome=outcome,
                point=result.point if result is not None else None,
                records=records,
                started_at=started_at,
                ended_at=started_at + timedelta(seconds=context.clock.monotonic() - mark),
                error=error,
            ),
            progress=context.progress,
        )

    try:
        result = _import(context, request, run)
    except DrError as error:
        if error.exit_status is not ExitStatus.USAGE:
            record("failed", None, error)
        raise
    except KeyboardInterrupt:
        record("failed", None, InterruptedRunError("the import was interrupted"))
        raise
    record(result.point.state.value, result, None)
    context.progress.done()
    return replace(result, seconds=context.clock.monotonic() - mark)


def require_importable(context: RestoreContext, request: ImportRequest) -> None:
    """Refuse a service whose own cluster is backed up: its newest snapshot must not become that of somebody's dump.

    Earlier imports do not count, nor does WAL that a server archives already: an import pins no cluster.

    Raises:
        ImportTakenError: nothing was begun.
        ObjectStoreError: the store did not answer.
    """
    name = f"{request.service.name}/{request.component.name}"
    scope = context.repository.scope(request.service.name, request.component.name)
    listing = context.repository.snapshots(scope)
    own = own_snapshots((*listing.records, *listing.void))
    if own:
        raise ImportTakenError(f"{name} has snapshots of a cluster of its own ({own[-1].postgres.system_id})")
    if listing.unreadable:
        raise ImportTakenError(
            f"{name} has {len(listing.unreadable)} snapshots that cannot be read, and may be of its own cluster",
            hint="`drservice info` names them.",
        )
    pinned = Lineage(context.repository, scope, context.state_dir).pinned()
    if pinned is not None:
        raise ImportTakenError(f"{name} is pinned to cluster {pinned} on this host")


def _import(context: RestoreContext, request: ImportRequest, run: str) -> ImportResult:
    with OdooZipFile(request.file) as archive:
        inventory = archive.inventory()
        manifest = read_manifest(archive.manifest(inventory.manifest))
        programs = choose_programs({"its manifest": manifest.server_major, **head_versions(archive, inventory.dump)})
        _require_room(context, inventory)
        context.progress.step("read the zip", total_bytes=archive.size)
        sha256 = archive.sha256(context.progress.advance)
        with loading_cluster(
            context, request.service, request.component, database=request.database, programs=programs
        ) as cluster:
            loaded, notes = cluster.load(archive, inventory.dump)
            checked = _check(context, request, cluster, archive, inventory, manifest, sha256)
            checked = replace(checked, notes=(*_told(inventory, loaded), *notes, *checked.notes))
            stored, documents, point = store_import(context, request, cluster, checked)
    return ImportResult(
        run=run,
        origin=checked.origin,
        point=point,
        cluster=stored,
        documents=documents,
        manifest=manifest,
        server_major=programs.major,
        loaded=loaded,
        compared=checked.compared,
        notes=checked.notes,
        seconds=0.0,
    )


def _require_room(context: RestoreContext, inventory: Inventory) -> None:
    """Refuse what cannot fit, by what the directory of the zip says: no member unpacks to more than that.

    Raises:
        EnvironmentFailedError: nothing was unpacked.
    """
    state = os.statvfs(context.state_dir)
    free = state.f_bavail * state.f_frsize
    needed = inventory.documents_bytes + inventory.dump.size
    if needed > free:
        raise EnvironmentFailedError(
            f"the zip unpacks to {needed:,} bytes, and below {context.state_dir} {free:,} are free",
            hint="state_dir needs room for all documents and for the database, for as long as the import takes.",
        )


def _told(inventory: Inventory, loaded: Loaded) -> tuple[str, ...]:
    foreign = (
        f"{inventory.foreign_count} files of the zip are none of a backup of Odoo's and are not imported:"
        f" {', '.join(inventory.foreign)}"
    )
    left_out = (f"{count} statements were left out: {kind}" for kind, count in sorted(loaded.left_out.items()))
    return (*((foreign,) if inventory.foreign_count else ()), *left_out)


def _check(
    context: RestoreContext,
    request: ImportRequest,
    cluster: LoadingCluster,
    archive: OdooZipFile,
    inventory: Inventory,
    manifest: Manifest,
    sha256: str,
) -> Checked:
    """Unpack the documents, and ask the loaded database everything that decides whether it becomes a point.

    It is asked as the role that loaded it: what a hostile dump left in it for a superuser would be in the snapshot.

    Raises:
        ImportRefusedError, IncompleteImportError, NeutralizedSourceError: it does not.
    """
    environment = cluster.environment
    context.progress.step("unpack the documents", total_bytes=inventory.documents_bytes)
    root = environment.folder(request.documents.name) / "documents"
    unpacked = unpack_documents(archive, root, heard=context.progress.advance)
    archive.require_unchanged()
    context.progress.step("compare rows and documents")
    environment.require_own_socket()
    with asking(
        cluster.owner_dsn, seconds=_ASK_SECONDS, database=request.database, application_name="drservice import"
    ) as source:
        require_modules(source, manifest)
        references = read_references(source)
        rows_until = newest_row(source, now=context.clock.now())
    compared = compare(unpacked, references.documents)
    if not compared.is_whole and not request.accept_damage:
        raise IncompleteImportError(f"{request.file.name} is not whole: {'; '.join(compared.problems())}")
    inside = _inside(request.service, cluster.owner_dsn, request.component)
    unsaid = require_production(inside, request.documents)
    scripts, unread = read_scripts(inside, request.documents)
    return Checked(
        origin=Origin(
            file=os.fsencode(request.file.name).decode("utf-8", "backslashreplace"),
            sha256=sha256,
            database=manifest.database,
            version=manifest.version,
            rows_until=rows_until,
        ),
        root=root,
        references=references.documents,
        compared=compared,
        scripts=scripts,
        baseline=_measure(context, request, cluster),
        notes=(*references.notes, *unsaid, *unread),
    )


def _inside(service: Service, dsn: str, component: PostgresSettings) -> Service:
    """Return the service as if its cluster were the one in the environment."""
    there = replace(component, dsn=dsn, primary_dsn=None)
    return replace(service, components={**service.components, component.name: there})


def _measure(context: RestoreContext, request: ImportRequest, cluster: LoadingCluster) -> Json:
    """Ask the loaded copy what every recovered one has to agree with, as production is asked at a backup."""
    component = request.component
    own = database_in(component.dsn) == request.database
    baseline = measure_baseline(
        f"{cluster.owner_dsn} dbname={_literal(request.database)}" if own else cluster.owner_dsn,
        [check for check in request.service.checks if check.component == component.name],
        clock=context.clock,
        databases=[request.database],
        gather=partial(gather_odoo, clock=context.clock),
    )
    return baseline.as_json()


def _literal(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
