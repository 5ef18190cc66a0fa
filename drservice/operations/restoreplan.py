"""Planning a restore: which snapshot, which WAL, and the proof that the target is in it. Nothing is written."""

from __future__ import annotations

from dataclasses import replace

from drservice.clock import to_iso
from drservice.components.postgres.asking import asking
from drservice.components.postgres.tablespaces import Moved
from drservice.errors import DrError, TargetOutsideWindowError, UnknownNameError
from drservice.model.ids import SystemId
from drservice.model.recovery import RecoveryPlan, Target, TargetKind, present_timeline
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.inventory import Archived, archive_of, last_write, newest_lineage
from drservice.operations.locate import Resolved, WalScanner, plan_segments, resolve
from drservice.operations.restorerequest import Planned, RestoreContext, RestoreRequest
from drservice.operations.selection import select_files
from drservice.operations.sharedinstant import Ends, Shared, followers, shared_along
from drservice.operations.streamstate import read_state
from drservice.operations.tablespaces import choose
from drservice.repository.records import Scope

_ASKED_SECONDS = 3.0
_PRESENT = (
    "select (select system_identifier from pg_control_system()), case when pg_is_in_recovery()"
    " then (select min_recovery_end_timeline from pg_control_recovery())"
    " else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end"
)


def plan_restore(context: RestoreContext, request: RestoreRequest) -> Planned:
    """Choose snapshot and WAL and prove that the target exists; writes nothing but a probe environment.

    Raises:
        TargetOutsideWindowError, WalGapError: it cannot be reached.
        UnknownNameError: the snapshot has no such database.
        NoIdentityError, WrongIdentityError: the WAL cannot be read here.
    """
    context.progress.step("plan")
    scope = context.repository.scope(request.service.name, request.component.name)
    listing = context.repository.snapshots(scope)
    unreadable = tuple(f"{key}: {error.message}" for key, error in listing.unreadable.items())
    for text in unreadable:
        context.progress.note(f"WARNING: a snapshot cannot be read and is left out: {text}")
    known = (*listing.records, *(listing.void if request.target.kind is TargetKind.SNAPSHOT else ()))
    records = tuple(record for record in known if record.id not in request.without)
    newest = _lineage_of(request.target, records, unreadable)
    if newest is None:
        broken = f"; {len(unreadable)} cannot be read ({unreadable[0]})" if unreadable else ""
        raise TargetOutsideWindowError(
            f"{scope.service}/{scope.component} has no readable snapshot{broken}", hint="Take one: drservice backup."
        )
    archived = archive_of(context.repository, newest, proven=True)
    shared = _shared(context, request, records, archived)
    target = request.target
    if target.kind is TargetKind.CONSISTENT and shared is not None:
        target = replace(target, lsn=shared.required().lsn)
    with scanner_of(context, newest, scope, archived) as scanner:
        resolved = resolve(target, records, archived.inventory, scanner)
    newer = newer_timeline(context, request, resolved.plan)
    ends = _ends(context, shared, scope, resolved, archived)
    told = (newer, _ahead(ends, target))
    resolved = replace(resolved, notes=(*resolved.notes, *(text for text in told if text is not None)))
    selected = None
    moved: tuple[Moved, ...] = ()
    if request.database is not None or request.tablespaces:
        reader = context.repository.reader(scope, resolved.plan.snapshot.id)
        selected = select_files(reader, request.database) if request.database is not None else None
        moved = choose(reader, request.tablespaces, target=request.into or request.cluster_directory)
    return Planned(
        resolved=resolved,
        archived=archived,
        scope=scope,
        records=records,
        unreadable=unreadable,
        selected=selected,
        moved=moved,
        ends=ends,
    )


def _shared(
    context: RestoreContext, request: RestoreRequest, records: tuple[SnapshotRecord, ...], archived: Archived
) -> Shared | None:
    """Return how far documents are proven along the way to a target at the end of what there is.

    Of no use is it for other targets, and for the latest position of rows that no documents are restored with.
    """
    target, service, inventory = request.target, request.service, archived.inventory
    if not target.is_latest:
        return None
    filestores = followers(service, request.component, request.database)
    if target.kind is TargetKind.LATEST:
        filestores = [item for item in filestores if item in request.files]
    timeline = target.timeline if target.timeline is not None else present_timeline(records, inventory)
    path = inventory.path_to(timeline)
    return shared_along(context.repository, service, filestores, records, system_id=inventory.system_id, path=path)


def _ends(
    context: RestoreContext, shared: Shared | None, scope: Scope, resolved: Resolved, archived: Archived
) -> Ends | None:
    """Return where rows and documents end; asked before anything is restored."""
    if shared is None:
        return None
    plan = resolved.plan
    last = plan.reach.tail or plan.reach.partial or plan_segments(plan, archived.inventory)[-1]
    written_at = last_write(context.repository.wal(scope), archived, last)
    return Ends(shared=shared, wal_end=resolved.wal_end or plan.reach.end, written_at=written_at)


def _ahead(ends: Ends | None, target: Target) -> str | None:
    """Say what lies between the end of the documents and that of the WAL."""
    if ends is None or target.kind is TargetKind.LATEST:
        return ends.describe_latest() if ends is not None else None
    return f"the WAL goes on for {ends.behind_seconds or 0.0:.2f} s behind it" if target.lsn is not None else None


def newer_timeline(context: RestoreContext, request: RestoreRequest, plan: RecoveryPlan) -> str | None:
    """Return a warning if somebody knows a newer timeline than the latest one of which anything is stored here.

    Right after a promotion nothing in the repository tells of it. The receiver of this host may know, and production
    itself, if it answers at once; where nobody does, the latest position is that of the repository, as always.
    """
    if not request.target.is_latest or request.target.timeline is not None:
        return None
    component, system_id = request.component, plan.snapshot.postgres.system_id
    told: dict[str, int] = {}
    try:
        state = read_state(context.state_dir, request.service.name, component.name)
    except (DrError, OSError):
        state = None  # it is for people, and may be deleted
    if state is not None and state.system_id == system_id and state.timeline is not None:
        told["the receiver of this host"] = state.timeline
    present = _present_timeline(component.production_dsn, system_id)
    if present is not None:
        told["production"] = present
    who = max(told, key=lambda name: told[name], default=None)
    if who is None or told[who] <= plan.timeline:
        return None
    return (
        f"WARNING: {who} is on timeline {told[who]}, of which nothing is stored yet: recovery ends on timeline"
        f" {plan.timeline}, and what was committed since the promotion is not in it"
    )


def _present_timeline(dsn: str, system_id: SystemId) -> int | None:
    """Return the timeline that production writes; ``None``: it does not answer, or is another cluster."""
    try:
        with asking(dsn, seconds=_ASKED_SECONDS, application_name="drservice restore") as session:
            identifier, timeline = session.answer(_PRESENT)
    except DrError:
        return None  # as after most disasters
    is_ours = identifier is not None and str(int(identifier) % (1 << 64)) == system_id
    return int(timeline) if is_ours and timeline is not None else None


def scanner_of(context: RestoreContext, record: SnapshotRecord, scope: Scope, archived: Archived) -> WalScanner:
    """Return what reads the archived WAL of a snapshot's cluster; use it as a context manager."""
    return WalScanner(
        archived=archived,
        major=record.postgres.server_version,
        service=scope.service,
        environments_dir=context.environments_dir,
        clock=context.clock,
        progress=context.progress,
    )


def _lineage_of(
    target: Target, records: tuple[SnapshotRecord, ...], unreadable: tuple[str, ...]
) -> SnapshotRecord | None:
    if target.kind is TargetKind.TIME and target.time is not None:
        # After `init --adopt` an instant before the change of clusters belongs to the one that was there then.
        before = tuple(record for record in records if record.stopped_at <= target.time)
        return newest_lineage(before or records)
    if target.kind is not TargetKind.SNAPSHOT:
        return newest_lineage(records)
    found = next((record for record in records if record.id == target.snapshot), None)
    if found is None:
        why = "; ".join(text for text in unreadable if str(target.snapshot) in text)
        others = ", ".join(f"{record.id} of {to_iso(record.stopped_at)}" for record in reversed(records[-5:]))
        raise UnknownNameError(
            f"there is no readable snapshot {target.snapshot}{f' ({why})' if why else ''}",
            hint=f"Readable: {others or 'none'}.",
        )
    return found
