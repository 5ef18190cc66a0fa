"""``drservice restore``: bring a service back to an instant, and prove it."""

from __future__ import annotations

from pathlib import Path

import click

from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.targets import parse_target
from drservice.clock import to_iso
from drservice.model.ids import SnapshotId
from drservice.operations.restore import (
    Afterwards,
    Planned,
    RestoreContext,
    RestoreRequest,
    RestoreResult,
    plan_restore,
    run_restore,
)
from drservice.wiring.data_plane import open_data_plane


@click.command(help="Restore SERVICE to an instant: plan, fetch, replay in isolation, prove.")
@click.argument("service")
@click.option("--to", metavar="TIME|latest", help="an instant with its time zone, or the latest archived position")
@click.option("--lsn", metavar="X/X", help="a WAL position")
@click.option("--xid", type=int, help="a transaction (included)")
@click.option("--name", help="a named restore point")
@click.option("--snapshot", metavar="ID", help="the end of one snapshot")
@click.option("--timeline", type=int, metavar="N", help="follow the WAL to this timeline (default: the latest)")
@click.option(
    "--without-snapshot", "without", metavar="ID", multiple=True, help="do not start from this (damaged) snapshot"
)
@click.option("--component", help="which component, if the service has several")
@click.option("--into", type=click.Path(path_type=Path), help="a new or empty directory that keeps the cluster")
@click.option("--start", is_flag=True, help="leave the recovered server running in its sandbox")
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
    start: bool,
    dry_run: bool,
) -> None:
    """Restore a service."""
    target = parse_target(to=to, lsn=lsn, xid=xid, name=name, snapshot=snapshot, timeline=timeline)
    estate = invocation.load().estate
    chosen = estate.service(service)
    request = RestoreRequest(
        service=chosen,
        component=chosen.component(component),
        target=target,
        into=into.absolute() if into else None,
        afterwards=Afterwards.LEAVE_RUNNING if start else Afterwards.STOP,
        without=frozenset(SnapshotId(item) for item in without),
    )
    with open_data_plane(estate) as plane, invocation.progress() as progress:
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        if dry_run:
            planned = plan_restore(context, request)
            result = None
        else:
            result = run_restore(context, request)
            planned = result.planned
    if result is None:
        invocation.output.result("restore-plan", _plan(planned, service), _plan_lines(planned))
        return
    invocation.output.result("restore", _document(result, service), _result_lines(result))


def _plan(planned: Planned, service: str) -> dict[str, object]:
    resolved = planned.resolved
    plan = resolved.plan
    return {
        "service": service,
        "target": {"requested": plan.target.describe(), "kind": plan.target.kind.value, "ends": resolved.ends.value},
        "snapshot": plan.snapshot.id,
        "snapshot_stopped_at": to_iso(plan.snapshot.stopped_at),
        "source_bytes": plan.snapshot.source_bytes,
        "timeline": int(plan.timeline),
        "wal_segments": plan.reach.segments,
        "wal_end_lsn": str(plan.reach.end),
        "gap": plan.reach.gap.describe() if plan.reach.gap else None,
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
            f"  {format_bytes(plan.snapshot.source_bytes)} of files, up to {plan.reach.segments} WAL segments,"
            f" timeline {plan.timeline}"
        ),
    ]
    lines.extend(f"  - {reason}" for reason in (*plan.reasons, *resolved.notes))
    lines.extend(f"  not {item.snapshot}: {item.reason}" for item in plan.considered)
    lines.extend(f"  UNREADABLE: {text}" for text in planned.unreadable)
    lines.append("next: the same command with --into DIR or --start instead of --dry-run")
    return lines


def _document(result: RestoreResult, service: str) -> dict[str, object]:
    plan = result.planned.resolved.plan
    environment = result.environment
    return {
        "run": environment.id,
        "service": service,
        "target": {
            "requested": plan.target.describe(),
            "reached_time": to_iso(result.reached.time) if result.reached.time else None,
            "reached_lsn": str(result.reached.lsn),
            "timeline": int(result.reached.timeline),
        },
        "snapshot": plan.snapshot.id,
        "unreadable": list(result.planned.unreadable),
        "evidence": list(result.reached.evidence),
        "phases": {name: round(seconds, 3) for name, seconds in result.phases.items()},
        "rto_seconds": round(result.rto_seconds, 3),
        "environment": {
            "id": environment.id if result.kept else None,
            "kind": environment.kind,
            "path": str(result.into or environment.path),
            "dsn": environment.dsn if result.kept else None,
        },
        "isolation": [{"name": p.name, "isolated": p.isolated, "detail": p.detail} for p in result.isolation],
        "restored_bytes": result.restored_bytes,
        "fetched_bytes": result.fetched_bytes,
        "wal_segments": result.wal_segments,
        "stripped_settings": list(result.stripped_settings),
        "documents": {"expected": None, "missing": None, "corrupt": None},
    }


def _result_lines(result: RestoreResult) -> list[str]:
    plan = result.planned.resolved.plan
    when = to_iso(result.reached.time) if result.reached.time else "no transaction after the snapshot"
    lines = [
        f"restored: {plan.target.describe()} in {format_seconds(result.rto_seconds)}",
        f"  reached {result.reached.lsn}, last transaction {when}, now timeline {result.reached.timeline}",
    ]
    lines.extend(f"  - {text}" for text in result.reached.evidence)
    lines.extend(f"  UNREADABLE: {text}" for text in result.planned.unreadable)
    lines.append("  " + ", ".join(f"{name} {format_seconds(s)}" for name, s in result.phases.items()))
    if result.into is not None:
        lines.append(f"  data directory: {result.into} (its own postgresql.conf decides what a start would do)")
    if result.kept:
        lines.append(f'connect: psql "{result.environment.dsn}"')
        lines.append(f"destroy: drservice environment destroy {result.environment.id}")
    else:
        lines.append("next: look at archive_command in its configuration before you start it for real")
    return lines
