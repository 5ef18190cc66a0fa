"""Processes that a node keeps running for components: one of each trade for each component that wants one.

One that ends is started again, later and later while it keeps failing. It runs as the owner of the data directory, like
archive_command itself, or for files as the node does, and ends with its node, however that ends. The first ones are
started a while after the node: runs come first, and a node that is only there for a moment has none.
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
from drservice.model.estate import Estate, FilesSettings, PostgresSettings
from drservice.processes import kill_group, server_account, start

_FIRST_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_PROVEN_SECONDS = 60.0
"""One that ran for so long is started again at once."""
_END_SECONDS = 35.0
"""A little longer than one of them gives to what is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """What companions do: a command with the component's name and ``--with-parent`` behind it."""

    name: str
    words: tuple[str, ...]
    without: str
    """What becomes of the work while there is none."""
    wanted: Callable[[Estate, str], Mapping[str, PostgresSettings] | Mapping[str, FilesSettings]]
    """The components a host has one for, by what they are called on the command line."""
    is_served: Callable[[Estate, str], bool]
    """Whether a component has one that is not ours: a unit of its own, or an earlier node's that drains."""


def is_here(component: PostgresSettings) -> bool:
    """Tell whether this host has the disks of a cluster."""
    directory = component.data_directory
    return directory is not None and (directory / "global" / "pg_control").exists()


@dataclass(slots=True, kw_only=True)
class _Companion:
    """One process, and when the next is due if it ends."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    wait_seconds: float = 0.0
    due_at: float = 0.0


class Companions:
    """Keeps the companions of one trade running on a host.

    Args:
        trade: what they do.
        estate: returns the configuration in force.
        host: whose they are.
        log_level: of theirs; they log where the node does.
        first_seconds: from :meth:`start` to the first one.
    """

    def __init__(
        self,
        trade: Trade,
        *,
        estate: Callable[[], Estate],
        host: str,
        log_level: str,
        first_seconds: float = _FIRST_SECONDS,
    ) -> None:
        self._trade = trade
        self._estate = estate
        self._host = host
        self._log_level = log_level
        self._first_seconds = first_seconds
        self._companions: dict[str, _Companion] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=trade.name, daemon=True)

    @property
    def running(self) -> Mapping[str, int]:
        """The process ids of those that run, by component."""
        return {
            name: companion.process.pid
            for name, companion in dict(self._companions).items()
            if companion.process is not None and companion.process.poll() is None
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End all; what is on its way in them ends first."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._end(list(self._companions))

    def look(self) -> None:
        """Start what is wanted and does not run, end what is not wanted any more."""
        estate = self._estate()
        wanted = self._trade.wanted(estate, self._host)
        self._end([name for name in self._companions if name not in wanted])
        for name, component in wanted.items():
            companion = self._companions.setdefault(name, _Companion())
            if companion.process is not None and companion.process.poll() is None:
                continue
            now = time.monotonic()
            if companion.process is not None:
                self._note_end(name, companion, now)
            if now < companion.due_at:
                continue
            try:
                is_served = self._trade.is_served(estate, name)
            except (DrError, OSError) as error:  # of one component: the others' are looked after
                telemetry.error(f"whether a {self._trade.name} runs is not known", component=name, problem=str(error))
                self._put_off(companion, now)
                continue
            if not is_served:
                self._begin(name, component, companion, estate.source)

    def _run(self) -> None:
        wait = self._first_seconds
        while not self._is_over.wait(wait):
            wait = _LOOK_SECONDS
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the node's catch-all: it looks again
                telemetry.error(f"looking after {self._trade.name}s failed", exception=error)

    def _begin(
        self, name: str, component: PostgresSettings | FilesSettings, companion: _Companion, config: Path
    ) -> None:
        words = [sys.executable, "-m", "drservice", "--config", str(config.absolute()), "--log-level", self._log_level]
        try:
            # Files are read as a backup of this node reads them, whoever owns them.
            account = None if isinstance(component, FilesSettings) else server_account(component.data_directory)
            environment = dict(os.environ)  # the store's credentials are found there
            if account is not None:
                environment["HOME"] = account.home
            companion.process = start(
                [*words, *self._trade.words, name, "--with-parent"],
                account=account,
                environment=environment,
                stdin=subprocess.PIPE,
                stderr=None,
            )
        except (DrError, OSError) as error:
            telemetry.error(f"a {self._trade.name} cannot be started", component=name, problem=str(error))
            self._put_off(companion, time.monotonic())
            return
        companion.started_at = time.monotonic()
        telemetry.info(f"{self._trade.name} started", component=name, pid=companion.process.pid)

    def _note_end(self, name: str, companion: _Companion, now: float) -> None:
        assert companion.process is not None, "it has ended, so it was there"
        status = companion.process.returncode
        _close(companion.process)
        companion.process = None
        if now - companion.started_at >= _PROVEN_SECONDS:
            companion.wait_seconds = 0.0
        self._put_off(companion, now)
        telemetry.warning(
            f"a {self._trade.name} ended; {self._trade.without}",
            component=name,
            status=status,
            again=companion.wait_seconds,
        )

    def _put_off(self, companion: _Companion, now: float) -> None:
        companion.wait_seconds = min(max(_FIRST_WAIT_SECONDS, companion.wait_seconds * 2), _LONGEST_WAIT_SECONDS)
        companion.due_at = now + companion.wait_seconds

    def _end(self, names: list[str]) -> None:
        ending = {
            name: companion.process for name in names if (companion := self._companions.pop(name)).process is not None
        }
        for process in ending.values():
            process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        for name, process in ending.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                telemetry.warning(f"a {self._trade.name} did not end in time and is killed", component=name)
                kill_group(process)
                process.wait()
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
