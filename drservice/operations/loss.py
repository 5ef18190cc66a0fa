"""What the loss of production would have cost: committed work that the repository did not hold, never an idle gap.

Definition (design, "Time"): from the commit of the newest durable transaction to the decision to restore; nothing if
the repository holds everything that production had flushed. A server that only writes checkpoints moves its position
without committing anything, so the transaction counters are compared too: equal counters mean that nothing ended since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drservice.components.postgres.asking import asking
from drservice.components.postgres.waldump import TransactionEnd
from drservice.environments.interface import Environment
from drservice.errors import DrError
from drservice.model.wal import Lsn
from drservice.operations.locate import RecoveryEnd, WalScanner, plan_segments
from drservice.operations.restore import RestoreResult

_SECONDS = 20.0
_COUNTER = "select pg_snapshot_xmax(pg_current_snapshot())"
_POSITION = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Where production stood when it was decided to restore."""

    at: datetime
    flushed: Lsn
    next_xid: int
    """The first transaction id that had not ended anywhere (64 bits)."""


def ask_production(dsn: str, *, at: datetime) -> Production | None:
    """Return where production stands; ``None`` if it does not answer: then nobody knows what it held."""
    try:
        with asking(dsn, seconds=_SECONDS, application_name="drservice drill") as session:
            counter, position = session.answer(_COUNTER)[0], session.answer(_POSITION)[0]
    except DrError:
        return None
    if counter is None or position is None:
        return None
    return Production(at=at, flushed=Lsn.parse(position), next_xid=int(counter))


def recovered_counter(environment: Environment) -> int | None:
    """Return the transaction counter of a recovered copy; ask before anything is written there."""
    environment.require_own_socket()
    with asking(environment.dsn, seconds=_SECONDS, application_name="drservice drill") as session:
        answer = session.answer(_COUNTER)[0]
    return int(answer) if answer is not None else None


def loss_now(
    restored: RestoreResult, *, decided_at: datetime, production: Production | None, counter: int | None
) -> float:
    """Return the seconds of committed work that a recovery to the latest position lacks.

    Args:
        restored: the recovery.
        decided_at: when it was decided.
        production: where production stood then; without it the answer is the most that it can have been.
        counter: the recovered copy's transaction counter.
    """
    plan = restored.planned.resolved.plan
    if production is not None:
        if production.flushed <= plan.reach.end:
            return 0.0
        if counter is not None and production.next_xid <= counter:
            return 0.0
    newest = restored.reached.time or plan.snapshot.stopped_at
    return max(0.0, (decided_at - newest).total_seconds())


def loss_at(instant: datetime, restored: RestoreResult, scanner: WalScanner) -> float | None:
    """Return what losing production at an instant in the past would have cost, in seconds of committed work.

    Commits up to the instant are compared with what the store held at the instant, by the store's own times. ``None``
    if the store does not tell them.
    """
    plan, inventory = restored.planned.resolved.plan, restored.planned.archived.inventory
    size = inventory.segment_bytes
    names = plan_segments(plan, inventory)
    last = restored.reached.lsn.segment_number(size) - plan.snapshot.postgres.start_lsn.segment_number(size)
    was_at_risk = False
    for name in reversed(names[: last + 1]):
        stored_at = inventory.stored_at.get(name)
        if stored_at is None:
            return None
        commits = [
            event.at
            for event in scanner.dump(name).events
            if isinstance(event, TransactionEnd) and event.outcome.committed and event.at <= instant
        ]
        if stored_at > instant:
            was_at_risk = was_at_risk or bool(commits)
        elif not was_at_risk:
            return 0.0
        elif commits:
            return (instant - max(commits)).total_seconds()
    return max(0.0, (instant - plan.snapshot.stopped_at).total_seconds()) if was_at_risk else 0.0


def accuracy_seconds(restored: RestoreResult) -> float | None:
    """Return how far the recovered state is from the one asked for, in commits that should not or should be there.

    Proven by PostgreSQL's own words: it stopped right before the first commit after the target, at the named position,
    or at the proven end of the WAL. The gap between two commits is no inaccuracy, so what is proven is 0.
    """
    resolved = restored.planned.resolved
    if resolved.ends in {RecoveryEnd.TARGET, RecoveryEnd.END_OF_WAL} and restored.reached.evidence:
        target = resolved.plan.target.time
        if target is None or restored.reached.time is None:
            return 0.0
        return max(0.0, (restored.reached.time - target).total_seconds())
    return None
