"""The process of ``drservice wal helper``: serves until it is stopped, and begins anew with a changed configuration.

The configuration in force is the one that clients are asked to have read, too; while a changed one is invalid they go
the slow way, which says so.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from drservice import telemetry
from drservice.cli.invocation import Invocation
from drservice.cli.longrunning import (
    ConfigurationWatcher,
    Loaded,
    end_with_parent,
    ending_signals,
    load_settled,
    log_form,
)
from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import read_control_file
from drservice.errors import UsageError
from drservice.model.estate import Estate, PostgresSettings, Service, WalMode
from drservice.operations.lineage import Lineage
from drservice.operations.walahead import Ahead
from drservice.operations.walcare import cared_for
from drservice.operations.walhelper import HelperFacts, HelperServer, listening, only_helper
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import socket_path
from drservice.processes import account_of
from drservice.repository.records import Scope
from drservice.wiring.data_plane import DataPlane, open_data_plane

_DRAIN_SECONDS = 30.0
_MOST_BUFFER_BYTES = 256 << 20
"""For plain segments on their way; large segments are archived fewer at a time."""


def run_helper(invocation: Invocation, name: str, in_flight: int, *, with_parent: bool) -> None:
    """Serve until SIGTERM or SIGINT, or with ``with_parent`` until standard input ends.

    Raises:
        BusyError: this component has a helper already.
        ConfigurationError, UsageError, UnknownNameError: nothing can be served by this configuration.
        DrError: repository or store cannot be opened.
    """
    if invocation.log_level == "warning":
        telemetry.configure(level="info", libraries=True, form=log_form())
    path = invocation.configuration_path()
    end = threading.Event()
    if with_parent:
        threading.Thread(target=end_with_parent, args=(end,), name="parent", daemon=True).start()
    with ending_signals(end):
        loaded = load_settled(path)
        serving = _Announcement(invocation, name)
        while not end.is_set():
            renew = threading.Event()
            watcher = ConfigurationWatcher(path, loaded, end=end, renew=renew)
            watcher.start()
            _serve(serving, loaded, name, in_flight, renew)
            loaded = watcher.latest


class _Announcement:
    """Says once that the helper serves."""

    def __init__(self, invocation: Invocation, name: str) -> None:
        self._output = invocation.output
        self._name = name
        self._is_made = False

    def make(self, service: Service, component: PostgresSettings, path: Path) -> None:
        """Say it, unless that is done."""
        if self._is_made:
            return
        self._is_made = True
        document = {"service": service.name, "component": component.name, "socket": str(path), "pid": os.getpid()}
        self._output.result("wal-helper", document, [f"WAL helper of {self._name} at {path} (pid {os.getpid()})"])
        self._output.flush()


def _serve(serving: _Announcement, loaded: Loaded, name: str, in_flight: int, renew: threading.Event) -> None:
    """Serve one component with one configuration until ``renew`` is set."""
    estate = loaded.estate
    service, component = _component(estate, name)
    directory = component.data_directory
    if directory is None:
        raise UsageError(
            f"{service.name}/{component.name} has no data_directory: its WAL cannot be read here",
            hint="A helper runs on the database's host; name the data directory in the configuration there.",
        )
    folder, owner = ReadyFolder(directory), account_of(directory)
    services = {f"{service.name}/{component.name}"} | ({service.name} if len(service.databases()) == 1 else set())
    with open_data_plane(estate) as plane, only_helper(estate.state_dir, service.name, component.name):
        scope = plane.repository.scope(service.name, component.name)
        ahead = Ahead(
            folder=folder,
            archive=plane.repository.wal(scope),
            lineage=Lineage(plane.repository, scope, estate.state_dir),
            day_keys=plane.repository.day_keys(service.name),
            in_flight=min(in_flight, max(1, _MOST_BUFFER_BYTES // read_control_file(directory).wal_segment_bytes)),
            clock=SystemClock(),
        )
        facts = HelperFacts(config=loaded.stamp, services=services, repository=plane.repository.id)
        path = socket_path(estate.state_dir, service.name, component.name)
        with listening(path, group=owner.gid) as listener:
            server = HelperServer(listener, facts, ahead, believed={0, os.geteuid(), owner.uid})
            ahead.start()
            serving.make(service, component, path)
            with _continuity(plane, scope, component):
                server.serve(renew)
        if not ahead.stop(_DRAIN_SECONDS):
            telemetry.warning("files on their way did not end in time; PostgreSQL still has them")
        server.drain(1.0)


def _continuity(plane: DataPlane, scope: Scope, component: PostgresSettings) -> AbstractContextManager[None]:
    """Keep the archive continuous, unless the receiver of a component that streams does."""
    if component.wal.mode is not WalMode.ARCHIVE:
        return nullcontext()
    return cared_for(plane.repository, scope, component, state_dir=plane.estate.state_dir, clock=plane.clock)


def _component(estate: Estate, name: str) -> tuple[Service, PostgresSettings]:
    service_name, _, component = name.partition("/")
    service = estate.service(service_name)
    return service, service.database(component or None)
