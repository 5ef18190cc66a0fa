"""``backup``: one snapshot of one component, declared only when its WAL is in the store."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.backupsession import BackupSession, CheckpointSpeed
from drservice.components.postgres.capture import Captured, capture_local
from drservice.components.postgres.configuration import ATTACHMENT, encode_configuration
from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import ClusterFacts, archiver_status, cluster_facts
from drservice.components.postgres.gathering import gather_configuration
from drservice.components.postgres.replication import identify_system
from drservice.components.postgres.server import require_supported
from drservice.components.postgres.standby import require_primary, switch_on_primary
from drservice.errors import (
    CaptureError,
    DamagedObjectError,
    FormatError,
    KeyProblemError,
    PostgresError,
    SegmentAbsentError,
    UnsupportedClusterError,
    WalTimeoutError,
)
from drservice.model.estate import CaptureMethod, PostgresSettings, Service, WalMode
from drservice.model.ids import SystemId
from drservice.model.snapshot import POSTGRES_KIND, SnapshotRecord
from drservice.model.wal import Timeline, WalFileName, segment_name, segments_between
from drservice.operations.lineage import Lineage
from drservice.operations.progress import Progress
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.walarchive import WalArchive
from drservice.repository.writer import CommitFacts, SnapshotWriter

_POLL_SECONDS = 0.1
_FIRST_POLL_SECONDS = 0.01
"""The archiver is at it right now: whoever looks ten times a second adds a twentieth of a second to every backup."""
_DAMAGED_POLL_SECONDS = 1.0
"""Looking at a segment that is there reads it as a whole."""
_NOT_THERE = "it is not there"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """What one backup brought."""

    record: SnapshotRecord
    reused_files: int
    vanished_files: int
    bad_pages: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    seconds: float
    phases: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupContext:
    """What a backup works with."""

    repository: Repository
    state_dir: Path
    clock: Clock
    progress: Progress
    checkpoint: CheckpointSpeed = CheckpointSpeed.FAST


def run_backup(context: BackupContext, service: Service, component: PostgresSettings) -> BackupResult:
    """Take a snapshot of a PostgreSQL cluster now.

    The snapshot exists when this returns: whole, committed, with every WAL segment it needs in the store. A crash
    before leaves no snapshot, and what was uploaded is re-used by the next run.

    Raises:
        BusyError: another backup of this component runs on this host.
        SystemIdentifierError: it is not the cluster this component was created with.
        CaptureError, PostgresError, WalTimeoutError, ObjectStoreError: nothing partial is visible.
    """
    began = context.clock.monotonic()
    scope = context.repository.scope(service.name, component.name)
    lineage = Lineage(context.repository, scope, context.state_dir)
    context.progress.step(f"back up {service.name}/{component.name}")
    phases: dict[str, float] = {}
    with context.repository.writer(
        scope, state_dir=context.state_dir, workers=component.workers, level=component.compression_level
    ) as writer:
        phases["prepare"] = context.clock.monotonic() - began
        mark = context.clock.monotonic()
        configuration, remarks = _gather(component)
        captured = _capture(context, component, writer, lineage)
        phases["capture"] = context.clock.monotonic() - mark
        mark = context.clock.monotonic()
        _wait_for_wal(context, component, scope, captured)
        phases["wal"] = context.clock.monotonic() - mark
        mark = context.clock.monotonic()
        record = writer.commit(
            CommitFacts(
                kind=POSTGRES_KIND,
                method=captured.method,
                started_at=captured.started_at,
                stopped_at=captured.stopped_at,
                facts=captured.facts(),
                attachments={**captured.attachments, **configuration},
                bad_pages=captured.bad_pages,
                source=captured.source,
            )
        )
        phases["commit"] = context.clock.monotonic() - mark
        lineage.pin(record.postgres.system_id)
        telemetry.info("snapshot committed", snapshot=record.id, stored_bytes=record.stored_bytes)
    context.progress.done()
    return BackupResult(
        record=record,
        reused_files=writer.reused_files,
        vanished_files=writer.vanished,
        bad_pages=tuple((os.fsdecode(path), block) for path, block in captured.bad_pages),
        notes=(*captured.notes, *remarks),
        seconds=context.clock.monotonic() - began,
        phases=phases,
    )


def _gather(component: PostgresSettings) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the configuration outside the data directory as an attachment, and what people should know of it.

    It never stops a backup: without it the data can still be recovered.
    """
    local = choose_method(component) is CaptureMethod.LOCAL
    try:
        with connect(component.dsn, application_name="drservice backup facts") as session:
            found = gather_configuration(session, data_directory=component.data_directory if local else None)
    except PostgresError as error:
        return {}, (f"configuration outside the data directory is not in the snapshot: {error.message}",)
    remarks = tuple(f"configuration not in the snapshot: {path}: {reason}" for path, reason in found.missing)
    return {} if found.is_empty else {ATTACHMENT: encode_configuration(found)}, remarks


def choose_method(component: PostgresSettings) -> CaptureMethod:
    """Return the method ``auto`` means here: ``local`` where the data directory is readable, else ``pg_basebackup``."""
    if component.method is not CaptureMethod.AUTO:
        return component.method
    directory = component.data_directory
    if directory is not None and os.access(directory / "global" / "pg_control", os.R_OK):
        return CaptureMethod.LOCAL
    return CaptureMethod.PG_BASEBACKUP


def _capture(context: BackupContext, component: PostgresSettings, writer: SnapshotWriter, lineage: Lineage) -> Captured:
    if choose_method(component) is CaptureMethod.PG_BASEBACKUP:
        from drservice.components.postgres.basebackup import capture_basebackup  # noqa: PLC0415 - only this method does

        identity = identify_system(component.dsn, application_name="drservice backup")
        require_supported(identity.server_version // 10000)
        lineage.require(identity.system_id)
        if identity.in_recovery:
            _meet_primary(context, component, identity.system_id)
        context.progress.step("base backup (pg_basebackup)", total_bytes=_size_hint(writer))
        try:
            return capture_basebackup(
                writer,
                dsn=component.dsn,
                identity=identity,
                checkpoint=context.checkpoint,
                silence_seconds=component.wal.archive_wait.total_seconds(),
                clock=context.clock,
                progress=context.progress,
                closing=lambda: _end_segment(context, component, identity.system_id),
            )
        except WalTimeoutError as error:
            raise WalTimeoutError(f"{error.message}{archiver_says(component)}") from error
    if component.data_directory is None:
        raise UnsupportedClusterError("method local needs data_directory", hint="Set it, or use method: pg_basebackup.")
    with BackupSession(connect(component.dsn, application_name="drservice backup")) as session:
        facts = _server_facts(component)
        lineage.require(facts.system_id)
        if facts.in_recovery:
            _meet_primary(context, component, facts.system_id)
        context.progress.step("read the data directory", total_bytes=_size_hint(writer))
        return capture_local(
            session,
            writer,
            data_directory=component.data_directory,
            system_id=facts.system_id,
            server_version=facts.major,
            checkpoint=context.checkpoint,
            clock=context.clock,
            progress=context.progress,
        )


def _meet_primary(context: BackupContext, component: PostgresSettings, system_id: SystemId) -> None:
    """Say before a long copy of a standby what its end will wait for; refuse a ``primary_dsn`` that leads elsewhere.

    Raises:
        SystemIdentifierError, CaptureError: it leads to another cluster or to a standby.
    """
    if component.primary_dsn is None:
        context.progress.note(
            "the server is a standby, which cannot end a WAL segment: the last one this backup needs is there when its"
            " primary has filled it or archive_timeout has passed (with primary_dsn the primary is asked to end it)"
        )
        return
    try:
        require_primary(component.primary_dsn, system_id)
    except CaptureError:
        raise
    except PostgresError as error:
        context.progress.note(
            f"WARNING: the server is a standby and its primary cannot be asked ({error.message}): the last WAL segment"
            " this backup needs is there when the primary has filled it or archive_timeout has passed"
        )


def _end_segment(context: BackupContext, component: PostgresSettings, system_id: SystemId) -> None:
    """Have the primary of a standby end its WAL segment, where it may be asked."""
    if component.primary_dsn is not None:
        context.progress.note(switch_on_primary(component.primary_dsn, system_id))


def _size_hint(writer: SnapshotWriter) -> int | None:
    """Return the last snapshot's size: near enough for a progress bar, and known before the checkpoint is done."""
    known = writer.previous_meta().get("source_bytes")
    return int(known) if known else None


def _server_facts(component: PostgresSettings) -> ClusterFacts:
    with connect(component.dsn, application_name="drservice backup facts") as session:
        facts = cluster_facts(session)
    require_supported(facts.major)
    refuse_unrecoverable(facts, component.wal.mode)
    return facts


def refuse_unrecoverable(facts: ClusterFacts, mode: WalMode) -> None:
    """Refuse a server whose backup could never be rolled forward (trap T6).

    Raises:
        CaptureError: naming the setting.
    """
    if facts.in_recovery:
        return  # settings that count are the primary's; what its WAL tells of them is judged at the end of the copy
    if facts.wal_level == "minimal":
        raise CaptureError(
            "wal_level is minimal: its WAL cannot be used for recovery",
            hint="Set wal_level = replica in postgresql.conf and restart PostgreSQL.",
        )
    if facts.archive_mode == "off" and mode is WalMode.ARCHIVE:
        raise CaptureError(
            "archive_mode is off: the WAL that makes a backup consistent would never reach the store",
            hint="`drservice check` prints the lines for postgresql.conf; archive_mode needs a restart.",
        )


def _wait_for_wal(context: BackupContext, component: PostgresSettings, scope: Scope, captured: Captured) -> None:
    """Wait until every segment from start to stop is whole in the store (trap T4): asked of the store, not the server.

    Raises:
        WalTimeoutError: naming the segment, and what is wrong with it.
        ObjectStoreError: the store did not answer.
    """
    archive = context.repository.wal(scope)
    system_id = SystemId(captured.control.system_id)
    size = captured.control.wal_segment_bytes
    names = [
        WalFileName.parse(segment_name(Timeline(captured.timeline), number, size))
        for number in segments_between(captured.start_lsn, captured.stop_lsn, size)
    ]
    context.progress.step("wait for the WAL of this backup", total_items=len(names))
    if captured.from_standby and not archive.exists(names[-1], system_id=system_id):
        _end_segment(context, component, system_id)
    deadline = context.clock.monotonic() + component.wal.archive_wait.total_seconds()
    pause = _FIRST_POLL_SECONDS
    for name in names:
        while (problem := why_not_whole(archive, name, system_id, size)) is not None:
            if context.clock.monotonic() > deadline:
                raise _overdue(component, captured, name, problem)
            time.sleep(pause if problem == _NOT_THERE else _DAMAGED_POLL_SECONDS)
            pause = min(pause * 1.3, _POLL_SECONDS)
        context.progress.advance(1)


def _overdue(component: PostgresSettings, captured: Captured, name: WalFileName, problem: str) -> WalTimeoutError:
    text = (
        f"{name.name} did not reach the store whole within {component.wal.archive_wait}: {problem}"
        f"{archiver_says(component)}; the backup needs it to be consistent"
    )
    if not captured.from_standby:
        return WalTimeoutError(text)
    return WalTimeoutError(
        f"{text}; the source is a standby, so its primary (or the standby with archive_mode = always) archives it",
        hint="Set archive_timeout on the primary below archive_wait, or primary_dsn. Where WAL was archived only since"
        " lately, run CHECKPOINT on the primary first: a standby's backup begins at the last checkpoint it replayed.",
    )


def why_not_whole(archive: WalArchive, name: WalFileName, system_id: SystemId, plain_bytes: int) -> str | None:
    """Return why a segment cannot be relied on, ``None`` if it can: an object of the right name proves nothing."""
    if not archive.exists(name, system_id=system_id):
        return _NOT_THERE
    try:
        archive.require_whole(name, system_id=system_id, plain_bytes=plain_bytes)
    except SegmentAbsentError:
        return _NOT_THERE
    except (DamagedObjectError, FormatError, KeyProblemError) as error:
        return error.message
    return None


def archiver_says(component: PostgresSettings) -> str:
    """Return what production's archiver says is wrong, as the end of a sentence; empty if it does not say."""
    try:
        with connect(component.production_dsn, application_name="drservice backup facts") as session:
            status = archiver_status(session)
    except PostgresError:
        return ""  # a REPLICATION-only role may not look; the message is complete without
    if status.failing:
        return f" (the archiver failed {status.failed_count} times, last with {status.last_failed})"
    return f" (the archiver reports {status.last_archived or 'nothing'} as its last success)"
