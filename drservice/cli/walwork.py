"""The work of ``wal push`` and ``wal fetch``, loaded inside their guard.

A broken installation must end with the status of their protocol, never with Python's own exit 1: PostgreSQL would
read it as "end of WAL".
"""

from __future__ import annotations

from pathlib import Path

from drservice.errors import UsageError
from drservice.model.estate import Estate
from drservice.model.ids import SystemId
from drservice.operations.lineage import Lineage
from drservice.operations.wal import Pushed, fetch_wal, push_wal
from drservice.repository.records import Scope
from drservice.wiring.data_plane import DataPlane, open_data_plane


def push_file(estate: Estate, service: str, path: Path) -> Pushed:
    """Archive one WAL file of ``service`` (``S`` or ``S/COMPONENT``)."""
    with open_data_plane(estate) as plane:
        return push_wal(plane.repository, _scope(plane, service), path, state_dir=estate.state_dir)


def fetch_file(estate: Estate, service: str | None, system_id: str | None, name: str, destination: Path) -> int:
    """Bring one WAL file back; returns its size."""
    with open_data_plane(estate) as plane:
        scope = _scope(plane, service)
        cluster = SystemId(system_id) if system_id else Lineage(plane.repository, scope, estate.state_dir).pinned()
        if cluster is None:
            raise UsageError("no snapshot tells which cluster is meant", hint="Name it with --system-id.")
        return fetch_wal(plane.repository, scope, name, destination, system_id=cluster)


def _scope(plane: DataPlane, service: str | None) -> Scope:
    estate = plane.estate
    if service is None:
        if len(estate.services) != 1:
            raise UsageError("the configuration has several services", hint="Name one with --service.")
        service = next(iter(estate.services))
    name, _, component = service.partition("/")
    chosen = estate.service(name)
    settings = chosen.database(component or None)
    return plane.repository.scope(chosen.name, settings.name)
