"""What a drill may call passed: the verifier and the rule that judges drills are one rule, written twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.canonical import Json
from drservice.evidence.verification import Step, VerificationError, _Entry, _Verification
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.model.outcomes import Criteria, Measured, judge
from drservice.operations.records import check_fields
from tests.doubles import evidence as made
from tests.faults.tampering import END, OPEN, Memory, make_plant, record, rewritten, verify

NAMES = ("balance", "target", "sequences")
LIMITS = st.none() | st.integers(min_value=0, max_value=3)


def accepted(criteria: dict[str, Json], changes: dict[str, Json]) -> str | None:
    """Return what the verifier has against a drill that says passed."""
    statement = made.drill(made.START, 1, entry=1, changes=changes)
    subject = {each.name: each.sha256 for each in statement.subject}
    entry = _Entry(number=2, raw=b"", kind="drill", subject=subject, predicate=dict(statement.predicate))
    try:
        _Verification(Memory({}), None).check_passed(entry, criteria)  # type: ignore[arg-type]  # it reads like a folder
    except VerificationError as error:
        return error.what if error.step is Step.OBLIGATIONS else f"another step: {error}"
    return None


@st.composite
def drills(draw: st.DrawFn) -> tuple[Criteria, list[CheckResult], Measured, dict[str, str], dict[str, Severity]]:
    """Return whatever a drill may have planned and found, mostly good."""
    planned = {name: draw(st.sampled_from(Severity)) for name in NAMES if draw(st.integers(0, 9))}
    results, excused = [], {}
    for name, severity in planned.items():
        found = draw(st.sampled_from(["passed"] * 12 + ["failed", "unverified", "not applicable", "no result"]))
        if found == "not applicable":
            excused[name] = "the service has no such thing"
        elif found != "no result":
            state = CheckState(found)
            results.append(CheckResult(name=name, state=state, severity=severity, detail="", seconds=0.0))
    counts = draw(st.booleans())
    number = st.sampled_from([0] * 9 + [1, None])
    missing, corrupt = (draw(number) if counts else None for _ in range(2))
    measured = Measured(
        rto_ms=draw(LIMITS),
        rpo_ms=draw(LIMITS),
        target_accuracy_ms=draw(st.sampled_from([0, 5, 7, 9, None])),
        documents_missing=missing,
        documents_corrupt=corrupt if missing is not None else None,
        isolated=draw(st.sampled_from([True] * 9 + [False, None])),
    )
    promised = {name: draw(st.sampled_from([None, None, 2, 3])) for name in ("rto_ms", "rpo_ms")}
    return Criteria(checks=tuple(planned), documents=counts, **promised), results, measured, excused, planned


@given(drill=drills())
def test_the_verifier_accepts_passed_exactly_where_the_rule_says_so(
    drill: tuple[Criteria, list[CheckResult], Measured, dict[str, str], dict[str, Severity]],
) -> None:
    criteria, results, measured, excused, planned = drill
    verdict = judge(criteria, results, measured, not_applicable=excused)
    unasked = [
        CheckResult(name=name, state=CheckState.UNVERIFIED, severity=planned[name], detail="", seconds=0.0)
        for name in excused
    ]
    counted = measured.documents_missing is not None and measured.documents_corrupt is not None
    probe: Json = {"name": "network", "isolated": measured.isolated, "detail": ""}
    objection = accepted(
        {
            "rto_ms": criteria.rto_ms,
            "rpo_ms": criteria.rpo_ms,
            "documents": criteria.documents,
            "documents_missing": 0,
            "checks": [{"name": name, "severity": severity.value} for name, severity in planned.items()],
        },
        {
            "rto_ms": measured.rto_ms,
            "rpo_ms": measured.rpo_ms,
            "target_accuracy_ms": measured.target_accuracy_ms,
            "documents": {
                "expected": 9,
                "missing": measured.documents_missing,
                "corrupt": measured.documents_corrupt,
                "extra": 0,
                "missing_in_production": 0,
            }
            if counted
            else None,
            "isolation": [] if measured.isolated is None else [probe],
            "checks": [*check_fields(results), *check_fields(unasked, not_applicable=True)],
        },
    )
    assert (objection is None) == verdict.passed, (objection, verdict.reasons)


def test_a_critical_check_that_is_not_applicable_spoils_no_verdict(tmp_path: Path) -> None:
    plant = make_plant(tmp_path)
    checks: list[Json] = [
        made.check("moves-balance", "unverified", not_applicable=True),
        made.check("sequences", "passed", severity="warning"),
    ]
    honest = made.drill(END, OPEN, entry=14, changes={"checks": checks})
    assert verify(rewritten(plant.files, [*plant.raws, record(honest)])).drills == {"failed": 1, "passed": 2}


def test_a_warning_that_failed_spoils_no_verdict(tmp_path: Path) -> None:
    plant = make_plant(tmp_path)
    checks: list[Json] = [made.check("moves-balance", "passed"), made.check("sequences", "failed", severity="warning")]
    honest = made.drill(END, OPEN, entry=14, changes={"checks": checks})
    assert verify(rewritten(plant.files, [*plant.raws, record(honest)])).drills == {"failed": 1, "passed": 2}


@pytest.mark.parametrize("kept", [True, False])
def test_an_environment_may_be_kept_on_purpose(tmp_path: Path, *, kept: bool) -> None:
    plant = make_plant(tmp_path)
    honest = made.drill(END, OPEN, entry=14, changes={"destroyed": not kept, "kept": kept})
    assert verify(rewritten(plant.files, [*plant.raws, record(honest)])).overdue_obligations == ()


def test_a_planted_fault_that_passed_is_listed_as_missed(tmp_path: Path) -> None:
    plant = make_plant(tmp_path)
    planted = made.obligation(END, 200, mutation="row-deleted")
    missed = made.drill(END, 200, entry=plant.size, changes={"mutation": "row-deleted"})
    verified = verify(rewritten(plant.files, [*plant.raws, record(planted), record(missed)]))
    assert (verified.mutations_noticed, verified.mutations_missed) == (1, (plant.size + 1,))
    assert verified.drills == {"failed": 1, "passed": 1}, "it is no proof of anything"
