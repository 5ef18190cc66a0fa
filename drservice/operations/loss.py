"""What the loss of production would have cost: committed work that the repository did not hold, never an idle gap.

Definition (design, "Time"): from the commit of the newest durable transaction to the decision to restore; nothing if
the repository holds everything that production had flushed. A server that only writes checkpoints moves its position
without committing anything, so the transaction counters are compared too: equal counters mean that nothing ended since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drservice.components.postgres.asking import asking
from drservice.environments.interface import Environment
from drservice.errors import DrError
from drservice.model.estate import DrillTarget
from drservice.model.wal import Lsn
from drservice.operations.locate import RecoveryEnd, plan_segments
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


def loss_seconds(
    restored: RestoreResult,
    *,
    kind: DrillTarget,
    decided_at: datetime,
    production: Production | None,
    counter: int | None,
) -> float | None:
    """Return the seconds of committed work that were not durable; ``None`` if nothing tells.

    For an instant in the past: how much later its WAL was durable. For the latest position: as defined above; without
    an answer from production the time since the newest durable commit, which is the most it can have been.
    """
    if kind is not DrillTarget.LATEST:
        return _durable_lag_seconds(restored)
    plan = restored.planned.resolved.plan
    if production is not None:
        if production.flushed <= plan.reach.end:
            return 0.0
        if counter is not None and production.next_xid <= counter:
            return 0.0
    newest = restored.reached.time or plan.snapshot.stopped_at
    return max(0.0, (decided_at - newest).total_seconds())


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


def _durable_lag_seconds(restored: RestoreResult) -> float | None:
    """Return how long after the target the segment with the position that was reached was in the store."""
    plan, inventory = restored.planned.resolved.plan, restored.planned.archived.inventory
    target = plan.target.time
    if target is None:
        return None
    names = plan_segments(plan, inventory)
    index = restored.reached.lsn.segment_number(
        inventory.segment_bytes
    ) - plan.snapshot.postgres.start_lsn.segment_number(inventory.segment_bytes)
    stored_at = inventory.stored_at.get(names[index]) if 0 <= index < len(names) else None
    return max(0.0, (stored_at - target).total_seconds()) if stored_at is not None else None
