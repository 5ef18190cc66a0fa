"""What another retention would let go that the one in force keeps: asked before it is put in force. Reads only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drservice.model.estate import Service
from drservice.model.ids import PointId, ServiceName, SnapshotId
from drservice.model.retention import RetentionPolicy
from drservice.operations.retention import RetentionContext, inspect_retention


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiring:
    """What of a service would expire, oldest first."""

    service: ServiceName
    points: tuple[PointId, ...]
    snapshots: tuple[SnapshotId, ...]
    kept_snapshots: int
    """How many would stay."""


def newly_expired(context: RetentionContext, service: Service, policy: RetentionPolicy) -> Expiring:
    """Return what ``policy`` would let go and the service's own retention keeps.

    Raises:
        ProofUnknownError: it cannot be told which snapshots recovery was last proved with.
        ObjectStoreError: the store did not answer.
    """
    now = inspect_retention(context, service).plan
    then = inspect_retention(context, replace(service, retention=policy)).plan
    points, snapshots = {point.id for point in now.expired_points}, {snapshot.key for snapshot in now.expired}
    return Expiring(
        service=service.name,
        points=tuple(point.id for point in then.expired_points if point.id not in points),
        snapshots=tuple(snapshot.id for snapshot in then.expired if snapshot.key not in snapshots),
        kept_snapshots=len(then.remaining),
    )
