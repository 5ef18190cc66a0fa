"""Whether what is about to be signed may be dated as this host's clock says.

A verifier refuses a ledger in which a record is dated before what stands in front of it, or after a checkpoint that
holds it, beyond a tolerance. Nothing can be taken out of a ledger, so one record by a wrong clock would spoil it for
ever, and one from the future everybody else's. Writers therefore compare before they write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from drservice.clock import from_iso, to_iso
from drservice.errors import LedgerClockError
from drservice.evidence.notes import Checkpoint
from drservice.evidence.statements import Statement
from drservice.model.evidence import CLOCK_TOLERANCE, EvidenceKind

TIME_EXTENSION = "time "
"""The checkpoint's extension line that says when it was signed, by the signer's clock."""
STORE_GRAIN = timedelta(seconds=1)
"""Stores tell their time in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """Something in the ledger and when it says it was made."""

    what: str
    at: datetime


class KnownEnd:
    """What was read of the end of a ledger, so that it is read once: the latest date in an unbroken range."""

    def __init__(self) -> None:
        self._low = self._high = 0
        self._latest: Dated | None = None
        self._low_stored_at: datetime | None = None

    def add(self, number: int, found: Dated | None) -> None:
        """Take in an entry that was written here."""
        if number == self._high:
            self._high += 1
            self._latest = _later(self._latest, found)

    def latest_of(self, size: int, at: datetime, read: Callable[[int], tuple[Dated | None, datetime]]) -> Dated | None:
        """Return the latest date among the first ``size`` entries that could lie after ``at`` beyond the tolerance.

        It is looked for backwards, as far as to an entry that the store took before ``at``: nobody writes a record that
        is further ahead of the store's clock than is tolerated.

        Args:
            size: how many entries there are.
            at: what they are compared with.
            read: returns the date of an entry, ``None`` if it does not count, and when the store took it.
        """
        low, latest, stored_at = size, None, None
        while low > self._high and not _is_before(latest, stored_at, at):
            low -= 1
            found, stored_at = read(low)
            latest = _later(latest, found)
        if low <= self._high:
            low, latest, stored_at = self._low, _later(latest, self._latest), self._low_stored_at
        while low > 0 and not _is_before(latest, stored_at, at):
            low -= 1
            found, stored_at = read(low)
            latest = _later(latest, found)
        self._low, self._high, self._latest, self._low_stored_at = low, size, latest, stored_at
        return latest


def dated(number: int, statement: Statement) -> Dated | None:
    """Return what an entry says of its time; ``None`` for one that was kept aside, whose time was not witnessed."""
    if statement.is_kept_aside:
        return None
    return Dated(what=f"entry {number} by host {statement.predicate['host']}", at=statement.recorded_at)


def signed_at(checkpoint: Checkpoint) -> datetime | None:
    """Return when a checkpoint says it was signed: the same for every reader."""
    times = [line.removeprefix(TIME_EXTENSION) for line in checkpoint.extensions if line.startswith(TIME_EXTENSION)]
    return from_iso(times[0]) if times else None


def require_time(at: datetime, earlier: Iterable[Dated], *, store_time: datetime, what: str) -> None:
    """Return if something may be dated ``at`` and stand behind everything in ``earlier``.

    Raises:
        LedgerClockError: it lies before what stands in front of it, and would look back-dated; or in the future by the
            store's clock, and would make every honest record behind it look back-dated.
    """
    if at - store_time > CLOCK_TOLERANCE:
        raise LedgerClockError(
            f"{what} would be dated {to_iso(at)}, {_apart(at, store_time)} after the {to_iso(store_time)} of the"
            " store's clock",
            hint="Correct the clock of this host, or that of the store if it is the wrong one, and run the command"
            " again. A backup or restore is good all the same: its record is kept aside and marked as late.",
        )
    for each in earlier:
        if each.at - at > CLOCK_TOLERANCE:
            raise LedgerClockError(
                f"{what} would be dated {to_iso(at)}, {_apart(each.at, at)} before {each.what}, which is dated"
                f" {to_iso(each.at)}"
            )


def require_ended(statement: Statement) -> None:
    """Return if what a backup says of its end does not lie after its record.

    Raises:
        LedgerClockError: it does: the clock was set back while it ran.
    """
    if statement.kind is not EvidenceKind.BACKUP:
        return
    ended = from_iso(str(statement.predicate["ended_at"]))
    if ended - statement.recorded_at > CLOCK_TOLERANCE:
        raise LedgerClockError(
            f"the backup ended at {to_iso(ended)}, and its record would be dated {to_iso(statement.recorded_at)}:"
            " the clock of this host was set back while it ran",
            hint="Nothing has to be done if the clock is right now: the backup is good, and its record is kept aside"
            " and marked as late.",
        )


def _later(one: Dated | None, other: Dated | None) -> Dated | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda each: each.at)


def _is_before(latest: Dated | None, stored_at: datetime | None, at: datetime) -> bool:
    return latest is not None and stored_at is not None and stored_at + STORE_GRAIN <= at


def _apart(later: datetime, earlier: datetime) -> str:
    minutes, seconds = divmod((later - earlier) // timedelta(seconds=1), 60)
    return f"{minutes} min {seconds} s"
