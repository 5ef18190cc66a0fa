"""Drills that services owe, as pages and API tell it: overdue, failed, missed, due or done, what is worst first.

What was promised and answered is in the records of the ledger; by when the next one has to be there, the schedule says
(``model.agenda``), judged by the newest result and never by what a scheduler did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from drservice.catalogue.evidencereading import DrillFacts, DrillOnRecord, OpenObligation, Scope
from drservice.errors import InvalidRequestError
from drservice.model.agenda import Agenda
from drservice.model.runs import RunKind
from drservice.web.auth.identity import Principal
from drservice.web.site import Site

PERIOD = timedelta(days=92)
"""What is looked at unless somebody asks for another period: a quarter."""


class Duty(Enum):
    """How a service stands with its drills, the worst first."""

    OVERDUE = "overdue"
    """A drill, or the answer to an obligation, should be there and is not."""
    FAILED = "failed"
    """The newest drill did not pass."""
    MISSED = "missed"
    """Slots of the period were missed, and no run made up for them."""
    NEVER = "never drilled"
    DUE = "due"
    """The newest drill passed before the period; the next one is to come."""
    DONE = "done"
    """A drill of the period passed."""


_RANKS = {duty: rank for rank, duty in enumerate(Duty)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDuty:
    """The drills of one service in a period."""

    service: str
    duty: Duty
    due_at: datetime | None
    """By when the next drill has to be there; ``None`` if none is scheduled."""
    reason: str | None
    """Why by then."""
    last: DrillOnRecord | None
    passed: DrillOnRecord | None
    done: int
    failed: int
    missed: int
    open: int
    """Obligations that nothing has answered and that are not due yet, whatever the period."""
    overdue: int
    """Obligations that nothing has answered although they were due."""


def scope_of(principal: Principal, now: datetime, begin: datetime | None, end: datetime | None) -> Scope:
    """Return whose records are looked at and of which period: a quarter up to now unless told otherwise.

    Raises:
        InvalidRequestError: the period ends before it begins, or before there are dates.
    """
    last = end if end is not None else now + timedelta(seconds=1)
    try:
        first = begin if begin is not None else last - PERIOD
    except OverflowError as error:
        raise InvalidRequestError("there is no quarter before that date") from error
    if first >= last:
        raise InvalidRequestError("the period ends before it begins", hint="Give from and to, or one of them.")
    services = sorted(principal.services) if principal.services else None
    return Scope(services=services, begin=first, end=last)


def drill_schedules(agenda: Agenda, names: Collection[str]) -> Sequence[tuple[str, str]]:
    """Return (service, plan) of every schedule for drills."""
    return [(name, planned.plan) for name in names for planned in agenda.planned(name) if planned.kind is RunKind.DRILL]


def duties(
    site: Site, drills: Mapping[str, DrillFacts], owed: Sequence[OpenObligation], now: datetime
) -> Sequence[ServiceDuty]:
    """Judge every service that something is known of; the worst first, then what is due first."""
    by_service: dict[str, list[OpenObligation]] = defaultdict(list)
    for obligation in owed:
        if obligation.service is not None:
            by_service[obligation.service].append(obligation)
    found = [_judge(site.agenda, name, facts, by_service[name], now) for name, facts in drills.items()]
    return sorted(found, key=lambda item: (_RANKS[item.duty], item.due_at is None, item.due_at or now, item.service))


def is_overdue(obligation: OpenObligation, now: datetime) -> bool:
    """Tell whether an obligation should have been answered."""
    return obligation.due_at is not None and obligation.due_at < now


def _judge(agenda: Agenda, name: str, facts: DrillFacts, owed: Sequence[OpenObligation], now: datetime) -> ServiceDuty:
    dues = [(due.at, due.reason) for planned, due in agenda.dues(name, facts.results) if planned.kind is RunKind.DRILL]
    if not dues:
        # Nobody has waited for a drill yet: the next slot asks for the first one.
        dues = [
            (agenda.next_slot(planned, now), "the next slot")
            for planned in agenda.planned(name)
            if planned.kind is RunKind.DRILL
        ]
    due_at, reason = min(dues, default=(None, None))
    overdue = sum(is_overdue(obligation, now) for obligation in owed)
    return ServiceDuty(
        service=name,
        duty=_duty(facts, is_late=overdue > 0 or (due_at is not None and due_at < now)),
        due_at=due_at,
        reason=reason,
        last=facts.last,
        passed=facts.passed,
        done=facts.done,
        failed=facts.failed,
        missed=facts.missed,
        open=len(owed) - overdue,
        overdue=overdue,
    )


def _duty(facts: DrillFacts, *, is_late: bool) -> Duty:
    if is_late:
        return Duty.OVERDUE
    if facts.last is not None and facts.last.outcome != "passed":
        return Duty.FAILED
    if facts.missed:
        return Duty.MISSED
    if facts.last is None:
        return Duty.NEVER
    return Duty.DONE if facts.done else Duty.DUE
