"""Watches, over a session of its own, what the server keeps for a receiver and who waits for it.

The stream itself does not say how near a slot is to being lost, or whether the server is going down. A watcher that
cannot ask (a role that may only replicate) is no reason not to stream: it says so once.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from drservice import telemetry
from drservice.clock import Clock
from drservice.components.postgres.connection import connect
from drservice.components.postgres.slots import SlotStatus, WaitingFacts, waiting_facts
from drservice.components.postgres.streaming import is_shutting_down
from drservice.errors import DrError, PostgresUnreachableError, SlotLostError, StreamError

_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_UNLIMITED_BYTES = 4 << 30
"""Kept for a receiver on a server without ``max_slot_wal_keep_size`` before its disk is worried about."""


class SlotWatch:
    """Looks every few seconds, from entering to leaving; safe for threads."""

    def __init__(self, dsn: str, name: str, *, clock: Clock) -> None:
        self._dsn = dsn
        self._name = name
        self._clock = clock
        self._over = threading.Event()
        self._facts: WaitingFacts | None = None
        self._down_since: float | None = None
        self._is_told = False
        self._thread = threading.Thread(target=self._run, name="wal-slot", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # it ends by itself: a server that does not answer must not hold the receiver up

    @property
    def facts(self) -> WaitingFacts | None:
        """What the server said last; ``None``: nothing yet, or it may not be asked."""
        return self._facts

    @property
    def down_seconds(self) -> float:
        """Return for how long the server has been going down; 0 if it is not."""
        since = self._down_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                # A session that stays would hold up a smart shutdown for ever, and never hear of it.
                with connect(self._dsn, application_name=f"{self._name} watch") as session:
                    self._facts = waiting_facts(session, self._name)
                self._down_since = None
            except Exception as error:  # noqa: BLE001 - a defect in one look must not end the watch without a word
                self._facts = None  # what was true before the failure is not claimed behind it
                self._heard(error)
                if self._over.wait(_AGAIN_SECONDS):
                    break
                continue
            self._over.wait(_LOOK_SECONDS)

    def _heard(self, error: Exception) -> None:
        if is_shutting_down(error):
            self._down_since = self._down_since or self._clock.monotonic()
        elif not isinstance(error, PostgresUnreachableError) and not self._is_told:
            self._is_told = True
            telemetry.warning(
                "the slot cannot be watched: how near it is to being lost is not known", problem=str(error)
            )


def slot_problem(facts: WaitingFacts, *, backlog_bytes: int) -> DrError | None:
    """Return what is wrong with a slot, long before it is lost or the server's disk is full; ``None``: nothing.

    Args:
        facts: what the server said.
        backlog_bytes: WAL that is not durable.
    """
    slot = facts.slot
    if slot is None or slot.status is SlotStatus.LOST:
        return SlotLostError("the replication slot is lost or was dropped while it was in use")
    if slot.status is SlotStatus.UNRESERVED or (
        facts.limit_bytes is not None
        and slot.safe_bytes is not None
        and backlog_bytes > 0
        and slot.safe_bytes < facts.limit_bytes // 2
    ):
        left = "none" if slot.safe_bytes is None else f"{max(0, slot.safe_bytes) >> 20} MB"
        return StreamError(
            f"{backlog_bytes >> 20} MB of WAL wait on the server, and {left} more until the slot may be lost",
            hint="Find out why the repository is slow or away. Raising max_slot_wal_keep_size (reload) gains time"
            " as long as the disk has room.",
        )
    if facts.limit_bytes is None and backlog_bytes > _UNLIMITED_BYTES:
        return StreamError(
            f"{backlog_bytes >> 20} MB of WAL wait on the server, which has no limit for them but its disk",
            hint="Find out why the repository is slow or away; set max_slot_wal_keep_size to what the disk can spare.",
        )
    return None


def synchronous_problem(facts: WaitingFacts, name: str, *, is_wanted: bool) -> DrError | None:
    """Return what is wrong with who waits for a receiver; ``None``: nothing.

    Args:
        facts: what the server said.
        name: the receiver's, as ``synchronous_standby_names`` would have it.
        is_wanted: commits are to wait, by the configuration.

    Raises:
        StreamError: commits would wait for ever.
    """
    if not is_wanted:
        if not facts.is_synchronous:
            return None
        return StreamError(
            f"commits of this server wait for the receiver ({name} is in synchronous_standby_names), and"
            " wal.synchronous is false: each waits for wal.interval",
            hint=f"Set wal.synchronous: true, or take {name} out of synchronous_standby_names and reload.",
        )
    if facts.synchronous_commit == "remote_apply":
        raise StreamError(
            "synchronous_commit = remote_apply waits for a standby that applies WAL; a receiver never does",
            hint="Set synchronous_commit = on (or remote_write) and reload: commits would wait for ever.",
        )
    if facts.is_synchronous:
        return None
    return StreamError(
        "no commit waits for the repository although wal.synchronous is true",
        hint=f"Set synchronous_standby_names = '{name}' in postgresql.conf and reload.",
    )
