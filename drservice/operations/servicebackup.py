"""``backup`` of a service: the clusters first, then the files, then the recovery point that binds them.

The order is the consistency (``model.points``): a document goes to disk before the row that refers to it is committed,
so a pass over the files that begins after the database's position has them all. What production says about rows that
cannot change any more is measured before the clusters are captured: whatever was visible then lies before the point.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock
from drservice.components.postgres.asking import Asking, asking
from drservice.components.postgres.baseline import Gathered, measure_baseline
from drservice.errors import DrError, InterruptedRunError, PostgresError
from drservice.evidence.statements import Statement
from drservice.model.checks import Baseline
from drservice.model.estate import FilesComponent, FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ComponentName, make_ulid
from drservice.model.points import RecoveryPoint, instant_of, member_of, state_of
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.operations.evidence import Evidence, snapshot_subjects
from drservice.operations.production import References, read_references
from drservice.operations.records import backup_fields
from drservice.repository.writer import SnapshotWriter

if TYPE_CHECKING:  # a cluster without documents needs none of it, nor what captures them
    from drservice.components.odoo_filestore.capture import CapturedFiles

_REFERENCES_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesResult:
    """What capturing one folder of files brought."""

    record: SnapshotRecord
    captured: CapturedFiles
    notes: tuple[str, ...]
    seconds: float

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """What could not be read, with the reason."""
        return tuple((os.fsdecode(name), reason) for name, reason in self.captured.record.unreadable)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBackup:
    """What one backup of a service brought. ``point`` is ``None`` if only some of its components were asked for."""

    point: RecoveryPoint | None
    databases: tuple[BackupResult, ...]
    files: tuple[FilesResult, ...]
    notes: tuple[str, ...]
    started_at: datetime
    ended_at: datetime

    @property
    def records(self) -> tuple[SnapshotRecord, ...]:
        """Every snapshot, in the order they were taken."""
        return (*(item.record for item in self.databases), *(item.record for item in self.files))

    @property
    def state(self) -> SnapshotState:
        """How good it is: as good as the worst snapshot."""
        states = {record.state for record in self.records}
        worst = (SnapshotState.PARTIAL, SnapshotState.DEGRADED)
        return next((state for state in worst if state in states), SnapshotState.COMPLETE)


def run_service_backup(
    context: BackupContext, evidence: Evidence, service: Service, only: ComponentName | None = None
) -> ServiceBackup:
    """Back up a service and put the outcome on record, a failure too.

    A ledger that does not take the record spoils no backup: the record is kept aside and everybody is told.

    Raises:
        As :func:`backup_service`.
    """
    run = make_ulid(context.clock.now(), os.urandom(10))
    started_at, mark = context.clock.now(), context.clock.monotonic()
    taken: list[SnapshotRecord] = []
    evidence.expect(EvidenceKind.BACKUP)

    def record(outcome: str, point: RecoveryPoint | None, error: DrError | None) -> None:
        evidence.record(
            EvidenceKind.BACKUP,
            service=service.name,
            run=run,
            subject=snapshot_subjects(taken),
            fields=backup_fields(
                outcome=outcome,
                point=point,
                records=taken,
                started_at=started_at,
                # By the steady clock: a host whose clock was set back meanwhile did not end before it began.
                ended_at=started_at + timedelta(seconds=context.clock.monotonic() - mark),
                error=error,
            ),
            progress=context.progress,
        )

    try:
        result = backup_service(context, service, only, taken=taken.append)
    except DrError as error:
        record("failed", None, error)
        raise
    except KeyboardInterrupt:
        record("failed", None, InterruptedRunError("the backup was interrupted"))
        raise
    record(result.state.value, result.point, None)
    return result


def record_published_point(context: BackupContext, evidence: Evidence, point: RecoveryPoint) -> None:
    """Put a recovery point on record whose writer died between publishing and recording it; once, whoever tries.

    When it was taken is what its snapshots say. As with every backup, a ledger that does not take it is told about.
    """
    members = {member.snapshot: member for member in point.members}
    records = [
        record
        for component in dict.fromkeys(member.component for member in point.members)
        for record in context.repository.snapshots(context.repository.scope(point.service, component)).records
        if record.id in members
    ]

    def stands_in(statement: Statement) -> bool:
        return statement.kind is EvidenceKind.BACKUP and statement.predicate["point"] == point.id

    evidence.record(
        EvidenceKind.BACKUP,
        service=point.service,
        run=None,
        subject=snapshot_subjects(records),
        fields=backup_fields(
            outcome=point.state.value,
            point=point,
            records=records,
            started_at=min(member.started_at for member in point.members),
            ended_at=max(member.stopped_at for member in point.members),
            error=None,
        ),
        progress=context.progress,
        unless=stands_in,
    )


def backup_service(
    context: BackupContext,
    service: Service,
    only: ComponentName | None = None,
    *,
    taken: Callable[[SnapshotRecord], None],
) -> ServiceBackup:
    """Take a recovery point of a service now, or a snapshot of one of its components; ``taken`` hears of each snapshot.

    The point exists when this returns. A crash or an error before leaves no point; the snapshots taken so far stay and
    can be restored one by one.

    Raises:
        UnknownNameError: there is no such component.
        NeutralizedSourceError: a database that is to be backed up is a neutralized copy; nothing was begun.
        BusyError, CaptureError, PostgresError, WalTimeoutError, ObjectStoreError: as :func:`run_backup`.
    """
    started_at = context.clock.now()
    if only is not None:
        component = service.component(only)
        databases = [component] if isinstance(component, PostgresSettings) else []
        files = [component] if isinstance(component, FilesComponent) else []
    else:
        databases, files = service.databases(), service.files()
    clusters = {item.name for item in databases}
    unsaid: list[str] = []
    for followed in service.files():  # a cluster's own snapshot is of a database that somebody's documents follow, too
        if isinstance(followed, FilesSettings) and (followed in files or followed.follows in clusters):
            from drservice.operations.neutralsource import require_production  # noqa: PLC0415 - see above

            unsaid += require_production(service, followed)
    baselines, notes = _measure(context, service, databases) if only is None else ({}, ())
    captured: list[BackupResult] = []
    for cluster in databases:
        captured.append(run_backup(context, service, cluster))
        taken(captured[-1].record)
    folders: list[FilesResult] = []
    for folder in files:
        folders.append(_backup_files(context, service, folder))
        taken(folders[-1].record)
    records = (*(item.record for item in captured), *(item.record for item in folders))
    point = _publish(context, service, records, baselines) if only is None else None
    return ServiceBackup(
        point=point,
        databases=tuple(captured),
        files=tuple(folders),
        notes=(*unsaid, *notes),
        started_at=started_at,
        ended_at=context.clock.now(),
    )


def _measure(
    context: BackupContext, service: Service, databases: Sequence[PostgresSettings]
) -> tuple[dict[ComponentName, Baseline], tuple[str, ...]]:
    """Ask production what a recovered copy has to agree with.

    A cluster that cannot be asked has no baseline: the backup goes on, and the checks that need one will say that they
    could not be verified.
    """
    baselines: dict[ComponentName, Baseline] = {}
    notes: list[str] = []
    for component in databases:
        context.progress.step(f"measure {service.name}/{component.name}")
        checks = [check for check in service.checks if check.component == component.name]
        followed = [item.database for item in service.files() if item.follows == component.name and item.database]
        try:
            baselines[component.name] = measure_baseline(
                component.dsn,
                checks,
                clock=context.clock,
                databases=followed,
                gather=partial(_gather, context.clock),
            )
        except DrError as error:
            notes.append(f"no baseline of {component.name}: {error.message}")
            telemetry.warning("baseline not measured", component=component.name, problem=error.message)
    return baselines, tuple(notes)


def _gather(clock: Clock, source: Asking, database: str) -> Gathered:
    """Ask a database that documents follow what Odoo says in it."""
    from drservice.components.odoo.gathering import gather_odoo  # noqa: PLC0415 - see above

    return gather_odoo(source, database, clock=clock)


def _backup_files(context: BackupContext, service: Service, component: FilesComponent) -> FilesResult:
    began = context.clock.monotonic()
    context.progress.step(f"back up {service.name}/{component.name}")
    scope = context.repository.scope(service.name, component.name)
    with context.repository.writer(
        scope, state_dir=context.state_dir, workers=component.workers, level=component.compression_level
    ) as writer:
        if isinstance(component, FilesSettings):
            captured, notes = _capture_folder(context, writer, service, component)
        else:
            from drservice.operations.preparedbackup import capture_prepared  # noqa: PLC0415 - see above

            captured, notes = capture_prepared(context, writer, service, component)
        record = writer.commit(captured.commit_facts())
        telemetry.info("snapshot committed", snapshot=record.id, stored_bytes=record.stored_bytes)
    context.progress.done()
    return FilesResult(
        record=record,
        captured=captured,
        notes=notes,
        seconds=context.clock.monotonic() - began,
    )


def _capture_folder(
    context: BackupContext, writer: SnapshotWriter, service: Service, component: FilesSettings
) -> tuple[CapturedFiles, tuple[str, ...]]:
    from drservice.components.odoo_filestore.capture import capture_files  # noqa: PLC0415 - see above
    from drservice.operations.neutralsource import read_scripts  # noqa: PLC0415 - the same

    references, notes = _references(service, component)
    captured = capture_files(
        writer,
        component=component,
        referred=references.documents if references is not None else None,
        clock=context.clock,
        progress=context.progress,
    )
    attachments, told = read_scripts(service, component)
    return replace(captured, attachments=attachments), (*notes, *told)


def _references(service: Service, component: FilesSettings) -> tuple[References | None, tuple[str, ...]]:
    """Return what production's rows refer to, asked before the pass begins; ``None`` where nobody can tell."""
    if component.kind is not FilesKind.ODOO_FILESTORE:
        return None, ()
    database = service.database(component.follows)
    try:
        with asking(
            database.dsn,
            seconds=_REFERENCES_SECONDS,
            database=component.database,
            application_name="drservice backup documents",
        ) as session:
            found = read_references(session)
    except PostgresError as error:
        return None, (f"nobody could tell which documents the rows refer to: {error.message}",)
    return found, found.notes


def _publish(
    context: BackupContext,
    service: Service,
    records: Sequence[SnapshotRecord],
    baselines: Mapping[ComponentName, Baseline],
) -> RecoveryPoint:
    members = [member_of(record) for record in records]
    secret: dict[str, Json] = {"baselines": {name: baseline.as_json() for name, baseline in baselines.items()}}
    point = context.repository.points(service.name).publish(
        members,
        at=instant_of(members),
        state=state_of(members),
        secret=secret,
        signer=context.repository.host_key,
        now=context.clock.now(),
    )
    telemetry.info("recovery point published", point=point.id, service=service.name)
    return point
