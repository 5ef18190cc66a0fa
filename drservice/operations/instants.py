"""Which instants of a cluster can be reached, with a proof: where random targets come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.errors import TargetOutsideWindowError
from drservice.model.recovery import Target, TargetKind, choose_plan, windows_of
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.inventory import archive_of, newest_lineage
from drservice.operations.locate import WalScanner, plan_segments
from drservice.operations.restore import RestoreContext, scanner_of
from drservice.repository.records import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenSpan:
    """From the end of the oldest snapshot of the newest window to the newest record with a time (``None``: none)."""

    begin: datetime
    end: datetime | None


def proven_span(context: RestoreContext, scope: Scope) -> ProvenSpan:
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
    archived = archive_of(context.repository, newest)
    windows = windows_of(records, archived.inventory)
    if not windows:
        raise TargetOutsideWindowError(f"no snapshot of {scope.service}/{scope.component} has the WAL it needs")
    plan = choose_plan(Target(kind=TargetKind.LATEST), records, archived.inventory)
    segments = plan_segments(plan, archived.inventory)
    with scanner_of(context, newest, scope) as scanner:
        end = _newest_time(scanner, segments, behind=plan.snapshot)
    return ProvenSpan(
        begin=windows[-1].first.stopped_at,
        end=end,
    )


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
