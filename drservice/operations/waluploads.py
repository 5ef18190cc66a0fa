"""Uploads of a receiver: a few threads that put what they are given until it is stored, and wake who waits.

A store that is away is asked again, later and later; what cannot succeed however often it is tried (other bytes are
stored under the name, no key) is handed back as failed. Nothing is called done before the put returned.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import (
    ConfigurationError,
    DrError,
    ForeignSegmentError,
    InvalidKeyError,
    KeyProblemError,
    SegmentConflictError,
    StreamError,
    WrongTimelineError,
)

_HOPELESS = (
    SegmentConflictError,
    ForeignSegmentError,
    WrongTimelineError,
    KeyProblemError,
    ConfigurationError,
    InvalidKeyError,
)
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 10.0
_LEAVE_SECONDS = 10.0
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Generic[Item]):
    """How an upload ended; ``problem`` is ``None`` when it is stored."""

    item: Item
    problem: DrError | None


class Uploads(Generic[Item]):
    """Threads that put; use it in ``with``.

    At the end what has not begun is dropped, and what is on its way is waited for a while.

    Args:
        put: stores one item; returns when it is durable and verified.
        threads: how many at one time.
        clock: of this host.
    """

    def __init__(self, put: Callable[[Item], None], *, threads: int, clock: Clock) -> None:
        self._put = put
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._running = 0
        self._finished: deque[Finished[Item]] = deque()
        self._problem: DrError | None = None
        self._is_over = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._limit = threads
        self._threads = [
            threading.Thread(target=self._work, name=f"wal-upload-{number}", daemon=True) for number in range(threads)
        ]

    def __enter__(self) -> Uploads[Item]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over.set()
            self._waiting.clear()
            self._changed.notify_all()
        deadline = self._clock.monotonic() + _LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            telemetry.warning("an upload does not end; it is left to itself, and its WAL is with the server")
            return  # the descriptors stay: it will write to one
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def fileno(self) -> int:
        """Return a descriptor that can be read from once something finished."""
        return self._wake_reader

    @property
    def free(self) -> int:
        """How many more would begin at once."""
        with self._changed:
            return self._limit - self._running - len(self._waiting)

    @property
    def problem(self) -> DrError | None:
        """Why the last attempt failed, as long as none has succeeded since."""
        return self._problem

    def submit(self, item: Item) -> None:
        """Put an item as soon as a thread is free."""
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()

    def finished(self) -> list[Finished[Item]]:
        """Return what has finished since the last call, in the order it did."""
        with suppress(BlockingIOError):
            while os.read(self._wake_reader, 4096):
                pass
        with self._changed:
            done = list(self._finished)
            self._finished.clear()
        return done

    def _work(self) -> None:
        while self._upload_one():
            pass  # between two items nothing refers to the bytes of the last one

    def _upload_one(self) -> bool:
        item = self._take()
        if item is None:
            return False
        problem = self._store(item)
        with self._changed:
            self._running -= 1
            self._finished.append(Finished(item=item, problem=problem))
        with suppress(BlockingIOError):  # it is full of calls to wake up
            os.write(self._wake_writer, b"\0")
        return True

    def _take(self) -> Item | None:
        with self._changed:
            while not self._waiting:
                if self._is_over.is_set():
                    return None
                self._changed.wait()
            self._running += 1
            return self._waiting.popleft()

    def _store(self, item: Item) -> DrError | None:
        pause = _FIRST_PAUSE_SECONDS
        while (problem := self._try(item)) is not None:
            if self._problem is None or self._problem.message != problem.message:
                telemetry.warning("wal not stored yet", problem=problem.message, again_in_seconds=pause)
            self._problem = problem
            if isinstance(problem, _HOPELESS) or self._is_over.wait(pause):
                return problem
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        self._problem = None
        return None

    def _try(self, item: Item) -> DrError | None:
        """Put an item once and return why that failed, without what the traceback would keep in memory."""
        try:
            self._put(item)
        except DrError as error:
            return type(error)(error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001 - a defect must end neither the thread nor in silence
            telemetry.error("wal not stored", exception=error)
            return StreamError(f"internal error: {type(error).__name__}: {error}")
        return None
