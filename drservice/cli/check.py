"""``drservice check``: named yes/no questions, each failure with its remedy."""

from __future__ import annotations

import click

from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus
from drservice.operations.checklist import CheckResult, CheckState
from drservice.operations.health import HealthContext, run_checks
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_anchored_evidence

_MARKS = {CheckState.OK: "ok     ", CheckState.WARNING: "warning", CheckState.FAILED: "FAILED "}
_NAGIOS_CRITICAL = 2


@click.command(help="Ask named yes/no questions about this host, the repository and SERVICE.")
@click.argument("service", required=False)
@click.option("--nagios", is_flag=True, help="one line and the exit statuses 0, 1, 2 of monitoring plugins")
@click.pass_obj
def check(invocation: Invocation, service: str | None, *, nagios: bool) -> ExitStatus:
    """Run the checks."""
    loaded = invocation.load()
    estate = loaded.estate
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence:
        context = HealthContext(estate=estate, repository=plane.repository, evidence=evidence, clock=plane.clock)
        results = run_checks(context, estate.selected(service))
    for notice in loaded.notices:
        remedy = "Nothing to do; a later version acts on it."
        results.append(CheckResult(name="configuration", state=CheckState.WARNING, detail=notice, remedy=remedy))
    failed = [item for item in results if item.state is CheckState.FAILED]
    warned = [item for item in results if item.state is CheckState.WARNING]
    if nagios:
        _nagios(invocation, results, failed, warned)
    document = {
        "checks": [
            {"name": item.name, "state": item.state.value, "detail": item.detail, "remedy": item.remedy}
            for item in results
        ]
    }
    lines: list[str] = []
    for item in results:
        lines.append(f"{_MARKS[item.state]}  {item.name}: {item.detail}")
        if item.remedy:
            lines.extend(f"           {line}" for line in item.remedy.splitlines())
    lines.append(f"{len(results)} checks, {len(failed)} failed, {len(warned)} warnings")
    invocation.output.result("check", document, lines)
    return ExitStatus.FAILED if failed else ExitStatus.OK


def _nagios(
    invocation: Invocation, results: list[CheckResult], failed: list[CheckResult], warned: list[CheckResult]
) -> None:
    word, status = ("OK", 0)
    if warned:
        word, status = "WARNING", 1
    if failed:
        word, status = "CRITICAL", _NAGIOS_CRITICAL
    worst = failed or warned
    text = "; ".join(f"{item.name}: {item.detail}" for item in worst[:3]) or f"{len(results)} checks passed"
    invocation.output.raw(f"DRSERVICE {word} - {text}")
    raise click.exceptions.Exit(status)
