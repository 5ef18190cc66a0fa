"""How the demo tells its story while it happens: numbered chapters, a line for each thing, asides for the curious."""

from __future__ import annotations

import textwrap
from datetime import datetime

from drservice.cli.output import Colour, Output, Span

_COLUMNS = 80


class Story:
    """Tells the story as it happens; ``blocks``: whether block characters can be shown."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._chapter = 0
        self.blocks = "utf" in (output.stdout.encoding or "").lower()

    def chapter(self, title: str) -> None:
        """Begin a numbered step."""
        self._chapter += 1
        self._output.tell("")
        self._output.tell((Span(f"{self._chapter}. {title}", Colour.STRONG),))

    def line(self, *parts: str | Span) -> None:
        """Tell one thing of the present step."""
        self._output.tell(("   ", *parts))

    def aside(self, text: str) -> None:
        """Tell something for those who look closely."""
        self.line(Span(text, Colour.FAINT))

    def wrapped(self, text: str, colour: Colour = Colour.FAINT) -> None:
        """Tell something long, by default as an aside; what belongs together is indented."""
        for line in textwrap.wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False):
            self.line(Span(line, colour))


class StepTeller:
    """Progress of an operation, told as asides of the story."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Tell that a step begins."""
        del total_bytes, total_items
        self._story.aside(f"- {name}")

    def advance(self, amount: int) -> None:
        """Ignore the amount: nothing here takes long."""

    def note(self, text: str) -> None:
        """Tell a note."""
        self._story.aside(f"- {text}")

    def done(self) -> None:
        """Ignore the end."""


class NoteTeller:
    """Progress of an operation of which only what is worth a line of its own is told."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Ignore the step."""

    def advance(self, amount: int) -> None:
        """Ignore the amount."""

    def note(self, text: str) -> None:
        """Tell a note."""
        self._story.wrapped(text, Colour.WARNING if text.startswith("WARNING") else Colour.FAINT)

    def done(self) -> None:
        """Ignore the end."""


def clock(instant: datetime) -> str:
    """Write the time of the day to the millisecond."""
    return f"{instant:%H:%M:%S}.{instant.microsecond // 1000:03d}"
