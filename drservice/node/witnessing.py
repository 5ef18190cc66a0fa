"""Puts on record what the catalogue knows and the ledger does not: missed slots, failed runs, days of the access log.

Every node looks; the catalogue lets one write at a time. The writing is done in a process of its own that ends again,
because an idle node has no use for what it loads. What cannot be written is tried again later, and later still; a host
whose key nobody believes says so once and leaves it to the others.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from multiprocessing.process import BaseProcess

from drservice import telemetry
from drservice.catalogue.accesslog import AccessLog
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import LedgerOutbox
from drservice.errors import CatalogueUnreachableError, DrError, LedgerMissingError, LogKeyError
from drservice.model.estate import Estate
from drservice.node import logs

_LOOK_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 20.0
_LONGEST_WAIT_SECONDS = 600.0
_PATIENCE_SECONDS = 900.0


class Ended(IntEnum):
    """How a process that writes has ended."""

    DONE = 0
    TROUBLE = 1
    """It said why; another try may do."""
    UNABLE = 3
    """This host cannot write at all: it has no key that is believed, or there is no ledger."""
    NOTHING = 4
    """What waits is other hosts' to sign, or another host was at it."""


class Witness:
    """Looks for what waits, and has it written.

    Args:
        database: the catalogue.
        estate: returns the configuration in force.
        log_level: of the process that writes.
    """

    def __init__(self, database: Database, *, estate: Callable[[], Estate], log_level: str) -> None:
        self._url = database.url
        self._outbox = LedgerOutbox(database)
        self._access = AccessLog(database)
        self._estate = estate
        self._log_level = log_level
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._is_unable = False
        self._wait_seconds = 0.0
        self._next_try = 0.0
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was being written is written by the next one who looks, or was."""
        self._is_over.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Ended | None:
        """Close days that are over, and have written what waits; ``None`` if nothing does, or it is too soon to try.

        Raises:
            CatalogueUnreachableError: it is done the next time.
        """
        for day in self._access.close_days():
            telemetry.info("a day of the access log is closed", day=day)
        if time.monotonic() < self._next_try or not self._outbox.is_waiting():
            return None
        ended = self._write()
        if ended is Ended.UNABLE and not self._is_unable:
            telemetry.warning("this host cannot put on record what happened; another host or a later try may")
        self._is_unable = ended is Ended.UNABLE
        self._wait_seconds = _wait_after(ended, self._wait_seconds)
        self._next_try = time.monotonic() + self._wait_seconds
        return ended

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            try:
                self.look()
            except CatalogueUnreachableError:
                continue  # the main thread tells
            except Exception as error:  # noqa: BLE001 - the node's catch-all: what is not written today is written later
                telemetry.error("looking for what is to be put on record failed", exception=error)

    def _write(self) -> Ended:
        process = multiprocessing.get_context("spawn").Process(
            target=witness_alone, args=(self._url, self._estate(), self._log_level), name="drservice witness"
        )
        with self._lock:
            if self._is_over.is_set():
                return Ended.TROUBLE
            process.start()
            self._process = process
        process.join(_PATIENCE_SECONDS)
        with self._lock:
            if process.exitcode is None:
                telemetry.warning("putting on record took too long and is ended")
                process.kill()
                process.join()
            self._process = None
        status = process.exitcode
        process.close()
        return Ended(status) if status in set(Ended) else Ended.TROUBLE


def _wait_after(ended: Ended, before: float) -> float:
    """Return how long nobody tries again here."""
    if ended is Ended.DONE:
        return 0.0
    if ended is Ended.UNABLE:
        return _LONGEST_WAIT_SECONDS
    return min(max(_FIRST_WAIT_SECONDS, before * 2), _LONGEST_WAIT_SECONDS)


def witness_alone(url: str, estate: Estate, log_level: str) -> None:
    """Write what waits, and tell by the exit status how that ended: what the process is for."""
    from drservice.catalogue.database import open_catalogue  # noqa: PLC0415 - only this process works on the ledger
    from drservice.catalogue.witnessing import carry_out  # noqa: PLC0415 - as above
    from drservice.wiring.data_plane import open_data_plane  # noqa: PLC0415 - as above
    from drservice.wiring.evidence import open_evidence  # noqa: PLC0415 - as above

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logs.configure(log_level)
    try:
        database = open_catalogue(url, pool_size=2)
        with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
            if carry_out(database, evidence) == 0:
                raise SystemExit(Ended.NOTHING)
    except (LogKeyError, LedgerMissingError) as error:
        telemetry.info("nothing is put on record here", problem=error.message)
        raise SystemExit(Ended.UNABLE) from error
    except DrError as error:
        telemetry.warning("not put on record, it is tried again", problem=error.message)
        raise SystemExit(Ended.TROUBLE) from error
