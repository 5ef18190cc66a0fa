"""How a recovery is told to stop where a timeline was left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from drservice.model.recovery import choose_plan
from drservice.model.wal import Timeline
from drservice.operations.locate import RecoveryEnd, Resolved, WalScanner, resolve
from tests.unit.model.test_reach import FORK, with_tails
from tests.unit.model.test_recovery import LATEST, MONDAY, archive, at


def resolved(last: float, *, kind: str) -> Resolved:
    """Resolve the latest position where WAL of the segment of a switch at 5.5 ends at ``last``."""
    inventory = archive(*range(2, 5), also={2: []}, branches=FORK)
    if kind == "pieces":
        inventory = with_tails(inventory, {1: {5: max(5.5, last)}})
    else:
        inventory = replace(inventory, partials={Timeline(1): frozenset({5})})
    assert choose_plan(LATEST, [MONDAY], inventory).reach.fork == at(5.5)
    found = SimpleNamespace(end=SimpleNamespace(position=at(last)))
    scanner = SimpleNamespace(archived=SimpleNamespace(inventory=inventory), dump=lambda _: found)
    return resolve(LATEST, [MONDAY], inventory, cast("WalScanner", scanner))


@pytest.mark.parametrize("kind", ["pieces", "partial"])
def test_a_switch_with_wal_behind_it_is_stopped_at_and_one_without_is_the_end(kind: str) -> None:
    beyond = resolved(5.75, kind=kind)
    assert (beyond.ends, beyond.wal_end) == (RecoveryEnd.TARGET, None)
    exact = resolved(5.5, kind=kind)
    assert (exact.ends, exact.wal_end) == (RecoveryEnd.END_OF_WAL, at(5.5))
    assert not any("WARNING" in note for note in exact.notes)


def test_a_partial_segment_that_does_not_reach_the_switch_is_told() -> None:
    short = resolved(5.25, kind="partial")
    assert (short.ends, short.wal_end) == (RecoveryEnd.END_OF_WAL, at(5.25))
    assert any("WARNING" in note and f"{at(5.25)} to {at(5.5)}" in note for note in short.notes)
