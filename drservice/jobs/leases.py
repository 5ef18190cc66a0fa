"""A lease held by a thread: renewed while the work goes on, and known to be lost before anything is written.

The database decides: a renewal that changes nothing means that the run has another owner or was ended. A catalogue that
does not answer decides nothing: the work goes on, and the first answer tells whether the run is still ours. If only
this host was cut off, another may have begun the same run meanwhile: that wastes work and harms nothing (decision 8).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from drservice import telemetry
from drservice.catalogue.runs import Claim, Runs
from drservice.errors import CatalogueUnreachableError, RunCancelledError, RunTakenAwayError

_RENEWALS = 4
"""Per lease: three may fail before the run is anybody's."""
_BEAT_SECONDS = 1.0


class Lease:
    """Holds one claim for the time of a ``with`` block.

    Args:
        runs: the catalogue's runs.
        claim: what is held.
        duration: for how long each renewal is good.
        beat: called between renewals, about once a second: what the run wants to be known is written here. It may
            raise CatalogueUnreachableError, and returns ``False`` if the run is no longer this claim's.
    """

    def __init__(self, runs: Runs, claim: Claim, duration: timedelta, *, beat: Callable[[], bool]) -> None:
        self._runs = runs
        self._claim = claim
        self._duration = duration
        self._beat = beat
        self._beat_seconds = min(_BEAT_SECONDS, duration.total_seconds() / _RENEWALS)
        self._beats_per_renewal = max(1, round(duration.total_seconds() / _RENEWALS / self._beat_seconds))
        self._ending = threading.Event()
        self._is_lost = threading.Event()
        self._cancelled_by: str | None = None
        self._was_away = False
        self._thread = threading.Thread(target=self._hold, name=f"lease {claim.run}", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether the run is no longer ours: stop working and write nothing."""
        return self._is_lost.is_set()

    @property
    def cancelled_by(self) -> str | None:
        """Who wants the run to end, if anybody."""
        return self._cancelled_by

    def check(self) -> None:
        """Go on only with a run that is ours and wanted: the checkpoint of long work.

        Raises:
            RunTakenAwayError: its lease is lost.
            RunCancelledError: somebody wants it to end.
        """
        if self.is_lost:
            raise RunTakenAwayError(f"run {self._claim.run} is no longer this node's (epoch {self._claim.epoch})")
        if self._cancelled_by is not None:
            raise RunCancelledError(f"cancelled by {self._cancelled_by}")

    def __enter__(self) -> Self:
        """Begin to renew."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop renewing; what the run still wants to be known has been offered once more."""
        self._ending.set()
        self._thread.join()

    def _hold(self) -> None:
        beats = 0
        is_sound = False
        try:
            while not self._ending.wait(self._beat_seconds):
                beats += 1
                self._once(is_renewal=beats % self._beats_per_renewal == 0 or self._was_away)
                if self.is_lost:
                    return
            self._once(is_renewal=False)
            is_sound = True
        finally:
            if not is_sound:
                self._is_lost.set()  # a defect here must not leave work going on that nobody renews

    def _once(self, *, is_renewal: bool) -> None:
        try:
            if is_renewal and not self._runs.renew(self._claim, self._duration):
                self._lose()
                return
            self._cancelled_by = self._runs.cancel_requested(self._claim)
            if not self._beat():
                self._lose()
                return
        except CatalogueUnreachableError as error:
            if not self._was_away:
                telemetry.warning("the catalogue is away, the run goes on", run=self._claim.run, problem=error.message)
            self._was_away = True
        else:
            self._was_away = False

    def _lose(self) -> None:
        telemetry.warning("the run is no longer this node's", run=self._claim.run, epoch=self._claim.epoch)
        self._is_lost.set()
