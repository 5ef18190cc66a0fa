from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from drservice.cli.output import Output
from drservice.cli.progress import BarProgress, LineProgress, describe, showing
from drservice.operations.progress import SilentProgress
from drservice.operations.rates import RateMeter
from tests.doubles.clock import ManualClock

MIB = 1024 * 1024


def make_output(*, quiet: bool = False) -> tuple[Output, io.StringIO]:
    stderr = io.StringIO()
    return Output(stdout=io.StringIO(), stderr=stderr, json_document=False, quiet=quiet, colour=False), stderr


def test_rate_and_time_to_go_follow_the_clock() -> None:
    clock = ManualClock()
    meter = RateMeter(begun_at=clock.monotonic(), total=1000)
    assert meter.rate(clock.monotonic()) is None
    assert meter.seconds_to_go(clock.monotonic()) is None
    for _ in range(5):
        clock.pass_seconds(1)
        meter.advance(100, clock.monotonic())
    assert meter.rate(clock.monotonic()) == pytest.approx(100)
    assert meter.seconds_to_go(clock.monotonic()) == pytest.approx(5)
    assert meter.fraction() == 0.5


def test_a_slow_start_is_forgotten_after_the_window() -> None:
    clock = ManualClock()
    meter = RateMeter(begun_at=clock.monotonic(), total=100_000, window_seconds=10)
    clock.pass_seconds(600)
    for _ in range(30):
        clock.pass_seconds(1)
        meter.advance(50, clock.monotonic())
    assert meter.rate(clock.monotonic()) == pytest.approx(50, rel=0.01)


def test_a_stalled_step_loses_its_rate_with_time() -> None:
    clock = ManualClock()
    meter = RateMeter(begun_at=clock.monotonic(), total=1000)
    clock.pass_seconds(1)
    meter.advance(100, clock.monotonic())
    clock.pass_seconds(99)
    assert meter.rate(clock.monotonic()) == pytest.approx(1)


def test_many_small_advances_keep_few_samples_and_the_exact_sum() -> None:
    clock = ManualClock()
    meter = RateMeter(begun_at=clock.monotonic())
    for _ in range(10_000):
        clock.pass_seconds(0.001)
        meter.advance(1, clock.monotonic())
    assert meter.done == 10_000
    assert len(meter._samples) < 250
    assert meter.rate(clock.monotonic()) == pytest.approx(1000, rel=0.02)


def test_more_than_announced_is_shown_as_complete() -> None:
    meter = RateMeter(begun_at=0, total=10)
    meter.advance(15, 1)
    assert meter.fraction() == 1.0
    assert meter.seconds_to_go(1) == 0.0
    assert RateMeter(begun_at=0, total=0).fraction() == 1.0


def test_a_step_is_described_with_amount_rate_and_rest() -> None:
    meter = RateMeter(begun_at=0, total=100 * MIB)
    meter.advance(25 * MIB, 5)
    assert describe("read", meter, in_bytes=True, at=5) == ("read: 25.0 MiB of 100 MiB (25 %), 5.0 MiB/s, 15 s to go")
    assert describe("files", RateMeter(begun_at=0), in_bytes=False, at=0) == "files: 0"


def test_lines_come_when_a_step_begins_and_ends_and_every_five_seconds() -> None:
    output, stderr = make_output()
    clock = ManualClock()
    progress = LineProgress(output, clock)
    progress.step("read", total_bytes=100 * MIB)
    for _ in range(12):
        clock.pass_seconds(1)
        progress.advance(MIB)
    progress.note("half\x1b[2J")
    progress.step("check", total_items=2)
    progress.done()
    progress.done()
    assert stderr.getvalue().splitlines() == [
        "read ...",
        "read: 5.0 MiB of 100 MiB (5 %), 1.0 MiB/s, 1 min 35 s to go",
        "read: 10.0 MiB of 100 MiB (10 %), 1.0 MiB/s, 1 min 30 s to go",
        r"half\x1b[2J",
        "read: done, 12.0 MiB in 12 s",
        "check ...",
        "check: done, 0 ms",
    ]


class CrowdClock(ManualClock):
    """Notices when two threads are inside a listener at once; the listener asks it while it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.most_inside = 0

    def monotonic(self) -> float:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.0005)
        self.inside -= 1
        return super().monotonic()


def test_advances_from_many_threads_are_all_counted_one_at_a_time() -> None:
    output, stderr = make_output()
    clock = CrowdClock()
    progress = LineProgress(output, clock)
    progress.step("read", total_items=200)

    def work() -> None:
        for _ in range(50):
            progress.advance(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.done()
    assert "read: done, 200 in" in stderr.getvalue()
    assert clock.most_inside == 1


def test_the_bar_shows_the_step_and_leaves_lines_behind() -> None:
    stream = io.StringIO()
    clock = ManualClock()
    bar = BarProgress(Console(file=stream, force_terminal=True, width=120, no_color=True), clock)
    try:
        bar.step("read\x1b]0;x\x07", total_bytes=10 * MIB)
        clock.pass_seconds(2)
        bar.advance(5 * MIB)
        bar._bar.refresh()
        bar.note("[bold]no markup[/bold]")
        bar.done()
    finally:
        bar.close()
    shown = stream.getvalue()
    assert "5.0 MiB of 10.0 MiB (50 %), 2.5 MiB/s, 2 s to go" in shown
    assert "[bold]no markup[/bold]" in shown
    assert "done, 5.0 MiB in 2 s" in shown
    assert "\x1b]0;" not in shown


def test_quiet_gets_silence_and_a_pipe_gets_lines() -> None:
    quiet, stderr = make_output(quiet=True)
    with showing(quiet) as progress:
        assert isinstance(progress, SilentProgress)
        progress.step("read", total_bytes=1)
        progress.advance(1)
        progress.note("x")
        progress.done()
    assert stderr.getvalue() == ""
    loud, _ = make_output()
    with showing(loud) as progress:
        assert isinstance(progress, LineProgress)
