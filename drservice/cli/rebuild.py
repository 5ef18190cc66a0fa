"""``drservice rebuild``: fill the catalogue from the repository and the ledger."""

from __future__ import annotations

import click

from drservice.catalogue.rebuild import Rebuilt, RebuiltService, rebuild
from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus
from drservice.wiring.control_plane import open_control_plane
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


@click.command(
    name="rebuild", help="Fill the catalogue (lost, empty or out of date) from the repository. Needs no identity."
)
@click.pass_obj
def rebuild_catalogue(invocation: Invocation) -> ExitStatus:
    """Rebuild the catalogue."""
    estate = invocation.load().estate
    with (
        open_data_plane(estate) as plane,
        open_evidence(plane) as evidence,
        open_control_plane(estate) as database,
        invocation.progress() as progress,
    ):
        rebuilt = rebuild(
            database,
            plane.repository,
            evidence.ledger,
            services=tuple(estate.services.values()),
            progress=progress,
        )
    invocation.output.result("rebuild", _document(rebuilt), _lines(rebuilt))
    return ExitStatus.PARTIAL if rebuilt.unreadable else ExitStatus.OK


def _document(rebuilt: Rebuilt) -> dict[str, object]:
    return {
        "services": [
            {
                "service": item.name,
                "snapshots": item.snapshots,
                "points": item.points,
                "windows": item.windows,
                "pruned": {"snapshots": item.pruned.snapshots, "points": item.pruned.points},
            }
            for item in rebuilt.services
        ],
        "records": rebuilt.records,
        "pruned_records": rebuilt.pruned_records,
        "unreadable": [{"key": item.key, "code": item.code, "problem": item.problem} for item in rebuilt.unreadable],
    }


def _lines(rebuilt: Rebuilt) -> list[str]:
    lines = [_service_line(item) for item in rebuilt.services]
    gone = f", {rebuilt.pruned_records} rows removed" if rebuilt.pruned_records else ""
    lines.append(f"ledger: {rebuilt.records} records{gone}")
    lines += [f"  NOT in the catalogue: {item.key}: {item.problem} ({item.code})" for item in rebuilt.unreadable]
    if rebuilt.unreadable:
        lines.append("next: drservice verify")
    return lines


def _service_line(item: RebuiltService) -> str:
    pruned = item.pruned.snapshots + item.pruned.points
    gone = f", {pruned} rows removed" if pruned else ""
    return f"{item.name}: {item.snapshots} snapshots, {item.points} points, {item.windows} windows of WAL{gone}"
