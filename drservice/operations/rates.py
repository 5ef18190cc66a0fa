"""Rate and time to go, computed from what was done when. Pure: the caller brings the times."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RateMeter:
    """Measures a step's rate over the last ``window_seconds``, so that a slow start is forgotten.

    Times are seconds on a monotonic clock; amounts are bytes or items.
    """

    begun_at: float
    total: int | None = None
    window_seconds: float = 30.0
    done: int = 0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._samples.append((self.begun_at, 0))

    def advance(self, amount: int, at: float) -> None:
        """Count ``amount`` more, done by ``at``; samples closer than 0.1 s are joined."""
        self.done += amount
        if len(self._samples) > 1 and at - self._samples[-2][0] < 0.1:
            self._samples[-1] = (at, self.done)
        else:
            self._samples.append((at, self.done))
        while len(self._samples) > 2 and self._samples[1][0] <= at - self.window_seconds:
            self._samples.popleft()

    def rate(self, at: float) -> float | None:
        """Return the amount per second over the window, until ``at``; None while nothing is measured."""
        begun, before = self._samples[0]
        seconds = at - begun
        if seconds <= 0 or self.done == before:
            return None
        return (self.done - before) / seconds

    def seconds_to_go(self, at: float) -> float | None:
        """Return the expected rest in seconds; None without a total or a rate."""
        if self.total is None:
            return None
        rest = max(0, self.total - self.done)
        if rest == 0:
            return 0.0
        rate = self.rate(at)
        return rest / rate if rate else None

    def fraction(self) -> float | None:
        """Return how much is done, 0 to 1; None without a total. More than announced is still 1."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0
