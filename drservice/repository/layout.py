"""The names of all objects (docs/format.md, section 1). Pure."""

from __future__ import annotations

from drservice.model.ids import ComponentName, KeyId, PointId, ServiceName, SnapshotId, SystemId
from drservice.model.wal import Timeline

REPOSITORY_FILE = "drservice-repository.json"
BREAKGLASS_SCRIPT = "restore.py"
BREAKGLASS_TEXT = "RESTORE.md"


def component_prefix(service: ServiceName, component: ComponentName) -> str:
    """Return the prefix of everything one component owns."""
    return f"s/{service}/{component}/"


def pack_key(service: ServiceName, component: ComponentName, kind: str, name: str) -> str:
    """Return the key of a pack; ``kind`` is ``packs`` or ``nodes``, ``name`` its hex SHA-256."""
    return f"s/{service}/{component}/{kind}/{name[:2]}/{name}"


def pack_prefix(service: ServiceName, component: ComponentName, kind: str) -> str:
    """Return the prefix of all packs of one kind."""
    return f"s/{service}/{component}/{kind}/"


def snapshot_key(service: ServiceName, component: ComponentName, snapshot: SnapshotId) -> str:
    """Return the key of a snapshot's commit object."""
    return f"s/{service}/{component}/snapshots/{snapshot}"


def snapshot_prefix(service: ServiceName, component: ComponentName) -> str:
    """Return the prefix of all snapshots of a component."""
    return f"s/{service}/{component}/snapshots/"


def point_key(service: ServiceName, point: PointId) -> str:
    """Return the key of a recovery point."""
    return f"{point_prefix(service)}{point}"


def point_prefix(service: ServiceName) -> str:
    """Return the prefix of all recovery points of a service."""
    return f"s/{service}/points/"


def data_key_prefix(service: ServiceName, key_id: KeyId | None = None) -> str:
    """Return the prefix of the wrappings of one data key, or of all keys of a service."""
    return f"keys/{service}/{key_id}/" if key_id else f"keys/{service}/"


def data_key_key(service: ServiceName, key_id: KeyId, ulid: str) -> str:
    """Return the key of one wrapping of a data key."""
    return f"{data_key_prefix(service, key_id)}{ulid}.age"


def wal_prefix(service: ServiceName, component: ComponentName, system_id: SystemId | None = None) -> str:
    """Return the prefix of all WAL of a component, or of one cluster lineage of it."""
    base = f"s/{service}/{component}/wal/"
    return f"{base}{system_id}/" if system_id else base


def wal_key(service: ServiceName, component: ComponentName, system_id: SystemId, timeline: Timeline, name: str) -> str:
    """Return the key of a WAL file."""
    return f"{wal_prefix(service, component, system_id)}{timeline:08X}/{name}"


def tail_prefix(
    service: ServiceName, component: ComponentName, system_id: SystemId | None = None, timeline: Timeline | None = None
) -> str:
    """Return the prefix of all pieces of WAL of a component, of one cluster lineage, or of one timeline of that."""
    return _streamed_prefix(service, component, "tail", system_id, timeline)


def tail_key(service: ServiceName, component: ComponentName, system_id: SystemId, timeline: Timeline, name: str) -> str:
    """Return the key of a piece of WAL."""
    return f"{tail_prefix(service, component, system_id, timeline)}{name}"


def clock_prefix(
    service: ServiceName, component: ComponentName, system_id: SystemId | None = None, timeline: Timeline | None = None
) -> str:
    """Return the prefix of what the server's clock said, for a component, a cluster lineage, or a timeline of that."""
    return _streamed_prefix(service, component, "clock", system_id, timeline)


def clock_key(
    service: ServiceName, component: ComponentName, system_id: SystemId, timeline: Timeline, name: str
) -> str:
    """Return the key of what the server's clock said during one segment."""
    return f"{clock_prefix(service, component, system_id, timeline)}{name}"


def documents_prefix(service: ServiceName, component: ComponentName) -> str:
    """Return the prefix of all document sets of a component."""
    return f"s/{service}/{component}/documents/"


def documents_key(service: ServiceName, component: ComponentName, document_set: str) -> str:
    """Return the key of a document set."""
    return f"{documents_prefix(service, component)}{document_set}"


def _streamed_prefix(
    service: ServiceName,
    component: ComponentName,
    kind: str,
    system_id: SystemId | None,
    timeline: Timeline | None,
) -> str:
    base = f"s/{service}/{component}/{kind}/"
    if system_id is None:
        return base
    return f"{base}{system_id}/" if timeline is None else f"{base}{system_id}/{timeline:08X}/"


def name_key(service: ServiceName, component: ComponentName, system_id: SystemId, name: str) -> str:
    """Return the key of a named restore point that was left."""
    return f"s/{service}/{component}/names/{system_id}/{name}"


def timeline_prefix(service: ServiceName, component: ComponentName, system_id: SystemId) -> str:
    """Return the prefix of the timeline numbers that were taken for one cluster."""
    return f"s/{service}/{component}/timelines/{system_id}/"


def timeline_key(service: ServiceName, component: ComponentName, system_id: SystemId, timeline: Timeline) -> str:
    """Return the key that stands for a timeline number being taken."""
    return f"{timeline_prefix(service, component, system_id)}{timeline:08X}"


def service_of(key: str) -> ServiceName | None:
    """Return the service a key belongs to, ``None`` for objects of the whole repository."""
    parts = key.split("/")
    if len(parts) >= 2 and parts[0] in {"s", "keys"}:
        return ServiceName(parts[1])
    return None
