"""The end of a drill: the verdict, its record, findings opened and closed, the seal.

The outcome is put on record whatever it is. A record that would be too large is shortened, and what was cut is stored
beside it; one that the ledger does not take is kept aside on this host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from drservice import telemetry
from drservice.errors import DrError, IsolationError
from drservice.evidence.ledger import Record
from drservice.evidence.statements import Subject
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.model.evidence import EvidenceKind
from drservice.model.outcomes import Measured, Verdict, judge
from drservice.operations.drillplan import PreparedDrill
from drservice.operations.drillrecord import NOT_ASKED, Course, DrillRequest, outcome_fields
from drservice.operations.evidence import Evidence, artefact_subjects
from drservice.operations.findings import OpenFinding, label_of, new_finding_ids, open_findings, record_findings
from drservice.operations.loss import accuracy_seconds
from drservice.operations.mutation import is_detected
from drservice.operations.records import fitting, milliseconds
from drservice.operations.restorerequest import RestoreContext, RestoreResult
from drservice.operations.servicerestore import document_artefact, document_counts, point_of, subjects_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """What a drill brought. ``restored`` is ``None`` if the recovery itself failed, with ``error``."""

    run: str
    prepared: PreparedDrill
    obligation_entry: int
    record: Record | None
    """``None`` if the ledger did not take it: then it is kept aside on this host."""
    verdict: Verdict
    restored: RestoreResult | None
    results: tuple[CheckResult, ...]
    measured: Measured
    rto_seconds: float
    error: DrError | None
    spoilt: str | None
    destroyed: bool
    kept: bool
    """Whether it was asked for that the environment stays."""
    findings: tuple[str, ...]
    closed: tuple[str, ...]
    unproven: DrError | None
    """Why findings are not on record, or the outcome is not sealed and anchored yet, although it is on record."""
    detected: bool | None
    """Whether a drill that had to fail did, for the right reason; ``None`` for an ordinary one."""

    @property
    def is_good(self) -> bool:
        """Whether it ended as it should: passed, or failed for the right reason if it had to fail."""
        return self.verdict.passed if self.detected is None else self.detected


def conclude(
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
    """Judge, put the outcome and its findings on record, and seal them.

    Raises:
        StatementError: the outcome cannot be spelled as a record: the next drill records this one as aborted.
    """
    context.progress.step("put the outcome on record")
    assert course.suite is not None, "set in every way out of the recovery"
    measured = _measured(course)
    verdict = _verdict(request, prepared, course, measured)
    is_ordinary = request.mutation is None
    questions = list(_questions(request, prepared, course, measured)) if is_ordinary else []
    known = open_findings(evidence, request.service) if is_ordinary else []
    opened = new_finding_ids(evidence, questions, known)
    record = _put_on_record(
        context,
        evidence,
        request,
        prepared,
        course,
        measured,
        verdict,
        run=run,
        obligation=obligation,
        entry=entry,
        findings=[*opened.values()],
    )
    closed, unproven = _follow_up(context, evidence, request, course, record, questions, opened, known)
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
        spoilt=course.spoilt.what if course.spoilt is not None else None,
        destroyed=course.destroyed,
        kept=request.keep,
        findings=tuple(opened.values()),
        closed=tuple(closed),
        unproven=unproven,
        detected=_detected(request, course, verdict),
    )


def _reached_at(restored: RestoreResult | None) -> datetime | None:
    """Return the latest instant that the copy is known to show.

    Where nothing was committed after the snapshot, replay names no instant, and the copy shows the snapshot's end.
    """
    if restored is None:
        return None
    return restored.reached.time or restored.planned.resolved.plan.snapshot.stopped_at


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


def _verdict(request: DrillRequest, prepared: PreparedDrill, course: Course, measured: Measured) -> Verdict:
    assert course.suite is not None, "set in every way out of the recovery"
    verdict = judge(prepared.criteria, course.suite.results, measured, not_applicable=course.suite.not_applicable)
    verdict = replace(verdict, not_tested=(*verdict.not_tested, *course.gaps))
    if not course.destroyed and not request.keep:
        left = "its environment was not destroyed: `drservice environment list` shows it"
        verdict = replace(verdict, passed=False, reasons=(*verdict.reasons, left))
    if course.error is None:
        return verdict
    reason = f"{course.error.code}: {course.error.message}"
    if course.restored is not None:
        return replace(verdict, passed=False, reasons=(reason, *verdict.reasons))
    unasked = f"none of the {len(prepared.checks)} planned checks could be asked"
    return Verdict(passed=False, reasons=(reason, unasked), warnings=(), not_tested=(NOT_ASKED, *course.gaps))


def _detected(request: DrillRequest, course: Course, verdict: Verdict) -> bool | None:
    if request.mutation is None:
        return None
    assert course.suite is not None, "set in every way out of the recovery"
    failed = [item for item in course.suite.results if item.state is CheckState.FAILED]
    return not verdict.passed and is_detected(request.mutation, error=course.error, failed=failed, spoilt=course.spoilt)


def _questions(
    request: DrillRequest, prepared: PreparedDrill, course: Course, measured: Measured
) -> Iterator[CheckResult]:
    """Yield everything a finding can be about: the recovery itself, what was promised, and each check.

    A business check goes by its name and a hash of what it asks and expects: a finding is not closed by asking less.
    """
    yield _question("drill:recovery", passed=course.restored is not None, course=course)
    if course.restored is None:
        return
    yield _question("drill:isolation", passed=measured.isolated is True, course=course)
    for name, promised, found in (
        ("drill:rto", prepared.criteria.rto_ms, measured.rto_ms),
        ("drill:rpo", prepared.criteria.rpo_ms, measured.rpo_ms),
    ):
        if promised is not None:
            detail = f"{found} ms, promised {promised} ms"
            yield _question(name, passed=found is not None and found <= promised, course=course, detail=detail)
    if prepared.criteria.documents:
        missing, corrupt = measured.documents_missing, measured.documents_corrupt
        detail = f"{missing} missing, {corrupt} corrupt"
        yield _question("drill:documents", passed=missing == 0 and corrupt == 0, course=course, detail=detail)
    assert course.suite is not None, "set in every way out of the recovery"
    for result in course.suite.results:
        yield replace(result, name=label_of(result.name, request.service.checks))


def _question(name: str, *, passed: bool, course: Course, detail: str = "") -> CheckResult:
    told = f"{course.error.code}: {course.error.message}" if course.error is not None else detail
    return CheckResult(
        name=name,
        state=CheckState.PASSED if passed else CheckState.FAILED,
        severity=Severity.CRITICAL,
        detail=told,
        seconds=0.0,
    )


def _put_on_record(
    context: RestoreContext,
    evidence: Evidence,
    request: DrillRequest,
    prepared: PreparedDrill,
    course: Course,
    measured: Measured,
    verdict: Verdict,
    *,
    run: str,
    obligation: str,
    entry: Record,
    findings: list[str],
) -> Record | None:
    restored = course.restored
    subject: list[Subject] = [*prepared.subject()]
    point = None
    if restored is not None:
        subject += subjects_of(restored)
        subject += artefact_subjects(evidence, document_artefact(restored), progress=context.progress)
        point = point_of(context.repository, request.service.name, restored)
    fields = {
        **outcome_fields(request, prepared, course, measured, verdict),
        "obligation": obligation,
        "obligation_entry": entry.number,
        "point": point,
        "findings": [*findings],
    }
    fields, cut = fitting(fields)
    subject += artefact_subjects(evidence, cut, progress=context.progress)
    return evidence.append_or_keep(
        EvidenceKind.DRILL,
        service=request.service.name,
        run=run,
        subject=subject,
        fields=fields,
        progress=context.progress,
    )


def _follow_up(
    context: RestoreContext,
    evidence: Evidence,
    request: DrillRequest,
    course: Course,
    record: Record | None,
    questions: list[CheckResult],
    opened: dict[str, str],
    known: list[OpenFinding],
) -> tuple[list[str], DrError | None]:
    """Record what follows from the outcome and seal it; a failure here must not hide the outcome."""
    if record is None:
        return [], None
    try:
        closed = record_findings(
            evidence,
            request.service,
            drill_entry=record.number,
            results=questions,
            opened=opened,
            known=known,
            reached=_reached_at(course.restored),
        )
        evidence.seal()
    except DrError as error:
        context.progress.note(f"WARNING: findings or the seal of this drill are not on record: {error.message}")
        telemetry.warning("findings not recorded", problem=error.message)
        return [], error
    return closed, None
