"""``gate``: may this service be released now? Yes only if it could be brought back: every question answered, every one.

A question that cannot be asked is answered with no. The restore point is left last, and only if all else is well: no
release follows a closed gate, and the switch of WAL that comes with it must not flatter the lag.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice.clock import Clock, to_iso
from drservice.model.agenda import Results, due_of
from drservice.model.checks import Severity
from drservice.model.estate import Estate, Service
from drservice.model.points import PointState
from drservice.model.runs import RunKind
from drservice.model.timetable import Planned, timetable
from drservice.operations.checklist import Checklist, CheckResult, CheckState
from drservice.operations.evidence import Evidence
from drservice.operations.findings import open_findings
from drservice.operations.progress import Progress
from drservice.operations.restorepoint import (
    LeftPoint,
    RestorePointContext,
    leave_restore_point,
    require_point_name,
)
from drservice.operations.serviceinfo import ServiceInfo, service_info
from drservice.repository.repository import Repository

FRESH = timedelta(days=35)
"""How old a proof may be where no drill is scheduled."""
_AHEAD = timedelta(hours=1)
"""A clock that is further ahead is no clock to go by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateContext:
    """What the gate looks at."""

    estate: Estate
    repository: Repository
    evidence: Evidence
    state_dir: Path
    clock: Clock
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The answer, with its reasons."""

    service: Service
    at: datetime
    checks: tuple[CheckResult, ...]
    left: tuple[LeftPoint, ...]
    """The restore point, in each cluster; empty if none was asked for or the gate is closed."""

    @property
    def is_open(self) -> bool:
        """Whether nothing speaks against a release."""
        return all(check.state is not CheckState.FAILED for check in self.checks)


def ask_gate(context: GateContext, service: Service, *, restore_point: str | None = None) -> GateResult:
    """Answer whether a service may be released now; if so, leave a restore point to come back to.

    Raises:
        RestorePointNameError: the restore point cannot have that name; nothing was asked.
        ObjectStoreError: the store did not answer: nothing is known.
    """
    if restore_point is not None:
        require_point_name(restore_point)
    context.progress.step(f"ask about {service.name}")
    known = service_info(
        context.repository, service, evidence=context.evidence, state_dir=context.state_dir, clock=context.clock
    )
    now = context.clock.now()
    checklist = Checklist()
    _ask_backup(context, known, now, checklist)
    _ask_proof(context, known, now, checklist)
    _ask_lag(known, checklist)
    _ask_document_lag(known, checklist)
    _ask_findings(context, service, checklist)
    left: tuple[LeftPoint, ...] = ()
    if restore_point is not None and all(check.state is not CheckState.FAILED for check in checklist.results):
        with checklist.asking("restore point"):
            left = leave_restore_point(_for_points(context), service, restore_point)
            checklist.ok("restore point", f"{restore_point} can be restored to")
    context.progress.done()
    return GateResult(service=service, at=now, checks=tuple(checklist.results), left=left)


def _for_points(context: GateContext) -> RestorePointContext:
    return RestorePointContext(
        repository=context.repository, state_dir=context.state_dir, clock=context.clock, progress=context.progress
    )


def _ask_backup(context: GateContext, known: ServiceInfo, now: datetime, checklist: Checklist) -> None:
    service = known.service
    remedy = f"drservice backup {service.name}"
    whole = [point for point in known.points if point.state is not PointState.PARTIAL and point.at <= now + _AHEAD]
    if not whole:
        checklist.fail("last backup", "there is no recovery point that is whole", remedy)
        return
    newest = whole[-1]
    told = f"recovery point {newest.id} of {to_iso(newest.at)}"
    overdue = _overdue(context, service, RunKind.BACKUP, newest.at, now)
    if overdue is not None:
        checklist.fail("last backup", f"{told}: {overdue}", remedy)
    elif newest.state is PointState.DEGRADED:
        checklist.warn("last backup", f"{told} is degraded: production was damaged already", "drservice info")
    else:
        checklist.ok("last backup", told)


def _ask_proof(context: GateContext, known: ServiceInfo, now: datetime, checklist: Checklist) -> None:
    service = known.service
    remedy = f"drservice drill {service.name}"
    if known.ledger_problem is not None and known.proved is None:
        checklist.fail("verified point", f"the ledger cannot be asked: {known.ledger_problem}", remedy)
        return
    if known.proved is None:
        drill = known.last_drill
        last = f"; the last drill, at {to_iso(drill.at)}, {drill.outcome}" if drill is not None else ""
        checklist.fail("verified point", f"recovery is not proved{last}", remedy)
        return
    told = f"recovery was proved at {to_iso(known.proved.at)} by a {known.proved.how}"
    scheduled = any(planned.kind is RunKind.DRILL for planned in _planned(context, service))
    overdue = _overdue(context, service, RunKind.DRILL, known.proved.at, now)
    if not scheduled and now - known.proved.at > FRESH:
        overdue = f"older than {FRESH.days} days, and no drill is scheduled"
    if known.proved.at > now + _AHEAD:
        overdue = "which has not come yet: a clock is wrong"
    if overdue is not None:
        checklist.fail("verified point", f"{told}: {overdue}", remedy)
    else:
        checklist.ok("verified point", told)


def _ask_lag(known: ServiceInfo, checklist: Checklist) -> None:
    service = known.service
    if not service.databases():
        return
    promised = service.objectives.rpo
    risk = known.at_risk
    if risk.seconds is None:
        checklist.fail("WAL lag", f"what is at risk is not known: {risk.problem}", f"drservice check {service.name}")
        return
    told = f"{risk.seconds:.1f} s at risk"
    if promised is None:
        checklist.warn("WAL lag", f"{told}; no RPO is promised", "Set objectives.rpo.")
    elif risk.seconds > promised.total_seconds():
        told = f"{told}, {promised.total_seconds():g} s are promised"
        checklist.fail("WAL lag", told, f"Look at archiving: drservice check {service.name}")
    else:
        checklist.ok("WAL lag", f"{told}, {promised.total_seconds():g} s are promised")


def _ask_document_lag(known: ServiceInfo, checklist: Checklist) -> None:
    """Ask about documents what is asked about WAL: a release that is taken back takes them back, too."""
    service = known.service
    if not service.filestores():
        return
    promised, seconds = service.objectives.documents_rpo, known.filestores_at_risk_seconds
    remedy = f"Look at the document stream: drservice check {service.name}"
    if seconds is None:
        checklist.fail("document lag", "a filestore was never captured as a whole", f"drservice backup {service.name}")
        return
    told = f"documents of {seconds:.1f} s at risk"
    if promised is None:
        checklist.warn("document lag", f"{told}; no RPO is promised for them", "Set objectives.documents_rpo.")
    elif seconds > promised.total_seconds():
        checklist.fail("document lag", f"{told}, {promised.total_seconds():g} s are promised", remedy)
    else:
        checklist.ok("document lag", f"{told}, {promised.total_seconds():g} s are promised")


def _ask_findings(context: GateContext, service: Service, checklist: Checklist) -> None:
    with checklist.asking("findings"):
        found = open_findings(context.evidence, service)
        critical = [item.check for item in found if item.severity is Severity.CRITICAL]
        if critical:
            names = ", ".join(sorted(set(critical)))
            checklist.fail("findings", f"open and critical: {names}", f"Mend it, then: drservice drill {service.name}")
        elif found:
            names = ", ".join(sorted({item.check for item in found}))
            checklist.warn("findings", f"open, not critical: {names}", f"drservice drill {service.name}")
        else:
            checklist.ok("findings", "none is open")


def _planned(context: GateContext, service: Service) -> list[Planned]:
    return [planned for planned in timetable(context.estate) if planned.service.name == service.name]


def _overdue(context: GateContext, service: Service, kind: RunKind, last_done: datetime, now: datetime) -> str | None:
    """Say why a result is too old for one of its schedules, ``None`` if it is not."""
    results = Results(backed_up_at=last_done, drilled_at=last_done)
    for planned in _planned(context, service):
        if planned.kind is kind:
            due = due_of(planned, results, is_only=True)
            if due is not None and due.is_overdue(now):
                return f"the next one was due at {to_iso(due.at)} ({due.reason})"
    return None
