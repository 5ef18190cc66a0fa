"""``drservice drill``: recover a service in isolation, question it, judge it, and put that on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from drservice.cli.formatting import connect_line, format_seconds, format_table
from drservice.cli.invocation import Invocation
from drservice.cli.losslines import loss_lines
from drservice.errors import ExitStatus
from drservice.model.checks import CheckState
from drservice.model.estate import DrillPlan, Estate, Service
from drservice.operations.drill import run_drill
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.drillrecord import DrillRequest, requested_target
from drservice.operations.mutation import EXPLANATIONS, Mutation
from drservice.operations.restorerequest import RestoreContext
from drservice.operations.results import drill_document, drill_exit_status
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
    return drill_exit_status(result)


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
        yield from (f"  {line}" for line in loss_lines([it.as_json() for it in restored.losses], whole=False))
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
