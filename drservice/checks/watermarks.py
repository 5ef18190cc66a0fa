"""What production counted when the recovery point was made, counted again in the copy.

Settled rows have to be there exactly: number, totals and greatest id. Only a row that was written again after the
baseline is no longer among them, and then it is there to be counted: a shortfall that such rows do not explain is a
loss.
"""

from __future__ import annotations

from drservice.checks.business import ask_recovered, database_of, is_behind
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredDatabase,
    RecoveredService,
    failed,
    listed,
    passed,
    unverified,
)
from drservice.components.postgres.asking import Asking
from drservice.components.postgres.baseline import (
    SEQUENCES,
    WATERMARKS,
    Watermark,
    decode_sequences,
    has_table,
    read_sequences,
    settle,
    watermark_key,
    watermark_names,
)
from drservice.errors import PostgresError, UnansweredError
from drservice.model.checks import Baseline, CheckState, join_columns
from drservice.model.ids import ComponentName


def ask_watermarks(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Compare the rows that nobody can delete, and the sequences, with the cluster's baseline."""
    return _ask_all(component, service, seconds, [*(item.name for item in WATERMARKS if item.final), SEQUENCES])


def ask_deletable(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Compare rows that people may delete with the baseline: behind its position, fewer prove no loss."""
    return _ask_all(component, service, seconds, [item.name for item in WATERMARKS if not item.final])


def _ask_all(
    component: ComponentName, service: RecoveredService, seconds: float, wanted: list[str]
) -> Finding | NotApplicable:
    recovered = database_of(service, component)
    baseline = service.baselines.get(component)
    if baseline is None:
        return unverified("there is no recovery point with a baseline of this cluster")
    behind = is_behind(recovered, baseline)
    if behind is not None:
        return behind
    names = [item for item in watermark_names([*baseline.values, *baseline.problems]) if item[1] in wanted]
    if not names:
        return NotApplicable(reason="production had no table that watermarks are known for")
    findings: list[Finding] = []
    for database in dict.fromkeys(name[0] for name in names):
        with ask_recovered(recovered, seconds=seconds, database=database) as source:
            findings += [
                _ask_one(name, database, source, baseline, recovered) for where, name in names if where == database
            ]
    return _worst(findings)


def _ask_one(name: str, database: str, source: Asking, baseline: Baseline, recovered: RecoveredDatabase) -> Finding:
    known = baseline.value(watermark_key(database, name))
    if known.value is None:
        return unverified(f"{name} of {database!r}: {known.problem}")
    if name == SEQUENCES:
        return _ask_sequences(database, source, known.value)
    watermark = next((item for item in WATERMARKS if item.name == name), None)
    if watermark is None:
        return unverified(f"{name} of {database!r}: another version of drservice measured it")
    if not has_table(source, watermark):
        return failed(f"{name} of {database!r}: the table {watermark.table} is not there")
    return _ask_rows(watermark, source, known.value, baseline, exact=recovered.reached == baseline.lsn)


def _ask_rows(watermark: Watermark, source: Asking, before: str, baseline: Baseline, *, exact: bool) -> Finding:
    found = join_columns(source.answer(settle(watermark.sql, baseline.snapshot_xmin)))
    if found == before:
        return passed(f"{watermark.name}: {found}")
    told = f"{watermark.name}: {found}, in production it was {before}"
    counted, present, greatest = _first_number(before), _first_number(found or ""), before.rpartition(" | ")[2]
    if counted is None or present is None or not greatest.isdigit():
        return unverified(told)
    if exact or present >= counted:  # as many or more of them, but others
        return failed(told)
    return _explain(watermark, source, baseline, lost=counted - present, greatest_id=int(greatest), told=told)


def _explain(
    watermark: Watermark, source: Asking, baseline: Baseline, *, lost: int, greatest_id: int, told: str
) -> Finding:
    """Tell whether rows that were written again since the baseline explain why fewer settled ones are there."""
    (rewritten,) = source.answer(settle(watermark.rewritten_sql(greatest_id), baseline.snapshot_xmin))
    if rewritten is None or not rewritten.isdigit():
        return unverified(f"{told}; the rows written since cannot be counted")
    if int(rewritten) < lost:
        return failed(f"{told}; {lost} rows less, and only {rewritten} of these were written again since")
    return passed(f"{told}; the {lost} rows less are among the {rewritten} that were written again since")


def _ask_sequences(database: str, source: Asking, before: str) -> Finding:
    try:
        recorded = decode_sequences(before)
    except ValueError as error:
        return unverified(f"sequences of {database!r}: {error}")
    try:
        present = read_sequences(source)
    except (PostgresError, UnansweredError) as error:
        return unverified(f"sequences of {database!r}: {error.message}")
    behind = [
        f"{name}: {present[name]}, in production {value}" if name in present else f"{name}: not there or never used"
        for name, value in recorded.items()
        if name not in present or present[name] < value
    ]
    if behind:
        return failed(f"{len(behind)} of {len(recorded)} sequences of {database!r} are behind: {listed(behind)}")
    return passed(f"{len(recorded)} sequences of {database!r} are not behind")


def _first_number(text: str) -> int | None:
    number = text.partition(" | ")[0]
    return int(number) if number.isdigit() else None


def _worst(findings: list[Finding]) -> Finding:
    """Return one finding for all: a failure before an open question before a pass, with the words of its kind."""
    for state in (CheckState.FAILED, CheckState.UNVERIFIED, CheckState.PASSED):
        of_state = [finding.detail for finding in findings if finding.state is state]
        if of_state:
            return Finding(state=state, detail="; ".join(of_state))
    return unverified("nothing was asked")
