"""The verdict on a drill: a pure function of what was promised beforehand and what was found.

Rule: a drill passes only if everything that was planned was asked, answered and as it should be. What is missing counts
against it: taking away an answer or a measurement never turns a failure into a pass. A warning is told, and fails
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drservice.model.checks import CheckResult, CheckState, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What a drill has to reach; recorded before it begins. ``None`` = nothing is promised."""

    checks: tuple[str, ...]
    rto_ms: int | None = None
    rpo_ms: int | None = None
    documents: bool = False
    """Whether documents belong to the service: then none may be missing or corrupt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured. ``None`` = it is not known."""

    rto_ms: int | None
    rpo_ms: int | None
    target_accuracy_ms: int | None
    """How far what was reached lies from what was asked for, proven."""
    documents_missing: int | None
    documents_corrupt: int | None
    isolated: bool | None
    """Whether every probe of the isolation self-test passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a drill ended, and why."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass; empty if it did."""
    warnings: tuple[str, ...]
    not_tested: tuple[str, ...]
    """What nothing was found out about, whether or not it counts."""


def judge(
    criteria: Criteria,
    results: Sequence[CheckResult],
    measured: Measured,
    *,
    not_applicable: Mapping[str, str] | None = None,
) -> Verdict:
    """Return the verdict.

    Args:
        criteria: recorded beforehand.
        results: of the checks.
        measured: by the restore and the environment.
        not_applicable: planned checks that make no sense for this service, with the reason; told as not tested.
    """
    excused = not_applicable or {}
    reasons = [
        *_isolation(measured),
        *_checks(criteria, results, excused),
        *_documents(criteria, measured),
        *_limit("recovery took", "RTO", measured.rto_ms, criteria.rto_ms),
        *_limit("the loss was", "RPO", measured.rpo_ms, criteria.rpo_ms),
    ]
    if measured.target_accuracy_ms is None:
        reasons.append("it is not known how close to its target the recovery came")
    warnings = [
        f"{result.name}: {result.detail}"
        for result in results
        if result.severity is Severity.WARNING and result.state is not CheckState.PASSED
    ]
    return Verdict(
        passed=not reasons,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        not_tested=tuple(_not_tested(criteria, results, measured, excused)),
    )


def _isolation(measured: Measured) -> list[str]:
    if measured.isolated is None:
        return ["the isolation of the environment was not tested"]
    return [] if measured.isolated else ["the environment was not isolated"]


def _checks(criteria: Criteria, results: Sequence[CheckResult], excused: Mapping[str, str]) -> list[str]:
    reasons = [] if criteria.checks else ["no check was planned"]
    by_name: dict[str, list[CheckResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    if criteria.checks and not any(name in by_name for name in criteria.checks):
        reasons.append("no planned check was asked")
    reasons += [
        f"{name} was planned and has no result"
        for name in criteria.checks
        if name not in by_name and name not in excused
    ]
    reasons += [
        f"{result.name} {result.state.value}: {result.detail}"
        for result in results
        if result.severity is Severity.CRITICAL and result.state is not CheckState.PASSED
    ]
    return reasons


def _documents(criteria: Criteria, measured: Measured) -> list[str]:
    if not criteria.documents:
        return []
    if measured.documents_missing is None or measured.documents_corrupt is None:
        return ["it is not known whether documents are missing"]
    reasons = [f"{measured.documents_missing} documents are missing"] if measured.documents_missing else []
    return reasons + ([f"{measured.documents_corrupt} documents are corrupt"] if measured.documents_corrupt else [])


def _limit(what: str, promise: str, measured_ms: int | None, promised_ms: int | None) -> list[str]:
    if promised_ms is None:
        return []
    if measured_ms is None:
        return [f"the {promise} of {_seconds(promised_ms)} is promised and was not measured"]
    if measured_ms > promised_ms:
        return [f"{what} {_seconds(measured_ms)}, above the {promise} of {_seconds(promised_ms)}"]
    return []


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d} s"


def _not_tested(
    criteria: Criteria, results: Sequence[CheckResult], measured: Measured, excused: Mapping[str, str]
) -> list[str]:
    answered = {result.name for result in results if result.state is not CheckState.UNVERIFIED}
    told = _folded({name: reason for name, reason in excused.items() if name not in answered})
    told += [f"{result.name}: {result.detail}" for result in results if result.state is CheckState.UNVERIFIED]
    seen = {result.name for result in results} | set(excused)
    told += [f"{name}: it has no result" for name in criteria.checks if name not in seen]
    for name, promised, value in (
        ("RTO", criteria.rto_ms, measured.rto_ms),
        ("RPO", criteria.rpo_ms, measured.rpo_ms),
    ):
        if promised is None:
            told.append(f"{name}: nothing is promised")
        elif value is None:
            told.append(f"{name}: not measured")
    if not criteria.documents:
        told.append("documents: none belong to the service")
    return told


def _folded(excused: Mapping[str, str]) -> list[str]:
    """Return what makes no sense for a service; checks with the same reason stand together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in excused.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
