"""``drill``: restore in isolation, ask, judge, put on record, destroy.

The same restore as a real one. What counts as passed is on record before anything is restored; whatever happens then,
an outcome follows: passed, failed, or aborted by the next drill if this process died. A drill whose obligation cannot
be put on record does not begin, because nobody would have to believe its outcome.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from drservice import telemetry
from drservice.checks.interface import RecoveredDatabase, RecoveredDocuments, RecoveredService
from drservice.checks.suite import SuiteOutcome, run_suite, without_answer
from drservice.environments.interface import Environment
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError, IsolationError
from drservice.evidence.ledger import Record
from drservice.model.checks import CheckResult, CheckState
from drservice.model.estate import DrillTarget
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import EnvironmentId, make_ulid
from drservice.model.outcomes import Measured, Verdict, judge
from drservice.operations.drilljournal import Journal, under_way
from drservice.operations.drillplan import PreparedDrill, prepare_drill
from drservice.operations.drillrecord import (
    Course,
    DrillRequest,
    is_left,
    journalled,
    outcome_fields,
    record_orphans,
)
from drservice.operations.evidence import Evidence
from drservice.operations.findings import new_finding_ids, open_findings, record_findings
from drservice.operations.instants import proven_span
from drservice.operations.loss import (
    accuracy_seconds,
    ask_production,
    loss_at,
    loss_now,
    recovered_counter,
)
from drservice.operations.mutation import altered_repository, is_detected, spoil
from drservice.operations.production import database_in
from drservice.operations.records import (
    milliseconds,
)
from drservice.operations.replay import restart_server
from drservice.operations.restore import (
    Afterwards,
    RestoreContext,
    RestoreRequest,
    RestoreResult,
    plan_restore,
    run_restore,
    scanner_of,
)
from drservice.operations.servicerestore import baselines_for, document_counts, subjects_of

_NOT_ASKED = "not asked: the recovery did not come to an end"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """What a drill brought. ``restored`` is ``None`` if the recovery itself failed, with ``error``."""

    run: str
    prepared: PreparedDrill
    obligation_entry: int
    record: Record
    verdict: Verdict
    restored: RestoreResult | None
    results: tuple[CheckResult, ...]
    measured: Measured
    rto_seconds: float
    error: DrError | None
    spoilt: str | None
    destroyed: bool
    findings: tuple[str, ...]
    closed: tuple[str, ...]
    detected: bool | None
    """Whether a drill that had to fail did, for the right reason; ``None`` for an ordinary one."""

    @property
    def is_good(self) -> bool:
        """Whether it ended as it should: passed, or failed for the right reason if it had to fail."""
        return self.verdict.passed if self.detected is None else self.detected


def run_drill(context: RestoreContext, evidence: Evidence, request: DrillRequest) -> DrillResult:
    """Run one drill from its obligation to its record.

    Raises:
        LogKeyError, LedgerError, AnchorError: the obligation cannot be put on record or anchored; nothing was restored.
        TargetOutsideWindowError, UsageError: there is nothing to drill on.
        LedgerError, ObjectStoreError: the outcome could not be put on record; the next drill records it as aborted.
    """
    evidence.require_signing()
    record_orphans(context, evidence)
    scope = context.repository.scope(request.service.name, request.component.name)
    context.progress.step("choose the target")
    span = proven_span(context, request.service, scope)
    prepared = prepare_drill(
        request.plan,
        request.service,
        request.component,
        span=span,
        mutation=request.mutation,
        clock=context.clock,
        times=request.times,
    )
    for note in prepared.chosen.notes:
        context.progress.note(note)
    run = make_ulid(context.clock.now(), os.urandom(10))
    obligation = make_ulid(context.clock.now(), os.urandom(10))
    with under_way(context.state_dir, journalled(prepared, obligation, evidence.ledger.size())) as journal:
        entry = _record_obligation(context, evidence, prepared, run, obligation)
        course = _recover_and_check(context, request, prepared, journal)
        return _conclude(context, evidence, request, prepared, course, run=run, obligation=obligation, entry=entry)


def _record_obligation(
    context: RestoreContext, evidence: Evidence, prepared: PreparedDrill, run: str, obligation: str
) -> Record:
    context.progress.step("put the obligation on record")
    entry = evidence.require(
        EvidenceKind.OBLIGATION,
        service=prepared.service.name,
        run=run,
        subject=prepared.subject(),
        fields=prepared.obligation_fields(obligation),
    )
    evidence.seal()  # anchored before the restore: from here on this drill cannot be dropped unseen
    return entry


# --- the recovery and the questions ---------------------------------------------------------------------------


def _recover_and_check(
    context: RestoreContext, request: DrillRequest, prepared: PreparedDrill, journal: Journal
) -> Course:
    """Restore, spoil if this drill has to fail, ask everything, destroy."""
    decided_at = context.clock.now()
    course = Course(
        began=context.clock.monotonic(),
        decided_at=decided_at,
        production=ask_production(request.component.dsn, at=decided_at),
        nonce=secrets.token_hex(16),
    )

    def made(environment: EnvironmentId) -> None:
        course.environment = environment
        journal.note(environment)

    restore = RestoreRequest(
        service=request.service,
        component=request.component,
        target=prepared.chosen.target,
        into=None,
        afterwards=Afterwards.LEAVE_RUNNING,
        files=tuple(request.service.files()),
        purpose="drill" if request.mutation is None else "mutation",
        limits=request.limits,
        made=made,
    )
    environment: Environment | None = None
    try:
        with altered_repository(
            context.repository,
            request.mutation,
            lambda: plan_restore(context, restore),
            state_dir=context.state_dir,
        ) as repository:
            course.restored = run_restore(replace(context, repository=repository), restore)
        environment = open_sandbox(course.restored.environment.path)
        course.loss_seconds = _loss_seconds(context, prepared, course, environment)
        recovered = _recovered(context, request, course.restored, environment)
        spoilt = spoil(recovered, request.mutation)
        course.spoilt = spoilt.what if spoilt is not None else None
        course.suite = _ask(context, prepared, recovered)
    except DrError as error:
        course.error = error
        course.suite = course.suite or without_answer(prepared.checks, _NOT_ASKED)
    finally:
        course.rto_seconds = context.clock.monotonic() - course.began
        if environment is not None:
            with _reporting(course):
                _end(context, request, course, environment)
        course.destroyed = course.environment is None or not is_left(context, course.environment)
    return course


def _loss_seconds(
    context: RestoreContext, prepared: PreparedDrill, course: Course, environment: Environment
) -> float | None:
    """Return the committed work that was not durable; asked before anything is written in the copy."""
    assert course.restored is not None
    if prepared.chosen.kind is DrillTarget.LATEST:
        return loss_now(
            course.restored,
            decided_at=course.decided_at,
            production=course.production,
            counter=recovered_counter(environment),
        )
    assert prepared.chosen.target.time is not None
    with scanner_of(context, course.restored.planned.resolved.plan.snapshot, course.restored.planned.scope) as scanner:
        return loss_at(prepared.chosen.target.time, course.restored, scanner)


def _ask(context: RestoreContext, prepared: PreparedDrill, recovered: RecoveredService) -> SuiteOutcome:
    context.progress.step("check", total_items=len(prepared.checks))

    def tell(_: str, result: CheckResult | None) -> None:
        if result is not None:
            context.progress.advance(1)

    return run_suite(recovered, prepared.checks, clock=context.clock, progress=tell)


def _recovered(
    context: RestoreContext, request: DrillRequest, restored: RestoreResult, environment: Environment
) -> RecoveredService:
    """Return what checks are given."""
    component = request.component.name
    record = restored.planned.resolved.plan.snapshot
    return RecoveredService(
        service=request.service,
        databases={
            component: RecoveredDatabase(
                component=component,
                environment=environment,
                dsn=environment.dsn,
                programs=restored.programs,
                reached=restored.reached.lsn,
                expected_timeline=restored.reached.timeline,
                stop_lsn=record.postgres.stop_lsn,
                data_checksums=restored.data_checksums,
                database=database_in(request.component.dsn),
            )
        },
        documents={
            item.component.name: RecoveredDocuments(
                component=item.component.name,
                kind=item.component.kind,
                root=item.root,
                expected=item.documents.expected if item.documents is not None else item.files,
                missing=item.documents.missing if item.documents is not None else (),
                corrupt=item.documents.corrupt if item.documents is not None else (),
                extra=item.documents.extra if item.documents is not None else 0,
                missing_in_production=(
                    (*item.documents.missing_in_production, *item.documents.corrupt_in_production)
                    if item.documents is not None
                    else ()
                ),
                database=item.component.database,
                follows=item.component.follows,
            )
            for item in restored.files
        },
        baselines=baselines_for(context.repository, request.service.name, restored, progress=context.progress),
    )


def _end(context: RestoreContext, request: DrillRequest, course: Course, environment: Environment) -> None:
    if not request.keep:
        context.progress.step("destroy")
        environment.destroy()
    elif course.restored is not None and not environment.running():
        # pg_checksums needed it stopped; whoever asked to keep it wants to look at it.
        restart_server(environment, course.restored.programs, clock=context.clock)


@contextmanager
def _reporting(course: Course) -> Iterator[None]:
    """Let an environment that cannot be ended be part of the outcome instead of hiding it."""
    try:
        yield
    except DrError as error:
        course.error = course.error or error
        telemetry.warning("drill environment not ended", problem=error.message)


# --- the outcome ----------------------------------------------------------------------------------------------


def _measured(course: Course) -> Measured:
    restored = course.restored
    if restored is None:
        isolated = False if isinstance(course.error, IsolationError) else None
        return Measured(
            rto_ms=None,
            rpo_ms=None,
            target_accuracy_ms=None,
            documents_missing=None,
            documents_corrupt=None,
            isolated=isolated,
        )
    documents = document_counts(restored)
    return Measured(
        rto_ms=milliseconds(course.rto_seconds),
        rpo_ms=milliseconds(course.loss_seconds),
        target_accuracy_ms=milliseconds(accuracy_seconds(restored)),
        documents_missing=documents.missing if documents is not None else None,
        documents_corrupt=documents.corrupt if documents is not None else None,
        isolated=bool(restored.isolation) and all(probe.isolated for probe in restored.isolation),
    )


def _verdict(prepared: PreparedDrill, course: Course, measured: Measured) -> Verdict:
    assert course.suite is not None, "set in every way out of the recovery"
    verdict = judge(prepared.criteria, course.suite.results, measured, not_applicable=course.suite.not_applicable)
    if course.error is None:
        return verdict
    reason = f"{course.error.code}: {course.error.message}"
    if course.restored is not None:
        return replace(verdict, passed=False, reasons=(reason, *verdict.reasons))
    unasked = f"none of the {len(prepared.checks)} planned checks could be asked"
    return Verdict(passed=False, reasons=(reason, unasked), warnings=(), not_tested=(_NOT_ASKED,))


def _conclude(
    context: RestoreContext,
    evidence: Evidence,
    request: DrillRequest,
    prepared: PreparedDrill,
    course: Course,
    *,
    run: str,
    obligation: str,
    entry: Record,
) -> DrillResult:
    """Judge, put the outcome and its findings on record, and seal them."""
    context.progress.step("put the outcome on record")
    assert course.suite is not None, "set in every way out of the recovery"
    measured = _measured(course)
    verdict = _verdict(prepared, course, measured)
    is_ordinary = request.mutation is None
    known = open_findings(evidence, request.service) if is_ordinary else []
    opened = new_finding_ids(evidence, course.suite.results, known) if is_ordinary and course.restored else {}
    record = evidence.require(
        EvidenceKind.DRILL,
        service=request.service.name,
        run=run,
        subject=[*prepared.subject(), *(subjects_of(course.restored) if course.restored is not None else [])],
        fields={
            "obligation": obligation,
            "obligation_entry": entry.number,
            **outcome_fields(request, prepared, course, measured, verdict),
            "findings": list(opened.values()),
        },
    )
    closed = record_findings(
        evidence,
        request.service,
        drill_entry=record.number,
        results=course.suite.results,
        opened=opened,
        known=known,
    )
    evidence.seal()
    context.progress.done()
    return DrillResult(
        run=run,
        prepared=prepared,
        obligation_entry=entry.number,
        record=record,
        verdict=verdict,
        restored=course.restored,
        results=course.suite.results,
        measured=measured,
        rto_seconds=course.rto_seconds,
        error=course.error,
        spoilt=course.spoilt,
        destroyed=course.destroyed,
        findings=tuple(opened.values()),
        closed=tuple(closed),
        detected=_detected(request, course, verdict),
    )


def _detected(request: DrillRequest, course: Course, verdict: Verdict) -> bool | None:
    if request.mutation is None:
        return None
    assert course.suite is not None, "set in every way out of the recovery"
    failed = [item.name for item in course.suite.results if item.state is CheckState.FAILED]
    return not verdict.passed and is_detected(request.mutation, error=course.error, failed_checks=failed)
