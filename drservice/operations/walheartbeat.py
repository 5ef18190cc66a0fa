"""A heartbeat in the WAL: commits with a time, so that "nothing was lost" is proved on an idle server, too.

It touches no table and, like the receiver, waits for no standby: a heartbeat that hung on a stalled synchronous
receiver would prove nothing. On a standby it rests. Nothing depends on it: without it an idle system's loss is only
known up to its last commit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from drservice import telemetry
from drservice.components.postgres.connection import Session, connect

PREFIX = "drservice"
"""Of the message, for those who read the WAL."""
BEAT_BYTES = 112
"""WAL of one on PostgreSQL 15, aligned: a message of 69 bytes and a commit of 34. The server adds its own now and then:
what runs (every 15 s, some 60 bytes), a checkpoint (every ``checkpoint_timeout``), page headers."""
_BEAT = (
    "begin read write; set local synchronous_commit = local;"
    " select pg_logical_emit_message(true, 'drservice', 'heartbeat'); commit"
)
_RESTING_SECONDS = 10.0
_SESSION_SECONDS = 10.0
"""How long one connection lives: a session that stays would hold up a smart shutdown for ever."""
_LAST_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Heartbeat:
    """Beats from :meth:`start` to :meth:`stop` in a thread and a connection of its own.

    Args:
        dsn: of the server that commits.
        seconds: between two beats.
    """

    def __init__(self, dsn: str, *, seconds: float) -> None:
        self._dsn = dsn
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.problem = ""
        """Why there is none; empty while it beats, and on a standby."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; one that is on its way may still arrive."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            try:
                with connect(self._dsn, application_name="drservice heartbeat") as session:
                    until = time.monotonic() + _SESSION_SECONDS
                    wait = self._turn(session)
                    pause = _FIRST_PAUSE_SECONDS
                    while time.monotonic() + wait < until and not self._stop.wait(wait):
                        wait = self._turn(session)
                self._stop.wait(wait)
            except Exception as error:  # noqa: BLE001 - a defect in one beat must not end all of them without a word
                if str(error) != self.problem:
                    telemetry.warning("no heartbeat: an idle server's loss is not known", problem=str(error))
                self.problem = str(error)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _turn(self, session: Session) -> float:
        """Beat if this server may, and return how long to wait."""
        (in_recovery,) = session.row("select pg_is_in_recovery()")
        if in_recovery:
            self.problem = ""
            return _RESTING_SECONDS
        session.rows(_BEAT)
        if self.problem:
            telemetry.info("the heartbeat is back")
        self.problem = ""
        return self._seconds


@contextmanager
def beating(dsn: str, *, seconds: float) -> Iterator[Heartbeat]:
    """Beat while the block runs."""
    heartbeat = Heartbeat(dsn, seconds=seconds)
    heartbeat.start()
    try:
        yield heartbeat
    finally:
        heartbeat.stop()
