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
from dataclasses import replace
from functools import partial

from drservice import telemetry
from drservice.checks.interface import RecoveredDatabase, RecoveredDocuments, RecoveredService
from drservice.checks.suite import SuiteOutcome, run_suite, without_answer
from drservice.environments.interface import Environment
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError
from drservice.evidence.ledger import Record
from drservice.model.checks import CheckResult
from drservice.model.estate import DrillTarget
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import EnvironmentId, make_ulid
from drservice.model.neutralized import Neutralized
from drservice.operations.causes import naming_the_cause
from drservice.operations.drillconclusion import DrillResult, conclude
from drservice.operations.drilljournal import Journal, under_way
from drservice.operations.drillplan import PreparedDrill, prepare_drill
from drservice.operations.drillrecord import (
    NOT_ASKED,
    Course,
    DrillRequest,
    is_left,
    journalled,
    record_orphans,
)
from drservice.operations.evidence import Evidence
from drservice.operations.imported import origin_of
from drservice.operations.instants import proven_span
from drservice.operations.loss import (
    ask_production,
    covered_by_receiver,
    is_tail_empty,
    left_behind,
    loss_at,
)
from drservice.operations.mutation import altered_repository, spoil
from drservice.operations.neutralizing import Copy, neutralize_service
from drservice.operations.production import database_in
from drservice.operations.replay import restart_server
from drservice.operations.restore import instant_of_files, run_restore
from drservice.operations.restoreplan import plan_restore, scanner_of
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.servicerestore import baselines_for


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
        entry, gaps = _record_obligation(context, evidence, prepared, run, obligation)
        course = _recover_and_check(context, request, prepared, journal)
        course.gaps = (*gaps, *_unreadable(context, request), *_unanswered(course), *_left_out(prepared))
        return conclude(context, evidence, request, prepared, course, run=run, obligation=obligation, entry=entry)


def _record_obligation(
    context: RestoreContext, evidence: Evidence, prepared: PreparedDrill, run: str, obligation: str
) -> tuple[Record, tuple[str, ...]]:
    """Put the obligation on record and seal it; returns also what stays unproven where it cannot be sealed."""
    context.progress.step("put the obligation on record")
    entry = evidence.require(
        EvidenceKind.OBLIGATION,
        service=prepared.service.name,
        run=run,
        subject=prepared.subject(),
        fields=prepared.obligation_fields(obligation),
    )
    anchors = evidence.seal()
    if evidence.is_sealed(entry.number, anchors):
        return entry, ()  # from here on this drill cannot be dropped unseen
    gap = "that the obligation was there before the restore: no checkpoint over it was signed or anchored first"
    context.progress.note(f"WARNING: not proved: {gap}; run drills where the log key is")
    return entry, (gap,)


def _unanswered(course: Course) -> tuple[str, ...]:
    if course.production is not None:
        return ()
    return ("what production had committed behind the archive: it did not answer, so work counts as lost there",)


def _left_out(prepared: PreparedDrill) -> tuple[str, ...]:
    if prepared.plan.neutralize or not prepared.criteria.documents:
        return ()
    return ("that a copy of Odoo does nothing outside: the plan leaves neutralizing out",)


def _unreadable(context: RestoreContext, request: DrillRequest) -> tuple[str, ...]:
    """Return what of the service cannot be read: this drill says nothing about it."""
    repository, name = context.repository, request.service.name
    keys = [
        key
        for component in request.service.components
        for key in repository.snapshots(repository.scope(name, component)).unreadable
    ]
    keys += repository.points(name).listing().unreadable
    return tuple(f"{key}: it cannot be read" for key in keys)


# --- the recovery and the questions ---------------------------------------------------------------------------


def _recover_and_check(
    context: RestoreContext, request: DrillRequest, prepared: PreparedDrill, journal: Journal
) -> Course:
    """Restore, spoil if this drill has to fail, ask everything, destroy."""
    began = context.clock.monotonic()
    covers = partial(covered_by_receiver, context.state_dir, request.service.name, request.component.name)
    production = ask_production(request.component.production_dsn, covers=covers)
    # Commits are stamped by production's clock, so the decision is too, as long as it can be asked.
    decided_at = production.at if production is not None else context.clock.now()
    course = Course(
        began=began,
        decided_at=decided_at,
        production=production,
        skew=context.repository.store.server_time() - decided_at,
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
        recovered = _recovered(context, request, course.restored, environment)
        with naming_the_cause(environment):
            course.loss_seconds = _loss_seconds(context, request, prepared, course, recovered, environment)
            if request.plan.neutralize:
                done = _neutralize(context, restore, course.restored, environment)
                course.restored = replace(course.restored, neutralized=done)
                recovered = replace(recovered, neutralized={item.component: item for item in done})
            course.spoilt = spoil(recovered, request.mutation)
            course.suite = _ask(context, prepared, recovered)
    except DrError as error:
        course.error = error
        course.suite = course.suite or without_answer(prepared.checks, NOT_ASKED)
    finally:
        course.rto_seconds = context.clock.monotonic() - course.began
        with _reporting(course):
            _end(context, request, course, environment)
        course.destroyed = course.environment is None or not is_left(context, course.environment)
    return course


def _neutralize(
    context: RestoreContext, restore: RestoreRequest, restored: RestoreResult, environment: Environment
) -> tuple[Neutralized, ...]:
    """Neutralize the copy; only after what it lost was asked of it, because this writes in it."""
    planned = restored.planned
    system_id = planned.resolved.plan.snapshot.postgres.system_id
    copy = Copy(environment=environment, system_id=system_id, clock=context.clock)
    return neutralize_service(context, restore, copy, instant_of_files(planned, restored.reached))


def _loss_seconds(
    context: RestoreContext,
    request: DrillRequest,
    prepared: PreparedDrill,
    course: Course,
    recovered: RecoveredService,
    environment: Environment,
) -> float | None:
    """Return the committed work that was not durable; asked before anything is written in the copy."""
    restored = course.restored
    assert restored is not None
    planned = restored.planned
    origin = origin_of(context.repository, planned.scope, planned.resolved.plan.snapshot)
    if origin is not None:  # no WAL tells what was committed after the dump
        return origin.loss_seconds(prepared.chosen.target.time or course.decided_at)
    tail_at_risk = False
    instant = prepared.chosen.target.time
    if prepared.chosen.kind is DrillTarget.LATEST or instant is None:
        instant = course.decided_at
        baseline = recovered.baselines.get(request.component.name)
        tail_at_risk = not is_tail_empty(
            course.production,
            restored,
            dsn=request.component.production_dsn,
            environment=environment,
            since_xid=baseline.snapshot_xmin if baseline is not None else None,
        )
    with scanner_of(context, planned.resolved.plan.snapshot, planned.scope, planned.archived) as scanner:
        if prepared.chosen.kind is DrillTarget.CONSISTENT:
            behind = left_behind(instant, restored, scanner)
            if behind is not None:
                return behind
        return loss_at(instant, restored, scanner, skew=course.skew, tail_at_risk=tail_at_risk)


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
                recovered_from_older=item.documents.recovered_from_older if item.documents is not None else (),
            )
            for item in restored.files
        },
        baselines=baselines_for(context.repository, request.service.name, restored, progress=context.progress),
    )


def _end(context: RestoreContext, request: DrillRequest, course: Course, environment: Environment | None) -> None:
    if environment is None:
        # It was made and could not be opened again, or the restore failed and could not destroy it.
        if course.environment is not None and is_left(context, course.environment):
            open_sandbox(context.environments_dir / course.environment).destroy()
    elif not request.keep:
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
