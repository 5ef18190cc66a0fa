"""``drservice retention`` and ``drservice prune``: what may go, why, and letting it go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import click

from drservice.cli.formatting import format_bytes, format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import ExitStatus, UsageError
from drservice.model.estate import Service
from drservice.operations.prune import SWEEP_DISABLED, ComponentPacks
from drservice.operations.retention import (
    RetentionContext,
    RetentionOutcome,
    RetentionState,
    inspect_retention,
)
from drservice.operations.retentionrecord import apply_retention, run_prune
from drservice.operations.retentionresult import policy_document, retention_document
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

_EXIT = {
    RetentionState.PLANNED: ExitStatus.OK,
    RetentionState.APPLIED: ExitStatus.OK,
    RetentionState.FROZEN: ExitStatus.BREACHED,
    RetentionState.HELD: ExitStatus.BUSY,
    RetentionState.BLOCKED: ExitStatus.INTEGRITY,
    RetentionState.REFUSED: ExitStatus.PARTIAL,
}
_GRAVITY = (
    RetentionState.PLANNED,
    RetentionState.APPLIED,
    RetentionState.HELD,
    RetentionState.REFUSED,
    RetentionState.FROZEN,
    RetentionState.BLOCKED,
)
_SHOWN = 10


@click.command(help="Plan what of SERVICE (default: all) has expired, with a reason for each snapshot, or delete it.")
@click.argument("service", required=False)
@click.option("--dry-run", is_flag=True, help="show the plan; change nothing")
@click.option("--apply", "applying", is_flag=True, help="delete expired points, snapshots and WAL; never packs")
@click.option("--confirm", metavar="NAME", multiple=True, help="with --apply: the name of the service, once for each")
@click.option(
    "--despite-anomalies",
    "accepted",
    is_flag=True,
    help="delete although dates, numbers or sizes are unusual: looked at",
)
@click.pass_obj
def retention(
    invocation: Invocation,
    service: str | None,
    *,
    dry_run: bool,
    applying: bool,
    confirm: tuple[str, ...],
    accepted: bool,
) -> ExitStatus:
    """Plan or apply retention."""
    if dry_run == applying:
        raise UsageError("give --dry-run or --apply", hint="Look at --dry-run first.")
    estate = invocation.load().estate
    chosen = estate.selected(service)
    if applying:
        _require_confirmed(chosen, confirm)
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = RetentionContext(
            repository=plane.repository,
            evidence=evidence,
            state_dir=estate.state_dir,
            clock=plane.clock,
            progress=progress,
        )
        work = apply_retention if applying else inspect_retention
        outcomes = [work(context, item, accepted=accepted) for item in chosen]
    document = {"applied": applying, "services": [retention_document(item) for item in outcomes]}
    lines = [line for item in outcomes for line in _lines(item, applying=applying)]
    invocation.output.result("retention", document, lines)
    worst = max((item.state for item in outcomes), key=_GRAVITY.index, default=RetentionState.PLANNED)
    return ExitStatus.OK if worst is RetentionState.HELD and dry_run else _EXIT[worst]


def _require_confirmed(services: Sequence[Service], confirmed: tuple[str, ...]) -> None:
    names = [str(item.name) for item in services]
    if sorted(set(confirmed)) != sorted(names):
        words = " ".join(f"--confirm {name}" for name in names)
        raise UsageError(
            f"--apply deletes from {', '.join(names) or 'no service'}, and that is not what --confirm names",
            hint=f"Look at --dry-run, then add {words}." if words else "Declare a service in the configuration.",
        )


def _lines(item: RetentionOutcome, *, applying: bool) -> Iterator[str]:
    plan = item.plan
    periods = ", ".join(
        f"{name} {period}" for name, period in policy_document(item.service.retention).items() if period
    )
    yield f"{item.service.name}: {periods or 'no retention is configured, everything stays'}"
    rows = [
        (
            snapshot.id,
            snapshot.component,
            to_iso(snapshot.stored_at)[:19] + "Z",
            "keep" if verdict.kept is not None else "EXPIRED",
            verdict.reason,
        )
        for snapshot, verdict in plan.snapshots
    ]
    if rows:
        titles = ("SNAPSHOT", "COMPONENT", "STORED", "VERDICT", "REASON")
        yield from (f"  {line}" for line in format_table(titles, rows))
    yield f"  {len(plan.expired_points)} of {len(plan.points)} recovery points expired"
    for sets in item.documents:
        size = format_bytes(sum(file.stored_bytes for file in sets.expired))
        yield (
            f"  document sets of {sets.component}: {len(sets.expired)} ({size}) expired, {sets.remaining} stay;"
            f" {sets.reason}"
        )
    for wal in item.wal:
        size = format_bytes(sum(file.stored_bytes for file in wal.plan.expired))
        yield (
            f"  WAL of {wal.component} ({wal.plan.system_id}): {len(wal.plan.expired)} files ({size}) expired,"
            f" {wal.plan.remaining} stay; {wal.plan.reason}"
        )
    yield from (f"  UNREADABLE {key}: {problem}" for key, problem in item.unreadable.items())
    yield from (f"  ANOMALY: {text}" for text in plan.anomalies)
    yield from (f"  note: {text}" for text in item.notes)
    yield from (f"  {line}" for line in _result_lines(item, applying=applying))


def _result_lines(item: RetentionOutcome, *, applying: bool) -> Iterator[str]:
    if not item.proofs.last:
        yield "recovery was never proved: no snapshot is protected as the last proved one"
        yield f"next: drservice drill {item.service.name}"
    if item.state is RetentionState.FROZEN:
        yield "nothing may be deleted until a person has looked at the anomalies (then: --despite-anomalies)"
    if item.state is RetentionState.HELD:
        yield "a restore runs: nothing that it may need was deleted; run this again when it has ended"
    removed = item.removed
    if item.record is not None:
        yield f"on record: drservice evidence show {item.record}"
    if removed is not None:
        yield (
            f"deleted: {len(removed.points)} recovery points, {len(removed.snapshots)} snapshots,"
            f" {len(removed.sets)} document sets ({format_bytes(removed.set_bytes)}),"
            f" {len(removed.wal)} WAL files ({format_bytes(removed.wal_bytes)})"
        )
        kinds = Counter(removed.refused.values())
        yield from (f"NOT deleted ({number}): {problem}" for problem, number in kinds.most_common(_SHOWN))
    elif not applying and item.state is RetentionState.PLANNED and (item.plan.expired or _has_more(item)):
        yield f"next: drservice retention {item.service.name} --apply --confirm {item.service.name}"


def _has_more(item: RetentionOutcome) -> bool:
    return any(wal.plan.expired for wal in item.wal) or any(sets.expired for sets in item.documents)


@click.command(help="Report packs that no snapshot of SERVICE (default: all) refers to; deletes nothing.")
@click.argument("service", required=False)
@click.pass_obj
def prune(invocation: Invocation, service: str | None) -> None:
    """Mark unused packs."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        found = [
            packs
            for item in estate.selected(service)
            for packs in run_prune(plane.repository, evidence, item, progress=progress)
        ]
    document = {
        "sweep": "disabled",
        "detail": SWEEP_DISABLED,
        "unused_packs": sum(len(item.unused) for item in found),
        "unused_bytes": sum(item.unused_bytes for item in found),
        "components": [_packs(item) for item in found],
    }
    rows = [
        (
            f"{item.service}/{item.component}",
            str(item.snapshots),
            f"{item.packs} ({format_bytes(item.pack_bytes)})",
            f"{len(item.unused)} ({format_bytes(item.unused_bytes)})",
            f"{item.waiting} ({format_bytes(item.waiting_bytes)})",
        )
        for item in found
    ]
    table = format_table(("COMPONENT", "SNAPSHOTS", "PACKS", "UNUSED", "UNUSED, TOO YOUNG"), rows) if rows else ["none"]
    table += [
        f"{item.service}/{item.component}: {item.covered_pieces} pieces of WAL ({format_bytes(item.covered_bytes)}) lie"
        " under whole segments; they go when that WAL expires"
        for item in found
        if item.covered_pieces
    ]
    invocation.output.result("prune", document, [*table, f"nothing was deleted: {SWEEP_DISABLED}"])


def _packs(item: ComponentPacks) -> dict[str, object]:
    return {
        "service": item.service,
        "component": item.component,
        "snapshots": item.snapshots,
        "packs": item.packs,
        "pack_bytes": item.pack_bytes,
        "unused": [{"key": info.key, "stored_bytes": info.stored_bytes} for info in item.unused],
        "unused_bytes": item.unused_bytes,
        "too_young": item.waiting,
        "too_young_bytes": item.waiting_bytes,
        "covered_pieces": item.covered_pieces,
        "covered_piece_bytes": item.covered_bytes,
    }
