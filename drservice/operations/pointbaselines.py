"""What production said when recovery points were made, and which points belong to the history that was recovered."""

from __future__ import annotations

from collections.abc import Mapping

from drservice.clock import to_iso
from drservice.errors import DrError
from drservice.model.checks import Baseline
from drservice.model.ids import ComponentName, PointId, ServiceName
from drservice.model.points import RecoveryPoint
from drservice.model.recovery import RecoveryPlan
from drservice.operations.progress import Progress
from drservice.repository import layout
from drservice.repository.repository import Repository


def stands_on_path(point: RecoveryPoint, plan: RecoveryPlan) -> bool:
    """Return whether a point lies on the history that a plan follows, before its target or behind it."""
    member = point.member(plan.snapshot.component)
    if member is None or member.position is None or member.position.system_id != plan.snapshot.postgres.system_id:
        return False
    position = member.position
    return any(
        span.timeline == position.timeline and (span.end is None or position.lsn <= span.end)
        for span in plan.reach.path
    )


def read_baseline(
    repository: Repository, service: ServiceName, point: RecoveryPoint, component: ComponentName, progress: Progress
) -> Baseline | None:
    """Return what production said about a cluster; ``None`` if it was not asked or cannot be read, which is told."""
    try:
        baselines = repository.points(service).secret(PointId(point.id)).get("baselines")
        found = baselines.get(component) if isinstance(baselines, Mapping) else None
        return Baseline.from_json(found) if found is not None else None
    except (DrError, ValueError) as error:
        key = layout.point_key(service, point.id)
        progress.note(f"WARNING: the baseline of {key} ({to_iso(point.at)}) cannot be read: {error}")
        return None
