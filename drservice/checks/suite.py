"""Planning and running all checks of a recovered service.

The plan is made from the configuration alone, so that it can be recorded before anything is restored. Every planned
check ends in a result or is told as not applicable: none stops the others, none can hang the drill, and whatever could
not be answered (an exception, no time left, a server that is silent or gone) is *unverified*.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from drservice.checks import business, filestore, odoo, odoostart, postgres, prepared, programs, watermarks
from drservice.checks import neutralized as neutralized_copy
from drservice.checks.interface import Ask, Check, Finding, NotApplicable, RecoveredService, spoken, unverified
from drservice.checks.programs import Restart
from drservice.clock import Clock
from drservice.components.odoo.invariants import INVARIANTS
from drservice.errors import DrError
from drservice.model.checks import CheckResult, CheckState, Severity
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName

_GRACE_SECONDS = 15.0
"""How much longer than its own time a check may take to give up by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTimes:
    """How long checks may take."""

    sql_seconds: float = 120.0
    business_seconds: float = 300.0
    documents_seconds: float = 3600.0
    programs_seconds: float = 4 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOutcome:
    """What the checks found."""

    results: tuple[CheckResult, ...]
    """In the order of the plan."""
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    """Planned checks that make no sense for this service, with the reason."""


def plan_suite(
    service: Service,
    *,
    times: CheckTimes | None = None,
    restart: Restart | None = None,
    neutralized: bool = False,
) -> tuple[Check, ...]:
    """Return every check that will run, in order, from the configuration alone.

    SQL first, then what reads whole files, then Odoo itself, which may change the copy, then the programs that read
    every page, also those that Odoo wrote; those that stop a server are last.

    Args:
        service: what the configuration describes.
        times: how long checks may take.
        restart: starts a server again that had to be stopped; ``None`` = it stays stopped.
        neutralized: whether the copies of Odoo are neutralized before they are asked.
    """
    times = times or CheckTimes()
    databases = [item.name for item in service.databases()]
    plan = [check for name in databases for check in _database_checks(name, times)]
    for item in service.files():
        if neutralized and item.kind is FilesKind.ODOO_FILESTORE:
            plan += _neutralized_checks(item.name, times)
        plan += _files_checks(item.name, item.kind, times)
    plan += [
        Check(
            name=business_name(check.name),
            severity=check.severity,
            seconds=times.business_seconds,
            owner=check.owner,
            ask=partial(business.ask_business, check),
        )
        for check in service.checks
    ]
    plan += [
        _check(item.name, "odoo-starts", odoostart.ask_odoo_starts, item.odoo.timeout.total_seconds())
        for item in service.files()
        if isinstance(item, FilesSettings) and item.odoo is not None
    ]
    plan += [_check(name, "pg_amcheck", programs.ask_amcheck, times.programs_seconds) for name in databases]
    plan += [
        Check(
            name=f"{name}/pg_checksums",
            severity=Severity.CRITICAL,
            seconds=times.programs_seconds,
            ask=partial(programs.ask_checksums, name, restart=restart),
        )
        for name in databases
    ]
    return tuple(plan)


def business_name(name: str) -> str:
    """Return how a business check is called among the others; no component's check can have such a name."""
    return f"business:{name}"


_Question: TypeAlias = Callable[[ComponentName, RecoveredService, float], Finding | NotApplicable]


def _check(
    component: ComponentName, question: str, ask: _Question, seconds: float, severity: Severity = Severity.CRITICAL
) -> Check:
    return Check(name=f"{component}/{question}", severity=severity, seconds=seconds, ask=partial(ask, component))


def _database_checks(component: ComponentName, times: CheckTimes) -> Iterator[Check]:
    yield _check(component, "target-reached", postgres.ask_target, times.sql_seconds)
    yield _check(component, "timeline", postgres.ask_timeline, times.sql_seconds)
    yield _check(component, "watermarks", watermarks.ask_watermarks, times.business_seconds)
    yield _check(component, "deletable-rows", watermarks.ask_deletable, times.business_seconds, Severity.WARNING)
    yield _check(component, "extensions", postgres.ask_extensions, times.sql_seconds)
    # Production may be like this too; the sequences of its baseline are among the watermarks.
    yield _check(component, "sequences", postgres.ask_sequences, times.sql_seconds, Severity.WARNING)
    yield _check(component, "invalid-indexes", postgres.ask_indexes, times.sql_seconds, Severity.WARNING)


def _files_checks(component: ComponentName, kind: FilesKind, times: CheckTimes) -> Iterator[Check]:
    if kind is FilesKind.DIRECTORY:
        yield _check(component, "files-present", filestore.ask_files, times.documents_seconds)
        yield _check(component, "files-content", filestore.ask_content, times.sql_seconds, Severity.WARNING)
        return
    if kind is FilesKind.GIT:
        yield _check(component, "clones-as-recorded", prepared.ask_clones, times.documents_seconds)
        return
    if kind is FilesKind.REDIS:
        yield _check(component, "redis-loads", prepared.ask_redis, times.documents_seconds)
        return
    yield _check(component, "documents-present", filestore.ask_present, times.documents_seconds)
    yield _check(component, "documents-hash", filestore.ask_hashes, times.documents_seconds)
    yield _check(
        component,
        "documents-missing-in-production",
        filestore.ask_missing_in_production,
        times.sql_seconds,
        Severity.WARNING,
    )
    yield _check(component, "documents-not-covered", filestore.ask_covered, times.sql_seconds, Severity.WARNING)
    yield from _odoo_checks(component, times)


def _neutralized_checks(component: ComponentName, times: CheckTimes) -> Iterator[Check]:
    """Yield what has to be true of a neutralized copy; before anything of Odoo is started on it."""
    seconds = times.sql_seconds
    yield _check(component, "neutralized", neutralized_copy.ask_marked, seconds)
    for question in neutralized_copy.QUESTIONS:
        ask = partial(neutralized_copy.ask_nothing_left, question)
        yield _check(component, f"neutralized-{question.name}", ask, seconds, question.severity)
    for name, told in (
        ("scripts", neutralized_copy.ask_scripts),
        ("other-databases", neutralized_copy.ask_others),
        ("http-actions", neutralized_copy.ask_http_actions),
    ):
        yield _check(component, f"neutralized-{name}", told, seconds, Severity.WARNING)


def _odoo_checks(component: ComponentName, times: CheckTimes) -> Iterator[Check]:
    """Yield what is asked of the database that Odoo's documents follow; it has no component of its own."""
    yield _check(component, "odoo-modules", odoo.ask_modules, times.sql_seconds)
    yield _check(component, "odoo-code", odoo.ask_code, times.sql_seconds, Severity.WARNING)
    for invariant in INVARIANTS:
        yield _check(
            component,
            f"odoo-{invariant.name}",
            partial(odoo.ask_invariant, invariant),
            times.business_seconds,
            Severity.CRITICAL if invariant.critical else Severity.WARNING,
        )
    yield _check(
        component, "odoo-broken-in-production", odoo.ask_broken_in_production, times.sql_seconds, Severity.WARNING
    )


Listener: TypeAlias = Callable[[str, CheckResult | None], None]
"""Told the name of a check when it begins (with ``None``), and again with its result, if it has one."""


def silent(_check: str, _result: CheckResult | None) -> None:
    """Listen and tell nobody."""


def run_suite(
    recovered: RecoveredService,
    plan: Sequence[Check],
    *,
    clock: Clock,
    progress: Listener = silent,
    grace_seconds: float = _GRACE_SECONDS,
) -> SuiteOutcome:
    """Run the planned checks one after the other; never raises for what a check does.

    A check that does not end within its time and ``grace_seconds`` is left behind in its thread, unverified: destroying
    the environment ends what it waits for.
    """
    results: list[CheckResult] = []
    not_applicable: dict[str, str] = {}
    for check in plan:
        progress(check.name, None)
        began = clock.monotonic()
        found = _run(check.ask, recovered, check.seconds, grace_seconds)
        seconds = clock.monotonic() - began
        if isinstance(found, NotApplicable):
            not_applicable[check.name] = found.reason
            continue
        result = CheckResult(
            name=check.name,
            state=found.state,
            severity=check.severity,
            detail=spoken(found.detail),
            seconds=seconds,
            owner=check.owner,
            value=None if found.value is None else spoken(found.value, most=200),
        )
        results.append(result)
        progress(check.name, result)
    return SuiteOutcome(results=tuple(results), not_applicable=not_applicable)


def _run(ask: Ask, recovered: RecoveredService, seconds: float, grace_seconds: float) -> Finding | NotApplicable:
    """Run one check in a thread of its own, so that one that hangs is left behind."""
    answers: queue.SimpleQueue[Finding | NotApplicable] = queue.SimpleQueue()

    def answer() -> None:
        answers.put(_ask(ask, recovered, seconds))

    threading.Thread(target=answer, name="check", daemon=True).start()
    try:
        return answers.get(timeout=seconds + grace_seconds)
    except queue.Empty:
        return unverified(f"it did not end within {seconds + grace_seconds:.0f} s")


def _ask(ask: Ask, recovered: RecoveredService, seconds: float) -> Finding | NotApplicable:
    try:
        found: object = ask(recovered, seconds)
    except DrError as error:
        return unverified(f"{error.code}: {error.message}")
    except BaseException as error:  # noqa: BLE001 - a defect of one check is its result and must not stop the others
        return unverified(f"{type(error).__name__}: {error}")
    if isinstance(found, NotApplicable) or (isinstance(found, Finding) and isinstance(found.state, CheckState)):
        return found
    return unverified("it gave no answer")


def without_answer(plan: Sequence[Check], reason: str) -> SuiteOutcome:
    """Return the outcome of checks that could not be asked at all, for example because nothing was recovered."""
    results = (
        CheckResult(
            name=check.name,
            state=CheckState.UNVERIFIED,
            severity=check.severity,
            detail=reason,
            seconds=0.0,
            owner=check.owner,
        )
        for check in plan
    )
    return SuiteOutcome(results=tuple(results))
