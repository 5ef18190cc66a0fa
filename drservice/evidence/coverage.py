"""What was tested and what was not: scenarios beside services, and the list of gaps. Pure.

A report that lists only what was done invites the reader to take the rest for granted. So everything that could have
been tested and was not is listed, and so is what no drill can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drservice.evidence.report import (
    CoverageCell,
    CoverageRow,
    Drill,
    DrillVerdict,
    Gap,
    GapKind,
    Period,
    Scenario,
    ServicePosture,
)
from drservice.evidence.reporttext import format_day

SCOPE = (
    (
        "Drills nobody was obliged to do",
        (
            "A rehearsal without an obligation leaves no entry, whatever came out. From an anchored obligation on, an "
            "outcome cannot be dropped unseen."
        ),
    ),
    (
        "The truth of what was written",
        (
            "The ledger proves that entries were not changed, dropped or reordered once written. That what was "
            "written is true rests on separate keys, on targets fixed beforehand, and on drills that must fail."
        ),
    ),
)
"""What no drill shows; said in every report."""


def cover(
    drills: Sequence[Drill], *, scenarios: Sequence[Scenario], services: Sequence[ServicePosture], period: Period
) -> tuple[CoverageRow, ...]:
    """Return one row per scenario: those that are declared, then those that only the ledger knows."""
    names = [service.facts.name for service in services]
    declared = [s for s in scenarios if s.service is None or s.service in names]
    known = {(scenario.name, scenario.is_mutation) for scenario in declared}
    seen = sorted({_scenario_of(drill) for drill in drills if drill.obligation is not None} - known)
    extra = [Scenario(name=name, text="no longer declared", is_mutation=is_mutation) for name, is_mutation in seen]
    return tuple(
        CoverageRow(
            scenario=scenario,
            cells=tuple(
                _cell(drills, scenario, name, period) if scenario.service in {None, name} else None for name in names
            ),
        )
        for scenario in (*declared, *extra)
    )


def _scenario_of(drill: Drill) -> tuple[str, bool]:
    obligation = drill.obligation
    if obligation is None:
        return (drill.entry.mutation or "", drill.entry.mutation is not None)
    return (obligation.mutation, True) if obligation.mutation else (obligation.plan, False)


def _cell(drills: Sequence[Drill], scenario: Scenario, service: str, period: Period) -> CoverageCell:
    own = [
        drill
        for drill in drills
        if drill.entry.stamp.service == service and _scenario_of(drill) == (scenario.name, scenario.is_mutation)
    ]
    return CoverageCell(
        runs=sum(period.holds(drill.entry.stamp.recorded_at) for drill in own),
        last=own[-1].entry if own else None,
        verdict=own[-1].verdict if own else None,
    )


def gaps_of(
    drills: Sequence[Drill], *, coverage: Sequence[CoverageRow], services: Sequence[ServicePosture], period: Period
) -> tuple[Gap, ...]:
    """Return everything that was not tested in the period, and what no drill can show."""
    return (
        *_untested_services(services),
        *_unprotected(services),
        *_unexercised(coverage, services, period),
        *_not_run(drills),
        *_said(drills),
        *(Gap(kind=GapKind.SCOPE, subject=subject, text=text) for subject, text in SCOPE),
    )


def _untested_services(services: Sequence[ServicePosture]) -> Iterator[Gap]:
    for service in services:
        if service.drills == 0:
            last = service.last_passed
            text = "no drill in the period" + (
                f"; the last that passed is entry {last.stamp.number} of {format_day(last.stamp.recorded_at)}"
                if last
                else ", and none ever passed"
            )
            yield Gap(kind=GapKind.SERVICE, subject=service.facts.name, text=text)


def _unprotected(services: Sequence[ServicePosture]) -> Iterator[Gap]:
    for service in services:
        for component in service.unprotected:
            subject = f"{service.facts.name}/{component.name}"
            text = component.note or f"nothing backs up this {component.kind}"
            yield Gap(kind=GapKind.COMPONENT, subject=subject, text=text)


def _unexercised(coverage: Sequence[CoverageRow], services: Sequence[ServicePosture], period: Period) -> Iterator[Gap]:
    for row in coverage:
        for cell, service in zip(row.cells, services, strict=True):
            if cell is None or cell.runs:
                continue
            kind = "mutation" if row.scenario.is_mutation else "plan"
            subject = f"{kind} {row.scenario.name} with {service.facts.name}"
            if cell.last is None:
                text = "never exercised"
            else:
                text = f"not since {format_day(cell.last.stamp.recorded_at)}, before {format_day(period.begin)}"
            yield Gap(kind=GapKind.SCENARIO, subject=subject, text=text)


def _not_run(drills: Sequence[Drill]) -> Iterator[Gap]:
    found: dict[tuple[str, str], list[int]] = {}
    for drill in drills:
        if drill.verdict is DrillVerdict.DETECTED:
            continue  # it ended where the damage was found, as it should
        for name in drill.checks_not_run:
            found.setdefault((drill.entry.stamp.service or "-", name), []).append(drill.entry.stamp.number)
    for (service, name), entries in found.items():
        text = "promised beforehand, not run"
        yield Gap(kind=GapKind.CHECK, subject=f"{name} with {service}", text=text, entries=tuple(entries))


def _said(drills: Sequence[Drill]) -> Iterator[Gap]:
    found: dict[tuple[str, str], list[int]] = {}
    for drill in drills:
        for text in drill.entry.not_tested:
            found.setdefault((drill.entry.stamp.service or "-", text), []).append(drill.entry.stamp.number)
    for (service, text), entries in found.items():
        yield Gap(kind=GapKind.SAID, subject=service, text=text, entries=tuple(entries))
