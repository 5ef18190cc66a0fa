"""What people are told about runs: those that failed, and slots that were missed. Each place is told once.

Failures are looked for in the catalogue and not told on the spot: a node that dies between the end of a run and telling
it, and runs that the reaper gave up, are told all the same. Missed slots are told in the transaction that records them.
"""

from __future__ import annotations

from datetime import timedelta

from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunInfo, Runs
from drservice.catalogue.timetables import catalogue_now
from drservice.clock import to_iso
from drservice.model.estate import NotifyKind
from drservice.model.runs import RunKind, RunState
from drservice.node.scheduler import Missed
from drservice.notify.interface import Notice, Severity
from drservice.notify.outbox import Outbox

_LOOKED_AT = 200
"""Of the newest runs that failed."""
_NEWS = timedelta(days=1)
"""What failed longer ago is no news: a place that was configured today does not hear of last year."""
_COMMANDS = {
    RunKind.BACKUP: "drservice backup {service}",
    RunKind.VERIFY: "drservice verify {service}",
    RunKind.DRILL: "drservice drill {service}",
}


class Teller:
    """Queues notices of failed runs; remembers which, and the outbox tells each event once at any rate."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._runs = Runs(database)
        self._told: frozenset[str] = frozenset()

    def tell(self, outbox: Outbox) -> int:
        """Queue notices of what has failed since the last call; returns of how many runs.

        Raises:
            CatalogueUnreachableError: they are queued the next time.
        """
        with self._database.session() as session:
            since = catalogue_now(session) - _NEWS
        failed = [
            run
            for run in self._runs.list(state=RunState.FAILED, limit=_LOOKED_AT)
            if run.ended_at is not None and run.ended_at > since
        ]
        fresh = [run for run in reversed(failed) if run.id not in self._told]
        for run in fresh:
            outbox.tell(notice_of_failure(run))
        self._told = frozenset(run.id for run in failed)
        return len(fresh)


def notice_of_failure(run: RunInfo) -> Notice:
    """Return what to tell about a run that failed."""
    error = run.error or {}
    asked = f"for {to_iso(run.scheduled_for)}" if run.scheduled_for is not None else f"asked for by {run.requested_by}"
    lines = (f"Run {run.id} ({asked}), claimed {run.epoch} times.", str(error.get("hint", "")))
    return Notice(
        event=f"run:{run.id}:failed",
        kind=NotifyKind.FAILURE,
        # A drill that does not pass says that the promise may not hold; a failed backup is made up for before it does.
        severity=Severity.BUSINESS_CRITICAL if run.kind is RunKind.DRILL else Severity.TECHNICAL,
        title=f"{_what(run.kind, run.plan)} failed: {error.get('message', 'no reason was told')}",
        body="\n".join(line for line in lines if line),
        service=run.service,
        next_command=_command(run.kind, run.service),
    )


def notice_of_missed(found: Missed) -> Notice:
    """Return what to tell about slots for which nobody was there."""
    planned, slots = found.planned, found.slots
    count = "a slot" if len(slots) == 1 else f"{len(slots)} slots"
    caught_up = (
        f"Run {found.caught_up_by} makes up for it." if found.caught_up_by is not None else "Nothing makes up for it."
    )
    return Notice(
        event=f"missed:{planned.service.name}:{planned.kind.value}:{planned.plan}:{to_iso(slots[-1])}",
        kind=NotifyKind.FAILURE,
        severity=Severity.TECHNICAL,
        title=f"{_what(planned.kind, planned.plan)}: {count} missed, the last {to_iso(slots[-1])}",
        body=f"No node was there when they came. {caught_up} ({found.reason})",
        service=planned.service.name,
        next_command=_command(planned.kind, planned.service.name),
    )


def _what(kind: RunKind, plan: str) -> str:
    return f"{kind.value} {plan}" if plan else kind.value


def _command(kind: RunKind, service: str) -> str | None:
    return _COMMANDS[kind].format(service=service) if kind in _COMMANDS else None
