"""``drservice info``: points, snapshots, reachable windows with gaps, what is at risk now, what was proved."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drservice.cli.formatting import format_bytes, format_seconds, format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.model.estate import FilesKind
from drservice.model.ids import ComponentName
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.documentstate import as_document as documents_document
from drservice.operations.documentstate import describe_documents
from drservice.operations.info import AtRisk, ComponentInfo, StreamInfo
from drservice.operations.preparedrestore import is_flushed
from drservice.operations.serviceinfo import DocumentStreamInfo, FilesInfo, Proved, ServiceInfo, service_info
from drservice.operations.sharedinstant import Ends
from drservice.operations.streamstate import as_document, describe_stream
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


@click.command(help="Show points, snapshots, reachable windows with gaps, what is at risk, and what was proved.")
@click.argument("service", required=False)
@click.pass_obj
def info(invocation: Invocation, service: str | None) -> None:
    """Show what can be reached."""
    estate = invocation.load().estate
    services: list[dict[str, object]] = []
    lines: list[str] = []
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
        for chosen in estate.selected(service):
            known = service_info(
                plane.repository, chosen, evidence=evidence, state_dir=estate.state_dir, clock=plane.clock
            )
            services.append(_document(known))
            lines.extend(_lines(known))
        warnings = plane.repository.store.capabilities.warnings
    invocation.output.result("info", {"services": services, "warnings": list(warnings)}, lines)
    if not invocation.json:
        for warning in warnings:
            invocation.output.warn(warning)


def _document(known: ServiceInfo) -> dict[str, object]:
    risk = known.at_risk
    return {
        "name": known.service.name,
        "components": [*(item.scope.component for item in known.databases), *(f.component.name for f in known.files)],
        "points": [
            {
                "point": point.id,
                "state": point.state.value,
                "at": to_iso(point.at),
                "snapshots": {member.component: member.snapshot for member in point.members},
                "origin": point.origin.as_json() if point.origin is not None else None,
            }
            for point in known.points
        ],
        "snapshots": [_snapshot(record) for record in known.snapshots],
        "unreadable": [{"key": key, "problem": error.message} for key, error in known.unreadable.items()],
        "wal": _wal(known.databases),
        "streams": [_stream(item, item.stream) for item in known.databases if item.stream is not None],
        "documents": [_documents(item, item.stream) for item in known.files if item.stream is not None],
        "consistent": [{"component": name, **ends.as_document()} for name, ends in known.ends.items()],
        "seconds_at_risk": _rounded(risk.seconds, 3),
        "bytes_at_risk": risk.bytes,
        "at_risk_problem": risk.problem,
        "proven_until": None if risk.proven_until is None else to_iso(risk.proven_until),
        "documents_seconds_at_risk": _rounded(known.documents_at_risk_seconds, 3),
        "effective_rpo_seconds": _rounded(known.effective_rpo_seconds, 3),
        "estimated_rto_seconds": _rounded(known.estimated_rto_seconds, 1),
        "verified_at": to_iso(known.proved.at) if known.proved else None,
        "verified_by": known.proved.how if known.proved else None,
        "last_drill": _drill(known),
        "ledger_problem": known.ledger_problem,
    }


def _drill(known: ServiceInfo) -> dict[str, object] | None:
    drill = known.last_drill
    if drill is None:
        return None
    return {"record": drill.number, "at": to_iso(drill.at), "outcome": drill.outcome, "target": drill.target}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _snapshot(record: SnapshotRecord) -> dict[str, object]:
    shared = {
        "component": record.component,
        "kind": record.kind,
        "snapshot": record.id,
        "state": record.state.value,
        "method": record.method,
        "started_at": to_iso(record.started_at),
        "stopped_at": to_iso(record.stopped_at),
        "source_bytes": record.source_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        "host": record.host,
    }
    if record.kind != "postgres":
        facts = record.documents
        return {**shared, "missing_in_production": facts.missing, "corrupt_in_production": facts.corrupt}
    return {
        **shared,
        "start_lsn": str(record.postgres.start_lsn),
        "stop_lsn": str(record.postgres.stop_lsn),
        "timeline": int(record.postgres.timeline),
        "system_id": record.postgres.system_id,
    }


def _wal(databases: tuple[ComponentInfo, ...]) -> dict[str, object]:
    return {
        "windows": [
            {
                "component": known.scope.component,
                "from_time": to_iso(item.from_time),
                "to_time": to_iso(item.to_time),
                "from_lsn": str(item.window.first.postgres.stop_lsn),
                "to_lsn": str(item.window.end),
                "timeline": int(item.window.timeline),
            }
            for known in databases
            for item in known.windows
        ],
        "gaps": [
            {
                "component": known.scope.component,
                "from_lsn": str(gap.begin),
                "to_lsn": str(gap.end),
                "first": gap.first_name,
                "segments": gap.segments,
            }
            for known in databases
            for gap in known.gaps
        ],
        "unread_histories": [name for known in databases for name in known.unread_histories],
    }


def _stream(known: ComponentInfo, stream: StreamInfo) -> dict[str, object]:
    state = stream.state
    shown = {} if state is None else as_document(state)
    return {
        "component": known.scope.component,
        "slot": stream.name,
        "state": _stream_state(stream),
        "synchronous": shown.get("synchronous"),
        "durable_lsn": shown.get("durable_lsn"),
        "server_lsn": shown.get("server_lsn"),
        "lag_bytes": state.bytes_at_risk if state is not None and stream.is_alive else None,
        "lag_seconds": _rounded(state.seconds_at_risk, 3) if state is not None and stream.is_alive else None,
        "slot_status": shown.get("slot_status"),
        "safe_wal_bytes": shown.get("safe_wal_bytes"),
        "heartbeat_seconds": None if stream.heartbeat is None else stream.heartbeat.total_seconds(),
        "problem": stream.problem or shown.get("problem"),
        "remedy": shown.get("remedy"),
        "updated_at": shown.get("updated_at"),
    }


def _stream_state(stream: StreamInfo) -> str:
    if not stream.is_alive:
        return "absent"
    return "connecting" if stream.state is None else stream.state.state.value


def _stream_lines(stream: StreamInfo) -> Iterator[str]:
    state = stream.state
    if state is None:
        yield f"streaming: {_stream_state(stream)}{f' ({stream.problem})' if stream.problem else ''}"
        return
    if not stream.is_alive:
        durable = f"; durable to {state.durable_lsn}" if state.durable_lsn else ""
        yield f"streaming: ABSENT, the receiver ended after {to_iso(state.updated_at)[:19]}Z{durable}"
        return
    yield f"streaming: {describe_stream(state)}"
    room = (
        "" if state.safe_wal_bytes is None else f", {format_bytes(max(0, state.safe_wal_bytes))} until it may be lost"
    )
    yield f"  slot {stream.name}: {state.slot_status or 'not known'}{room}"
    if stream.heartbeat is None:
        yield "  heartbeat off: the window of an idle server ends with its last WAL"
    if state.problem is not None:
        yield f"  PROBLEM: {state.problem}{f'; {state.remedy}' if state.remedy else ''}"


def _documents(known: FilesInfo, stream: DocumentStreamInfo) -> dict[str, object]:
    state = stream.state
    shown = {} if state is None else documents_document(state)
    phase = "starting" if state is None else state.state.value
    return {
        "component": known.component.name,
        "state": phase if stream.is_alive else "absent",
        "durable_to": shown.get("durable_server_time"),
        "pending": shown.get("pending") if stream.is_alive else None,
        "lag_seconds": _rounded(known.seconds_at_risk, 3),
        "missing_in_production": shown.get("missing"),
        "corrupt_in_production": shown.get("corrupt"),
        "in_database": shown.get("in_database"),
        "not_covered": shown.get("not_covered"),
        "problem": stream.problem or shown.get("problem"),
        "remedy": shown.get("remedy"),
        "updated_at": shown.get("updated_at"),
    }


def _documents_lines(stream: DocumentStreamInfo) -> Iterator[str]:
    state = stream.state
    if state is None or not stream.is_alive:
        last = "" if state is None else f", it ended after {to_iso(state.updated_at)[:19]}Z"
        problem = f" ({stream.problem})" if stream.problem else ""
        yield f"capture as they come: {'STARTING' if stream.is_alive else 'ABSENT'}{last}{problem}"
        return
    yield f"capture as they come: {describe_documents(state)}"
    if state.in_database:
        yield f"  {state.in_database} attachments are inside the database"
    if state.problem is not None:
        yield f"  PROBLEM: {state.problem}{f'; {state.remedy}' if state.remedy else ''}"


def _lines(known: ServiceInfo) -> list[str]:
    lines = [f"{known.service.name}"]
    lines += [f"  {line}" for line in _point_lines(known)]
    for database in known.databases:
        lines += [f"  {line}" for line in _database_lines(database)]
    for files in known.files:
        lines += [f"  {line}" for line in _files_lines(files)]
    lines.extend(f"  UNREADABLE {key}: {error.message}" for key, error in known.unreadable_points.items())
    lines.extend(f"  {_shared_line(name, ends, len(known.ends))}" for name, ends in known.ends.items())
    if any(item.stream is not None for item in known.files):
        seconds = known.effective_rpo_seconds
        lines.append(f"  effective RPO now: {'unknown' if seconds is None else format_seconds(seconds)}")
    lines += [f"  {line}" for line in _proof_lines(known)]
    if not known.snapshots:
        lines.append(f"next: drservice backup {known.service.name}")
    return lines


def _point_lines(known: ServiceInfo) -> Iterator[str]:
    shown = known.points[-5:]
    if not shown:
        return
    rows = [(point.id, to_iso(point.at)[:19] + "Z", str(len(point.members)), point.state.value) for point in shown]
    yield from format_table(("RECOVERY POINT", "AT", "PARTS", "STATE"), rows)
    if len(known.points) > len(shown):
        yield f"and {len(known.points) - len(shown)} older"
    for point in shown:
        if point.origin is not None:
            yield f"{point.id} was imported from {point.origin.file!a}; its newest row is of {to_iso(point.at)}"


def _database_lines(known: ComponentInfo) -> Iterator[str]:
    yield f"{known.scope.component} (postgres)"
    rows = [
        (
            record.id,
            to_iso(record.stopped_at)[:19] + "Z",
            str(record.postgres.stop_lsn),
            str(int(record.postgres.timeline)),
            record.method,
            format_bytes(record.source_bytes),
            format_bytes(record.stored_bytes),
            record.state.value,
        )
        for record in known.snapshots
    ]
    if rows:
        titles = ("SNAPSHOT", "ENDED", "STOP LSN", "TL", "METHOD", "SOURCE", "STORED", "STATE")
        yield from (f"  {line}" for line in format_table(titles, rows))
    yield from (f"  UNREADABLE {key}: {error.message}" for key, error in known.unreadable.items())
    for item in known.windows:
        yield (
            f"  reachable: {to_iso(item.from_time)} to {to_iso(item.to_time)}"
            f" ({item.window.first.postgres.stop_lsn} to {item.window.end}, timeline {item.window.timeline})"
        )
    yield from (f"  GAP: {gap.describe()}; take a new backup" for gap in known.gaps)
    yield from (f"  not judged without an identity: timeline of {name}" for name in known.unread_histories)
    if known.stream is not None:
        yield from (f"  {line}" for line in _stream_lines(known.stream))
    yield f"  {_risk_line(known.at_risk)}"


_WHAT = {
    FilesKind.ODOO_FILESTORE: "files made",
    FilesKind.DIRECTORY: "files made",
    FilesKind.GIT: "what was committed or changed",
    FilesKind.REDIS: "what was written to it",
}


def _files_lines(known: FilesInfo) -> Iterator[str]:
    yield f"{known.component.name} ({known.component.kind.value})"
    rows = [
        (
            record.id,
            to_iso(record.started_at)[:19] + "Z",
            str(record.files),
            format_bytes(record.source_bytes),
            format_bytes(record.stored_bytes),
            str(record.documents.missing),
            str(record.documents.corrupt),
            record.state.value,
        )
        for record in known.snapshots
    ]
    if rows:
        titles = ("SNAPSHOT", "BEGAN", "FILES", "SOURCE", "STORED", "MISSING", "CORRUPT", "STATE")
        yield from (f"  {line}" for line in format_table(titles, rows))
        yield "  missing and corrupt: in production, when the snapshot was taken"
    yield from (f"  UNREADABLE {key}: {error.message}" for key, error in known.unreadable.items())
    if known.stream is not None:
        yield from (f"  {line}" for line in _documents_lines(known.stream))
    if is_flushed(known.component):
        yield "  at risk now: nothing, it begins empty after a restore (restore: flush)"
    elif known.seconds_at_risk is None:
        yield "  at risk now: everything, there is no snapshot of it"
    else:
        yield f"  at risk now: {_WHAT[known.component.kind]} within the last {format_seconds(known.seconds_at_risk)}"


def _shared_line(name: ComponentName, ends: Ends, clusters: int) -> str:
    """Tell the newest instant that a cluster's rows share with their documents."""
    look, at, whose = ends.shared.look, ends.at, f" of {name}" if clusters > 1 else ""
    if look is None or at is None:
        return f"rows{whose} and documents share: nothing yet, nobody has looked at all of {ends.shared.lacking}"
    before = f", {format_seconds(ends.behind_seconds)} before the end of the WAL" if ends.behind_seconds else ""
    where = f"{min(look.lsn, ends.wal_end)}, timeline {look.timeline}"
    return f"rows{whose} and documents share: all up to {to_iso(at)} ({where}){before}; --to consistent restores it"


def _risk_line(risk: AtRisk) -> str:
    if risk.bytes is None or risk.seconds is None:
        return f"at risk now: unknown ({risk.problem})"
    if risk.bytes == 0 and risk.proven_until is not None:
        return f"at risk now: nothing, proven up to {to_iso(risk.proven_until)}"
    if risk.bytes == 0:
        return "at risk now: nothing, the archive holds everything the server has flushed"
    return f"at risk now: {format_bytes(risk.bytes)} of WAL, written within the last {format_seconds(risk.seconds)}"


def _proof_lines(known: ServiceInfo) -> Iterator[str]:
    drill = known.last_drill
    if drill is not None:
        yield f"last drill: {drill.outcome} at {to_iso(drill.at)[:19]}Z ({drill.target}), record {drill.number}"
    if known.ledger_problem is not None:
        yield f"the ledger cannot be asked: {known.ledger_problem}"
    proved: Proved | None = known.proved
    if proved is None:
        yield f"recovery: NOT PROVED; prove it with `drservice drill {known.service.name}`"
        return
    estimate = ""
    if known.estimated_rto_seconds is not None:
        seconds = format_seconds(known.estimated_rto_seconds)
        estimate = f"; a restore of the latest position would take about {seconds}"
    yield f"recovery: proved at {to_iso(proved.at)[:19]}Z by a {proved.how}{estimate}"
