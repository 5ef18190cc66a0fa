"""``drservice verify``: is everything there, whole, and written by whom it should be?"""

from __future__ import annotations

import click

from drservice.cli.formatting import format_bytes
from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus, UsageError
from drservice.operations.verify import Verification, run_verify
from drservice.repository.verify import Depth
from drservice.wiring.data_plane import open_data_plane


@click.command(help="Check structure (default), or also data, of everything SERVICE has in the repository.")
@click.argument("service", required=False)
@click.option("--read-data-subset", metavar="N%", help="also read a random share of the data, another one each time")
@click.option("--all", "everything", is_flag=True, help="also read all data")
@click.pass_obj
def verify(
    invocation: Invocation, service: str | None, read_data_subset: str | None, *, everything: bool
) -> ExitStatus:
    """Verify the repository."""
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
    document = {"depth": depth.value, "percent": percent, "components": [_document(item) for item in outcomes]}
    lines = [line for item in outcomes for line in _lines(item)]
    if percent == 0:
        lines.append("next: drservice verify --all (reads and opens all data)")
    invocation.output.result("verify", document, lines)
    clean = all(not item.verified.findings for item in outcomes)
    return ExitStatus.OK if clean else ExitStatus.INTEGRITY


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


def _document(item: Verification) -> dict[str, object]:
    found = item.verified
    return {
        "service": found.scope.service,
        "component": found.scope.component,
        "snapshots": [record.id for record in found.snapshots],
        "packs_total": found.packs_total,
        "packs_read": found.packs_checked,
        "wal_files": found.wal_files,
        "bytes_read": found.bytes_read,
        "decrypted": found.decrypted,
        "findings": [
            {"key": f.key, "code": f.code, "problem": f.problem, "snapshots": list(f.snapshots)} for f in found.findings
        ],
        "condemned": list(item.condemned),
        "not_published": item.not_published,
        "not_judged": list(item.not_judged),
    }


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
