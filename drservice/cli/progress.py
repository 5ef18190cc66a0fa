"""Shows progress on stderr: a live bar with rate and time to go on a terminal, a line now and then elsewhere.

Both listen with one lock, so that several threads may report.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drservice.cli.formatting import format_bytes, format_seconds, neutralise
from drservice.cli.output import Output
from drservice.clock import Clock, SystemClock
from drservice.operations.progress import Progress, SilentProgress
from drservice.operations.rates import RateMeter

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 5.0


@contextmanager
def showing(output: Output) -> Iterator[Progress]:
    """Yield the listener that fits: none under ``--quiet``, a bar on a terminal, lines elsewhere."""
    if output.quiet:
        yield SilentProgress()
    elif output.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - rich costs 60 ms and is for terminals only

        console = Console(file=output.stderr, no_color=not output.colour)
        bar = BarProgress(console, SystemClock())
        try:
            yield bar
        finally:
            bar.close()
    else:
        lines = LineProgress(output, SystemClock())
        yield lines


def describe(name: str, meter: RateMeter, *, in_bytes: bool, at: float) -> str:
    """Return the line for a step: ``read: 1.2 GiB of 4.0 GiB (30 %), 210 MiB/s, 13 s to go``."""
    amount = format_bytes if in_bytes else str
    text = f"{name}: {amount(meter.done)}"
    fraction = meter.fraction()
    if meter.total is not None and fraction is not None:
        text += f" of {amount(meter.total)} ({int(fraction * 100)} %)"
    rate = meter.rate(at)
    if rate is not None:
        text += f", {format_bytes(round(rate)) if in_bytes else f'{rate:.1f}'}/s"
    rest = meter.seconds_to_go(at)
    if rest:
        text += f", {format_seconds(rest)} to go"
    return text


def describe_end(name: str, meter: RateMeter, *, in_bytes: bool, at: float) -> str:
    """Return the line for a step that has ended: ``read: done, 4.0 GiB in 19 s``."""
    amount = format_bytes(meter.done) if in_bytes else str(meter.done)
    worked = f"{amount} in " if meter.done else ""
    return f"{name}: done, {worked}{format_seconds(at - meter.begun_at)}"


class LineProgress:
    """Prints a line when a step begins and ends, and at most every five seconds between."""

    def __init__(self, output: Output, clock: Clock) -> None:
        self._output = output
        self._clock = clock
        self._lock = threading.Lock()
        self._name = ""
        self._in_bytes = True
        self._meter: RateMeter | None = None
        self._told_at = 0.0

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Begin a step, ending the one before."""
        with self._lock:
            self._end()
            now = self._clock.monotonic()
            self._name, self._in_bytes, self._told_at = name, total_items is None, now
            self._meter = RateMeter(begun_at=now, total=total_bytes if self._in_bytes else total_items)
            self._output.note(f"{name} ...")

    def advance(self, amount: int) -> None:
        """Count, and print a line if the last one is old."""
        with self._lock:
            if self._meter is None:
                return
            now = self._clock.monotonic()
            self._meter.advance(amount, now)
            if now - self._told_at >= _LINE_SECONDS:
                self._told_at = now
                self._output.note(describe(self._name, self._meter, in_bytes=self._in_bytes, at=now))

    def note(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            self._output.note(text)

    def done(self) -> None:
        """End the last step."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._meter is None:
            return
        now = self._clock.monotonic()
        self._output.note(describe_end(self._name, self._meter, in_bytes=self._in_bytes, at=now))
        self._meter = None


class BarProgress:
    """Draws the present step as a bar that is refreshed ten times a second; ended steps stay as lines."""

    def __init__(self, console: Console, clock: Clock) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn  # noqa: PLC0415 - as above
        from rich.progress import Progress as RichProgress  # noqa: PLC0415 - as above

        self._clock = clock
        self._lock = threading.Lock()
        self._bar = RichProgress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, visible=False)
        self._name = ""
        self._in_bytes = True
        self._meter: RateMeter | None = None
        self._bar.start()

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Begin a step, ending the one before."""
        with self._lock:
            self._end()
            now = self._clock.monotonic()
            self._name, self._in_bytes = neutralise(name), total_items is None
            self._meter = RateMeter(begun_at=now, total=total_bytes if self._in_bytes else total_items)
            self._bar.reset(self._task, total=self._meter.total, visible=True, description=self._name)

    def advance(self, amount: int) -> None:
        """Count and redraw."""
        with self._lock:
            if self._meter is None:
                return
            now = self._clock.monotonic()
            self._meter.advance(amount, now)
            text = describe(self._name, self._meter, in_bytes=self._in_bytes, at=now)
            self._bar.update(self._task, completed=self._meter.done, description=text)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        with self._lock:
            self._line(text)

    def done(self) -> None:
        """End the last step."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """Take the bar away and give the terminal back, also after an error."""
        self._bar.stop()

    def _end(self) -> None:
        if self._meter is None:
            return
        now = self._clock.monotonic()
        self._line(describe_end(self._name, self._meter, in_bytes=self._in_bytes, at=now))
        self._bar.update(self._task, visible=False)
        self._meter = None

    def _line(self, text: str) -> None:
        self._bar.console.print(neutralise(text), markup=False, highlight=False, soft_wrap=True)
