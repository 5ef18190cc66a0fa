"""``drservice gate`` and ``drservice restore-point``: may I release now, and what do I come back to?"""

from __future__ import annotations

import click

from drservice.cli.invocation import Invocation
from drservice.cli.output import Colour, Line, Span
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.operations.checklist import CheckState
from drservice.operations.gate import GateContext, GateResult, ask_gate
from drservice.operations.restorepoint import LeftPoint, RestorePointContext, leave_restore_point
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

_COLOURS = {CheckState.OK: Colour.GOOD, CheckState.WARNING: Colour.WARNING, CheckState.FAILED: Colour.BAD}


@click.command(help="Answer whether SERVICE may be released now: exit 0 if it could be brought back, else 4.")
@click.argument("service")
@click.option("--restore-point", "name", metavar="NAME", help="if the gate is open, leave this restore point")
@click.pass_obj
def gate(invocation: Invocation, service: str, *, name: str | None) -> ExitStatus:
    """Ask the gate."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = GateContext(
            estate=estate,
            repository=plane.repository,
            evidence=evidence,
            state_dir=estate.state_dir,
            clock=plane.clock,
            progress=progress,
        )
        result = ask_gate(context, chosen, restore_point=name)
    invocation.output.result("gate", gate_document(result), _lines(result))
    return ExitStatus.OK if result.is_open else ExitStatus.BREACHED


def gate_document(result: GateResult) -> dict[str, object]:
    """Return the answer as the JSON contract spells it."""
    return {
        "service": result.service.name,
        "open": result.is_open,
        "at": to_iso(result.at),
        "checks": [
            {"name": check.name, "state": check.state.value, "detail": check.detail, "remedy": check.remedy}
            for check in result.checks
        ],
        "reasons": [f"{check.name}: {check.detail}" for check in result.checks if check.state is CheckState.FAILED],
        "restore_points": [point_document(left) for left in result.left],
    }


def point_document(left: LeftPoint) -> dict[str, object]:
    """Return a restore point that was left as the JSON contract spells it."""
    point = left.point
    return {
        "component": left.component.name,
        "name": point.name,
        "lsn": str(point.lsn),
        "timeline": int(point.timeline),
        "left_at": to_iso(point.left_at),
    }


def _lines(result: GateResult) -> list[Line]:
    lines: list[Line] = [
        (Span(f"{check.state.value:8}", _COLOURS[check.state]), f"{check.name}: {check.detail}")
        for check in result.checks
    ]
    lines += [f"remedy for {check.name}: {check.remedy}" for check in result.checks if check.remedy]
    lines += _point_lines(result.service.name, result.left)
    word = Span("open", Colour.GOOD) if result.is_open else Span("CLOSED", Colour.BAD)
    return [*lines, (f"the gate of {result.service.name} is ", word)]


@click.command(name="restore-point", help="Leave the restore point NAME in SERVICE, archived: a target for --name.")
@click.argument("service")
@click.argument("name")
@click.option("--component", help="this cluster only (default: every cluster of the service)")
@click.pass_obj
def restore_point(invocation: Invocation, service: str, name: str, *, component: str | None) -> None:
    """Leave a restore point."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    with open_data_plane(estate) as plane, invocation.progress() as progress:
        context = RestorePointContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        left = leave_restore_point(context, chosen, name, component=component)
    document = {"service": chosen.name, "name": name, "restore_points": [point_document(item) for item in left]}
    invocation.output.result("restore-point", document, _point_lines(chosen.name, left))


def _point_lines(service: str, left: tuple[LeftPoint, ...]) -> list[str]:
    lines: list[str] = []
    for item in left:
        lines.append(f"left {item.point.name} in {service}/{item.component.name} at {item.point.lsn}, archived")
        component = f" --component {item.component.name}" if len(left) > 1 else ""
        lines.append(f"come back to it: drservice restore {service} --name {item.point.name}{component} --start")
    return lines
