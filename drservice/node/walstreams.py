"""The WAL receivers of a node: one process for each PostgreSQL component whose WAL is streamed.

A receiver reads from the server, so it may run on any host; one for each component does: that of ``wal.node``, else of
the component's ``node``. Without either the host that has the cluster's disks runs it; where no host has them (the
server is reached over the network alone), every node tries, and the slot lets in one.
"""

from __future__ import annotations

from collections.abc import Mapping

from drservice.model.estate import Estate, PostgresSettings, WalMode
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.companions import Trade, is_here
from drservice.operations.streamstate import is_alive


def wanted_receivers(estate: Estate, host: str) -> Mapping[str, PostgresSettings]:
    """Return the components a host has receivers for, by what they are called on the command line."""
    return {
        f"{service.name}/{component.name}": component
        for service in estate.services.values()
        for component in service.databases()
        if component.wal.mode is not WalMode.ARCHIVE and _receives(component, host)
    }


def _receives(component: PostgresSettings, host: str) -> bool:
    named = component.wal.node or component.node
    return named == host or (named is None and (component.data_directory is None or is_here(component)))


def _is_served(estate: Estate, name: str) -> bool:
    service, _, component = name.partition("/")
    return is_alive(estate.state_dir, ServiceName(service), ComponentName(component))


RECEIVING = Trade(
    name="WAL receiver",
    words=("wal", "stream"),
    without="the server keeps its WAL in the slot meanwhile",
    wanted=wanted_receivers,
    is_served=_is_served,
)
