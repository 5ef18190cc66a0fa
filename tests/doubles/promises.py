"""Writers that remember what a database promised them, and the death of the host it runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import psycopg

TABLE = "create table promises (id bigint primary key, writer int not null, body text not null)"
_SPAN = 10**9
"""Numbers of one writer; those of the next begin behind them."""


@dataclass(kw_only=True)
class Writers:
    """Threads that commit one row after the other, each on a connection of its own.

    Args:
        dsn: where to.
        count: how many.
        pause_seconds: what each waits between two commits; 0 = as fast as it goes.
        body_bytes: length of a row's text.
        first: number of the first writer; nobody else may have it.
    """

    dsn: str
    count: int = 6
    pause_seconds: float = 0.0
    body_bytes: int = 400
    first: int = 0
    promised: dict[int, float] = field(default_factory=dict)
    """Row to the moment (monotonic, seconds) at which its commit was acknowledged."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.first, self.first + self.count):
            thread = threading.Thread(target=self._write, args=(number,), name=f"writer {number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def require_all_at_work(self) -> None:
        """Make sure that nobody has stopped yet: what was not written cannot be lost, and would prove nothing.

        Raises:
            SystemExit: somebody has.
        """
        idle = [thread.name for thread in self._threads if not thread.is_alive()]
        if idle:
            raise SystemExit(f"these have stopped before the crash: {', '.join(idle)}")

    def _write(self, writer: int) -> None:
        body = os.urandom(self.body_bytes // 2).hex()
        with suppress(psycopg.OperationalError), psycopg.connect(self.dsn, autocommit=True) as connection:
            canceled: list[str] = []
            # PostgreSQL acknowledges a commit that nobody waited for with a warning: that is no promise.
            connection.add_notice_handler(lambda notice: canceled.append(notice.sqlstate or ""))
            row = writer * _SPAN
            while not self._stop.is_set():
                row += 1
                connection.execute("insert into promises values (%s, %s, %s)", (row, writer, body), prepare=True)
                if not canceled:
                    self.promised[row] = time.monotonic()
                canceled.clear()
                if self.pause_seconds:
                    self._stop.wait(self.pause_seconds)


def kill_at_once(postmaster: subprocess.Popen[bytes], children: Sequence[int], others: Sequence[int]) -> float:
    """Kill a server and whatever ships its WAL, without warning; return the moment (monotonic, seconds).

    Args:
        postmaster: the server.
        children: its processes.
        others: process groups that die with the host.
    """
    for group in others:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)  # nothing is sent on between the first kill and the last
    at = time.monotonic()
    for pid in (postmaster.pid, *children):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for group in others:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    return at


def age_of_loss(promised: dict[int, float], found: set[int], killed_at: float) -> tuple[int, float]:
    """Return how many promised rows are lost, and how long before the kill the oldest of them had been promised (s)."""
    lost = [at for row, at in promised.items() if row not in found]
    return len(lost), max((max(0.0, killed_at - at) for at in lost), default=0.0)


def require_in_order(found: set[int]) -> None:
    """Make sure that of each writer the first rows are there without a gap.

    Raises:
        SystemExit: a row is missing before one that is there: not a loss but damage.
    """
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    for row in found:
        writer, number = divmod(row, _SPAN)
        last[writer] = max(last.get(writer, 0), number)
        count[writer] = count.get(writer, 0) + 1
    torn = [writer for writer, number in last.items() if count[writer] != number]
    if torn:
        raise SystemExit(f"rows are missing in the middle of what was recovered, of writers {torn}")
