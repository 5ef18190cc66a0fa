"""The process of one run: the data plane at work, outlived by nobody and outliving nobody.

Work runs in a process of its own, because a thread cannot be stopped: a run that was cancelled, whose lease is lost or
whose node drains gets a signal, unwinds like the command line on Ctrl-C, and is killed if that takes too long. A node
that idles carries none of what a backup loads.

The node says about every second that the run is still wanted. A run that does not hear that for a lease ends itself, so
that the work of a node that was stopped or cut down does not go on beside the one that took over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from multiprocessing.connection import Connection
from types import FrameType

from drservice import telemetry
from drservice.errors import DrError, InterruptedRunError, WorkerDiedError
from drservice.model.estate import Estate
from drservice.node import logs
from drservice.node.assignment import Advanced, Assignment, Message, Noted, Outcome, Step
from drservice.node.throttling import slowed, throttle

_GRACE_SECONDS = 15.0
"""From the signal to the kill: what a run may take to put its end on record."""
_ADVANCE_SECONDS = 0.5


class Word(Enum):
    """What a node says to the process of a run."""

    GO_ON = "go-on"
    STOP = "stop"


class _StoppedError(KeyboardInterrupt):
    """The run is not to go on; unwinds like Ctrl-C, so that every ``finally`` runs."""


class RunProcess:
    """The node's side: starts the process, hears it, stops it. Not for several threads."""

    def __init__(self, estate: Estate, assignment: Assignment, lease: timedelta, *, log_level: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_alone,
            args=(theirs, estate, assignment, lease.total_seconds(), log_level),
            name=f"drservice run {assignment.run}",
        )
        self._process.start()
        theirs.close()
        self._stop_at: float | None = None
        self._is_silent = False

    def say(self, word: Word) -> None:
        """Tell the process to go on or to stop; one that has ended hears nothing."""
        if word is Word.STOP and self._stop_at is None:
            self._stop_at = time.monotonic()
        with suppress(OSError):
            self._connection.send(word)

    def messages(self, seconds: float) -> Iterator[Message]:
        """Yield what the process has told; waits up to ``seconds`` for the first. Ends with the process."""
        while not self._is_silent and self._connection.poll(seconds):
            try:
                yield self._connection.recv()
            except (EOFError, OSError):
                self._is_silent = True
            seconds = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether nothing comes any more."""
        return self._is_silent

    def insist(self) -> None:
        """Kill a process that was told to stop and takes too long; its own clock does the same."""
        if self._stop_at is not None and time.monotonic() - self._stop_at > _GRACE_SECONDS + 5.0:
            self.kill()

    def kill(self) -> None:
        """End it and everything it has started in its group, at once."""
        pid = self._process.pid
        assert pid is not None, "it was started"
        if self._process.exitcode is None:
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> WorkerDiedError:
        """Reap the process; returns what to tell if it has told no outcome."""
        self._process.join(_GRACE_SECONDS + 10.0)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
        status = self._process.exitcode
        error = WorkerDiedError(
            f"the process of the run, {self._process.pid}, died without an answer (status {status})"
        )
        self._process.close()
        self._connection.close()
        return error


# --- Inside the process --------------------------------------------------------------------------------------


class PipeProgress:
    """Tells an operation's progress to the node: steps and notes at once, amounts twice a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._done = 0
        self._told_at = 0.0

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Begin a step, ending the one before."""
        is_items = total_items is not None
        with self._lock:
            self._tell_amount()
            self._done = 0
            self._connection.send(
                Step(name=name, total=total_items if is_items else total_bytes, unit="items" if is_items else "bytes")
            )

    def advance(self, amount: int) -> None:
        """Count; the node hears of it now and then."""
        with self._lock:
            self._done += amount
            if time.monotonic() - self._told_at >= _ADVANCE_SECONDS:
                self._tell_amount()

    def note(self, text: str) -> None:
        """Tell something worth a line of its own."""
        with self._lock:
            self._connection.send(Noted(text))

    def done(self) -> None:
        """End the last step."""
        with self._lock:
            self._tell_amount()

    def end(self, outcome: Outcome) -> None:
        """Tell how the run ended; nothing follows."""
        with self._lock:
            self._connection.send(outcome)

    def _tell_amount(self) -> None:
        if self._done:
            self._connection.send(Advanced(self._done))
        self._told_at = time.monotonic()


def run_alone(
    connection: Connection, estate: Estate, assignment: Assignment, lease_seconds: float, log_level: str
) -> None:
    """Do one run and tell its outcome: what the process is for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    logs.configure(log_level)
    if assignment.is_throttled:
        throttle()  # before there are threads: priorities are each thread's own
        estate = slowed(estate)
    threading.Thread(target=_watch, args=(connection, lease_seconds), name="watch", daemon=True).start()
    progress = PipeProgress(connection)
    try:
        outcome = _outcome(estate, assignment, progress)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        progress.end(outcome)
    except OSError as error:
        telemetry.warning(
            "the node is gone, the run's outcome is told to nobody", run=assignment.run, problem=str(error)
        )


def _outcome(estate: Estate, assignment: Assignment, progress: PipeProgress) -> Outcome:
    from drservice.node.handlers import carry_out, failed  # noqa: PLC0415 - the node's own process does not load it

    try:
        with telemetry.bound(run=assignment.run, epoch=assignment.epoch):
            return carry_out(estate, assignment, progress)
    except _StoppedError as error:
        return replace(failed(InterruptedRunError(str(error))), is_interrupted=True)
    except Exception as error:  # noqa: BLE001 - the node's catch-all: a defect ends in words too
        telemetry.error("a run ended by a defect", exception=error, run=assignment.run)
        return failed(DrError(f"internal error: {type(error).__name__}: {error}"))


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise once; further signals of this kind do not disturb the clean-up."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    raise _StoppedError("stopped by its node")


def _watch(connection: Connection, lease_seconds: float) -> None:
    """End this process when its node is gone, is silent for a lease, or says so."""
    with suppress(OSError, EOFError):
        while connection.poll(lease_seconds) and connection.recv() is Word.GO_ON:
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
