"""Questions about the business, from the configuration: one SELECT each, compared with what is expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drservice.checks.interface import Finding, RecoveredDatabase, RecoveredService, unverified
from drservice.components.postgres.asking import Asking, asking
from drservice.components.postgres.baseline import settle
from drservice.errors import UnansweredError
from drservice.model.checks import Baseline, join_columns
from drservice.model.estate import BusinessCheck
from drservice.model.ids import ComponentName


@contextmanager
def ask_recovered(recovered: RecoveredDatabase, *, seconds: float, database: str | None = None) -> Iterator[Asking]:
    """Open a read-only transaction in a recovered cluster; ``database`` replaces the one its dsn names.

    Raises:
        IsolationError: something inside put a link in the socket's place.
        EnvironmentFailedError, PostgresError: it cannot be asked.
    """
    recovered.environment.require_own_socket()
    with asking(recovered.dsn, seconds=seconds, database=database, application_name="drservice check") as source:
        yield source


def database_of(service: RecoveredService, component: ComponentName) -> RecoveredDatabase:
    """Return a recovered cluster.

    Raises:
        UnansweredError: it did not come back.
    """
    found = service.databases.get(component)
    if found is None:
        raise UnansweredError(f"{component} was not recovered")
    return found


def ask_business(check: BusinessCheck, service: RecoveredService, seconds: float) -> Finding:
    """Ask the recovered database a business question."""
    recovered = database_of(service, check.component)
    baseline = service.baselines.get(check.component)
    sql, expected = check.sql, None
    if check.expect.needs_baseline:
        if baseline is None:
            return unverified(f"expected {check.expect}, and there is no recovery point with a baseline")
        behind = is_behind(recovered, baseline)
        if behind is not None:
            return behind
        known = baseline.value(check.name)
        if known.value is None:
            return unverified(f"expected {check.expect}, and {known.problem}")
        sql, expected = settle(sql, baseline.snapshot_xmin), known.value
    elif settle(sql, 0) != sql:
        return unverified("{settled} has a meaning only with `unchanged` and `within n% of baseline`")
    with ask_recovered(recovered, seconds=seconds, database=check.database or recovered.database) as source:
        value = join_columns(source.answer(sql))
    state, detail = check.expect.judge(value, expected)
    return Finding(state=state, detail=detail, value=value)


def is_behind(recovered: RecoveredDatabase, baseline: Baseline) -> Finding | None:
    """Return a finding if the copy ends before the position that the baseline stands for: then nothing can be said."""
    if recovered.reached >= baseline.lsn:
        return None
    return unverified(
        f"the baseline was measured at {baseline.lsn}, and the copy ends before it, at {recovered.reached}"
    )
