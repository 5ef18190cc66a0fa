"""``retention``: what a service has, what may go and why, and letting it go.

Order is what makes it safe to stop anywhere and to run beside everything else: a recovery point goes before its
snapshots and a snapshot before its WAL, so what is still listed is whole; holds are read again before anything is
deleted and once more before WAL is; which WAL is needed is worked out from the snapshots that are listed *then*. Packs
are never deleted here. What cannot be read keeps what it may need. A run that was killed is repeated by the next.

What was let go, what was not and why is put on record (:mod:`drservice.operations.retentionrecord`); a host that can
sign nothing deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import ObjectNotFoundError, StoreDeniedError
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import ComponentName, SnapshotId
from drservice.model.retention import RetentionPlan, plan_retention
from drservice.model.retentiondocuments import DocumentSetPlan
from drservice.model.retentionstock import Contents, Hold, StoredPoint, StoredSnapshot, StoredWalk, WalStart
from drservice.model.retentionwal import WalPlan, plan_wal
from drservice.model.snapshot import POSTGRES_KIND, SnapshotRecord
from drservice.operations.evidence import Evidence
from drservice.operations.progress import Progress
from drservice.operations.proofs import Proofs, proofs_of
from drservice.operations.retentiondocuments import (
    filestores,
    free_passes,
    keep_needed_passes,
    plan_document_sets,
)
from drservice.operations.retentiontail import streamed_objects
from drservice.repository import layout
from drservice.repository.holds import live_holds
from drservice.repository.records import Scope
from drservice.repository.repository import Repository


class RetentionState(Enum):
    """How a retention run ended."""

    PLANNED = "planned"
    """Nothing was asked to be deleted."""
    APPLIED = "applied"
    FROZEN = "frozen"
    """A person has to look at anomalies first; nothing was deleted."""
    HELD = "held"
    """A restore runs: what it may need was not deleted."""
    BLOCKED = "blocked"
    """Something unreadable may need what would go; the rest was deleted, if asked for."""
    REFUSED = "refused"
    """The store did not let go of everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionContext:
    """What retention works with."""

    repository: Repository
    evidence: Evidence
    state_dir: Path
    clock: Clock
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentWal:
    """What becomes of the WAL of one cluster of a component."""

    component: ComponentName
    plan: WalPlan


@dataclass(slots=True, kw_only=True)
class Removed:
    """What was deleted, as it happens, by key; ``refused`` is what the store did not let go of, with its reason."""

    points: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    wal: list[str] = field(default_factory=list)
    wal_bytes: int = 0
    sets: list[str] = field(default_factory=list)
    set_bytes: int = 0
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionOutcome:
    """What retention found for a service, and what it did."""

    service: Service
    state: RetentionState
    plan: RetentionPlan
    proofs: Proofs
    wal: tuple[ComponentWal, ...]
    documents: tuple[DocumentSetPlan, ...]
    """What becomes of the document sets of each filestore."""
    unreadable: Mapping[str, str]
    """What cannot be read, with the reason, by key."""
    removed: Removed | None
    """``None`` if nothing was to be deleted."""
    notes: tuple[str, ...]
    record: int | None = None
    """Where it stands in the ledger; ``None`` if nothing was to be deleted, or the record waits on this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stock:
    contents: Contents
    unreadable: Mapping[str, str]
    now: datetime


def inspect_retention(context: RetentionContext, service: Service, *, accepted: bool = False) -> RetentionOutcome:
    """Plan what would go; changes nothing.

    Raises:
        ProofUnknownError: it cannot be told which snapshots recovery was last proved with.
        ObjectStoreError: the store did not answer.
    """
    context.progress.step(f"plan retention of {service.name}")
    proofs = proofs_of(context.repository, context.evidence, service, state_dir=context.state_dir)
    stock = _take_stock(context, service, proofs)
    plan = plan_retention(stock.contents, policy=service.retention, now=stock.now, accepted=accepted)
    blocked = {component for component, _ in stock.contents.unreadable}
    plan = keep_needed_passes(service, plan, blocked)
    documents = plan_document_sets(
        context.repository, service, plan.remaining, blocked, held=_is_held(stock.contents.holds, stock.now)
    )
    wal = _plan_wal(context, service, plan.remaining, blocked, held=_is_held(stock.contents.holds, stock.now))
    context.progress.done()
    return RetentionOutcome(
        service=service,
        state=_state(plan, stock),
        plan=plan,
        proofs=proofs,
        wal=wal,
        documents=documents,
        unreadable=stock.unreadable,
        removed=None,
        notes=(),
    )


def carry_out_retention(context: RetentionContext, planned: RetentionOutcome, removed: Removed) -> RetentionOutcome:
    """Delete what may go: points, snapshots, document sets, WAL; never packs. ``removed`` is told as it happens.

    Raises:
        ObjectStoreError: the store did not answer; what was deleted so far may go, the next run does the rest.
    """
    service = planned.service
    if planned.state in {RetentionState.FROZEN, RetentionState.HELD}:
        return planned
    now = context.repository.store.server_time()
    if _is_held(_holds(context, service, now), now):
        return replace(planned, state=RetentionState.HELD, notes=("a restore began meanwhile: nothing was deleted",))
    context.progress.step(f"expire snapshots of {service.name}")
    _delete(context, _point_keys(service, planned.plan.expired_points), removed.points, removed)
    # Passes over a filestore go afterwards: a cluster's snapshot that does not go needs documents.
    first = [item for item in _unbound(planned.plan, removed) if item.component not in filestores(service)]
    _delete(context, _keys(service, first), removed.snapshots, removed)
    planned, notes = _expire_rest(context, service, planned, removed)
    context.progress.done()
    telemetry.info(
        "retention applied",
        service=service.name,
        points=len(removed.points),
        snapshots=len(removed.snapshots),
        wal=len(removed.wal),
        refused=len(removed.refused),
    )
    state = _state_after(planned, removed, held=bool(notes))
    return replace(planned, state=state, removed=removed, notes=notes)


def _state_after(planned: RetentionOutcome, removed: Removed, *, held: bool) -> RetentionState:
    if held:
        return RetentionState.HELD
    if planned.state is RetentionState.BLOCKED:
        return RetentionState.BLOCKED
    return RetentionState.REFUSED if removed.refused else RetentionState.APPLIED


def _expire_rest(
    context: RetentionContext, service: Service, planned: RetentionOutcome, removed: Removed
) -> tuple[RetentionOutcome, tuple[str, ...]]:
    """Delete what no snapshot needs that is listed now: passes, document sets, WAL. One that was refused counts."""
    now = context.repository.store.server_time()
    stock = _take_stock(context, service, planned.proofs)
    if _is_held(_holds(context, service, now), now):
        return planned, ("a restore began meanwhile: no documents and no WAL were deleted",)
    blocked = {component for component, _ in stock.contents.unreadable}
    context.progress.step(f"expire documents of {service.name}")
    unbound = _unbound(planned.plan, removed)
    free = _keys(service, free_passes(service, unbound, stock.contents.snapshots, blocked))
    gone: list[str] = []
    try:
        _delete(context, free, gone, removed)
    finally:
        removed.snapshots.extend(gone)
    left = [item for item in stock.contents.snapshots if _keys(service, [item])[0] not in gone]
    documents = plan_document_sets(context.repository, service, left, blocked, held=False)
    wal = _plan_wal(context, service, left, blocked, held=False)
    for sets in documents:
        sizes, went = {file.key: file.stored_bytes for file in sets.expired}, list[str]()
        try:
            _delete(context, sizes, went, removed)
        finally:
            removed.sets.extend(went)
            removed.set_bytes += sum(sizes[key] for key in went)
    context.progress.step(f"expire WAL of {service.name}")
    for item in wal:
        sizes, went = {file.key: file.stored_bytes for file in item.plan.expired}, list[str]()
        try:
            _delete(context, sizes, went, removed)
        finally:
            removed.wal.extend(went)
            removed.wal_bytes += sum(sizes[key] for key in went)
    return replace(planned, wal=wal, documents=documents), ()


def _state(plan: RetentionPlan, stock: _Stock) -> RetentionState:
    if plan.is_frozen:
        return RetentionState.FROZEN
    if _is_held(stock.contents.holds, stock.now):
        return RetentionState.HELD
    return RetentionState.BLOCKED if stock.unreadable else RetentionState.PLANNED


def _is_held(holds: Iterable[Hold], now: datetime) -> bool:
    return any(hold.keeps_everything and now < hold.until for hold in holds)


# --- taking stock ---------------------------------------------------------------------------------------------------


def _take_stock(context: RetentionContext, service: Service, proofs: Proofs) -> _Stock:
    repository = context.repository
    now = repository.store.server_time()
    snapshots: list[StoredSnapshot] = []
    unreadable: dict[str, str] = {}
    unreadable_ids: set[tuple[ComponentName, SnapshotId]] = set()
    for component in service.components:
        scope = repository.scope(service.name, component)
        listing = repository.snapshots(scope)
        snapshots += _stored(repository, scope, listing.records, void=False)
        snapshots += _stored(repository, scope, listing.void, void=True)
        void = {layout.snapshot_key(service.name, component, record.id) for record in listing.void}
        for key, error in listing.unreadable.items():
            if key not in void:
                unreadable[key] = error.message
                unreadable_ids.add((component, SnapshotId(key.rsplit("/", 1)[-1])))
    points, lost = _points(repository, service)
    contents = Contents(
        snapshots=tuple(snapshots),
        points=points,
        verified=proofs.snapshots,
        last_verified=proofs.last,
        holds=_holds(context, service, now),
        unreadable=frozenset(unreadable_ids),
        unreadable_points=tuple(lost),
    )
    return _Stock(contents=contents, unreadable={**unreadable, **lost}, now=now)


def _holds(context: RetentionContext, service: Service, now: datetime) -> tuple[Hold, ...]:
    repository = context.repository
    return live_holds(repository.store, trust=repository.trust, repository=repository.id, service=service.name, now=now)


def _stored(
    repository: Repository, scope: Scope, records: Sequence[SnapshotRecord], *, void: bool
) -> list[StoredSnapshot]:
    prefix = layout.snapshot_prefix(scope.service, scope.component)
    times = {info.key: info.modified_at for info in repository.store.list(prefix)} if records else {}
    found: list[StoredSnapshot] = []
    for record in records:
        stored_at = times.get(layout.snapshot_key(scope.service, scope.component, record.id))
        if stored_at is None:
            continue  # expired by another run between the two listings
        found.append(
            StoredSnapshot(
                component=scope.component,
                id=record.id,
                stored_at=stored_at,
                stopped_at=record.stopped_at,
                state=record.state,
                source_bytes=record.source_bytes,
                stored_bytes=record.stored_bytes,
                wal=_wal_start(record),
                walk=_walk(record),
                void=void,
            )
        )
    return found


def _wal_start(record: SnapshotRecord) -> WalStart | None:
    if record.kind != POSTGRES_KIND:
        return None
    facts = record.postgres
    return WalStart(system_id=facts.system_id, lsn=facts.start_lsn, segment_bytes=facts.segment_bytes)


def _walk(record: SnapshotRecord) -> StoredWalk | None:
    if record.kind == POSTGRES_KIND:
        return None
    length = max(timedelta(0), record.stopped_at - record.documents.walk_began_at)
    return StoredWalk(length=length, is_asked=record.documents.referred is not None)


def _points(repository: Repository, service: Service) -> tuple[tuple[StoredPoint, ...], dict[str, str]]:
    listing = repository.points(service.name).listing()
    times = {info.key: info.modified_at for info in repository.store.list(layout.point_prefix(service.name))}
    points = tuple(
        StoredPoint(
            id=point.id,
            stored_at=times[key],
            members=tuple((member.component, member.snapshot) for member in point.members),
        )
        for point in listing.points
        if (key := layout.point_key(service.name, point.id)) in times
    )
    return points, {key: error.message for key, error in listing.unreadable.items()}


def _plan_wal(
    context: RetentionContext,
    service: Service,
    snapshots: Sequence[StoredSnapshot],
    blocked: set[ComponentName],
    *,
    held: bool,
) -> tuple[ComponentWal, ...]:
    """Return what may go of the WAL of each cluster, if those snapshots were all there is."""
    now = context.repository.store.server_time()
    found: list[ComponentWal] = []
    for component in service.components.values():
        if not isinstance(component, PostgresSettings) or not service.retention.is_set:
            continue
        scope = context.repository.scope(service.name, component.name)
        archive, tail = context.repository.wal(scope), context.repository.tail(scope)
        own = [item for item in snapshots if item.component == component.name]
        for system_id in sorted({*archive.system_ids(), *tail.system_ids()}):
            streamed = streamed_objects(tail, context.repository.clocks(scope), system_id, own)
            files = (*archive.objects(system_id), *streamed)
            plan = plan_wal(files, system_id=system_id, snapshots=own, now=now)
            if held or component.name in blocked:
                why = "a restore may need it" if held else "a snapshot that cannot be read may need it"
                plan = replace(plan, reason=why, expired=(), remaining=plan.remaining + len(plan.expired))
            found.append(ComponentWal(component=component.name, plan=plan))
    return tuple(found)


# --- deleting -------------------------------------------------------------------------------------------------------


def _point_keys(service: Service, points: Iterable[StoredPoint]) -> list[str]:
    return [layout.point_key(service.name, point.id) for point in points]


def _unbound(plan: RetentionPlan, removed: Removed) -> list[StoredSnapshot]:
    """Return the expired snapshots that no point binds any more: one that the store did not let go of still does."""
    stay = {key.rsplit("/", 1)[-1] for key in removed.refused}
    bound = {member for point in plan.expired_points if point.id in stay for member in point.members}
    return [item for item in plan.expired if item.key not in bound]


def _keys(service: Service, snapshots: Iterable[StoredSnapshot]) -> list[str]:
    return [layout.snapshot_key(service.name, item.component, item.id) for item in snapshots]


def _delete(context: RetentionContext, keys: Iterable[str], gone: list[str], removed: Removed) -> None:
    """Delete objects one by one; what is still locked or not ours to delete is told, and the rest goes on."""
    for key in keys:
        try:
            context.repository.store.delete(key)
        except ObjectNotFoundError:
            continue
        except StoreDeniedError as error:
            removed.refused[key] = error.message
        else:
            gone.append(key)
