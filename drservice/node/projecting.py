"""Keeps the catalogue's index of the repository up to date: after runs, and now and then for the WAL that arrives.

In a process of its own that ends again: reading the repository loads what an idle node has no use for. What could not
be projected is projected the next time; the repository is the truth.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess

from drservice import telemetry
from drservice.errors import DrError, LedgerMissingError
from drservice.model.estate import Estate
from drservice.node import logs

_PERIOD_SECONDS = 300.0
_PATIENCE_SECONDS = 900.0
_REST = 2.0
"""So many times as long as a projection took, the next one waits: a third of a core at most goes into them."""


class Projector:
    """Projects services that were asked for, one process at a time.

    Args:
        url: of the catalogue, with its password.
        estate: returns the configuration in force.
        own: which services are projected periodically.
        log_level: of the process.
    """

    def __init__(
        self, url: str, *, estate: Callable[[], Estate], own: Callable[[Estate], Sequence[str]], log_level: str
    ) -> None:
        self._url = url
        self._estate = estate
        self._own = own
        self._log_level = log_level
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._wake = threading.Event()
        self._over = threading.Event()
        self._refreshes = self._refreshed = 0
        self._process: BaseProcess | None = None
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)

    def start(self) -> None:
        """Begin with everything that is this node's."""
        self.refresh()
        self._thread.start()

    def ask(self, service: str) -> None:
        """Have a service projected soon."""
        with self._lock:
            self._asked.add(service)
        self._wake.set()

    def refresh(self) -> None:
        """Have everything that is this node's projected soon: for a while nobody could."""
        with self._lock:
            self._refreshes += 1
            self._asked |= set(self._own(self._estate()))
        self._wake.set()

    @property
    def is_fresh(self) -> bool:
        """Whether everything that is this node's was projected, or tried to be, since it could be again."""
        with self._lock:
            return self._refreshed == self._refreshes

    def stop(self) -> None:
        """End; a projection under way is dropped."""
        self._over.set()
        self._wake.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        whole_at = time.monotonic()
        while not self._over.is_set():
            self._wake.clear()
            with self._lock:
                names, self._asked = sorted(self._asked), set()
                refreshes = self._refreshes
            began = time.monotonic()
            if names:
                self._project(names)
            with self._lock:
                self._refreshed = refreshes
            # Runs that end meanwhile are projected together: starting the process is most of the work.
            self._over.wait(_REST * (time.monotonic() - began))
            # However often single services are asked for: WAL arrives of all of them.
            self._wake.wait(max(0.0, whole_at + _PERIOD_SECONDS - time.monotonic()))
            if time.monotonic() - whole_at >= _PERIOD_SECONDS:
                whole_at = time.monotonic()
                with self._lock:
                    self._asked |= set(self._own(self._estate()))

    def _project(self, names: Sequence[str]) -> None:
        process = multiprocessing.get_context("spawn").Process(
            target=project_alone, args=(self._url, self._estate(), names, self._log_level), name="drservice projection"
        )
        with self._lock:
            if self._over.is_set():
                return
            process.start()
            self._process = process
        process.join(_PATIENCE_SECONDS)
        with self._lock:
            if process.exitcode is None:
                telemetry.warning("a projection took too long and is ended", services=list(names))
                process.kill()
                process.join()
            self._process = None
        process.close()


def project_alone(url: str, estate: Estate, names: Sequence[str], log_level: str) -> None:
    """Project services and the ledger's new records: what the process is for."""
    from drservice.catalogue.database import open_catalogue  # noqa: PLC0415 - only this process works on the repository
    from drservice.catalogue.projection import project_service  # noqa: PLC0415 - as above
    from drservice.catalogue.rebuild import catch_up_records, read_service  # noqa: PLC0415 - as above
    from drservice.wiring.data_plane import open_data_plane  # noqa: PLC0415 - as above
    from drservice.wiring.evidence import open_evidence  # noqa: PLC0415 - as above

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logs.configure(log_level)
    try:
        database = open_catalogue(url, pool_size=1)
        with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
            for name in names:
                if name not in estate.services:
                    continue
                contents = read_service(plane.repository, estate.service(name))
                with database.session() as session:
                    project_service(session, contents)
                for key, error in contents.unreadable.items():
                    telemetry.warning("not in the catalogue: it cannot be read", key=key, problem=error.message)
            with suppress(LedgerMissingError):  # nobody has begun one: there are no records
                catch_up_records(database, evidence.ledger)
    except DrError as error:
        telemetry.warning("not projected, the next time will do", services=list(names), problem=error.message)
