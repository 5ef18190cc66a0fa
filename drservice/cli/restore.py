"""``drservice restore``: bring a service back to an instant, and prove it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from drservice.cli.formatting import connect_line, format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.losslines import loss_lines
from drservice.cli.neutralizedlines import neutralized_lines
from drservice.cli.restorechoices import require_compatible, require_plain
from drservice.cli.restoreshutdown import recovery_settings, shutdown_lines
from drservice.cli.tablespaces import parse_tablespaces, tablespace_lines
from drservice.cli.targets import parse_target
from drservice.clock import to_iso
from drservice.components.postgres.recovery import TargetAction
from drservice.errors import ExitStatus, UsageError
from drservice.model.estate import Estate, FilesComponent, FilesKind, Service
from drservice.model.ids import SnapshotId
from drservice.model.recovery import Target, TargetKind
from drservice.operations.filesrestore import RestoredFiles
from drservice.operations.restoreplan import plan_restore
from drservice.operations.restorerequest import Afterwards, Planned, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.results import restore_document, restored_files_document
from drservice.operations.servicerestore import restore_folder, restore_service
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence
from drservice.wiring.workers import workers_at_hand

_SHOWN = 10


@click.command(help="Restore SERVICE to an instant: plan, fetch, replay in isolation, prove.")
@click.argument("service")
@click.option(
    "--to",
    metavar="TIME|latest|consistent",
    help="an instant with its time zone, the latest archived position, or the newest one that rows and documents share",
)
@click.option("--lsn", metavar="X/X", help="a WAL position")
@click.option("--xid", type=int, help="a transaction (included)")
@click.option("--name", help="a named restore point")
@click.option("--snapshot", metavar="ID", help="the end of one snapshot")
@click.option("--timeline", type=int, metavar="N", help="follow the WAL to this timeline (default: the latest)")
@click.option(
    "--without-snapshot", "without", metavar="ID", multiple=True, help="do not start from this (damaged) snapshot"
)
@click.option("--component", help="restore this component only (default: the cluster and the files that follow it)")
@click.option("--into", type=click.Path(path_type=Path), help="a new or empty directory that keeps what is restored")
@click.option(
    "--delta", is_flag=True, help="--into may be a data directory of the same cluster: only what differs is fetched"
)
@click.option(
    "--tablespace",
    "tablespaces",
    metavar="OLD=NEW",
    multiple=True,
    help="put a tablespace (its OID or production's path) into a new or empty folder; else it lies in pg_tblspc",
)
@click.option("--in-place", is_flag=True, help="restore over production's own data directory; its server is stopped")
@click.option("--confirm", metavar="NAME", help="the service's name: --in-place without a question")
@click.option("--database", metavar="D", help="bring back only this database of the cluster, beside production")
@click.option("--start", is_flag=True, help="leave the recovered server running in its sandbox")
@click.option(
    "--action",
    type=click.Choice([item.value for item in TargetAction]),
    default=TargetAction.PROMOTE.value,
    help="at the target: promote (default); pause, read only, with --start; shutdown, with --into",
)
@click.option(
    "--neutralize",
    is_flag=True,
    help="make copies of Odoo do nothing outside (mail, jobs, payments, keys); they can never become production",
)
@click.option("--dry-run", is_flag=True, help="show the plan and prove the target; restore nothing")
@click.pass_obj
def restore(
    invocation: Invocation,
    service: str,
    *,
    to: str | None,
    lsn: str | None,
    xid: int | None,
    name: str | None,
    snapshot: str | None,
    timeline: int | None,
    without: tuple[str, ...],
    component: str | None,
    into: Path | None,
    delta: bool,
    tablespaces: tuple[str, ...],
    in_place: bool,
    confirm: str | None,
    database: str | None,
    start: bool,
    action: str,
    neutralize: bool,
    dry_run: bool,
) -> ExitStatus:
    """Restore a service."""
    given = {
        "--into": into is not None,
        "--delta": delta,
        "--tablespace": bool(tablespaces),
        "--in-place": in_place,
        "--confirm": confirm is not None,
        "--database": database is not None,
        "--action": action != TargetAction.PROMOTE.value,
        "--neutralize": neutralize,
    }
    require_compatible(frozenset(option for option, is_given in given.items() if is_given))
    mapping = parse_tablespaces(tablespaces)
    target = parse_target(to=to, lsn=lsn, xid=xid, name=name, snapshot=snapshot, timeline=timeline)
    estate = invocation.load().estate
    chosen = estate.service(service)
    only = chosen.component(component) if component is not None else None
    if isinstance(only, FilesComponent):
        require_plain(frozenset(option for option, is_given in given.items() if is_given))
        return _folder(invocation, chosen, only, target, into, start=start, dry_run=dry_run)
    request = RestoreRequest(
        service=chosen,
        component=chosen.database(component),
        target=target,
        into=into.absolute() if into else None,
        delta=delta,
        afterwards=Afterwards.LEAVE_RUNNING if start else Afterwards.STOP,
        files=() if only is not None or database is not None else tuple(chosen.files()),
        action=TargetAction(action),
        in_place=in_place,
        tablespaces=mapping,
        without=frozenset(SnapshotId(item) for item in without),
        database=database,
        neutralize=neutralize,
    )
    return _cluster(invocation, estate, request, confirm=confirm, dry_run=dry_run)


def _cluster(
    invocation: Invocation, estate: Estate, request: RestoreRequest, *, confirm: str | None, dry_run: bool
) -> ExitStatus:
    """Restore a cluster and what follows it, or show what that would be."""
    with (
        workers_at_hand(estate, 0 if dry_run else request.component.workers),
        open_data_plane(estate) as plane,
        open_evidence(plane) as evidence,
        invocation.progress() as progress,
    ):
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        if dry_run:
            document, lines = _preview(context, request)
            invocation.output.result("restore-plan", document, lines)
            return ExitStatus.OK
        if request.in_place:
            from drservice.cli.restoreinplace import require_confirmed  # noqa: PLC0415 - for --in-place alone

            require_confirmed(invocation, context, request, confirm)
        result = restore_service(context, evidence, request)
    config = invocation.configuration_path()
    document = restore_document(result, request.service.name)
    if result.action is TargetAction.SHUTDOWN:
        document["recovery_settings"] = dict(recovery_settings(result, config))
    invocation.output.result("restore", document, _result_lines(result, config))
    return ExitStatus.PARTIAL if result.is_partial else ExitStatus.OK


def _folder(
    invocation: Invocation,
    service: Service,
    component: FilesComponent,
    target: Target,
    into: Path | None,
    *,
    start: bool,
    dry_run: bool,
) -> ExitStatus:
    """Restore one folder of files by itself, as a snapshot has it."""
    if into is None or start or dry_run:
        raise UsageError("a folder of files is restored with --into DIR and nothing else")
    if target.kind not in {TargetKind.LATEST, TargetKind.TIME}:
        raise UsageError(f"{component.name} has no WAL positions", hint="Give --to TIME or --to latest.")
    estate = invocation.load().estate
    with (
        workers_at_hand(estate, component.workers),
        open_data_plane(estate) as plane,
        open_evidence(plane) as evidence,
        invocation.progress() as progress,
    ):
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        restored = restore_folder(context, evidence, service, component, target, into.absolute())
    document = {
        "service": service.name,
        "target": {"requested": target.describe()},
        "files": [restored_files_document(restored)],
    }
    lines = [f"restored: {component.name} of {service.name}, {target.describe()}", *_files_lines(restored)]
    lines.extend(_owner_lines(restored))
    invocation.output.result("restore-files", document, lines)
    return ExitStatus.PARTIAL if restored.problems() else ExitStatus.OK


def _preview(context: RestoreContext, request: RestoreRequest) -> tuple[dict[str, object], list[str]]:
    """Return what would be done, as a document and in lines."""
    service = request.service.name
    if not request.in_place:
        planned = plan_restore(context, request)
        return _plan(planned, service), _plan_lines(planned)
    from drservice.cli.restoreinplace import preview_lines  # noqa: PLC0415 - for --in-place alone
    from drservice.operations.inplace import prepare_in_place, preview  # noqa: PLC0415 - the same

    prepared = prepare_in_place(context, request)
    if prepared.planned is None:
        document: dict[str, object] = {"service": service, "target": {"requested": request.target.describe()}}
        return {**document, "in_place": preview(prepared)}, preview_lines(prepared)
    lines = [*preview_lines(prepared), *_plan_lines(prepared.planned)]
    return {**_plan(prepared.planned, service), "in_place": preview(prepared)}, lines


def _plan(planned: Planned, service: str) -> dict[str, object]:
    resolved = planned.resolved
    plan = resolved.plan
    return {
        "service": service,
        "target": {"requested": plan.target.describe(), "kind": plan.target.kind.value, "ends": resolved.ends.value},
        "snapshot": plan.snapshot.id,
        "snapshot_stopped_at": to_iso(plan.snapshot.stopped_at),
        "source_bytes": plan.snapshot.source_bytes,
        "placed_bytes": planned.placed_bytes,
        "left_out_bytes": planned.selected.left_out_bytes if planned.selected is not None else 0,
        "left_out": list(planned.selected.selection.left_out) if planned.selected is not None else [],
        "timeline": int(plan.timeline),
        "wal_segments": plan.reach.segments,
        "wal_end_lsn": str(plan.reach.end),
        "gap": plan.reach.gap.describe() if plan.reach.gap else None,
        "consistent": planned.ends.as_document() if planned.ends is not None else None,
        "reasons": [*plan.reasons, *resolved.notes],
        "considered": [{"snapshot": item.snapshot, "reason": item.reason} for item in plan.considered],
        "unreadable": list(planned.unreadable),
    }


def _plan_lines(planned: Planned) -> list[str]:
    resolved = planned.resolved
    plan = resolved.plan
    lines = [
        f"plan: {plan.target.describe()} from snapshot {plan.snapshot.id} of {to_iso(plan.snapshot.stopped_at)}",
        (
            f"  {format_bytes(planned.placed_bytes)} of files, up to {plan.reach.segments} WAL segments,"
            f" timeline {plan.timeline}"
        ),
    ]
    if planned.selected is not None:
        lines.append(
            f"  left out: {', '.join(planned.selected.selection.left_out) or 'none'}"
            f" ({format_bytes(planned.selected.left_out_bytes)})"
        )
    lines.extend(f"  - {reason}" for reason in (*plan.reasons, *resolved.notes))
    lines.extend(f"  not {item.snapshot}: {item.reason}" for item in plan.considered)
    lines.extend(f"  UNREADABLE: {text}" for text in planned.unreadable)
    lines.append("next: the same command without --dry-run, and with --into DIR, --start or --in-place")
    return lines


def _result_lines(result: RestoreResult, config: Path) -> list[str]:
    plan = result.planned.resolved.plan
    when = to_iso(result.reached.time) if result.reached.time else "no transaction after the snapshot"
    lines = [
        f"restored: {plan.target.describe()} in {format_seconds(result.rto_seconds)}",
        f"  reached {result.reached.lsn}, last transaction {when}, timeline {result.reached.timeline}",
    ]
    lines.extend(f"  - {text}" for text in result.reached.evidence)
    lines.extend(_left_lines(result))
    if result.side is not None:
        lines.append(f"  database {result.side.database}, and no other")
        lines.append(f"  LEFT OUT: {', '.join(result.side.left_out) or 'none'} (nobody can connect to them)")
    lines.extend(f"  UNREADABLE: {text}" for text in result.planned.unreadable)
    lines.append("  " + ", ".join(f"{name} {format_seconds(s)}" for name, s in result.phases.items()))
    for item in result.files:
        lines.extend(_files_lines(item))
    lines.extend(neutralized_lines(result))
    lines.extend(loss_lines([item.as_json() for item in result.losses]))
    if result.losses:
        lines.append(f"  again: drservice environment loss {result.environment.id}")
    if result.in_place is not None:
        from drservice.cli.restoreinplace import outcome_lines  # noqa: PLC0415 - for --in-place alone

        return [*lines, *outcome_lines(result, result.in_place, plan.snapshot.service)]
    if result.into is not None:
        directory = result.into / plan.snapshot.component if result.files else result.into
        lines.append(f"  data directory: {directory} (its own postgresql.conf decides what a start would do)")
        lines.extend(line for item in result.files for line in _owner_lines(item))
    lines.extend(tablespace_lines(result.tablespaces))
    if result.kept:
        lines.append(connect_line(result.environment.dsn, result.database))
        if result.action is TargetAction.PAUSE:
            lines.append(f"promote: drservice environment promote {result.environment.id} (paused so far, read only)")
        lines.append(f"destroy: drservice environment destroy {result.environment.id}")
    elif result.action is TargetAction.SHUTDOWN:
        lines.extend(shutdown_lines(result, config))
    elif result.side is not None:
        lines.append("next: a side restore never takes production's place; start it with archive_mode=off")
    else:
        lines.append("next: look at archive_command in its configuration before you start it for real")
    return lines


def _left_lines(result: RestoreResult) -> Iterator[str]:
    """Tell what lies behind the position that rows and documents share."""
    ends = result.planned.ends
    if ends is not None and ends.behind_seconds and result.planned.resolved.plan.target.kind is TargetKind.CONSISTENT:
        yield f"  not restored: {ends.behind_seconds:.1f} s of WAL behind it, whose rows --to latest brings back"


def _owner_lines(item: RestoredFiles) -> Iterator[str]:
    """Tell who has to own what was restored to be kept: it belongs to whoever ran this."""
    root = shlex.quote(str(item.root))
    if item.records and item.component.kind is FilesKind.ODOO_FILESTORE:
        yield f"next: chown -R odoo: {root} (or whoever runs Odoo: nobody else may enter it so far)"
    elif item.records:
        yield f"next: give {root} to whoever reads it (modes are as they were, owners are not)"


def _files_lines(item: RestoredFiles) -> Iterator[str]:
    """Tell what became of a folder; every number for itself, and names as far as they fit."""
    name, placed = item.component.name, item.documents
    if placed is not None:
        yield (
            f"  {name}: {placed.placed} of {placed.expected} documents in {item.root}; {len(placed.missing)} missing,"
            f" {len(placed.corrupt)} corrupt, {len(placed.missing_in_production)} missing in production too,"
            f" {placed.extra} extra not placed"
        )
        for title, names in (
            ("MISSING", placed.missing),
            ("CORRUPT", placed.corrupt),
            ("MISSING IN PRODUCTION", placed.missing_in_production),
            ("DAMAGED IN PRODUCTION", placed.corrupt_in_production),
            ("LOST IN PRODUCTION, FROM AN OLDER SNAPSHOT", placed.recovered_from_older),
        ):
            yield from (f"    {title}: {document}" for document in names[:_SHOWN])
            if len(names) > _SHOWN:
                yield f"    {title}: and {len(names) - _SHOWN} more (--json has all)"
    elif item.records:
        yield f"  {name}: {item.files} files, {format_bytes(item.written_bytes)}, in {item.root}"
    yield from (f"  PROBLEM: {problem}" for problem in item.problems())
    yield from (f"  note: {note}" for note in item.notes)
