"""``drservice verify``: is everything there, whole, and written by whom it should be?"""

from __future__ import annotations

from datetime import timedelta

import click

from drservice.cli.drill import drill_lines, run_drills
from drservice.cli.formatting import format_bytes
from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus, UsageError
from drservice.model.estate import DrillPlan, DrillTarget
from drservice.operations.results import drill_document, drill_exit_status, verification_document
from drservice.operations.verify import Verification, run_verify
from drservice.repository.verify import Depth
from drservice.wiring.data_plane import open_data_plane

_VERIFIED_WITHIN = timedelta(days=7)


@click.command(help="Check structure (default), or also data, of everything SERVICE has in the repository.")
@click.argument("service", required=False)
@click.option("--read-data-subset", metavar="N%", help="also read a random share of the data, another one each time")
@click.option("--all", "everything", is_flag=True, help="also read all data")
@click.option("--restore", "restoring", is_flag=True, help="recover to a random instant of the last week and check it")
@click.pass_obj
def verify(
    invocation: Invocation,
    service: str | None,
    read_data_subset: str | None,
    *,
    everything: bool,
    restoring: bool,
) -> ExitStatus:
    """Verify the repository."""
    if restoring:
        if everything or read_data_subset is not None:
            raise UsageError("--restore reads what a recovery reads; it takes no share of the data")
        return _verify_by_restore(invocation, service)
    percent = _percent(read_data_subset, everything=everything)
    depth = Depth.DATA if percent else Depth.STRUCTURE
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, invocation.progress() as progress:
        outcomes = [
            run_verify(
                plane.repository,
                chosen,
                component,
                depth=depth,
                percent=percent,
                clock=plane.clock,
                progress=progress,
            )
            for chosen in estate.selected(service)
            for component in chosen.components.values()
        ]
    document = {
        "depth": depth.value,
        "percent": percent,
        "components": [verification_document(item) for item in outcomes],
    }
    lines = [line for item in outcomes for line in _lines(item)]
    if percent == 0:
        lines.append("next: drservice verify --all (reads and opens all data)")
    invocation.output.result("verify", document, lines)
    clean = all(not item.verified.findings for item in outcomes)
    return ExitStatus.OK if clean else ExitStatus.INTEGRITY


def _verify_by_restore(invocation: Invocation, service: str | None) -> ExitStatus:
    """Drill each service to a random instant: the proof that no look at stored bytes can give."""
    estate = invocation.load().estate
    results = [
        result
        for chosen in estate.selected(service)
        for result in run_drills(
            invocation,
            estate,
            chosen,
            DrillPlan(
                name=f"{chosen.name}-verify", service=chosen.name, target=DrillTarget.RANDOM, within=_VERIFIED_WITHIN
            ),
            component=None,
            keep=False,
            mutations=(),
        )
    ]
    lines = [line for result in results for line in drill_lines(result)]
    invocation.output.result("verify-restore", {"drills": [drill_document(result) for result in results]}, lines)
    return max((drill_exit_status(result) for result in results), key=_gravity, default=ExitStatus.OK)


def _gravity(status: ExitStatus) -> int:
    """Return how bad an outcome is: a recovery that failed is worse than a promise that was not kept."""
    return (ExitStatus.OK, ExitStatus.BREACHED, ExitStatus.FAILED).index(status)


def _percent(text: str | None, *, everything: bool) -> int:
    if everything and text is not None:
        raise UsageError("--all and --read-data-subset exclude each other")
    if everything:
        return 100
    if text is None:
        return 0
    digits = text.removesuffix("%")
    if not digits.isdigit() or not 1 <= int(digits) <= 100:
        raise UsageError(f"{text!r} is no share", hint="Write it as 5%, from 1% to 100%.")
    return int(digits)


def _lines(item: Verification) -> list[str]:
    found = item.verified
    scope = found.scope
    lines = [
        (
            f"{scope.service}/{scope.component}: {len(found.snapshots)} snapshots, {found.packs_total} packs"
            f" ({found.packs_checked} read), {found.wal_files} WAL files, {format_bytes(found.bytes_read)} read"
        )
    ]
    if not found.decrypted:
        lines.append("  without an identity: hashes and signatures were checked, content was not opened")
    if item.not_judged:
        lines.append(f"  not judged without an identity: whether WAL is missing behind {', '.join(item.not_judged)}")
    if not found.findings:
        lines.append("  everything that was looked at is whole")
    for finding in found.findings:
        spoilt = f" (spoils {', '.join(finding.snapshots)})" if finding.snapshots else ""
        lines.append(f"  FOUND {finding.code} {finding.key}: {finding.problem}{spoilt}")
    if item.condemned:
        lines.append(f"  {len(item.condemned)} packs count as missing now: the next backup stores their chunks again")
        lines.append(f"next: drservice backup {scope.service}")
    if item.not_published:
        lines.append(f"  damaged packs could not be condemned from here: {item.not_published}")
    return lines
