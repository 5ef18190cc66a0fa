"""What the loss of production would have cost: committed work that the repository did not hold, never an idle gap.

Definition (design, "Time"): from the commit of the newest durable transaction to the decision to restore; nothing if
the repository holds everything that was committed. What the repository held at an instant is told by the store's own
times of its segments, and of the pieces that were there before them. Behind the last archived byte lies WAL that nobody
here can read; a server without any work moves its position there too. Whether a commit lies in it is told by comparing
which transactions ended well in production and in the copy. What cannot be told counts as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice.clock import from_iso
from drservice.components.postgres.asking import Asking, asking
from drservice.components.postgres.waldump import TransactionEnd
from drservice.environments.interface import Environment
from drservice.errors import DrError
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn, segment_begin, segment_number
from drservice.operations.inventory import Archived
from drservice.operations.locate import RecoveryEnd, WalScanner, plan_segments
from drservice.operations.restorerequest import RestoreResult
from drservice.operations.streamstate import is_alive, read_state

_SECONDS = 60.0
_HEARD_SECONDS = 1.5
"""A receiver says four times a second how far it is, and the newest heartbeat may be on its way to it."""
_MOST_TRANSACTIONS = 200_000
"""Above that a server is busy, and the newest durable commit is young anyway."""
_STATE = (
    "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
    " case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end,"
    " pg_snapshot_xmax(pg_current_snapshot()),"
    " (select string_agg(x::text, ',') from pg_snapshot_xip(pg_current_snapshot()) x)"
)
_RENEWED = (
    "select string_agg(distinct"
    " ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint >> 32 << 32) + s.xmin::text::bigint)::text, ',')"
    " from pg_statistic s join pg_stat_all_tables t on t.relid = s.starelid"
    " where t.last_autoanalyze > coalesce(t.last_analyze, '-infinity')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Where production stood when it was decided to restore."""

    at: datetime
    """By production's own clock, which also stamps the commits."""
    flushed: Lsn
    next_xid: int
    """The first transaction id that no transaction had ended with (64 bits)."""
    running: frozenset[int] = frozenset()
    """Transactions below it that had not ended."""
    durable: Lsn | None = None
    """Set if a receiver of WAL on this host took care of everything up to ``flushed``: what it had made durable ends
    here, and the rest it knew for heartbeats and what else an idle server writes."""


def ask_production(dsn: str, *, covers: Callable[[Lsn], Lsn | None] = lambda _: None) -> Production | None:
    """Return where production stands; ``None`` if it does not answer: then nobody knows what it held.

    Args:
        dsn: production.
        covers: up to where a receiver that has taken care of everything up to a position made WAL durable.
    """
    try:
        with asking(dsn, seconds=_SECONDS, application_name="drservice drill") as session:
            at, position, counter, running = session.answer(_STATE)
    except DrError:
        return None
    if at is None or position is None or counter is None:
        return None
    return Production(
        at=from_iso(at),
        flushed=Lsn.parse(position),
        next_xid=int(counter),
        running=_numbers(running),
        durable=covers(Lsn.parse(position)),
    )


def covered_by_receiver(state_dir: Path, service: ServiceName, component: ComponentName, position: Lsn) -> Lsn | None:
    """Return up to where WAL is durable, if the receiver of this host says that up to a position it is taken care of.

    It is waited for a moment. What becomes durable in it is counted by when the store had it, like everything else.
    """
    deadline = time.monotonic() + _HEARD_SECONDS
    while True:
        try:
            state = read_state(state_dir, service, component) if is_alive(state_dir, service, component) else None
        except (DrError, OSError):
            return None
        if state is None or time.monotonic() > deadline:
            return None
        if state.covered_lsn is not None and state.covered_lsn >= position:
            return state.durable_lsn
        time.sleep(_HEARD_SECONDS / 20)


def is_tail_empty(
    production: Production | None, restored: RestoreResult, *, dsn: str, environment: Environment, since_xid: int | None
) -> bool:
    """Tell whether nothing that production had committed lies behind the archived WAL, as far as it can be proved.

    A transaction whose commit record is missing in the copy may have begun long before the archive ends, so its id says
    nothing. But it was running, or had not begun, when the baseline was measured: ids from there on are looked at one
    by one. Ask before anything is written in the copy.

    Args:
        production: where it stood at the decision.
        restored: the recovery to the latest position.
        dsn: production.
        environment: the copy.
        since_xid: the oldest transaction that was running when the baseline was measured.
    """
    if production is None:
        return False
    resolved = restored.planned.resolved
    # A ``.partial`` counts as far as there is WAL in it; what a receiver made durable may have been damaged since.
    end = resolved.plan.reach.end if resolved.plan.reach.partial is None else resolved.wal_end
    claimed = production.flushed if production.durable is None else min(production.durable, production.flushed)
    if end is not None and claimed <= end:
        return True
    if since_xid is None or not 0 <= production.next_xid - since_xid <= _MOST_TRANSACTIONS:
        return False
    try:
        environment.require_own_socket()
        with asking(environment.dsn, seconds=_SECONDS, application_name="drservice drill") as copy:
            counter = copy.answer("select pg_snapshot_xmax(pg_current_snapshot())")[0]
            there = _ended_well(copy, since_xid, min(production.next_xid, int(counter or 0)))
        with asking(dsn, seconds=_SECONDS, application_name="drservice drill") as session:
            behind = _ended_well(session, since_xid, production.next_xid) - production.running - there
            if not behind:
                return True
            names = session.scan("select datname from pg_database where datallowconn order by datname")
            databases = [name for (name,) in names if name is not None]
        return behind <= _statistics(dsn, databases)
    except DrError:
        return False


def _ended_well(session: Asking, begin: int, end: int) -> frozenset[int]:
    """Return the transactions from ``begin`` up to ``end`` that have committed."""
    return _numbers(
        session.answer(
            "select string_agg(x::text, ',')"  # noqa: S608 - integers
            f" from generate_series({begin}::bigint, {end - 1}::bigint) x"
            " where pg_xact_status(x::text::xid8) = 'committed'"
        )[0]
    )


def _statistics(dsn: str, databases: Sequence[str]) -> frozenset[int]:
    """Return transactions of autovacuum that only renewed the planner's statistics: nobody's work.

    Every analysis rewrites a table's rows in ``pg_statistic``. Where the last one was autovacuum's, so is the
    transaction that wrote them, and autovacuum does nothing else in it. A row carries the lower half of its writer's
    number only; the upper half is that of the newest transaction, which is so for 2^31 transactions.
    """
    found: frozenset[int] = frozenset()
    for database in databases:
        with asking(dsn, seconds=_SECONDS, database=database, application_name="drservice drill") as session:
            found |= _numbers(session.answer(_RENEWED)[0])
    return found


def _numbers(text: str | None) -> frozenset[int]:
    return frozenset(int(number) for number in text.split(",")) if text else frozenset()


def loss_at(
    instant: datetime,
    restored: RestoreResult,
    scanner: WalScanner,
    *,
    skew: timedelta = timedelta(0),
    tail_at_risk: bool = False,
) -> float | None:
    """Return what losing production at an instant would have cost, in seconds of committed work.

    Commits up to the instant are compared with what the store held at the instant. ``None`` if the store does not tell
    its times.

    Args:
        instant: by production's clock.
        restored: the recovery.
        scanner: reads the archived WAL.
        skew: how much the store's clock was ahead of production's.
        tail_at_risk: whether commits may lie behind the archived WAL.
    """
    plan, archived = restored.planned.resolved.plan, restored.planned.archived
    inventory = archived.inventory
    size = inventory.segment_bytes
    names = plan_segments(plan, inventory)
    last = restored.reached.lsn.segment_number(size) - plan.snapshot.postgres.start_lsn.segment_number(size)
    was_at_risk = tail_at_risk
    stored = {
        name: inventory.stored_at.get(name) or inventory.stored_at.get(f"{name}.partial") for name in names[: last + 1]
    }
    hole = _first_hole(stored, at=instant + skew, archived=archived)
    for position, (name, stored_at) in reversed(list(enumerate(stored.items()))):
        if stored_at is None:
            return None
        is_held = stored_at - skew <= instant and position < hole
        if is_held and not was_at_risk:
            return 0.0
        commits = [
            event
            for event in scanner.dump(name).events
            if isinstance(event, TransactionEnd) and event.outcome.committed and event.at <= instant
        ]
        held = commits
        if not is_held:
            begin = segment_begin(segment_number(name, size), size)
            until = begin if position > hole else archived.source.held_until(name, at=instant + skew)
            held = [event for event in commits if event.end <= until]
            missed = [event.end for event in commits if event.end > until]
            begin = max((event.end for event in held), default=begin)
            # Heartbeats are nobody's work: a receiver lets them wait, and nothing is lost with them.
            was_at_risk = was_at_risk or bool(missed and not scanner.is_idle(name, begin, max(missed)))
        if held:
            return (instant - max(event.at for event in held)).total_seconds() if was_at_risk else 0.0
    return max(0.0, (instant - plan.snapshot.stopped_at).total_seconds()) if was_at_risk else 0.0


def left_behind(instant: datetime, restored: RestoreResult, scanner: WalScanner) -> float | None:
    """Return what a recovery to before the end of the WAL leaves behind in it, in seconds of committed work.

    ``None``: nothing that was committed by then, or only what an idle server writes. It is counted from the last commit
    that was recovered, as every loss is.

    Args:
        instant: of the decision, by production's clock.
        restored: the recovery.
        scanner: reads the archived WAL.
    """
    plan, inventory = restored.planned.resolved.plan, restored.planned.archived.inventory
    size, position = inventory.segment_bytes, plan.target.lsn
    if position is None:
        return None
    first = plan.snapshot.postgres.start_lsn.segment_number(size)
    for name in plan_segments(plan, inventory)[position.segment_number(size) - first :]:
        begin = max(position, segment_begin(segment_number(name, size), size))
        missed = [
            event.end
            for event in scanner.dump(name).events
            if isinstance(event, TransactionEnd)
            and event.outcome.committed
            and event.at <= instant
            and event.lsn >= position
        ]
        if missed and not scanner.is_idle(name, begin, max(missed)):
            reached = restored.reached.time or plan.snapshot.stopped_at
            return max(0.0, (instant - reached).total_seconds())
    return None


def _first_hole(stored: Mapping[str, datetime | None], *, at: datetime, archived: Archived) -> int:
    """Return which segment was the first that the store did not hold to its end: what lay behind it led nowhere.

    Segments need not reach the store in order: what was missing is filled in later.
    """
    size = archived.inventory.segment_bytes
    for position, (name, stored_at) in enumerate(stored.items()):
        if stored_at is None or stored_at > at:
            end = segment_begin(segment_number(name, size) + 1, size)
            if archived.source.held_until(name, at=at) < end:
                return position
    return len(stored)


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
