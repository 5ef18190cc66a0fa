"""``drservice info``: snapshots, reachable windows with gaps, what is at risk now, what was proved."""

from __future__ import annotations

import click

from drservice.cli.formatting import format_bytes, format_seconds, format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.operations.info import ComponentInfo, component_info
from drservice.wiring.data_plane import open_data_plane


@click.command(help="Show snapshots, reachable windows with gaps, seconds at risk, and what was proved.")
@click.argument("service", required=False)
@click.pass_obj
def info(invocation: Invocation, service: str | None) -> None:
    """Show what can be reached."""
    estate = invocation.load().estate
    services: list[dict[str, object]] = []
    lines: list[str] = []
    with open_data_plane(estate) as plane:
        for chosen in estate.selected(service):
            for component in chosen.databases():
                known = component_info(
                    plane.repository, chosen, component, state_dir=estate.state_dir, clock=plane.clock
                )
                services.append({"name": chosen.name, "component": component.name, **_document(known)})
                lines.extend(_lines(known))
        warnings = plane.repository.store.capabilities.warnings
    invocation.output.result("info", {"services": services, "warnings": list(warnings)}, lines)
    if not invocation.json:
        for warning in warnings:
            invocation.output.warn(warning)


def _document(known: ComponentInfo) -> dict[str, object]:
    return {
        "snapshots": [
            {
                "snapshot": record.id,
                "state": record.state.value,
                "method": record.method,
                "stopped_at": to_iso(record.stopped_at),
                "start_lsn": str(record.postgres.start_lsn),
                "stop_lsn": str(record.postgres.stop_lsn),
                "timeline": int(record.postgres.timeline),
                "system_id": record.postgres.system_id,
                "source_bytes": record.source_bytes,
                "stored_bytes": record.stored_bytes,
                "host": record.host,
            }
            for record in known.snapshots
        ],
        "unreadable": [{"key": key, "problem": error.message} for key, error in known.unreadable.items()],
        "wal": {
            "windows": [
                {
                    "from_time": to_iso(item.from_time),
                    "to_time": to_iso(item.to_time),
                    "from_lsn": str(item.window.first.postgres.stop_lsn),
                    "to_lsn": str(item.window.end),
                    "timeline": int(item.window.timeline),
                }
                for item in known.windows
            ],
            "gaps": [
                {"from_lsn": str(gap.begin), "to_lsn": str(gap.end), "first": gap.first_name, "segments": gap.segments}
                for gap in known.gaps
            ],
            "unread_histories": list(known.unread_histories),
        },
        "seconds_at_risk": round(known.at_risk.seconds, 3) if known.at_risk.seconds is not None else None,
        "bytes_at_risk": known.at_risk.bytes,
        "at_risk_problem": known.at_risk.problem,
        "estimated_rto_seconds": (
            round(known.estimated_rto_seconds, 1) if known.estimated_rto_seconds is not None else None
        ),
        "verified_at": known.measured.restored_at if known.measured else None,
    }


def _lines(known: ComponentInfo) -> list[str]:
    scope = known.scope
    lines = [f"{scope.service}/{scope.component}"]
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
        lines.extend(f"  {line}" for line in format_table(titles, rows))
    lines.extend(f"  UNREADABLE {key}: {error.message}" for key, error in known.unreadable.items())
    lines.extend(
        f"  reachable: {to_iso(item.from_time)} to {to_iso(item.to_time)}"
        f" ({item.window.first.postgres.stop_lsn} to {item.window.end}, timeline {item.window.timeline})"
        for item in known.windows
    )
    lines.extend(f"  GAP: {gap.describe()}; take a new backup" for gap in known.gaps)
    lines.extend(f"  not judged without an identity: timeline of {name}" for name in known.unread_histories)
    lines.append(f"  {_risk_line(known)}")
    lines.append(f"  {_proof_line(known)}")
    if not known.snapshots:
        lines.append(f"next: drservice backup {scope.service}")
    return lines


def _risk_line(known: ComponentInfo) -> str:
    risk = known.at_risk
    if risk.bytes is None or risk.seconds is None:
        return f"at risk now: unknown ({risk.problem})"
    if risk.bytes == 0:
        return "at risk now: nothing, the archive holds everything the server has flushed"
    return f"at risk now: {format_bytes(risk.bytes)} of WAL, written within the last {format_seconds(risk.seconds)}"


def _proof_line(known: ComponentInfo) -> str:
    if known.measured is None:
        return "recovery: NOT PROVED on this host; prove it with `drservice restore ... --start`"
    estimate = ""
    if known.estimated_rto_seconds is not None:
        estimate = f"; a restore of the latest position would take about {format_seconds(known.estimated_rto_seconds)}"
    return f"recovery: proved at {known.measured.restored_at} ({known.measured.target}){estimate}"
