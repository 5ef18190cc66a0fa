"""``prune``: which packs nothing refers to any more. It marks only: no pack is deleted by this version.

The sweep stays off until its model check (stale listings, late writes, paused writers, crashes at every call) exists. A
pack counts as unused only if every snapshot of its component could be read, void ones too; what is younger than seven
days may belong to a run that has not committed yet (no hold lasts that long).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from drservice.errors import DrError, ObjectStoreError, PacksUnknownError
from drservice.model.estate import Service
from drservice.model.ids import ComponentName, ServiceName, SnapshotId, is_ulid
from drservice.model.retentionwal import GRACE
from drservice.objectstore.interface import ObjectInfo
from drservice.operations.progress import Progress
from drservice.operations.retentiontail import covered_pieces
from drservice.repository import layout
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

SWEEP_DISABLED = "packs are marked only: deleting them stays disabled until the model check of the sweep exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPacks:
    """What is stored of a component, and what of it nothing refers to."""

    service: ServiceName
    component: ComponentName
    snapshots: int
    packs: int
    pack_bytes: int
    unused: tuple[ObjectInfo, ...]
    """By key; would be condemned."""
    waiting: int
    """Unused too, but too young to be sure."""
    waiting_bytes: int
    covered_pieces: int = 0
    """Pieces of WAL whose segments are archived whole: they say nothing more. They go when their WAL expires."""
    covered_bytes: int = 0

    @property
    def unused_bytes(self) -> int:
        """What deleting the unused packs would free."""
        return sum(info.stored_bytes for info in self.unused)


def mark_packs(repository: Repository, service: Service, *, progress: Progress) -> tuple[ComponentPacks, ...]:
    """Find the packs of a service that no snapshot refers to; changes nothing.

    Raises:
        PacksUnknownError: a snapshot cannot be read: any pack may be one of its.
        ObjectStoreError: the store did not answer.
    """
    before = repository.store.server_time() - GRACE
    found: list[ComponentPacks] = []
    for component in service.components:
        progress.step(f"mark {service.name}/{component}")
        found.append(_mark(repository, repository.scope(service.name, component), before))
    progress.done()
    return tuple(found)


def _mark(repository: Repository, scope: Scope, before: datetime) -> ComponentPacks:
    # Packs first: one that is listed after its snapshot was not is no pack without a snapshot.
    packs = [
        info
        for kind in ("packs", "nodes")
        for info in repository.store.list(layout.pack_prefix(scope.service, scope.component, kind))
    ]
    used, snapshots = _used(repository, scope)
    unused = [info for info in packs if info.key not in used]
    certain = tuple(info for info in unused if info.modified_at < before)
    waiting = [info for info in unused if info.modified_at >= before]
    covered = covered_pieces(repository, scope)
    return ComponentPacks(
        service=scope.service,
        component=scope.component,
        snapshots=snapshots,
        packs=len(packs),
        pack_bytes=sum(info.stored_bytes for info in packs),
        unused=certain,
        waiting=len(waiting),
        waiting_bytes=sum(info.stored_bytes for info in waiting),
        covered_pieces=len(covered),
        covered_bytes=sum(stored.stored_bytes for stored in covered),
    )


def _used(repository: Repository, scope: Scope) -> tuple[set[str], int]:
    """Return the keys of all packs that a snapshot refers to, and how many snapshots there are."""
    used: set[str] = set()
    number = 0
    for info in repository.store.list(layout.snapshot_prefix(scope.service, scope.component)):
        name = info.key.rsplit("/", 1)[-1]
        if not is_ulid(name):
            continue  # foreign objects beside ours are not ours to judge
        try:
            table = repository.open_snapshot(scope, SnapshotId(name)).packs
        except ObjectStoreError:
            raise
        except DrError as error:
            raise PacksUnknownError(f"{info.key} cannot be read: {error.message}") from error
        for kind, uses in (("packs", table.data), ("nodes", table.nodes)):
            used.update(layout.pack_key(scope.service, scope.component, kind, use.name) for use in uses)
        number += 1
    return used, number
