"""What of an Odoo filestore no instant needs any more that can be recovered: passes and document sets.

The rule is :mod:`drservice.model.retentiondocuments`; here it is asked about what the store lists, before anything is
deleted and once more after the clusters' snapshots went: one that the store did not let go of still needs documents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from drservice.model.estate import Service
from drservice.model.ids import ComponentName
from drservice.model.retention import RetentionPlan
from drservice.model.retentiondocuments import DocumentSetFile, DocumentSetPlan, horizon_of, keep_passes, plan_sets
from drservice.model.retentionstock import StoredSnapshot
from drservice.repository.repository import Repository


def filestores(service: Service) -> Mapping[ComponentName, ComponentName]:
    """Return the filestores of a service, each with the cluster whose rows refer to it."""
    return {component.name: service.database(component.follows).name for component in service.filestores()}


def keep_needed_passes(service: Service, plan: RetentionPlan, blocked: Collection[ComponentName]) -> RetentionPlan:
    """Return the plan with every pass over a filestore kept that an instant which can be recovered may need."""
    for component, cluster in filestores(service).items():
        plan = keep_passes(plan, component, cluster=cluster, blocked=blocked)
    return plan


def plan_document_sets(
    repository: Repository,
    service: Service,
    snapshots: Sequence[StoredSnapshot],
    blocked: Collection[ComponentName],
    *,
    held: bool,
) -> tuple[DocumentSetPlan, ...]:
    """Return what may go of the document sets of each filestore, if those snapshots were all there is.

    Raises:
        ObjectStoreError: the listing is not complete.
    """
    if not service.retention.is_set:
        return ()
    found: list[DocumentSetPlan] = []
    for component, cluster in filestores(service).items():
        archive = repository.document_sets(repository.scope(service.name, component))
        sets = [
            DocumentSetFile(key=info.key, stored_at=info.modified_at, stored_bytes=info.stored_bytes)
            for info in archive.stored()
        ]
        if held or {component, cluster} & set(blocked):
            why = "a restore may need it" if held else "something that cannot be read may need it"
            found.append(DocumentSetPlan(component=component, reason=why, expired=(), remaining=len(sets)))
            continue
        passes, clusters = _of(snapshots, component), _of(snapshots, cluster)
        found.append(plan_sets(sets, component, passes=passes, clusters=clusters))
    return tuple(found)


def free_passes(
    service: Service, expired: Sequence[StoredSnapshot], listed: Sequence[StoredSnapshot], blocked: Collection[str]
) -> Iterator[StoredSnapshot]:
    """Yield the passes that the plan lets go and that no snapshot needs which the store still has."""
    for component, cluster in filestores(service).items():
        horizon = horizon_of(_of(listed, component), _of(listed, cluster))
        if horizon.before is None or {component, cluster} & set(blocked):
            continue
        stay = {item.key for item in horizon.kept}
        for item in _of(expired, component):
            if item.key not in stay and item.stored_at <= horizon.before:
                yield item


def _of(snapshots: Sequence[StoredSnapshot], component: ComponentName) -> list[StoredSnapshot]:
    return [item for item in snapshots if item.component == component]
