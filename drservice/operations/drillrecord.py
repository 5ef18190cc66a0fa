"""How a drill is put on record: what was seen so far, and the fields of its outcome, also of one that never ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from drservice.canonical import Json
from drservice.checks.suite import CheckTimes, SuiteOutcome
from drservice.clock import to_iso
from drservice.environments.limits import Limits
from drservice.environments.sandbox import open_sandbox, reap
from drservice.errors import DrError
from drservice.evidence.ledger import Record
from drservice.evidence.statements import Subject
from drservice.model.checks import CheckResult, CheckState
from drservice.model.estate import DrillPlan, DrillTarget, PostgresSettings, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import EnvironmentId, ServiceName
from drservice.model.outcomes import Measured, Verdict
from drservice.operations.drilljournal import UnderWay, orphans
from drservice.operations.drillplan import PreparedDrill, not_tested
from drservice.operations.evidence import Evidence
from drservice.operations.loss import Production
from drservice.operations.mutation import Mutation, Spoilt
from drservice.operations.records import check_fields, error_fields, recovery_fields, target_fields, texts
from drservice.operations.restorerequest import RestoreContext, RestoreResult
from drservice.operations.servicerestore import recovered_fields

_NICENESS = 10
"""A drill may run beside production."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillRequest:
    """What is asked for."""

    service: Service
    component: PostgresSettings
    plan: DrillPlan
    keep: bool = False
    mutation: Mutation | None = None
    limits: Limits = field(default_factory=lambda: Limits(niceness=_NICENESS))
    times: CheckTimes = field(default_factory=CheckTimes)


NOT_ASKED = "not asked: the recovery did not come to an end"


@dataclass(slots=True, kw_only=True)
class Course:
    """A drill under way: what has been seen so far."""

    began: float
    decided_at: datetime
    production: Production | None
    skew: timedelta
    """How much the store's clock was ahead of the one that ``decided_at`` is of."""
    nonce: str
    loss_seconds: float | None = None
    restored: RestoreResult | None = None
    suite: SuiteOutcome | None = None
    error: DrError | None = None
    spoilt: Spoilt | None = None
    gaps: tuple[str, ...] = ()
    """What this drill does not prove, beside what its checks could not ask."""
    environment: EnvironmentId | None = None
    """What was made for it, from the moment on that something could outlive this process."""
    rto_seconds: float = 0.0
    destroyed: bool = False


def journalled(prepared: PreparedDrill, obligation: str, known_size: int) -> UnderWay:
    """Return what the journal keeps, so that another process could put this drill on record as aborted."""
    chosen = prepared.chosen
    return UnderWay(
        obligation=obligation,
        known_size=known_size,
        service=prepared.service.name,
        plan=prepared.plan.name,
        plan_sha256=prepared.plan_sha256(),
        requested=requested_target(prepared),
        kind=chosen.kind.value,
        seed=chosen.seed.hex() if chosen.seed is not None else None,
        mutation=prepared.mutation.value if prepared.mutation is not None else None,
        rto_ms=prepared.criteria.rto_ms,
        rpo_ms=prepared.criteria.rpo_ms,
    )


def requested_target(prepared: PreparedDrill) -> str:
    """Return the target as records spell it: ``latest``, ``consistent``, or the instant."""
    chosen = prepared.chosen
    if chosen.kind in {DrillTarget.LATEST, DrillTarget.CONSISTENT}:
        return str(chosen.kind.value)
    assert chosen.target.time is not None
    return to_iso(chosen.target.time)


def outcome_fields(
    request: DrillRequest, prepared: PreparedDrill, course: Course, measured: Measured, verdict: Verdict
) -> dict[str, Json]:
    """Return the fields of a drill's record beside its obligation and findings."""
    restored = course.restored
    assert course.suite is not None, "set in every way out of the recovery"
    recovered = (
        recovered_fields(restored, rto_seconds=course.rto_seconds)
        if restored is not None
        else recovery_fields(error=course.error)
    )
    challenge: Json = {
        "nonce": course.nonce,
        "lsn": str(restored.reached.lsn) if restored is not None else None,
    }
    return {
        **recovered,
        "error": error_fields(course.error),
        "outcome": "passed" if verdict.passed else "failed",
        "target": target_fields(
            requested=requested_target(prepared),
            kind=prepared.chosen.kind.value,
            reached_time=restored.reached.time if restored is not None else None,
            reached_lsn=str(restored.reached.lsn) if restored is not None else None,
            timeline=int(restored.reached.timeline) if restored is not None else None,
        ),
        "reasons": texts(verdict.reasons),
        "checks": [
            *check_fields(course.suite.results),
            *check_fields(_excused(prepared, course.suite), not_applicable=True),
        ],
        "rpo_ms": measured.rpo_ms,
        "target_accuracy_ms": measured.target_accuracy_ms,
        "promised": {"rto_ms": prepared.criteria.rto_ms, "rpo_ms": prepared.criteria.rpo_ms},
        "not_tested": not_tested(prepared, verdict.not_tested),
        "seed": prepared.chosen.seed.hex() if prepared.chosen.seed is not None else None,
        "mutation": request.mutation.value if request.mutation is not None else None,
        "destroyed": course.destroyed,
        "kept": request.keep and restored is not None,
        "challenge": challenge,
    }


def _excused(prepared: PreparedDrill, suite: SuiteOutcome) -> list[CheckResult]:
    """Return planned checks that make no sense for this service: recorded as not verified, counting for nothing."""
    planned = {check.name: check for check in prepared.checks}
    return [
        CheckResult(
            name=name,
            state=CheckState.UNVERIFIED,
            severity=planned[name].severity,
            detail=reason,
            seconds=0.0,
            owner=planned[name].owner,
        )
        for name, reason in suite.not_applicable.items()
    ]


def record_orphans(context: RestoreContext, evidence: Evidence) -> list[int]:
    """Put drills whose process died on this host on record as aborted; returns the numbers of the records.

    Whatever they had made is destroyed first: a server that outlives its drill holds production's data.

    Raises:
        EnvironmentFailedError: something of them cannot be destroyed; they stay in the journal.
        LedgerError, ObjectStoreError: they could not be put on record, and stay in the journal.
    """
    reap(context.environments_dir, context.clock)
    numbers: list[int] = []
    with orphans(context.state_dir) as found:
        for orphan in found:
            on_record = _on_record(evidence, orphan.drill)
            if EvidenceKind.DRILL in on_record:
                continue  # it died behind its outcome: all that can be left of it was kept on purpose
            for environment in orphan.environments:
                if is_left(context, environment):
                    open_sandbox(context.environments_dir / environment).destroy()
            if EvidenceKind.OBLIGATION in on_record:
                entry = on_record[EvidenceKind.OBLIGATION]
                numbers.append(_record_abortion(evidence, orphan.drill, entry).number)
    return numbers


def is_left(context: RestoreContext, environment: EnvironmentId) -> bool:
    """Return whether there is anything of an environment."""
    return (context.environments_dir / environment).exists()


def _on_record(evidence: Evidence, drill: UnderWay) -> dict[EvidenceKind, int]:
    """Return where a drill's obligation and its outcome stand in the ledger."""
    return {
        entry.signed.statement.kind: entry.number
        for entry in evidence.ledger.entries(drill.known_size)
        if entry.signed.statement.predicate.get("obligation") == drill.obligation
    }


def _record_abortion(evidence: Evidence, drill: UnderWay, obligation_entry: int) -> Record:
    return evidence.require(
        EvidenceKind.DRILL,
        service=ServiceName(drill.service),
        run=None,
        subject=[Subject(f"plan/{drill.plan}", drill.plan_sha256)],
        fields={
            **recovery_fields(),
            "obligation": drill.obligation,
            "obligation_entry": obligation_entry,
            "outcome": "aborted",
            "target": target_fields(
                requested=drill.requested, kind=drill.kind, reached_time=None, reached_lsn=None, timeline=None
            ),
            "reasons": ["the process that ran this drill ended before its outcome was on record"],
            "checks": [],
            "rpo_ms": None,
            "target_accuracy_ms": None,
            "promised": {"rto_ms": drill.rto_ms, "rpo_ms": drill.rpo_ms},
            "not_tested": ["everything: the drill did not come to an end"],
            "seed": drill.seed,
            "mutation": drill.mutation,
            "destroyed": True,
            "kept": False,
            "findings": [],
            "challenge": {"nonce": secrets.token_hex(16), "lsn": None},
        },
    )
