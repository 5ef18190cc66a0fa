"""``drservice extract``: one database, tables of it, or one document, as of an instant, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from drservice.cli.extractdocument import extract_one_document
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.targets import parse_target
from drservice.clock import to_iso
from drservice.components.postgres.dumping import DumpFormat, parse_table
from drservice.errors import ExitStatus, UsageError
from drservice.model.ids import SnapshotId
from drservice.operations.extract import ExtractRequest, ExtractResult, extract
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest
from drservice.operations.results import restored_files_document
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

_SHOWN = 10


@click.command(help="Write one database of SERVICE, tables of it, or a document, as of an instant to a file.")
@click.argument("service")
@click.option(
    "--to",
    metavar="TIME|latest|consistent",
    help="an instant with its time zone, the latest one, or the newest with all documents; no SHA-1 needs it",
)
@click.option("--database", metavar="D", help="the database, by its name in the snapshot")
@click.option("--table", "tables", metavar="SCHEMA.TABLE", multiple=True, help="only this table (repeat for more)")
@click.option("--document", metavar="SHA1|ID", help="one document: its SHA-1, or the id of its row of ir_attachment")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="the file to write; never overwritten")
@click.option(
    "--format",
    "form",
    type=click.Choice([item.value for item in DumpFormat]),
    help="custom (if none is named) for pg_restore, plain SQL for psql, or Odoo's own zip with the documents",
)
@click.option("--component", help="the cluster, or the filestore of --document, if the service has several")
@click.option(
    "--without-snapshot", "without", metavar="ID", multiple=True, help="do not start from this (damaged) snapshot"
)
@click.option(
    "--accept-known-problems",
    is_flag=True,
    help="write plain SQL although it may hold commands of a hostile superuser for psql",
)
@click.pass_obj
def extract_command(
    invocation: Invocation,
    service: str,
    *,
    to: str | None,
    database: str | None,
    tables: tuple[str, ...],
    document: str | None,
    output: Path,
    form: str | None,
    component: str | None,
    without: tuple[str, ...],
    accept_known_problems: bool,
) -> ExitStatus:
    """Extract a database, tables or a document."""
    if (database is None) == (document is None):
        raise UsageError("name what is extracted: --database D, or --document SHA1|ID")
    if document is not None:
        if tables or form is not None or without or accept_known_problems:
            raise UsageError("a document is extracted as it is: --document goes with --to, --component and --output")
        return extract_one_document(invocation, service, document, to=to, component=component, output=output)
    if to is None:
        raise UsageError("a database is extracted as of an instant", hint="Give --to TIME, or --to latest.")
    target = parse_target(to=to, lsn=None, xid=None, name=None, snapshot=None, timeline=None)
    estate = invocation.load().estate
    chosen = estate.service(service)
    request = ExtractRequest(
        restore=RestoreRequest(
            service=chosen,
            component=chosen.database(component),
            target=target,
            into=None,
            afterwards=Afterwards.LEAVE_RUNNING,
            without=frozenset(SnapshotId(item) for item in without),
            database=database,
            purpose="extract",
        ),
        tables=tuple(parse_table(table) for table in tables),
        output=output.absolute(),
        form=DumpFormat(form) if form is not None else DumpFormat.CUSTOM,
        accept_problems=accept_known_problems,
    )
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        result = extract(context, evidence, request)
    invocation.output.result("extract", _document(result), _lines(result))
    return ExitStatus.PARTIAL if result.is_partial else ExitStatus.OK


def _document(result: ExtractResult) -> dict[str, object]:
    restored, dumped = result.restored, result.dumped
    return {
        "run": result.run,
        "service": result.request.restore.service.name,
        "database": result.database,
        "tables": list(dumped.tables),
        "format": result.request.form.value,
        "target": {
            "requested": restored.planned.resolved.plan.target.describe(),
            "reached_time": to_iso(restored.reached.time) if restored.reached.time else None,
            "reached_lsn": str(restored.reached.lsn),
            "timeline": int(restored.reached.timeline),
        },
        "snapshot": restored.planned.resolved.plan.snapshot.id,
        "evidence": list(restored.reached.evidence),
        "output": {
            "path": str(result.request.output),
            "stored_bytes": dumped.stored_bytes,
            "sha256": dumped.sha256,
            "entries": dumped.entries,
        },
        "documents": None if result.documents is None else {**restored_files_document(result.documents), "path": None},
        "left_out": list(restored.side.left_out) if restored.side is not None else [],
        "lacks": list(dumped.lacks),
        "known_problems": list(result.problems),
        "load_command": result.load_command,
        "phases": {name: round(seconds, 3) for name, seconds in restored.phases.items()},
        "dump_seconds": round(dumped.seconds, 3),
        "restored_bytes": restored.restored_bytes,
        "fetched_bytes": restored.fetched_bytes,
        "wal_segments": restored.wal_segments,
        "isolation": [{"name": p.name, "isolated": p.isolated, "detail": p.detail} for p in restored.isolation],
    }


def _lines(result: ExtractResult) -> list[str]:
    restored, dumped = result.restored, result.dumped
    when = to_iso(restored.reached.time) if restored.reached.time else "no transaction after the snapshot"
    wanted = result.request.restore.database
    renamed = f" (called {wanted} in the snapshot)" if wanted != result.database else ""
    lines = [
        f"extracted: {result.database}{renamed}, {restored.planned.resolved.plan.target.describe()}",
        f"  reached {restored.reached.lsn}, last transaction {when}",
        (
            f"  {result.request.output}: {format_bytes(dumped.stored_bytes)}, rows of {len(dumped.tables)} tables,"
            f" read back whole; SHA-256 {dumped.sha256}"
        ),
        (
            f"  {format_bytes(restored.fetched_bytes)} fetched, restored in {format_seconds(restored.rto_seconds)},"
            f" dumped in {format_seconds(dumped.seconds)}; the environment is destroyed"
        ),
    ]
    if result.documents is not None:
        lines.append(f"  with {result.documents.files} documents, each compared with its name")
        lines.extend(f"  NOT IN IT: {text}" for text in result.documents.problems())
    lines.extend(f"  NOT IN IT: {text}" for text in dumped.lacks[:_SHOWN])
    if len(dumped.lacks) > _SHOWN:
        lines.append(f"  NOT IN IT: and {len(dumped.lacks) - _SHOWN} more (--json has all)")
    lines.append("  NOT IN IT: roles, grants, and settings of the database or of roles")
    lines.extend(f"  WARNING: {text}" for text in result.problems)
    if result.request.form is DumpFormat.ODOO_ZIP:
        lines.append("next: give it to an Odoo of the same version (--neutralize makes a copy harmless):")
    else:
        lines.append("next: load it into an empty database, as a role that owns it and may do nothing else:")
    lines.append(f"  {result.load_command}")
    return lines
