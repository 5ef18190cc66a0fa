"""What the story measured, printed at the end of the run."""

from __future__ import annotations

told: dict[str, str] = {}
"""What was measured, in the order in which it was."""


def lines() -> list[str]:
    """Return the table."""
    width = max(map(len, told), default=0)
    return [f"{name:<{width}}  {text}" for name, text in told.items()]
