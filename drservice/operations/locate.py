"""Finding a target in the archived WAL before anything is restored: a restore that cannot succeed is refused.

Commit times are not monotonic and a server's clock says nothing about commits: proof is by records. ``pg_waldump``
reads them inside a sandbox, because archived WAL of a hostile origin is hostile input.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from drservice.clock import Clock, to_iso
from drservice.components.postgres.recovery import ReplayTarget
from drservice.components.postgres.server import require_tool
from drservice.components.postgres.waldump import (
    Checkpoint,
    Dump,
    EndKind,
    Event,
    Execute,
    Geometry,
    RestorePoint,
    TransactionEnd,
    dump_segment,
    has_record_from,
)
from drservice.components.postgres.walrecords import is_idle
from drservice.environments.exchange import Exchange
from drservice.environments.interface import Environment, EnvironmentSpec
from drservice.environments.sandbox import prepare_sandbox
from drservice.errors import SegmentAbsentError, SegmentConflictError, TargetOutsideWindowError, UsageError, WalGapError
from drservice.model.ids import ServiceName
from drservice.model.reach import TailSegment, WalGap, WalInventory, holder_of, limit_of
from drservice.model.recovery import RecoveryPlan, Target, TargetKind, choose_plan, reachable_windows
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import (
    Lsn,
    Timeline,
    WalFileName,
    segment_begin,
    segment_name,
    segment_number,
    segments_between,
)
from drservice.operations.clocksearch import candidates
from drservice.operations.inventory import Archived
from drservice.operations.progress import Progress
from drservice.operations.walsource import PlannedWal
from drservice.processes import Finished

WAL_BLOCK_BYTES = 8192
_DUMP_SECONDS = 120.0
_DUMPS_KEPT = 4
"""A busy segment holds tens of thousands of commits: a search over many must not keep them all."""
_PROBE_LIFETIME = timedelta(hours=1)


class RecoveryEnd(Enum):
    """What recovery is expected to stop at."""

    TARGET = "target"
    END_OF_WAL = "end of WAL"
    """Nothing was committed after the target, and the archive is proven complete past it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A plan whose target was found in the WAL, and how PostgreSQL is told."""

    plan: RecoveryPlan
    replay: ReplayTarget
    ends: RecoveryEnd
    notes: tuple[str, ...] = ()
    wal_end: Lsn | None = None
    """Where valid WAL ends inside the last segment, if recovery is to reach it and the segment was never finished (a
    ``.partial``, or in pieces): the server does not ask for another one behind it, so this is what tells that it has
    read all there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A segment that can be read in the sandbox, and with what."""

    execute: Execute
    program: str
    inside: str
    """Its path in there."""
    local: Path


@dataclass(slots=True)
class WalScanner:
    """Reads records of archived segments in a sandbox of its own. Use as a context manager."""

    archived: Archived
    major: int
    service: ServiceName
    environments_dir: Path
    clock: Clock
    progress: Progress
    _environment: Environment | None = None
    _exchange: Exchange | None = None
    _dumps: OrderedDict[str, Dump] = field(default_factory=OrderedDict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exchange is not None:
            self._exchange.close()
        if self._environment is not None:
            self._environment.destroy()

    def dump(self, name: str) -> Dump:
        """Return what one archived segment tells."""
        known = self._dumps.get(name)
        if known is None:
            known = self._dumps[name] = self._read(name)
            while len(self._dumps) > _DUMPS_KEPT:
                self._dumps.popitem(last=False)
        return known

    def has_record_from(self, name: str, begin: Lsn) -> bool:
        """Tell whether a segment has a record that begins at a position in it or behind it."""
        with self._served(name) as served:
            return has_record_from(served.execute, program=served.program, segment=served.inside, begin=begin)

    def is_idle(self, name: str, begin: Lsn, end: Lsn) -> bool:
        """Tell whether a segment has only heartbeats and an idle server's own WAL from one record's end to another's.

        What is not recognised counts as work.
        """
        size = self.archived.inventory.segment_bytes
        base = segment_begin(segment_number(name, size), size).value
        return is_idle(memoryview(self._fetch(name)), begin.value - base, end.value - base)

    def _read(self, name: str) -> Dump:
        with self._served(name) as served:
            self.progress.advance(1)
            return dump_segment(
                served.execute,
                program=served.program,
                segment=served.inside,
                local=served.local,
                geometry=Geometry(segment_bytes=self.archived.inventory.segment_bytes, wal_block_bytes=WAL_BLOCK_BYTES),
            )

    @contextmanager
    def _served(self, name: str) -> Iterator[_Served]:
        """Have a segment in the sandbox while the block runs."""
        environment, exchange = self._place()
        exchange.serve(name, self._fetch(name))

        def execute(argv: Sequence[str]) -> Finished:
            return environment.execute(argv, timeout_seconds=_DUMP_SECONDS)

        try:
            yield _Served(
                execute=execute,
                program=str(require_tool("pg_waldump", server=self.major).path("pg_waldump")),
                inside=f"/env/wal/{name}",
                local=environment.wal / name,
            )
        finally:
            exchange.forget(name)

    def _fetch(self, name: str) -> bytes:
        """Return a segment's bytes; of one that was never finished those of its ``.partial``, or of its pieces."""
        source = self.archived.source
        parsed = WalFileName.parse(name)
        streamed = self.archived.streamed.get(name)
        if streamed is not None and not streamed.is_whole:
            return source.fetch_last(parsed, end=streamed.tail.end)
        try:
            return source.fetch(parsed, system_id=source.system_id)
        except SegmentAbsentError:
            partial = WalFileName.parse(f"{name}.partial")
            if not source.exists(partial, system_id=source.system_id):
                raise
            return source.fetch(partial, system_id=source.system_id)

    def _place(self) -> tuple[Environment, Exchange]:
        if self._environment is None or self._exchange is None:
            spec = EnvironmentSpec(service=self.service, purpose="probe", expires_at=self.clock.now() + _PROBE_LIFETIME)
            self._environment = prepare_sandbox(spec, environments_dir=self.environments_dir, clock=self.clock)
            self._exchange = Exchange(self._environment.wal)
        return self._environment, self._exchange


def resolve(
    target: Target, records: Sequence[SnapshotRecord], inventory: WalInventory, scanner: WalScanner
) -> Resolved:
    """Plan a recovery and prove that its target exists in the archived WAL.

    Raises:
        TargetOutsideWindowError, WalGapError: it cannot be reached; names the gap and what is reachable.
        DamagedObjectError, WalError: WAL on the way to the proof cannot be read.
    """
    match target.kind:
        case TargetKind.TIME:
            plan = _plan_by_server_clock(target, records, inventory, scanner)
            return _resolve_time(target, plan, records, inventory, scanner)
        case TargetKind.LSN:
            plan = choose_plan(target, records, inventory)
            assert target.lsn is not None
            return _resolve_lsn(target.lsn, plan, records, inventory, scanner)
        case TargetKind.XID | TargetKind.NAME:
            event = _search(target, records, inventory, scanner)
            plan = choose_plan(target, records, inventory, located=event.lsn)
            note = f"{target.describe()} was found at {event.lsn}"
            return Resolved(plan=plan, replay=ReplayTarget.at_lsn(event.lsn), ends=RecoveryEnd.TARGET, notes=(note,))
        case TargetKind.SNAPSHOT:
            plan = choose_plan(target, records, inventory)
            return Resolved(plan=plan, replay=ReplayTarget.immediate(), ends=RecoveryEnd.TARGET)
        case TargetKind.LATEST:
            return _resolve_latest(target, (), records, inventory, scanner)
        case TargetKind.CONSISTENT:
            return _resolve_consistent(target, records, inventory, scanner)


def _resolve_latest(
    target: Target,
    notes: tuple[str, ...],
    records: Sequence[SnapshotRecord],
    inventory: WalInventory,
    scanner: WalScanner,
) -> Resolved:
    plan = choose_plan(target, records, inventory)
    _require_one_history(plan, scanner)
    return _to_the_end(plan, notes, scanner)


def _resolve_consistent(
    target: Target, records: Sequence[SnapshotRecord], inventory: WalInventory, scanner: WalScanner
) -> Resolved:
    """Go to the position up to which documents are proven, or to the end of the WAL if that comes first.

    A hole behind the position is none on the way to it; one before it is an error that names it, as for any position.
    """
    if target.lsn is None:
        note = "no documents follow the rows: it is the latest position"
        return _resolve_latest(target, (note,), records, inventory, scanner)
    latest = replace(target, lsn=None)
    try:
        ahead = choose_plan(latest, records, inventory).reach.end <= target.lsn
    except WalGapError:
        ahead = False
    if not ahead:
        plan = choose_plan(target, records, inventory)
        found = _resolve_before(target.lsn, plan, inventory, scanner)
        if found is not None:
            return found
    note = f"documents are proven up to {target.lsn}, and no record begins behind that: it is the latest position"
    return _resolve_latest(latest, (note,), records, inventory, scanner)


def _resolve_before(lsn: Lsn, plan: RecoveryPlan, inventory: WalInventory, scanner: WalScanner) -> Resolved | None:
    """Return how to replay every record that begins before a position; ``None``: none in reach begins behind it.

    PostgreSQL stops where a record begins at the position or behind it, and takes it for an error if there is none.
    """
    if plan.reach.fork is not None and lsn >= plan.reach.fork:
        return _to_the_end(plan, (), scanner)
    size = inventory.segment_bytes
    first = plan.snapshot.postgres.start_lsn.segment_number(size)
    for name in plan_segments(plan, inventory)[lsn.segment_number(size) - first :]:
        begin = segment_begin(segment_number(name, size), size)
        if scanner.has_record_from(name, max(lsn, begin)):
            note = f"documents are proven up to {lsn}: every record that begins before it is replayed, and no other"
            replay = ReplayTarget.at_lsn(lsn, inclusive=False)
            return Resolved(plan=plan, replay=replay, ends=RecoveryEnd.TARGET, notes=(note,))
    return None


def _require_one_history(plan: RecoveryPlan, scanner: WalScanner) -> None:
    """Refuse to take the end of what two histories have in common for the latest position.

    Raises:
        SegmentConflictError: pieces of the last segment contradict each other; says how far they agree.
    """
    tail = tail_of(plan, scanner.archived.inventory)
    if plan.reach.tail is None or tail is None or not tail.is_contradicted:
        return
    agreed = scanner.dump(plan.reach.tail).end.position
    raise SegmentConflictError(
        f"{plan.target.describe()} is not known: {tail.problem}",
        hint="Two servers, or receivers of two, wrote to one place; stop one. What both agree on ends at"
        f" {agreed}: --lsn {agreed} restores it.",
    )


def planned_wal(plan: RecoveryPlan, archived: Archived) -> PlannedWal:
    """Return the WAL that a plan is to be replayed from."""
    tail = tail_of(plan, archived.inventory)
    end = plan.reach.end if tail is None else tail.end
    return PlannedWal(archived.source, last=plan.reach.tail, end=end)


def tail_of(plan: RecoveryPlan, inventory: WalInventory) -> TailSegment | None:
    """Return what is known of the pieces that a plan's last segment is put together from, if it is."""
    name = plan.reach.tail
    if name is None:
        return None
    return inventory.tails[Timeline(int(name[:8], 16))][segment_number(name, inventory.segment_bytes)]


def _to_the_end(plan: RecoveryPlan, notes: tuple[str, ...], scanner: WalScanner) -> Resolved:
    """Return how to replay everything a plan reaches.

    Where its last segment is an ancestor's that runs on past the fork, recovery is told to stop before the fork.
    """
    fork = plan.reach.fork
    unfinished = plan.reach.tail or (plan.reach.partial or "").removesuffix(".partial")
    if fork is not None and unfinished:
        last = scanner.dump(unfinished).end.position
        if last is not None and last <= fork:  # nothing lies behind it to stop at: PostgreSQL would miss its target
            if last < fork:
                notes = (*notes, f"WARNING: WAL from {last} to {fork}, where the timeline was left, is not stored")
            fork = None
    if fork is None:
        end: Lsn | None = None
        if plan.reach.partial is not None:
            end = scanner.dump(plan.reach.partial.removesuffix(".partial")).end.position
            notes = (*notes, f"the last segment is archived as {plan.reach.partial}; valid WAL in it ends at {end}")
        elif plan.reach.tail is not None:
            end = scanner.dump(plan.reach.tail).end.position
            notes = (
                *notes,
                f"the last segment, {plan.reach.tail}, is put together from pieces; its WAL ends at {end}",
            )
            tail = tail_of(plan, scanner.archived.inventory)
            if tail is not None and tail.problem is not None:
                notes = (*notes, f"WARNING: the WAL ends there although more was stored: {tail.problem}")
        return Resolved(plan=plan, replay=ReplayTarget.latest(), ends=RecoveryEnd.END_OF_WAL, notes=notes, wal_end=end)
    note = f"WARNING: timeline {plan.timeline} has no WAL of its own here yet: recovery ends at its begin, {fork}"
    replay = ReplayTarget.at_lsn(fork, inclusive=False)
    return Resolved(plan=plan, replay=replay, ends=RecoveryEnd.TARGET, notes=(*notes, note))


def plan_segments(plan: RecoveryPlan, inventory: WalInventory) -> list[str]:
    """Return the names of the segments a plan may replay, in order, each on the timeline that serves it."""
    size = inventory.segment_bytes
    first = plan.snapshot.postgres.start_lsn.segment_number(size)
    names: list[str] = []
    whole = plan.reach.segments - (plan.reach.tail is not None)
    for number in range(first, first + whole):
        timeline = holder_of(number, plan.reach.path, inventory)
        if timeline is None:
            assert plan.reach.partial is not None, "measure_reach follows only what is there"
            names.append(plan.reach.partial.removesuffix(".partial"))
        else:
            names.append(segment_name(timeline, number, size))
    return names if plan.reach.tail is None else [*names, plan.reach.tail]


def _plan_by_server_clock(
    target: Target, records: Sequence[SnapshotRecord], inventory: WalInventory, scanner: WalScanner
) -> RecoveryPlan:
    """Choose a plan whose snapshot began before the target by the server's own clock.

    A snapshot is dated by the host that took it, commits by the server. Where the host's clock was behind, a snapshot
    may hold commits from after the target, and nothing in the WAL behind it would tell. The checkpoint that every
    backup begins with carries the server's time.
    """
    assert target.time is not None
    usable = list(records)
    while True:
        plan = choose_plan(target, usable, inventory)
        began = _began(plan, inventory, scanner)
        if began is None or began <= target.time:
            return plan
        usable.remove(plan.snapshot)


def _began(plan: RecoveryPlan, inventory: WalInventory, scanner: WalScanner) -> datetime | None:
    """Return the time of the checkpoint a snapshot began with; ``None`` where the WAL does not tell."""
    facts = plan.snapshot.postgres
    count = len(segments_between(facts.start_lsn, facts.stop_lsn, inventory.segment_bytes))
    for name in plan_segments(plan, inventory)[:count]:
        for event in scanner.dump(name).events:
            if isinstance(event, Checkpoint) and event.redo == facts.start_lsn:
                return event.at
    return None


def _resolve_time(
    target: Target,
    plan: RecoveryPlan,
    records: Sequence[SnapshotRecord],
    inventory: WalInventory,
    scanner: WalScanner,
) -> Resolved:
    instant = target.time
    assert instant is not None
    names = plan_segments(plan, inventory)
    # Where the server's clock leads to comes first: what is read then lies at the target, whatever became of the rest.
    for name in candidates(instant, names, scanner.archived):
        if later := _ended_after(instant, scanner.dump(name).events, plan):
            return _stopping_before(later, instant, plan)
    newest: datetime | None = None
    for name in reversed(names):
        events = [event for event in scanner.dump(name).events if event.lsn < plan.reach.end]
        if later := _ended_after(instant, events, plan):
            return _stopping_before(later, instant, plan)
        ends = any(isinstance(event, TransactionEnd) for event in events)
        stamps = [event.at for event in events if event.at is not None]
        newest = max([*stamps, *([newest] if newest else [])], default=None)
        if ends and newest is not None and newest <= instant:
            break
        # A checkpoint behind the target proves the archive complete, but says nothing about what was committed between
        # them, and commit times are not monotonic: only the look at every segment allows a recovery without a stop.
    if newest is not None and newest > instant and plan.reach.gap is None:
        note = f"nothing ended after the target; a record of {to_iso(newest)} proves the archive complete past it"
        return _to_the_end(plan, (note,), scanner)
    if newest is not None and newest > instant:
        why = "no transaction before the gap ended after the target, so recovery would run into it; name an LSN instead"
    else:
        known = f"the newest record in reach is of {to_iso(newest)}" if newest else "no record in reach has a time"
        why = f"{known}, so nothing proves that the archive is complete up to the target"
    raise _outside(target, why, records, inventory, gap=plan.reach.gap)


def _ended_after(instant: datetime, events: Sequence[Event], plan: RecoveryPlan) -> TransactionEnd | None:
    """Return the first transaction in reach of a plan that ended after an instant."""
    ends = (event for event in events if isinstance(event, TransactionEnd) and event.lsn < plan.reach.end)
    return next((event for event in ends if event.at > instant), None)


def _stopping_before(later: TransactionEnd, instant: datetime, plan: RecoveryPlan) -> Resolved:
    note = f"a transaction that ended at {to_iso(later.at)} ({later.lsn}) proves WAL past the target"
    return Resolved(plan=plan, replay=ReplayTarget.at_time(instant), ends=RecoveryEnd.TARGET, notes=(note,))


def _resolve_lsn(
    lsn: Lsn,
    plan: RecoveryPlan,
    records: Sequence[SnapshotRecord],
    inventory: WalInventory,
    scanner: WalScanner,
) -> Resolved:
    if plan.reach.fork is not None and lsn >= plan.reach.fork:
        return _to_the_end(plan, (), scanner)
    size = inventory.segment_bytes
    names = plan_segments(plan, inventory)
    first = plan.snapshot.postgres.start_lsn.segment_number(size)
    index = lsn.segment_number(size) - first
    for name in names[index:]:
        end = scanner.dump(name).end
        if end.kind is not EndKind.STOPPED or (end.position is not None and end.position > lsn):
            return Resolved(plan=plan, replay=ReplayTarget.at_lsn(lsn), ends=RecoveryEnd.TARGET)
        if end.position is not None and end.position == lsn:
            note = f"the archived WAL ends exactly at {lsn}"
            return _to_the_end(plan, (note,), scanner)
    raise _outside(plan.target, "the archived WAL ends before it", records, inventory, gap=plan.reach.gap)


def _search(
    target: Target, records: Sequence[SnapshotRecord], inventory: WalInventory, scanner: WalScanner
) -> TransactionEnd | RestorePoint:
    scanner.progress.step(f"search the WAL for {target.describe()}")
    for name, limit in _newest_first(target, records, inventory):
        for event in reversed(scanner.dump(name).events):
            if _matches(event, target) and (limit is None or event.lsn < limit):
                assert isinstance(event, (TransactionEnd, RestorePoint))
                if isinstance(event, TransactionEnd) and not event.outcome.committed:
                    raise UsageError(
                        f"transaction {target.xid} was rolled back at {to_iso(event.at)} ({event.lsn})",
                        hint="There is nothing of it to recover; name another transaction, a time or an LSN.",
                    )
                return event
    raise _outside(target, "it is not in the archived WAL", records, inventory, gap=None)


def _matches(event: Event, target: Target) -> bool:
    if isinstance(event, TransactionEnd) and target.kind is TargetKind.XID and target.xid is not None:
        return event.xid == target.xid & 0xFFFFFFFF
    return isinstance(event, RestorePoint) and target.kind is TargetKind.NAME and event.name == target.name


def _newest_first(
    target: Target, records: Sequence[SnapshotRecord], inventory: WalInventory
) -> Iterator[tuple[str, Lsn | None]]:
    """Yield the archived segments on the way to the newest timeline, newest first, across gaps.

    With each the position from which on its records are of a history that was left, if it holds such.
    """
    timelines = inventory.timelines()
    if not timelines or not records:
        return
    latest = target.timeline if target.timeline is not None else max(timelines)
    path = inventory.path_to(latest)
    whole = {number for found in inventory.segments.values() for number in found}
    partials = inventory.partials.get(latest, frozenset()) | inventory.tails.get(latest, {}).keys()
    own = inventory.segments.get(latest, frozenset()) | partials
    oldest = min(record.postgres.start_lsn for record in records).segment_number(inventory.segment_bytes)
    for number in sorted(whole | partials, reverse=True):
        timeline = latest if number in own else holder_of(number, path, inventory)
        if number >= oldest and timeline is not None:
            limit = limit_of(number, path, timeline, inventory.segment_bytes)
            yield segment_name(timeline, number, inventory.segment_bytes), limit


def _outside(
    target: Target, why: str, records: Sequence[SnapshotRecord], inventory: WalInventory, *, gap: WalGap | None
) -> TargetOutsideWindowError | WalGapError:
    windows = "; ".join(reachable_windows(records, inventory)) or "nothing"
    hint = f"Reachable: {windows}."
    if gap is not None:
        return WalGapError(f"{target.describe()} cannot be reached: {gap.describe()}; {why}", hint=hint)
    return TargetOutsideWindowError(f"{target.describe()} cannot be reached: {why}", hint=hint)
