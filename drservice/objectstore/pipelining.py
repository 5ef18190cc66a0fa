"""Calls of a store that run beside their caller: a bounded number at once, so that their bodies are bounded, too.

What was done is told in the caller's own thread. An error comes up at the next call, whichever that is, and at every
one after it: nobody goes on as if what failed had been stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Pipeline(Generic[T]):
    """Runs calls in threads of its own.

    Args:
        width: how many may be under way; one more waits until the oldest is done.
        on_done: hears of each that succeeded, in the caller's thread and in the order they were given.
        name: of the threads.
    """

    def __init__(self, *, width: int, on_done: Callable[[T], None], name: str) -> None:
        self._width = width
        self._on_done = on_done
        self._threads = ThreadPoolExecutor(max_workers=width, thread_name_prefix=name)
        self._under_way: deque[Future[T]] = deque()
        self._error: BaseException | None = None

    def add(self, call: Callable[[], T]) -> None:
        """Begin a call; waits while as many as may be are under way.

        Raises:
            Exception: what an earlier call ended with; this one is not begun.
        """
        self._settle(at_most=self._width - 1)
        self._under_way.append(self._threads.submit(call))

    def flush(self) -> None:
        """Wait for all calls: on return each has succeeded and was told.

        Raises:
            Exception: what the first of those that failed ended with; the others were told.
        """
        self._settle(at_most=0)

    def close(self) -> None:
        """Wait for what is under way, tell nobody, and stop."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _settle(self, *, at_most: int) -> None:
        while self._under_way and (len(self._under_way) > at_most or self._under_way[0].done()):
            future = self._under_way.popleft()
            if (error := future.exception()) is None:
                self._on_done(future.result())
            elif self._error is None:
                self._error = error
        if self._error is not None:
            raise self._error
