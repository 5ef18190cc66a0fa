"""The work of ``wal push`` and ``wal fetch``, loaded inside their guard.

A broken installation must end with the status of their protocol, never with Python's own exit 1: PostgreSQL would
read it as "end of WAL".
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.errors import DrError, UsageError, WalError
from drservice.model.estate import Estate, PostgresSettings, Service
from drservice.model.ids import SystemId
from drservice.model.wal import WalFileKind, WalFileName
from drservice.operations.lineage import Lineage
from drservice.operations.wal import fetch_wal, push_wal
from drservice.operations.walsocket import socket_path
from drservice.operations.walspool import Ahead, Prefetcher, is_held, own_spool, spool_path
from drservice.processes import make_folder, start
from drservice.repository.records import Scope
from drservice.walclient import spool
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
    chosen, component = _component(estate, service)
    socket = socket_path(estate.state_dir, chosen.name, component.name)
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


def fetch_file(
    estate: Estate, service: str | None, system_id: str | None, name: str, destination: Path, *, ahead: int = 0
) -> int:
    """Bring one WAL file back; returns its size. With ``ahead`` what follows it is fetched by a process of its own."""
    if ahead and system_id and _taken(estate, service, system_id, name, destination):
        return destination.stat().st_size
    with open_data_plane(estate) as plane:
        scope = _scope(plane, service)
        cluster = SystemId(system_id) if system_id else Lineage(plane.repository, scope, estate.state_dir).pinned()
        if cluster is None:
            raise UsageError("no snapshot tells which cluster is meant", hint="Name it with --system-id.")
        size = fetch_wal(plane.repository, scope, name, destination, system_id=cluster)
    if ahead:
        _start_prefetching(estate, scope, cluster, name, ahead=ahead, segment_bytes=size)
    return size


def _taken(estate: Estate, service: str | None, system_id: str, name: str, destination: Path) -> bool:
    """Place a file that was fetched ahead, if it was."""
    chosen, component = _component(estate, service)
    root = str(spool_path(estate.state_dir, chosen.name, component.name))
    config = str(estate.source.absolute())
    return not spool.take(
        spool=root,
        system_id=system_id,
        config=config,
        name=name,
        destination=str(destination),
        patience_seconds=0.0,  # the client has had it already
    )


def _start_prefetching(
    estate: Estate, scope: Scope, system_id: SystemId, name: str, *, ahead: int, segment_bytes: int
) -> None:
    """Start the process that fetches ahead, or tell one that runs how far PostgreSQL is. What fails is only slower."""
    if WalFileName.parse(name).kind is not WalFileKind.SEGMENT:
        return
    root = spool_path(estate.state_dir, scope.service, scope.component)
    folder = Path(spool.folder_of(str(root), system_id, Path.cwd().stat()))
    try:
        if is_held(folder):
            spool.note_asked(str(folder), name)
            return
        words = [sys.executable, "-m", "drservice", "--config", str(estate.source.absolute()), "wal", "prefetch"]
        options = ["--service", f"{scope.service}/{scope.component}", "--system-id", system_id, "--ahead", str(ahead)]
        start(
            [*words, *options, "--segment-bytes", str(segment_bytes), name, folder],
            environment=dict(os.environ),  # the store's credentials are found there
        )
    except (OSError, DrError) as error:
        telemetry.warning("nothing is fetched ahead", problem=str(error))


def fetch_ahead(
    estate: Estate, service: str, system_id: str, name: str, folder: Path, *, ahead: int, segment_bytes: int
) -> None:
    """Keep a spool filled until nobody asks any more.

    Raises:
        BusyError: another process does.
        WalError: the spool cannot be written.
    """
    stamp = estate.source.stat()
    with open_data_plane(estate) as plane:
        prefetcher = Prefetcher(
            archive=plane.repository.wal(_scope(plane, service)),
            system_id=SystemId(system_id),
            folder=folder,
            ahead=Ahead(count=ahead, segment_bytes=segment_bytes),
            clock=plane.clock,
        )
        try:
            make_folder(folder.parent)
            with own_spool(folder, spool.about(stamp)):
                prefetcher.run(name, threading.Event())
        except OSError as error:
            raise WalError(f"cannot write to the spool {folder}: {error.strerror}") from error


def _scope(plane: DataPlane, service: str | None) -> Scope:
    chosen, component = _component(plane.estate, service)
    return plane.repository.scope(chosen.name, component.name)


def _component(estate: Estate, service: str | None) -> tuple[Service, PostgresSettings]:
    if service is None:
        if len(estate.services) != 1:
            raise UsageError("the configuration has several services", hint="Name one with --service.")
        service = next(iter(estate.services))
    name, _, component = service.partition("/")
    chosen = estate.service(name)
    return chosen, chosen.database(component or None)
