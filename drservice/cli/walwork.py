"""The work of ``wal push`` and ``wal fetch``, loaded inside their guard.

A broken installation must end with the status of their protocol, never with Python's own exit 1: PostgreSQL would
read it as "end of WAL".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.errors import UsageError
from drservice.model.estate import Estate
from drservice.model.ids import SystemId
from drservice.operations.lineage import Lineage
from drservice.operations.wal import fetch_wal, push_wal
from drservice.operations.walsocket import socket_path
from drservice.repository.records import Scope
from drservice.walclient.client import ask
from drservice.wiring.data_plane import DataPlane, open_data_plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A WAL file that is archived, as people are told."""

    name: str
    outcome: str
    bytes: int


def pushed_by_helper(estate: Estate, service: str, path: Path) -> Answered | None:
    """Ask the helper of ``service``; ``None`` if there is none or it does not know the file to be durable."""
    name, _, component = service.partition("/")
    chosen = estate.service(name)
    socket = socket_path(estate.state_dir, chosen.name, chosen.database(component or None).name)
    if not socket.exists():
        return None
    reason = ask(socket=str(socket), config=str(estate.source.absolute()), service=service, path=str(path.absolute()))
    if reason:
        telemetry.info("the helper did not archive it", name=path.name, reason=reason)
        return None
    return Answered(name=path.name, outcome="durable", bytes=path.stat().st_size)


def push_file(estate: Estate, service: str, path: Path) -> Answered:
    """Archive one WAL file of ``service`` (``S`` or ``S/COMPONENT``)."""
    with open_data_plane(estate) as plane:
        pushed = push_wal(plane.repository, _scope(plane, service), path, state_dir=estate.state_dir)
    return Answered(name=pushed.name, outcome=pushed.outcome.value, bytes=pushed.bytes)


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
