"""``drservice drill``: recover a service in isolation, question it, judge it, and put that on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from drservice.cli.formatting import connect_line, format_seconds, format_table
from drservice.cli.invocation import Invocation
from drservice.cli.restore import documents_document
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.model.estate import DrillPlan, Estate, Service
from drservice.operations.drill import run_drill
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.drillrecord import DrillRequest, requested_target
from drservice.operations.mutation import EXPLANATIONS, Mutation
from drservice.operations.restore import RestoreContext
from drservice.operations.servicerestore import document_counts, phases_of
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_anchored_evidence

_MARKS = {CheckState.PASSED: "passed    ", CheckState.FAILED: "FAILED    ", CheckState.UNVERIFIED: "UNVERIFIED"}


@click.command(help="Recover SERVICE in isolation, check it, judge it, put it on record, and destroy it.")
@click.argument("service")
@click.option("--plan", metavar="NAME", help="one of drills in the configuration (default: the service's only one)")
@click.option("--keep", is_flag=True, help="leave the recovered service running in its sandbox")
@click.option("--component", help="which cluster, if the service has several")
@click.option(
    "--mutation",
    "mutations",
    multiple=True,
    type=click.Choice([*(item.value for item in Mutation), "all"]),
    help="break this first, and see the drill fail: a verifier that never failed is unproven",
)
@click.pass_obj
def drill(
    invocation: Invocation,
    service: str,
    *,
    plan: str | None,
    keep: bool,
    component: str | None,
    mutations: tuple[str, ...],
) -> ExitStatus:
    """Drill."""
    estate = invocation.load().estate
    chosen = estate.service(service)
    found = estate.drill(chosen, plan)
    wanted = [Mutation(name) for name in mutations if name != "all"] if "all" not in mutations else list(Mutation)
    results = run_drills(
        invocation, estate, chosen, found, component=component, keep=keep or found.keep, mutations=wanted
    )
    if mutations:
        document: dict[str, object] = {"service": service, "drills": [drill_document(item) for item in results]}
        lines = [line for item in results for line in drill_lines(item)]
        invocation.output.result("drill-mutations", document, lines)
        good = all(item.is_good and item.record is not None and item.unproven is None for item in results)
        return ExitStatus.OK if good else ExitStatus.FAILED
    (result,) = results
    invocation.output.result("drill", drill_document(result), list(drill_lines(result)))
    return exit_status(result)


def run_drills(
    invocation: Invocation,
    estate: Estate,
    service: Service,
    plan: DrillPlan,
    *,
    component: str | None,
    keep: bool,
    mutations: Sequence[Mutation | None],
) -> list[DrillResult]:
    """Run a drill, or one for each mutation."""
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence, invocation.progress() as progress:
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        return [
            run_drill(
                context,
                evidence,
                DrillRequest(
                    service=service.around(service.database(component)),
                    component=service.database(component),
                    plan=plan,
                    keep=keep and mutation is None,
                    mutation=mutation,
                ),
            )
            for mutation in (mutations or [None])
        ]


def exit_status(result: DrillResult) -> ExitStatus:
    """Return 0 for a passed drill, 4 if only a promise was broken, 1 otherwise; also 1 if not on record and sealed."""
    if result.record is None or result.unproven is not None:
        return ExitStatus.FAILED
    if result.verdict.passed:
        return ExitStatus.OK
    critical = [
        item for item in result.results if item.severity is Severity.CRITICAL and item.state is not CheckState.PASSED
    ]
    documents = document_counts(result.restored) if result.restored is not None else None
    lost = documents is not None and bool(documents.missing or documents.corrupt)
    is_left = not result.destroyed and not result.kept
    is_breach = result.error is None and not critical and not lost and not is_left and result.measured.isolated is True
    return ExitStatus.BREACHED if is_breach else ExitStatus.FAILED


def drill_document(result: DrillResult) -> dict[str, object]:
    """Return a drill as the JSON contract spells it."""
    restored = result.restored
    measured = result.measured
    environment = restored.environment if restored is not None else None
    is_kept = restored is not None and not result.destroyed
    return {
        "run": result.run,
        "service": result.prepared.service.name,
        "plan": result.prepared.plan.name,
        "target": {
            "requested": requested_target(result.prepared),
            "kind": result.prepared.chosen.kind.value,
            "reached_time": to_iso(restored.reached.time) if restored is not None and restored.reached.time else None,
            "reached_lsn": str(restored.reached.lsn) if restored is not None else None,
            "timeline": int(restored.reached.timeline) if restored is not None else None,
        },
        "phases": (
            {k: round(v, 3) for k, v in phases_of(restored, rto_seconds=result.rto_seconds).items()}
            if restored is not None
            else None
        ),
        "rto_seconds": _seconds(measured.rto_ms),
        "environment": {
            "id": environment.id if environment is not None and is_kept else None,
            "kind": environment.kind if environment is not None else None,
            "path": str(environment.path) if environment is not None and is_kept else None,
            "dsn": environment.dsn if environment is not None and is_kept else None,
        },
        "documents": documents_document(document_counts(restored) if restored is not None else None),
        "verdict": "passed" if result.verdict.passed else "failed",
        "reasons": list(result.verdict.reasons),
        "warnings": list(result.verdict.warnings),
        "not_tested": list(result.verdict.not_tested),
        "checks": [_check(item) for item in result.results],
        "rpo_seconds": _seconds(measured.rpo_ms),
        "target_accuracy_seconds": _seconds(measured.target_accuracy_ms),
        "isolation": (
            [{"name": p.name, "isolated": p.isolated, "detail": p.detail} for p in restored.isolation]
            if restored is not None
            else []
        ),
        "record": result.record.number if result.record is not None else None,
        "obligation_record": result.obligation_entry,
        "unproven": result.unproven.message if result.unproven is not None else None,
        "findings": list(result.findings),
        "closed_findings": list(result.closed),
        "mutation": result.prepared.mutation.value if result.prepared.mutation is not None else None,
        "detected": result.detected,
        "destroyed": result.destroyed,
        "error": {"code": result.error.code, "message": result.error.message} if result.error is not None else None,
    }


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _check(item: CheckResult) -> dict[str, object]:
    return {
        "name": item.name,
        "state": item.state.value,
        "severity": item.severity.value,
        "owner": item.owner,
        "seconds": round(item.seconds, 3),
        "detail": item.detail,
    }


def drill_lines(result: DrillResult) -> Iterator[str]:
    """Tell a drill: the verdict first, what was promised and measured, every check, and what was not tested."""
    yield _headline(result)
    if result.prepared.mutation is not None:
        yield f"  broken on purpose: {result.spoilt or EXPLANATIONS[result.prepared.mutation]}"
    for reason in result.verdict.reasons:
        yield f"  - {reason}"
    restored = result.restored
    if restored is not None:
        yield from (f"  {line}" for line in _table(result))
        phases = phases_of(restored, rto_seconds=result.rto_seconds)
        yield "  " + ", ".join(f"{name} {format_seconds(value)}" for name, value in phases.items())
        for item in result.results:
            yield f"  {_MARKS[item.state]} {item.name}: {item.detail} ({format_seconds(item.seconds)})"
    yield from (f"  not tested: {text}" for text in result.verdict.not_tested)
    outcome = f"record {result.record.number}" if result.record is not None else "NOT ON RECORD YET, kept on this host"
    yield f"  obligation: record {result.obligation_entry}; outcome: {outcome}"
    if result.unproven is not None:
        yield f"  not sealed or findings not recorded: {result.unproven.message}"
    yield from (f"  finding opened: {finding}" for finding in result.findings)
    yield from (f"  finding closed: {finding}" for finding in result.closed)
    if restored is not None and not result.destroyed:
        yield connect_line(restored.environment.dsn, restored.database)
        yield f"destroy: drservice environment destroy {restored.environment.id}"
    is_sealed = result.record is not None and result.unproven is None
    next_command = f"show {result.record.number}" if result.record is not None and is_sealed else "anchor"
    yield f"next: drservice evidence {next_command}"


def _headline(result: DrillResult) -> str:
    service, target = result.prepared.service.name, requested_target(result.prepared)
    if result.detected is not None:
        word = "NOTICED, as it must be" if result.detected else "NOT NOTICED: the checks are unproven"
        assert result.prepared.mutation is not None
        return f"drill of {service} that must fail ({result.prepared.mutation.value}): {word}"
    return f"drill of {service} to {target}: {'PASSED' if result.verdict.passed else 'FAILED'}"


def _table(result: DrillResult) -> list[str]:
    promised, measured = result.prepared.criteria, result.measured
    rows = [
        ("RTO: decision to checks passed", _shown(promised.rto_ms), _shown(measured.rto_ms)),
        ("RPO: committed work not durable", _shown(promised.rpo_ms), _shown(measured.rpo_ms)),
        ("accuracy of the target, proved by WAL records", "", "exact" if measured.target_accuracy_ms == 0 else "-"),
    ]
    counts = document_counts(result.restored) if result.restored is not None else None
    if counts is not None:
        rows.append((f"documents missing, of {counts.expected}", "0", str(counts.missing)))
        rows.append(("documents corrupt", "0", str(counts.corrupt)))
        rows.append(("documents missing in production too", "", str(counts.missing_in_production)))
    return format_table(("", "PROMISED", "MEASURED"), rows)


def _shown(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else format_seconds(milliseconds / 1000)
