"""``drservice backup``: one recovery point now."""

from __future__ import annotations

import click

from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.model.snapshot import SnapshotState
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.wiring.data_plane import open_data_plane


@click.command(help="Take a snapshot of SERVICE now; it counts only when its WAL is in the store.")
@click.argument("service")
@click.option("--component", help="one component of the service (default: all)")
@click.pass_obj
def backup(invocation: Invocation, service: str, component: str | None) -> ExitStatus:
    """Back up a service."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    components = [chosen.component(component)] if component else list(chosen.components.values())
    results: list[BackupResult] = []
    with open_data_plane(estate) as plane, invocation.progress() as progress:
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        results.extend(run_backup(context, chosen, item) for item in components)
    degraded = any(result.record.state is SnapshotState.DEGRADED for result in results)
    document = {
        "service": service,
        "point": None,
        "state": "degraded" if degraded else "complete",
        "snapshots": [_snapshot(result) for result in results],
    }
    lines = [line for result in results for line in _lines(result)]
    lines.append(f"next: drservice info {service}")
    invocation.output.result("backup", document, lines)
    return ExitStatus.PARTIAL if degraded else ExitStatus.OK


def _snapshot(result: BackupResult) -> dict[str, object]:
    record = result.record
    return {
        "component": record.component,
        "snapshot": record.id,
        "method": record.method,
        "state": record.state.value,
        "started_at": to_iso(record.started_at),
        "stopped_at": to_iso(record.stopped_at),
        "start_lsn": str(record.postgres.start_lsn),
        "stop_lsn": str(record.postgres.stop_lsn),
        "timeline": int(record.postgres.timeline),
        "source_bytes": record.source_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        "reused_files": result.reused_files,
        "bad_pages": [{"path": path, "block": block} for path, block in result.bad_pages],
        "notes": list(result.notes),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
        "seconds": round(result.seconds, 3),
    }


def _lines(result: BackupResult) -> list[str]:
    record = result.record
    lines = [
        f"{record.service}/{record.component}: snapshot {record.id} ({record.state.value}, {record.method})",
        (
            f"  {record.postgres.start_lsn} to {record.postgres.stop_lsn} on timeline {record.postgres.timeline},"
            f" ended {to_iso(record.stopped_at)}"
        ),
        (
            f"  source {format_bytes(record.source_bytes)}, read {format_bytes(record.read_bytes)},"
            f" stored {format_bytes(record.stored_bytes)} in {format_seconds(result.seconds)}"
        ),
    ]
    lines.extend(f"  note: {note}" for note in result.notes)
    for path, block in result.bad_pages:
        lines.append(f"  DAMAGED PAGE: {path} block {block}")
    return lines
