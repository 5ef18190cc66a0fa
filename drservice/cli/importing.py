"""``drservice import``: a zip of Odoo's own backup as a recovery point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.restorerequest import RestoreContext
from drservice.operations.storeproof import keep_store_proved
from drservice.operations.zipimport import ImportResult, documents_of, import_zip
from drservice.operations.zipimportstoring import ImportRequest
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


@click.command(
    help="Make a recovery point of SERVICE from FILE, the zip that Odoo itself makes as a backup (database manager)."
)
@click.argument("service")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--database", help="what it is called from now on: that of an odoo-filestore (default: the only one)")
@click.option("--accept-damage", is_flag=True, help="import although documents are missing or damaged; status 3")
@click.pass_obj
def import_command(
    invocation: Invocation, *, service: str, file: Path, database: str | None, accept_damage: bool
) -> ExitStatus:
    """Import a zip."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    request = ImportRequest(
        service=chosen, documents=documents_of(chosen, database), file=file.absolute(), accept_damage=accept_damage
    )
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        result = import_zip(context, evidence, request)
        keep_store_proved(estate, evidence, clock=plane.clock, progress=progress)
    invocation.output.result("import", _document(request, result), list(_lines(request, result)))
    return ExitStatus.PARTIAL if result.is_partial else ExitStatus.OK


def _document(request: ImportRequest, result: ImportResult) -> dict[str, object]:
    compared = result.compared
    return {
        "run": result.run,
        "service": request.service.name,
        "database": request.database,
        "point": result.point.id,
        "state": result.point.state.value,
        "origin": result.origin.as_json(),
        "server_version": result.server_major,
        "snapshots": [_snapshot(record) for record in (result.cluster, result.documents)],
        "modules": len(result.manifest.modules),
        "statements": result.loaded.statements,
        "rows": result.loaded.rows,
        "left_out": dict(result.loaded.left_out),
        "documents": {
            "expected": compared.expected,
            "missing": list(compared.missing),
            "corrupt": list(compared.damaged),
            "other_size": list(compared.other_size),
        },
        "notes": list(result.notes),
        "seconds": round(result.seconds, 3),
    }


def _snapshot(record: SnapshotRecord) -> dict[str, object]:
    return {
        "component": record.component,
        "kind": record.kind,
        "snapshot": record.id,
        "method": record.method,
        "state": record.state.value,
        "source_bytes": record.source_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
    }


def _lines(request: ImportRequest, result: ImportResult) -> Iterator[str]:
    origin, loaded = result.origin, result.loaded
    service = request.service.name
    yield f"{service}: recovery point {result.point.id} ({result.point.state.value}), imported from {origin.file}"
    yield (
        f"  database {request.database} ({origin.database!a} in the zip), Odoo {origin.version!a},"
        f" {len(result.manifest.modules)} modules, in PostgreSQL {result.server_major}"
    )
    yield f"  {loaded.rows} rows, {loaded.statements} statements, {result.compared.expected} documents referred to"
    for record in (result.cluster, result.documents):
        yield (
            f"  {record.component}: snapshot {record.id} ({record.state.value}), source"
            f" {format_bytes(record.source_bytes)}, stored {format_bytes(record.stored_bytes)}"
        )
    yield f"  in {format_seconds(result.seconds)}; SHA-256 of the zip {origin.sha256}"
    yield f"  its newest row is of {to_iso(origin.rows_until)}; what was committed after the dump is NOT in it"
    yield from (f"  NOT AS IT WAS: {text}" for text in result.compared.problems())
    yield from (f"  note: {note}" for note in result.notes)
    yield f"next: drservice drill {service}"
