"""What a drill is to do, fixed before anything is restored: the target, the criteria, and what they are recorded as.

A random instant comes from a seed: its hash is on record before the restore, the seed itself after it. Whoever has both
can compute the instant again, so nobody can choose an easy one afterwards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drservice.canonical import Json, canonical_bytes
from drservice.checks.interface import Check
from drservice.checks.suite import CheckTimes, plan_suite
from drservice.clock import Clock, to_iso
from drservice.errors import TargetOutsideWindowError, UsageError
from drservice.evidence.statements import Subject
from drservice.model.estate import DrillPlan, DrillTarget, PostgresSettings, Service
from drservice.model.evidence import SEED_BYTES, seed_commitment, target_from_seed
from drservice.model.outcomes import Criteria
from drservice.model.recovery import Target, TargetKind
from drservice.operations.instants import ProvenSpan
from drservice.operations.mutation import Mutation
from drservice.operations.records import promised_ms, texts

_MARGIN = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTarget:
    """The target of one drill and how it was chosen."""

    target: Target
    kind: DrillTarget
    seed: bytes | None = None
    begin: datetime | None = None
    end: datetime | None = None
    notes: tuple[str, ...] = ()

    def fields(self) -> dict[str, Json]:
        """Return what the obligation says about it: the seed's hash, never the seed."""
        return {
            "kind": self.kind.value,
            "time": to_iso(self.target.time) if self.kind is DrillTarget.TIME and self.target.time else None,
            "from": to_iso(self.begin) if self.begin is not None else None,
            "to": to_iso(self.end) if self.end is not None else None,
            "seed_commitment": seed_commitment(self.seed) if self.seed is not None else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDrill:
    """Everything that is recorded before the restore."""

    plan: DrillPlan
    service: Service
    component: PostgresSettings
    chosen: ChosenTarget
    checks: tuple[Check, ...]
    criteria: Criteria
    mutation: Mutation | None

    def plan_sha256(self) -> str:
        """Return the hash that stands for the plan: another plan, service or check has another one."""
        fields = plan_fields(self.plan, self.service, self.checks, documents=self.criteria.documents)
        return hashlib.sha256(canonical_bytes(fields)).hexdigest()

    def obligation_fields(self, obligation: str) -> dict[str, Json]:
        """Return what is put on record before the restore."""
        return {
            "obligation": obligation,
            "what": "drill",
            "plan": {"name": self.plan.name, "sha256": self.plan_sha256()},
            "due_at": None,
            "criteria": {
                "rto_ms": self.criteria.rto_ms,
                "rpo_ms": self.criteria.rpo_ms,
                "documents": self.criteria.documents,
                "documents_missing": 0,
                "checks": [{"name": check.name, "severity": check.severity.value} for check in self.checks],
            },
            "target": self.chosen.fields(),
            "mutation": self.mutation.value if self.mutation is not None else None,
        }

    def subject(self) -> list[Subject]:
        """Return what the obligation and its drill are about: the plan."""
        return [Subject(f"plan/{self.plan.name}", self.plan_sha256())]


def plan_fields(plan: DrillPlan, service: Service, checks: Sequence[Check], *, documents: bool) -> dict[str, Json]:
    """Return a plan as the value that is hashed: what is recovered, where, to what kind of instant, what is asked.

    Whatever could make a drill easier to pass is in it: severities, the database that is asked, what counts.
    """
    return {
        "name": plan.name,
        "service": service.name,
        "components": {name: str(type(item).__name__) for name, item in service.components.items()},
        "environment": plan.environment,
        "target": plan.target.value,
        "time": to_iso(plan.time) if plan.time is not None else None,
        "within_ms": promised_ms(plan.within),
        "runbook": plan.runbook,
        "objectives": {"rto_ms": promised_ms(service.objectives.rto), "rpo_ms": promised_ms(service.objectives.rpo)},
        "documents": documents,
        "checks": [{"name": check.name, "severity": check.severity.value} for check in checks],
        "business": {
            check.name: {
                "component": check.component,
                "database": check.database,
                "sql": hashlib.sha256(check.sql.encode()).hexdigest(),
                "expect": str(check.expect),
                "severity": check.severity.value,
            }
            for check in service.checks
        },
    }


def prepare_drill(
    plan: DrillPlan,
    service: Service,
    component: PostgresSettings,
    *,
    span: ProvenSpan,
    mutation: Mutation | None,
    clock: Clock,
    times: CheckTimes | None = None,
) -> PreparedDrill:
    """Fix target, checks and criteria.

    Raises:
        UsageError: an environment this version does not have.
        TargetOutsideWindowError: the plan names an instant that cannot be reached.
    """
    if plan.environment != "sandbox":
        raise UsageError(
            f"drill {plan.name} is planned for {plan.environment}, which this version does not have",
            hint="Use environment: sandbox.",
        )
    checks = plan_suite(service, times=times, neutralized=plan.neutralize)
    return PreparedDrill(
        plan=plan,
        service=service,
        component=component,
        chosen=choose_target(plan, span=span, now=clock.now()),
        checks=checks,
        criteria=Criteria(
            checks=tuple(check.name for check in checks),
            rto_ms=promised_ms(service.objectives.rto),
            rpo_ms=promised_ms(service.objectives.rpo),
            documents=bool(service.filestores()),
        ),
        mutation=mutation,
    )


def choose_target(plan: DrillPlan, *, span: ProvenSpan, now: datetime) -> ChosenTarget:
    """Choose the instant of a drill.

    A random instant lies between the oldest one that can be reached (not older than the plan's ``within``) and the
    newest one that WAL records prove and looks at the documents cover. Where nothing was committed since the oldest
    snapshot there is nothing to choose from, and the latest position is taken, which is said.

    Raises:
        TargetOutsideWindowError: a named instant lies outside of what can be reached.
    """
    latest = ChosenTarget(target=Target(kind=TargetKind.LATEST), kind=DrillTarget.LATEST)
    match plan.target:
        case DrillTarget.LATEST:
            return latest
        case DrillTarget.CONSISTENT:
            return ChosenTarget(target=Target(kind=TargetKind.CONSISTENT), kind=DrillTarget.CONSISTENT)
        case DrillTarget.TIME:
            assert plan.time is not None, "settings set it"
            if plan.time < span.begin:
                raise TargetOutsideWindowError(
                    f"drill {plan.name} is to reach {to_iso(plan.time)}, which lies before {to_iso(span.begin)}"
                )
            return ChosenTarget(target=Target(kind=TargetKind.TIME, time=plan.time), kind=DrillTarget.TIME)
        case DrillTarget.RANDOM:
            begin = max(span.begin, now - plan.within) if plan.within is not None else span.begin
            end = span.end - _MARGIN if span.end is not None else None
            notes: tuple[str, ...] = ()
            if end is not None and span.documents is not None and begin <= span.documents < end:
                notes = (f"instants after {to_iso(span.documents)}, when the documents were looked at last",)
                end = span.documents
            if end is None or end < begin:
                why = "nothing that WAL records could prove was committed in the time to choose from"
                return ChosenTarget(
                    target=latest.target, kind=latest.kind, notes=(f"{why}: the latest position it is",)
                )
            seed = os.urandom(SEED_BYTES)
            instant = target_from_seed(seed, begin, end)
            return ChosenTarget(
                target=Target(kind=TargetKind.TIME, time=instant),
                kind=DrillTarget.RANDOM,
                seed=seed,
                begin=begin,
                end=end,
                notes=notes,
            )


def not_tested(prepared: PreparedDrill, told: Sequence[str]) -> list[Json]:
    """Return everything that this drill says nothing about: what its checks could not ask, and what it never does."""
    never = ["people, manual steps and approvals: this drill has none"]
    if not any(check.name.endswith("/odoo-starts") for check in prepared.checks):
        never.insert(0, "the applications on top of the database were not started")
    never += prepared.chosen.notes
    if prepared.plan.runbook is not None:
        never.append(f"runbook {prepared.plan.runbook}: this version does not walk people through it")
    return texts([*told, *never])
