"""How long a recovery took, by phase, in the words of the command line contract."""

from __future__ import annotations

from dataclasses import dataclass, field

from drservice.clock import Clock

PHASES = ("plan", "fetch", "place", "start", "replay", "check")


@dataclass(slots=True)
class Phases:
    """A watch that books every second to one phase."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _clock: Clock | None = None
    _mark: float = 0.0

    def begin(self, clock: Clock) -> None:
        """Start the watch."""
        self._clock, self._mark = clock, clock.monotonic()

    def end(self, name: str) -> None:
        """Book the time since the last call to phase ``name``."""
        assert self._clock is not None
        now = self._clock.monotonic()
        self.seconds[name] += now - self._mark
        self._mark = now

    def total(self) -> float:
        """Return the sum of all phases."""
        return sum(self.seconds.values())
