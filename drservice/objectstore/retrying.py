"""Retries around single calls that can be repeated; the only importer of tenacity.

Only :class:`StoreUnreachableError` (no answer, or a fault that passes) is tried again, with full jitter, within
a budget of time; after that the error says what was tried and how often. An answer is never questioned. A store that
asks to be asked less often slows down everything that goes through this object, not only the call that was refused.

``create`` can be repeated although it is not idempotent, by one rule: when a try ended without an answer and a
later one is told that the key is taken, the object is read back. The same bytes mean that our own write had
arrived; other bytes mean that another writer won. (So a body that must tell two writers apart, such as a
fence, has to name its writer.)
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import tenacity

from drservice import telemetry
from drservice.clock import Clock, SystemClock
from drservice.errors import ObjectExistsError, StoreThrottledError, StoreUnreachableError
from drservice.objectstore.bodies import same_bytes
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore

T = TypeVar("T")


_TELL_AGAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How long a call is repeated before it counts as failed."""

    total_seconds: float = 90.0
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0


class Brake:
    """How much the calls of one store hold back: twice as much with each "slow down", half as much with each answer.

    Safe for threads; each call waits a random part of it, so that they do not come back together.
    """

    def __init__(self, budget: RetryBudget, *, clock: Clock, description: str) -> None:
        self._budget = budget
        self._clock = clock
        self._description = description
        self._lock = threading.Lock()
        self._told_at: float | None = None
        self.seconds = 0.0
        """Longest wait before a call, at present."""

    def wait(self) -> None:
        """Wait before a call."""
        if (longest := self.seconds) > 0:
            self._clock.sleep(random.uniform(0, longest))  # noqa: S311 - spreads load, guards nothing

    def press(self) -> None:
        """The store asked to slow down."""
        with self._lock:
            self.seconds = min(
                max(2 * self.seconds, self._budget.first_wait_seconds), self._budget.longest_wait_seconds
            )
            now = self._clock.monotonic()
            is_news = self._told_at is None or now - self._told_at >= _TELL_AGAIN_SECONDS
            if is_news:
                self._told_at = now
        if is_news:
            telemetry.warning("the store asks to slow down", store=self._description, waits_up_to=self.seconds)

    def release(self) -> None:
        """The store answered."""
        if self.seconds:
            with self._lock:
                half = self.seconds / 2
                self.seconds = half if half >= self._budget.first_wait_seconds / 4 else 0.0


class RetryingStore:
    """A store whose passing faults are waited out."""

    def __init__(self, inner: ObjectStore, *, budget: RetryBudget | None = None, clock: Clock | None = None) -> None:
        self._inner = inner
        self._budget = budget or RetryBudget()
        self._clock = clock or SystemClock()
        self._brake = Brake(self._budget, clock=self._clock, description=inner.description)

    @property
    def inner(self) -> ObjectStore:
        """The store whose calls are repeated."""
        return self._inner

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``; a lost reply is resolved by comparing what is there.

        Raises:
            ObjectExistsError: the key was taken by other bytes, or at the first try.
            StoreUnreachableError: the budget ran out; the object may or may not be there.
        """
        answers_lost = 0

        def attempt() -> None:
            nonlocal answers_lost
            try:
                self._inner.create(key, body)
            except StoreUnreachableError:
                answers_lost += 1
                raise
            except ObjectExistsError:
                if answers_lost == 0 or not same_bytes(body, self._inner.read(key)):
                    raise

        self._repeat(f"create {key}", attempt)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``."""
        return self._repeat(f"read {key}", lambda: self._inner.read(key, offset=offset, length=length))

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object."""
        return self._repeat(f"stat {key}", lambda: self._inner.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by key; after a fault the listing goes on behind the last key that was yielded."""
        listing = self._inner.list(prefix, start_after=start_after)
        last = start_after

        def following() -> ObjectInfo | None:
            nonlocal listing
            try:
                return next(listing, None)
            except StoreUnreachableError:
                listing = self._inner.list(prefix, start_after=last)
                raise

        while (info := self._repeat(f"list {prefix}", following)) is not None:
            last = info.key
            yield info

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions, oldest first; after a fault it goes on with the next one.

        Versions are only ever added at the end, so counting them from the beginning finds the place again.
        """
        versions = self._inner.read_versions(key)
        done = 0
        to_skip = 0

        def following() -> bytes | None:
            nonlocal versions, to_skip
            try:
                while to_skip:
                    next(versions, None)
                    to_skip -= 1
                return next(versions, None)
            except StoreUnreachableError:
                versions = self._inner.read_versions(key)
                to_skip = done
                raise

        while (body := self._repeat(f"read versions of {key}", following)) is not None:
            done += 1
            yield body

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep an object locked until then at least."""
        self._repeat(f"extend the lock of {key}", lambda: self._inner.extend_lock(key, until))

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is fine."""
        self._repeat(f"delete {key}", lambda: self._inner.delete(key))

    def server_time(self) -> datetime:
        """Return the store's own clock."""
        return self._repeat("ask for the time", self._inner.server_time)

    def close(self) -> None:
        """Release connections."""
        self._inner.close()

    def _repeat(self, action: str, attempt: Callable[[], T]) -> T:
        def held_back() -> T:
            self._brake.wait()
            try:
                answer = attempt()
            except StoreThrottledError:
                self._brake.press()
                raise
            self._brake.release()
            return answer

        return repeat(held_back, action=f"{action} in {self.description}", budget=self._budget, clock=self._clock)


def repeat(attempt: Callable[[], T], *, action: str, budget: RetryBudget, clock: Clock) -> T:
    """Call ``attempt`` until it answers or the budget of time would be exceeded by the next wait.

    Args:
        attempt: something that may be done more than once.
        action: what it does and where, for the message.
        budget: how long.
        clock: measures and passes the time.

    Raises:
        StoreUnreachableError: no answer within the budget; names action, attempts and the last error.
    """
    started = clock.monotonic()

    def is_spent(state: tenacity.RetryCallState) -> bool:
        return clock.monotonic() - started + state.upcoming_sleep > budget.total_seconds

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreUnreachableError),
        # Full jitter: many hosts that lost the store together must not come back together
        # (AWS Architecture Blog, "Exponential Backoff And Jitter").
        wait=tenacity.wait_random_exponential(multiplier=budget.first_wait_seconds, max=budget.longest_wait_seconds),
        stop=is_spent,
        sleep=clock.sleep,
    )
    try:
        return retrying(attempt)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        hint = last.hint if isinstance(last, StoreUnreachableError) else None
        kind = StoreThrottledError if isinstance(last, StoreThrottledError) else StoreUnreachableError
        raise kind(
            f"gave up to {action} after {error.last_attempt.attempt_number} attempts in"
            f" {clock.monotonic() - started:.0f} s; the last error was: {last}",
            hint=hint,
        ) from last
