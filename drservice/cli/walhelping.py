"""The process of ``drservice wal helper``: serves until it is stopped, and begins anew with a changed configuration.

The configuration in force is the one that clients are asked to have read, too; while a changed one is invalid they go
the slow way, which says so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from drservice import telemetry
from drservice.cli.invocation import Invocation
from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import read_control_file
from drservice.errors import ConfigurationError, UsageError
from drservice.model.estate import Estate, PostgresSettings, Service
from drservice.operations.lineage import Lineage
from drservice.operations.walahead import Ahead
from drservice.operations.walhelper import HelperFacts, HelperServer, listening, only_helper
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import socket_path
from drservice.processes import account_of
from drservice.settings.loading import load
from drservice.walclient import protocol
from drservice.wiring.data_plane import open_data_plane

_CONFIGURATION_SECONDS = 1.0
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
        telemetry.configure(level="info", libraries=True, form=_form())
    path = invocation.configuration_path()
    end = threading.Event()
    if with_parent:
        threading.Thread(target=_end_with_parent, args=(end,), name="parent", daemon=True).start()
    with _signals(end):
        loaded = _load(path)
        serving = _Announcement(invocation, name)
        while not end.is_set():
            renew = threading.Event()
            watcher = _Watcher(path, loaded, end=end, renew=renew)
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


class _Loaded:
    """A configuration and which state of the file it was read from."""

    def __init__(self, estate: Estate, stamp: str) -> None:
        self.estate = estate
        self.stamp = stamp


def _load(path: Path) -> _Loaded:
    """Read the configuration; what is written meanwhile is read again.

    Raises:
        ConfigurationError: it is invalid.
    """
    while True:
        stamp = _stamp(path)
        estate = load(path).estate
        if stamp == _stamp(path):
            return _Loaded(estate, stamp)


def _stamp(path: Path) -> str:
    try:
        return protocol.configuration(path.stat())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


class _Watcher(threading.Thread):
    """Ends a round of serving when the helper is to end, or another valid configuration is there."""

    def __init__(self, path: Path, loaded: _Loaded, *, end: threading.Event, renew: threading.Event) -> None:
        super().__init__(name="configuration", daemon=True)
        self._path = path
        self._end = end
        self._renew = renew
        self._refused = ""
        self.latest = loaded

    def run(self) -> None:
        """Look until the round ends."""
        while not self._end.wait(_CONFIGURATION_SECONDS):
            try:
                if _stamp(self._path) in {self.latest.stamp, self._refused}:
                    continue
                self.latest = _load(self._path)
            except ConfigurationError as error:
                telemetry.error("the configuration is refused, the one before stays", problem=error.message)
                self._refused = _stamp_if_any(self._path)
                continue
            telemetry.info("a changed configuration is in force", file=str(self._path))
            break
        self._renew.set()


def _stamp_if_any(path: Path) -> str:
    try:
        return _stamp(path)
    except ConfigurationError:
        return ""


def _serve(serving: _Announcement, loaded: _Loaded, name: str, in_flight: int, renew: threading.Event) -> None:
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
            server.serve(renew)
        if not ahead.stop(_DRAIN_SECONDS):
            telemetry.warning("files on their way did not end in time; PostgreSQL still has them")
        server.drain(1.0)


def _component(estate: Estate, name: str) -> tuple[Service, PostgresSettings]:
    service_name, _, component = name.partition("/")
    service = estate.service(service_name)
    return service, service.database(component or None)


def _end_with_parent(end: threading.Event) -> None:
    """Wait for the end of standard input, which a parent that died has closed."""
    while os.read(0, 4096):
        pass
    end.set()


def _form() -> telemetry.Form:
    return telemetry.Form.CONSOLE if sys.stderr.isatty() else telemetry.Form.JSON


@contextmanager
def _signals(end: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the helper in order; a second one ends it like any other command."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        end.set()
        for again, handler in before.items():
            signal.signal(again, handler)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
