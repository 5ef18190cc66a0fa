"""What a receiver says of itself, gathered in one place, told four times a second and written down once.

It is written by a thread of its own: a disk that stalls keeps nobody from answering the server.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import DrError, FormatError
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.streamstate import StreamPhase, StreamState, read_state, write_state

_SPACING_SECONDS = 0.25
_WRITTEN_SECONDS = 1.0
"""Replacing a file costs a loaded disk more than the numbers in it are worth four times a second."""
_LAST_SECONDS = 10.0
"""How long a receiver that ends waits for its last state to be written."""
_LONGEST_NAME = 63
_REPLACED = re.compile(r"[^a-z0-9_]")


def stream_name(service: ServiceName, component: ComponentName) -> str:
    """Return what a component's slot is called, and its receiver in ``synchronous_standby_names``.

    ``drservice_SERVICE_COMPONENT`` where that can name a slot and no other component could have the same.
    """
    plain = f"drservice_{service}_{component}"
    name = _REPLACED.sub("_", plain)
    if name == plain and len(name) <= _LONGEST_NAME and "_" not in f"{service}{component}":
        return name
    digest = hashlib.sha256(f"{service}/{component}".encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}_{digest}"


class StreamBoard:
    """The state of one receiver.

    Args:
        service: whose.
        component: whose.
        synchronous: as configured.
        state_dir: where it is written down; what an earlier receiver knew is read from there.
        clock: of this host.
        observe: is told each state that is published.
    """

    def __init__(
        self,
        *,
        service: ServiceName,
        component: ComponentName,
        synchronous: bool,
        state_dir: Path,
        clock: Clock,
        observe: Callable[[StreamState], None],
    ) -> None:
        self._clock = clock
        self._observe = observe
        self._published_at = self._written_at = float("-inf")
        self._pen = _Pen(state_dir)
        self.state = StreamState(
            service=service,
            component=component,
            system_id=None,
            timeline=None,
            slot=stream_name(service, component),
            state=StreamPhase.CONNECTING,
            received_lsn=None,
            durable_lsn=None,
            server_lsn=None,
            durable_server_time=None,
            server_time=None,
            synchronous=synchronous,
            problem=None,
            remedy=None,
            pid=os.getpid(),
            updated_at=clock.now(),
        )
        try:
            before = read_state(state_dir, service, component)
        except (FormatError, OSError) as error:
            telemetry.warning("what the receiver knew before is unreadable", problem=str(error))
            before = None
        if before is not None:
            self.state = replace(
                before,
                slot=self.state.slot,
                state=self.state.state,
                synchronous=synchronous,
                problem=None,
                remedy=None,
                pid=self.state.pid,
                updated_at=self.state.updated_at,
            )

    def say(self, phase: StreamPhase, problem: DrError | None) -> None:
        """Take note of what the receiver does and what is wrong; a change is logged at once, and published next."""
        message, remedy = (None, None) if problem is None else (problem.message, problem.hint)
        before = self.state
        self.state = replace(before, state=phase, problem=message, remedy=remedy)
        if (before.state, before.remedy) == (phase, remedy):
            return  # only the numbers in it changed
        tell = telemetry.info if problem is None else telemetry.error
        tell(
            "wal receiver",
            service=before.service,
            component=before.component,
            state=phase.value,
            problem=message,
            remedy=remedy,
        )
        self._published_at = self._written_at = float("-inf")

    def publish_last(self) -> None:
        """Write the state down as it is when the receiver ends, and wait for that."""
        self._published_at = self._written_at = float("-inf")
        self.publish()
        if not self._pen.is_done(_LAST_SECONDS):
            telemetry.error("the last state of the receiver is not written: its disk does not answer")

    def publish(self) -> None:
        """Tell the state, unless that was done a moment ago, and write it down, about once a second."""
        now = self._clock.monotonic()
        if now - self._published_at < _SPACING_SECONDS:
            return
        self._published_at = now
        self.state = replace(self.state, updated_at=self._clock.now())
        if now - self._written_at >= _WRITTEN_SECONDS:
            self._written_at = now
            self._pen.write(self.state)
        self._observe(self.state)


class _Pen:
    """Writes states down beside whoever hands them over; of several that wait the last one counts."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._changed = threading.Condition()
        self._waiting: StreamState | None = None
        self._is_writing = self._is_unwritable = False

    def write(self, state: StreamState) -> None:
        """Take a state; never waits for the disk."""
        with self._changed:
            self._waiting = state
            if self._is_writing:
                return
            self._is_writing = True
        threading.Thread(target=self._work, name="wal-state", daemon=True).start()

    def is_done(self, seconds: float) -> bool:
        """Wait until everything is written; tell whether it was within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_writing, seconds)

    def _work(self) -> None:
        while (state := self._next()) is not None:
            try:
                write_state(self._state_dir, state)
                self._is_unwritable = False
            except OSError as error:
                if not self._is_unwritable:  # the stream goes on: it does not live from this file
                    telemetry.error("the state of the receiver cannot be written", problem=str(error))
                self._is_unwritable = True
            except Exception as error:  # noqa: BLE001 - a defect must end neither the writing nor in silence
                telemetry.error("the state of the receiver is not written", exception=error)

    def _next(self) -> StreamState | None:
        with self._changed:
            state, self._waiting = self._waiting, None
            if state is None:
                self._is_writing = False
                self._changed.notify_all()
            return state
