"""The captured copy of an imported database becomes snapshots and a recovery point, as a backup's does.

Database and documents are captured before either is committed; then the WAL of the capture, both snapshots and the
point are created in this order, each relying on the one before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from drservice import telemetry
from drservice.canonical import Json, canonical_bytes
from drservice.components.odoo_filestore.capture import CapturedFiles, capture_files
from drservice.components.postgres.backupsession import CheckpointSpeed, open_backup_session
from drservice.components.postgres.capture import Captured, capture_local
from drservice.components.postgres.walfile import HEAD_BYTES, check_wal_file
from drservice.errors import CaptureError
from drservice.model.estate import FilesComponent, FilesSettings, PostgresSettings, Service
from drservice.model.ids import SystemId
from drservice.model.origin import IMPORTED, ORIGIN_ATTACHMENT, Origin
from drservice.model.points import RecoveryPoint, member_of, state_of
from drservice.model.snapshot import POSTGRES_KIND, SnapshotRecord
from drservice.model.wal import Timeline, WalFileName, segment_name, segments_between
from drservice.operations.restorerequest import RestoreContext
from drservice.operations.zipimportcluster import LoadingCluster
from drservice.operations.zipimportdocuments import Compared
from drservice.repository.walarchive import WalArchive
from drservice.repository.writer import CommitFacts, SnapshotWriter

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What is asked for."""

    service: Service
    documents: FilesSettings
    """The component with the documents; its ``database`` is what the imported one is called, in what it follows."""
    file: Path
    accept_damage: bool = False
    """Import although documents are missing in the zip or damaged."""

    @property
    def component(self) -> PostgresSettings:
        """The cluster that the database is to be in."""
        return self.service.database(self.documents.follows)

    @property
    def database(self) -> str:
        """What the database is called from now on."""
        assert self.documents.database is not None, "an odoo-filestore has one"
        return self.documents.database


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A loaded database with its documents, of which everything was asked."""

    origin: Origin
    root: Path
    """Where the documents are."""
    references: Mapping[str, int]
    """Documents that rows refer to, with their sizes."""
    compared: Compared
    scripts: Mapping[str, bytes]
    """What the snapshot of the documents keeps to neutralize a copy with."""
    baseline: Json
    notes: tuple[str, ...]


def store_import(
    context: RestoreContext, request: ImportRequest, cluster: LoadingCluster, checked: Checked
) -> tuple[SnapshotRecord, SnapshotRecord, RecoveryPoint]:
    """Store the cluster and the documents; return their snapshots and the point, all of which exist then.

    Raises:
        CaptureError, PostgresError, ObjectStoreError: there is no point, and without an error of the store between the
            two commits no snapshot.
    """
    context.progress.step("capture the database")
    with _writer(context, request.service, request.component) as writer:
        captured = _capture_cluster(context, writer, cluster)
        context.progress.step("capture the documents")
        with _writer(context, request.service, request.documents) as documents_writer:
            files = _capture_documents(context, documents_writer, request, checked)
            context.progress.step("commit")
            scope = context.repository.scope(request.service.name, request.component.name)
            _archive_wal(context.repository.wal(scope), captured, cluster)
            record = writer.commit(_cluster_facts(captured, checked.origin))
            documents = documents_writer.commit(files.commit_facts())
    for stored in (record, documents):
        telemetry.info("snapshot committed", snapshot=stored.id, stored_bytes=stored.stored_bytes)
    return record, documents, _publish(context, request, (record, documents), checked)


def _writer(context: RestoreContext, service: Service, component: PostgresSettings | FilesComponent) -> SnapshotWriter:
    return context.repository.writer(
        context.repository.scope(service.name, component.name),
        state_dir=context.state_dir,
        workers=component.workers,
        level=component.compression_level,
    )


def _capture_cluster(context: RestoreContext, writer: SnapshotWriter, cluster: LoadingCluster) -> Captured:
    cluster.environment.require_own_socket()
    with open_backup_session(cluster.dsn, application_name="drservice import") as session:
        return capture_local(
            session,
            writer,
            data_directory=cluster.environment.data,
            system_id=cluster.system_id,
            server_version=cluster.programs.major,
            checkpoint=CheckpointSpeed.FAST,
            clock=context.clock,
            progress=context.progress,
        )


def _capture_documents(
    context: RestoreContext, writer: SnapshotWriter, request: ImportRequest, checked: Checked
) -> CapturedFiles:
    captured = capture_files(
        writer,
        component=replace(request.documents, path=checked.root),
        referred=checked.references,
        clock=context.clock,
        progress=context.progress,
    )
    if captured.record.unreadable or captured.record.vanished:
        raise CaptureError("documents that were unpacked a moment ago cannot be read")
    return replace(captured, attachments=checked.scripts)


def _cluster_facts(captured: Captured, origin: Origin) -> CommitFacts:
    return CommitFacts(
        kind=POSTGRES_KIND,
        method=IMPORTED,
        started_at=captured.started_at,
        stopped_at=captured.stopped_at,
        facts=captured.facts(),
        attachments={**captured.attachments, ORIGIN_ATTACHMENT: canonical_bytes(origin.as_json())},
        bad_pages=captured.bad_pages,
        source="",  # no later capture is of this directory
    )


def _archive_wal(archive: WalArchive, captured: Captured, cluster: LoadingCluster) -> None:
    """Store the segments that the capture needs: nobody archives inside, and the end of it has closed the last one.

    Raises:
        CaptureError: one is not there as it should be.
        ForeignSegmentError, ObjectStoreError: it cannot be stored.
    """
    size = captured.control.wal_segment_bytes
    for number in segments_between(captured.start_lsn, captured.stop_lsn, size):
        name = segment_name(Timeline(captured.timeline), number, size)
        data, last_write = _read_segment(cluster.environment.data, name, size)
        check_wal_file(name, data[:HEAD_BYTES], len(data), expected_system_id=cluster.system_id)
        archive.put(WalFileName.parse(name), data, system_id=SystemId(cluster.system_id), last_write=last_write)


def _read_segment(data: Path, name: str, size: int) -> tuple[bytes, datetime]:
    """Read a segment of a server that is not trusted: no link is followed."""
    try:
        folder = os.open(data / "pg_wal", _FOLDER_FLAGS)
        try:
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            return stream.read(size + 1), datetime.fromtimestamp(status.st_mtime, tz=UTC)
    except OSError as error:
        raise CaptureError(f"WAL of the capture cannot be read: {name}: {error.strerror}") from error


def _publish(
    context: RestoreContext, request: ImportRequest, records: tuple[SnapshotRecord, ...], checked: Checked
) -> RecoveryPoint:
    members = [member_of(record) for record in records]
    secret: dict[str, Json] = {"baselines": {request.component.name: checked.baseline}}
    point = context.repository.points(request.service.name).publish(
        members,
        at=checked.origin.rows_until,
        state=state_of(members),
        secret=secret,
        signer=context.repository.host_key,
        now=context.clock.now(),
        origin=checked.origin,
    )
    telemetry.info("recovery point published", point=point.id, service=request.service.name)
    return point
