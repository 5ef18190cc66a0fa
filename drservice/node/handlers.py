"""What each kind of run does: the same operations as the command line, told as documents.

Runs in the process of one run, which knows no catalogue: what an operation commits is in the repository, whoever hears
of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from drservice.clock import Clock, from_iso
from drservice.environments.sandbox import list_sandboxes, open_sandbox
from drservice.errors import (
    DrError,
    ExitStatus,
    NotProvedError,
    RetentionStoppedError,
    UnsupportedRunError,
    UsageError,
)
from drservice.model.estate import Estate, Service
from drservice.model.ids import ComponentName
from drservice.model.points import RecoveryPoint
from drservice.model.recovery import Target, TargetKind
from drservice.model.runs import RunKind, RunState
from drservice.model.snapshot import SnapshotState
from drservice.node.assignment import Assignment, Document, Outcome
from drservice.objectstore.locks import host_lock
from drservice.operations.backup import BackupContext
from drservice.operations.backupresults import backup_document
from drservice.operations.drill import run_drill
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.drillrecord import DrillRequest
from drservice.operations.evidence import Evidence
from drservice.operations.progress import Progress
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest
from drservice.operations.results import (
    drill_document,
    drill_exit_status,
    error_document,
    restore_document,
    verification_document,
)
from drservice.operations.retention import RetentionContext, RetentionState
from drservice.operations.retentionrecord import apply_retention
from drservice.operations.retentionresult import retention_summary
from drservice.operations.servicebackup import backup_service, record_published_point, run_service_backup
from drservice.operations.servicerestore import restore_service
from drservice.operations.storeproof import keep_store_proved
from drservice.operations.verify import run_verify
from drservice.repository.verify import Depth
from drservice.repository.writer import lock_path
from drservice.wiring.data_plane import DataPlane, open_data_plane
from drservice.wiring.evidence import open_anchored_evidence, open_evidence

_BUSY_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a handler works with."""

    estate: Estate
    service: Service
    assignment: Assignment
    progress: Progress


def carry_out(estate: Estate, assignment: Assignment, progress: Progress) -> Outcome:
    """Do one run and return how it ended; what the operation could not do is an outcome too.

    Only interruptions and defects leave as exceptions.
    """
    try:
        service = estate.service(assignment.service)
        return HANDLERS[assignment.kind](Task(estate=estate, service=service, assignment=assignment, progress=progress))
    except DrError as error:
        return failed(error)


def failed(error: DrError, result: Document | None = None) -> Outcome:
    """Return the outcome of a run that an error ended."""
    return Outcome(state=RunState.FAILED, result=result, error=error_document(error))


def _backup(task: Task) -> Outcome:
    name = task.service.name
    with _opened(task) as (plane, evidence):
        done = _point_of_earlier_claim(task, plane)
        if done is not None:
            task.progress.note(f"recovery point {done.id} was finished before the run changed hands")
            record_published_point(_backup_context(task, plane), evidence, done)
            return Outcome(
                state=RunState.SUCCEEDED if done.state.value == SnapshotState.COMPLETE.value else RunState.PARTIAL,
                result={"service": name, "point": done.id, "state": done.state.value, "snapshots": [], "notes": []},
            )
        _wait_until_free(task, task.service.components, plane.clock)
        result = run_service_backup(_backup_context(task, plane), evidence, task.service)
        keep_store_proved(plane.estate, evidence, clock=plane.clock, progress=task.progress)
    return Outcome(
        state=RunState.SUCCEEDED if result.state is SnapshotState.COMPLETE else RunState.PARTIAL,
        result=backup_document(result, name),
    )


def _documents(task: Task) -> Outcome:
    """Capture the documents alone: no recovery point, and no record for a pass every few seconds."""
    stores = task.service.filestores()
    if not stores:
        raise UnsupportedRunError(f"service {task.service.name} has no documents")
    with _opened(task) as (plane, _):
        _wait_until_free(task, (item.name for item in stores), plane.clock)
        context = _backup_context(task, plane)
        results = [backup_service(context, task.service, item.name, taken=lambda _: None) for item in stores]
    is_whole = all(item.state is SnapshotState.COMPLETE for item in results)
    return Outcome(
        state=RunState.SUCCEEDED if is_whole else RunState.PARTIAL,
        result={"passes": [backup_document(item, task.service.name) for item in results]},
    )


def _verify(task: Task) -> Outcome:
    percent = _percent(task.assignment.parameters)
    depth = Depth.DATA if percent else Depth.STRUCTURE
    with open_data_plane(task.estate) as plane:
        outcomes = [
            run_verify(
                plane.repository,
                task.service,
                component,
                depth=depth,
                percent=percent,
                clock=plane.clock,
                progress=task.progress,
            )
            for component in task.service.components.values()
        ]
    document: Document = {
        "depth": depth.value,
        "percent": percent,
        "components": [verification_document(item) for item in outcomes],
    }
    findings = [finding for item in outcomes for finding in item.verified.findings]
    if not findings:
        return Outcome(state=RunState.SUCCEEDED, result=document)
    problem = NotProvedError(f"{len(findings)} findings, the first: {findings[0].key}: {findings[0].problem}")
    problem.exit_status = ExitStatus.INTEGRITY
    return failed(problem, document)


def _drill(task: Task) -> Outcome:
    # The name of a drill that no configuration spells out is the schedule's, not one to look up.
    named = task.assignment.plan if task.assignment.plan in task.estate.drills else None
    plan = task.estate.drill(task.service, named)
    component = task.service.database()
    with open_data_plane(task.estate) as plane, open_anchored_evidence(plane) as evidence:
        result = run_drill(
            _restore_context(task, plane),
            evidence,
            DrillRequest(service=task.service.around(component), component=component, plan=plan, keep=plan.keep),
        )
    document = drill_document(result)
    status = drill_exit_status(result)
    if status is ExitStatus.OK:
        return Outcome(state=RunState.SUCCEEDED, result=document)
    problem = NotProvedError(_why_not_passed(result))
    problem.exit_status = status
    return failed(problem, document)


def _restore(task: Task) -> Outcome:
    """Recover in isolation and leave it running: the environment is in the result, and expires by itself."""
    component = task.service.database()
    request = RestoreRequest(
        service=task.service,
        component=component,
        target=_target(task.assignment.parameters),
        into=None,
        afterwards=Afterwards.LEAVE_RUNNING,
        files=tuple(task.service.files()),
    )
    with _opened(task) as (plane, evidence):
        result = restore_service(_restore_context(task, plane), evidence, request)
    return Outcome(
        state=RunState.PARTIAL if result.is_partial else RunState.SUCCEEDED,
        result=restore_document(result, task.service.name),
    )


def _retention(task: Task) -> Outcome:
    """Let go of what has expired, as `drservice retention --apply` does; nobody is there to look at anomalies."""
    with _opened(task) as (plane, evidence):
        context = RetentionContext(
            repository=plane.repository,
            evidence=evidence,
            state_dir=task.estate.state_dir,
            clock=plane.clock,
            progress=task.progress,
        )
        outcome = apply_retention(context, task.service)
    document = retention_summary(outcome)
    if outcome.state is RetentionState.FROZEN:
        problem = RetentionStoppedError(f"nothing was deleted before a person has looked: {outcome.plan.anomalies[0]}")
        problem.exit_status = ExitStatus.BREACHED
        return failed(problem, document)
    if outcome.state is RetentionState.BLOCKED:
        key, reason = next(iter(outcome.unreadable.items()))
        problem = RetentionStoppedError(f"what {key} may need was not deleted: it cannot be read ({reason})")
        problem.exit_status = ExitStatus.INTEGRITY
        return failed(problem, document)
    if outcome.state is RetentionState.HELD:
        task.progress.note("a restore runs: nothing that it may need was deleted; the next run does the rest")
    is_whole = outcome.state is RetentionState.APPLIED
    return Outcome(state=RunState.SUCCEEDED if is_whole else RunState.PARTIAL, result=document)


def _destroy(task: Task) -> Outcome:
    """End one environment of the service on this host; one that is gone already is as good as ended."""
    wanted = task.assignment.parameters.get("environment")
    folder = task.estate.state_dir / "environments"
    found = next((item for item in list_sandboxes(folder) if item.id == wanted), None)
    if found is None:
        return Outcome(state=RunState.SUCCEEDED, result={"environment": wanted, "destroyed": False})
    if found.service != task.service.name:
        raise UnsupportedRunError(f"environment {wanted} is none of {task.service.name}")
    task.progress.step(f"destroy environment {wanted}")
    open_sandbox(found.path).destroy()
    task.progress.done()
    return Outcome(state=RunState.SUCCEEDED, result={"environment": wanted, "destroyed": True})


HANDLERS: Mapping[RunKind, Callable[[Task], Outcome]] = MappingProxyType(
    {
        RunKind.BACKUP: _backup,
        RunKind.DOCUMENTS: _documents,
        RunKind.VERIFY: _verify,
        RunKind.DRILL: _drill,
        RunKind.RESTORE: _restore,
        RunKind.RETENTION: _retention,
        RunKind.DESTROY: _destroy,
    }
)
"""Of each kind of run."""


@contextmanager
def _opened(task: Task) -> Iterator[tuple[DataPlane, Evidence]]:
    with open_data_plane(task.estate) as plane, open_evidence(plane) as evidence:
        yield plane, evidence


def _backup_context(task: Task, plane: DataPlane) -> BackupContext:
    return BackupContext(
        repository=plane.repository, state_dir=task.estate.state_dir, clock=plane.clock, progress=task.progress
    )


def _restore_context(task: Task, plane: DataPlane) -> RestoreContext:
    return RestoreContext(
        repository=plane.repository, state_dir=task.estate.state_dir, clock=plane.clock, progress=task.progress
    )


def _point_of_earlier_claim(task: Task, plane: DataPlane) -> RecoveryPoint | None:
    """Return the first recovery point that was begun since this run was first claimed, if the run has changed hands.

    Its host may have died between the commit and telling the catalogue: the slot has its backup then. Which run made a
    point is not written in it; any point begun after the run was, serves the run's purpose. Its own, if there is one,
    is the first: runs of a service do not overlap.
    """
    since = task.assignment.first_started_at
    if task.assignment.epoch == 1 or since is None:
        return None
    points = plane.repository.points(task.service.name).listing().points
    return next((point for point in points if all(member.started_at >= since for member in point.members)), None)


def _wait_until_free(task: Task, components: Iterable[ComponentName], clock: Clock) -> None:
    """Wait while somebody else on this host backs up a component: a person, or what a killed node left behind.

    Whoever comes between this look and the backup makes it fail as busy.

    Raises:
        BusyError: somebody was there for too long.
    """
    for component in components:
        path = lock_path(task.estate.state_dir, task.service.name, component)
        if path.exists():
            task.progress.step(f"wait for other backups of {component}")
            with host_lock(path, clock=clock, patience_seconds=_BUSY_PATIENCE.total_seconds()):
                pass


def _why_not_passed(result: DrillResult) -> str:
    reasons = list(result.verdict.reasons)
    if result.record is None:
        reasons.append("the outcome is not on record yet")
    if result.unproven is not None:
        reasons.append(result.unproven.message)
    return "; ".join(reasons)


def _percent(parameters: Document) -> int:
    value = parameters.get("percent", 0)
    if not isinstance(value, int) or not 0 <= value <= 100:
        raise UsageError(f"percent is {value!r}", hint="Give a whole number from 0 to 100.")
    return value


def _target(parameters: Document) -> Target:
    to = parameters.get("to", "latest")
    if to == "latest":
        return Target(kind=TargetKind.LATEST)
    try:
        instant: datetime = from_iso(str(to))
    except ValueError as error:
        raise UsageError(f"{to!r} is no instant with a time zone", hint="Give an ISO 8601 time, or latest.") from error
    return Target(kind=TargetKind.TIME, time=instant)
