"""How a long operation tells where it is, without knowing who listens.

Implementations accept calls from several threads. Telling progress never fails an operation and never blocks
it for longer than a line of text takes to write.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to an operation: a sequence of steps, each with an amount of work."""

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Begin a step, ending the one before; at most one total is given, and fixes the unit of ``advance``."""
        ...

    def advance(self, amount: int) -> None:
        """Tell that ``amount`` more of the present step (bytes, or items) is done."""
        ...

    def note(self, text: str) -> None:
        """Tell something worth a line of its own."""
        ...

    def done(self) -> None:
        """End the last step."""
        ...


class SilentProgress:
    """Listens and says nothing."""

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Ignore the step."""

    def advance(self, amount: int) -> None:
        """Ignore the amount."""

    def note(self, text: str) -> None:
        """Ignore the text."""

    def done(self) -> None:
        """Ignore the end."""
