"""The captures of documents of a node: one process for each filestore whose disks this host has."""

from __future__ import annotations

from collections.abc import Mapping

from drservice.model.estate import Estate, FilesSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.companions import Trade
from drservice.operations.documentstate import is_alive


def wanted_captures(estate: Estate, host: str) -> Mapping[str, FilesSettings]:
    """Return the components whose documents a host captures, by what they are called on the command line."""
    return {
        f"{service.name}/{component.name}": component
        for service in estate.services.values()
        for component in service.filestores()
        if component.stream and (component.node == host or (component.node is None and component.path.is_dir()))
    }


def _is_served(estate: Estate, name: str) -> bool:
    service, _, component = name.partition("/")
    return is_alive(estate.state_dir, ServiceName(service), ComponentName(component))


CAPTURING = Trade(
    name="document stream",
    words=("documents", "stream"),
    without="new documents wait for the next backup meanwhile",
    wanted=wanted_captures,
    is_served=_is_served,
)
