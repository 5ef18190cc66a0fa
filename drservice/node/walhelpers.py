"""The WAL helpers of a node: one process for each PostgreSQL component whose disks this host has.

A helper that ends is started again, later and later while it keeps failing; archiving goes on without it, slower. It
runs as the owner of the data directory, like archive_command itself, and ends with its node, however that ends. The
first ones are started a while after the node: runs come first, and a node that is only there for a moment has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.errors import DrError
from drservice.model.estate import Estate, PostgresSettings, WalMode
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.walsocket import helper_state, socket_path
from drservice.processes import kill_group, server_account, start

_FIRST_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_PROVEN_SECONDS = 60.0
"""A helper that ran for so long is started again at once."""
_END_SECONDS = 35.0
"""A little longer than a helper gives to what is on its way."""


def wanted_helpers(estate: Estate, host: str) -> Mapping[str, PostgresSettings]:
    """Return the components a host has helpers for, by what they are called on the command line."""
    return {
        f"{service.name}/{component.name}": component
        for service in estate.services.values()
        for component in service.databases()
        if component.node in {host, None} and component.wal.mode is WalMode.ARCHIVE and _is_here(component)
    }


def _is_here(component: PostgresSettings) -> bool:
    directory = component.data_directory
    return directory is not None and (directory / "global" / "pg_control").exists()


def _is_served(estate: Estate, name: str) -> bool:
    """Tell whether a component has a helper that is not ours (a unit of its own, or an earlier node's that drains)."""
    service, _, component = name.partition("/")
    return helper_state(socket_path(estate.state_dir, ServiceName(service), ComponentName(component))) is not None


@dataclass(slots=True, kw_only=True)
class _Helper:
    """One process, and when the next is due if it ends."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    wait_seconds: float = 0.0
    due_at: float = 0.0


class WalHelpers:
    """Keeps the helpers of a host running.

    Args:
        estate: returns the configuration in force.
        host: whose they are.
        log_level: of theirs; they log where the node does.
        first_seconds: from :meth:`start` to the first helper.
    """

    def __init__(
        self, *, estate: Callable[[], Estate], host: str, log_level: str, first_seconds: float = _FIRST_SECONDS
    ) -> None:
        self._estate = estate
        self._host = host
        self._log_level = log_level
        self._first_seconds = first_seconds
        self._helpers: dict[str, _Helper] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wal-helpers", daemon=True)

    @property
    def running(self) -> Mapping[str, int]:
        """The process ids of the helpers that run, by component."""
        return {
            name: helper.process.pid
            for name, helper in dict(self._helpers).items()
            if helper.process is not None and helper.process.poll() is None
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End every helper; what is on its way in them ends first."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._end(list(self._helpers))

    def look(self) -> None:
        """Start what is wanted and does not run, end what is not wanted any more."""
        estate = self._estate()
        wanted = wanted_helpers(estate, self._host)
        self._end([name for name in self._helpers if name not in wanted])
        for name, component in wanted.items():
            helper = self._helpers.setdefault(name, _Helper())
            if helper.process is not None and helper.process.poll() is None:
                continue
            now = time.monotonic()
            if helper.process is not None:
                self._note_end(name, helper, now)
            if now >= helper.due_at and not _is_served(estate, name):
                self._begin(name, component, helper, estate.source)

    def _run(self) -> None:
        wait = self._first_seconds
        while not self._is_over.wait(wait):
            wait = _LOOK_SECONDS
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the node's catch-all: it looks again
                telemetry.error("looking after WAL helpers failed", exception=error)

    def _begin(self, name: str, component: PostgresSettings, helper: _Helper, config: Path) -> None:
        words = [sys.executable, "-m", "drservice", "--config", str(config.absolute()), "--log-level", self._log_level]
        try:
            account = server_account(component.data_directory)
            environment = dict(os.environ)  # the store's credentials are found there
            if account is not None:
                environment["HOME"] = account.home
            helper.process = start(
                [*words, "wal", "helper", name, "--with-parent"],
                account=account,
                environment=environment,
                stdin=subprocess.PIPE,
                stderr=None,
            )
        except (DrError, OSError) as error:
            telemetry.error("a WAL helper cannot be started", component=name, problem=str(error))
            self._put_off(helper, time.monotonic())
            return
        helper.started_at = time.monotonic()
        telemetry.info("WAL helper started", component=name, pid=helper.process.pid)

    def _note_end(self, name: str, helper: _Helper, now: float) -> None:
        assert helper.process is not None, "it has ended, so it was there"
        status = helper.process.returncode
        _close(helper.process)
        helper.process = None
        if now - helper.started_at >= _PROVEN_SECONDS:
            helper.wait_seconds = 0.0
        self._put_off(helper, now)
        telemetry.warning(
            "a WAL helper ended; archiving goes on without it", component=name, status=status, again=helper.wait_seconds
        )

    def _put_off(self, helper: _Helper, now: float) -> None:
        helper.wait_seconds = min(max(_FIRST_WAIT_SECONDS, helper.wait_seconds * 2), _LONGEST_WAIT_SECONDS)
        helper.due_at = now + helper.wait_seconds

    def _end(self, names: list[str]) -> None:
        ending = {name: helper.process for name in names if (helper := self._helpers.pop(name)).process is not None}
        for process in ending.values():
            process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        for name, process in ending.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                telemetry.warning("a WAL helper did not end in time and is killed", component=name)
                kill_group(process)
                process.wait()
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
