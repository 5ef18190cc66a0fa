"""Tells the catalogue which environments this host has, and removes those that have expired or that crashes left.

In a thread of its own: removing one may take as long as its files are many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.environments import Environments, ToldEnvironment
from drservice.clock import Clock
from drservice.environments.sandbox import list_sandboxes, reap
from drservice.errors import CatalogueUnreachableError, EnvironmentFailedError

_LOOK_SECONDS = 5.0
_REAP_SECONDS = 60.0
_LAST_SECONDS = 5.0


class EnvironmentTeller:
    """Looks after the environments in one folder.

    Args:
        database: the catalogue.
        host: whose environments they are.
        folder: returns where they are, by the configuration in force.
        clock: of this host.
    """

    def __init__(self, database: Database, *, host: str, folder: Callable[[], Path], clock: Clock) -> None:
        self._environments = Environments(database)
        self._host = host
        self._folder = folder
        self._clock = clock
        self._told: Sequence[ToldEnvironment] | None = None
        self._reaped_at: float | None = None
        self._problem = ""
        self._is_over = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="environments", daemon=True)

    def start(self) -> None:
        """Begin with what is there."""
        self._thread.start()

    def ask(self) -> None:
        """Look now: a run may have made or ended one."""
        self._wake.set()

    def stop(self) -> None:
        """End; one whose removal takes long is removed by the next."""
        self._is_over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def look(self) -> None:
        """Remove what is due to go, and tell what is there if that has changed.

        Raises:
            CatalogueUnreachableError: it is told the next time.
        """
        problem = ""
        try:
            if self._reaped_at is None or self._clock.monotonic() - self._reaped_at >= _REAP_SECONDS:
                self._reaped_at = self._clock.monotonic()
                gone = reap(self._folder(), self._clock)
                if gone:
                    telemetry.info("environments removed: expired, or left by a crash", environments=gone)
        except EnvironmentFailedError as error:
            problem = error.message
        try:
            found = told_of(self._folder())
            if found != self._told:
                self._environments.tell(self._host, found)
                self._told = found
        except EnvironmentFailedError as error:
            problem = problem or error.message
        if problem and problem != self._problem:
            telemetry.warning("environments on this host need a hand", problem=problem)
        self._problem = problem

    def _run(self) -> None:
        while not self._is_over:
            self._wake.clear()
            try:
                self.look()
            except CatalogueUnreachableError:
                pass  # the main thread tells
            except Exception as error:  # noqa: BLE001 - the node's catch-all: it looks again
                telemetry.error("looking after environments failed", exception=error)
            self._wake.wait(_LOOK_SECONDS)


def told_of(folder: Path) -> Sequence[ToldEnvironment]:
    """Return the environments below a folder as they are told.

    Raises:
        EnvironmentFailedError: one cannot be understood.
    """
    return [
        ToldEnvironment(
            id=item.id,
            service=item.service,
            purpose=item.purpose,
            state=item.state.value,
            dsn=item.dsn,
            created_at=item.created_at,
            expires_at=item.expires_at,
        )
        for item in list_sandboxes(folder)
    ]
