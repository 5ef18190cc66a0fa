"""When services are projected: what comes while one is under way, or right behind it, is done together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from drservice.model.estate import Estate
from drservice.node.projecting import Projector
from tests.doubles.website import make_estate

TOOK_SECONDS = 0.1


class Counting(Projector):
    """Notes what it would project, and takes its time."""

    def __init__(self, state_dir: Path) -> None:
        def own(_: Estate) -> Sequence[str]:
            return ["erp"]

        estate = make_estate(state_dir)
        super().__init__("postgresql://nowhere", estate=lambda: estate, own=own, log_level="info")
        self.done: list[list[str]] = []

    def _project(self, names: Sequence[str]) -> None:
        self.done.append(list(names))
        time.sleep(TOOK_SECONDS)


def test_runs_that_end_soon_after_one_another_are_projected_together_and_none_is_left_out(tmp_path: Path) -> None:
    projector = Counting(tmp_path)
    projector.start()
    began = time.monotonic()
    asked = [f"service{number}" for number in range(20)]
    for name in asked:
        projector.ask(name)
        time.sleep(TOOK_SECONDS / 4)
    deadline = time.monotonic() + 10
    while {name for names in projector.done for name in names} < {"erp", *asked} and time.monotonic() < deadline:
        time.sleep(0.01)
    lasted = time.monotonic() - began
    projector.stop()
    assert {name for names in projector.done for name in names} == {"erp", *asked}
    # One at work for a third of the time; one more may have begun at either end.
    assert len(projector.done) <= lasted / (3 * TOOK_SECONDS) + 2


def test_whoever_stops_does_not_wait_until_the_next_one_would_begin(tmp_path: Path) -> None:
    projector = Counting(tmp_path)
    projector.start()
    time.sleep(TOOK_SECONDS / 2)
    began = time.monotonic()
    projector.stop()
    assert time.monotonic() - began < 2 * TOOK_SECONDS
