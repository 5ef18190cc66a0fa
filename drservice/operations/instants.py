"""Which instants of a cluster can be reached, with a proof: where random targets come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.errors import TargetOutsideWindowError
from drservice.model.estate import Service
from drservice.model.ids import SystemId
from drservice.model.recovery import Target, TargetKind, choose_plan, windows_of
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.inventory import archive_of, newest_lineage
from drservice.operations.locate import WalScanner, plan_segments
from drservice.operations.restoreplan import scanner_of
from drservice.operations.restorerequest import RestoreContext
from drservice.repository.records import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenSpan:
    """From the end of the oldest snapshot of the newest window to the newest record with a time (``None``: none)."""

    begin: datetime
    end: datetime | None
    documents: datetime | None = None
    """When the documents were looked at last: rows committed later may refer to what nobody has seen."""


def proven_span(context: RestoreContext, service: Service, scope: Scope) -> ProvenSpan:
    """Look for the span of instants that a restore can prove to have reached.

    Raises:
        TargetOutsideWindowError: there is no snapshot with the WAL it needs.
        NoIdentityError, WrongIdentityError: the WAL cannot be read here.
    """
    records = context.repository.snapshots(scope).records
    newest = newest_lineage(records)
    if newest is None:
        raise TargetOutsideWindowError(
            f"{scope.service}/{scope.component} has no readable snapshot", hint="Take one: drservice backup."
        )
    archived = archive_of(context.repository, newest, proven=True)
    windows = windows_of(records, archived.inventory)
    if not windows:
        raise TargetOutsideWindowError(f"no snapshot of {scope.service}/{scope.component} has the WAL it needs")
    # From the oldest snapshot of the window on: behind the newest one nothing may be archived yet.
    first = windows[-1].first
    plan = choose_plan(Target(kind=TargetKind.LATEST), [first], archived.inventory)
    segments = plan_segments(plan, archived.inventory)
    with scanner_of(context, first, scope, archived) as scanner:
        end = _newest_time(scanner, segments, behind=first)
    return ProvenSpan(
        begin=first.stopped_at, end=end, documents=_covered_until(context, service, newest.postgres.system_id)
    )


def _covered_until(context: RestoreContext, service: Service, system_id: SystemId) -> datetime | None:
    """Return up to which instant the documents of every filestore are stored: of the one that was looked at least.

    By a pass that began and could read everything, or a whole set of rows of this cluster. ``None`` without filestores,
    or if one was never captured.
    """
    covered: list[datetime] = []
    for component in service.filestores():
        scope = context.repository.scope(service.name, component.name)
        passes = context.repository.snapshots(scope).records
        looks = [record.documents.walk_began_at for record in passes if record.state is not SnapshotState.PARTIAL]
        sets = context.repository.document_sets(scope)
        newest = sets.newest(fits=lambda item: item.position.system_id == system_id)
        looks += [newest.looked_at] if newest is not None else []
        if not looks:
            return None
        covered.append(max(looks))
    return min(covered, default=None)


def _newest_time(scanner: WalScanner, segments: Sequence[str], *, behind: SnapshotRecord) -> datetime | None:
    """Return the newest time that a record behind a snapshot tells."""
    for name in reversed(segments):
        times = [
            event.at
            for event in scanner.dump(name).events
            if event.at is not None and event.lsn > behind.postgres.stop_lsn
        ]
        if times:
            return max(times)
    return None
