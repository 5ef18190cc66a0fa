"""The WAL helpers of a node: one process for each PostgreSQL component that archives and whose disks this host has."""

from __future__ import annotations

from collections.abc import Mapping

from drservice.model.estate import Estate, PostgresSettings, WalMode
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.companions import Trade, is_here
from drservice.operations.walsocket import helper_state, socket_path


def wanted_helpers(estate: Estate, host: str) -> Mapping[str, PostgresSettings]:
    """Return the components a host has helpers for, by what they are called on the command line."""
    return {
        f"{service.name}/{component.name}": component
        for service in estate.services.values()
        for component in service.databases()
        if component.node in {host, None} and component.wal.mode is not WalMode.STREAM and is_here(component)
    }


def _is_served(estate: Estate, name: str) -> bool:
    service, _, component = name.partition("/")
    return helper_state(socket_path(estate.state_dir, ServiceName(service), ComponentName(component))) is not None


HELPING = Trade(
    name="WAL helper",
    words=("wal", "helper"),
    without="archiving goes on without it",
    wanted=wanted_helpers,
    is_served=_is_served,
)
