"""``drservice backup``: one recovery point now."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.model.ids import ComponentName
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.backup import BackupContext, BackupResult
from drservice.operations.backupresults import backup_document
from drservice.operations.servicebackup import FilesResult, ServiceBackup, run_service_backup
from drservice.operations.storeproof import keep_store_proved
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

_SHOWN = 10


@click.command(help="Take a recovery point of SERVICE now; it counts only when its WAL is in the store.")
@click.argument("service")
@click.option("--component", help="a snapshot of this component only (default: all, and a recovery point of them)")
@click.pass_obj
def backup(invocation: Invocation, service: str, component: str | None) -> ExitStatus:
    """Back up a service."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    only = ComponentName(component) if component is not None else None
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        result = run_service_backup(context, evidence, chosen, only)
        keep_store_proved(estate, evidence, clock=plane.clock, progress=progress)
    invocation.output.result(
        "backup", backup_document(result, service), [*_lines(result), f"next: drservice info {service}"]
    )
    return ExitStatus.OK if result.state is SnapshotState.COMPLETE else ExitStatus.PARTIAL


def _lines(result: ServiceBackup) -> Iterator[str]:
    if result.point is not None:
        yield (
            f"{result.point.service}: recovery point {result.point.id} ({result.point.state.value})"
            f" of {to_iso(result.point.at)}"
        )
    for database in result.databases:
        yield from _cluster_lines(database)
    for files in result.files:
        yield from _files_lines(files)
    yield from (f"note: {note}" for note in result.notes)


def _cluster_lines(result: BackupResult) -> Iterator[str]:
    record = result.record
    yield f"{record.service}/{record.component}: snapshot {record.id} ({record.state.value}, {record.method})"
    yield (
        f"  {record.postgres.start_lsn} to {record.postgres.stop_lsn} on timeline {record.postgres.timeline},"
        f" ended {to_iso(record.stopped_at)}"
    )
    yield _size_line(record, result.seconds)
    yield from (f"  note: {note}" for note in result.notes)
    for path, block in result.bad_pages:
        yield f"  DAMAGED PAGE: {path} block {block}"


def _files_lines(result: FilesResult) -> Iterator[str]:
    record, captured = result.record, result.captured.record
    yield f"{record.service}/{record.component}: snapshot {record.id} ({record.state.value}, {record.kind})"
    yield f"  {record.files} files ({result.captured.reused_files} unchanged), began {to_iso(record.started_at)}"
    yield _size_line(record, result.seconds)
    yield from (f"  note: {note}" for note in result.notes)
    yield from _named("MISSING IN PRODUCTION", [name.decode("utf-8", "backslashreplace") for name in captured.missing])
    yield from _named("CORRUPT IN PRODUCTION", [name.decode("utf-8", "backslashreplace") for name in captured.corrupt])
    yield from _named("NOT READ", [f"{path}: {reason}" for path, reason in result.unreadable])


def _named(title: str, names: list[str]) -> Iterator[str]:
    yield from (f"  {title}: {name}" for name in names[:_SHOWN])
    if len(names) > _SHOWN:
        yield f"  {title}: and {len(names) - _SHOWN} more (--json lists what could not be read)"


def _size_line(record: SnapshotRecord, seconds: float) -> str:
    return (
        f"  source {format_bytes(record.source_bytes)}, read {format_bytes(record.read_bytes)},"
        f" stored {format_bytes(record.stored_bytes)} in {format_seconds(seconds)}"
    )
