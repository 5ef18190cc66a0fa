"""How a recovery is told to stop where a timeline was left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from drservice.components.postgres.recovery import ReplayTarget
from drservice.errors import WalGapError
from drservice.model.reach import WalInventory
from drservice.model.recovery import Target, TargetKind, choose_plan
from drservice.model.wal import Lsn, Timeline
from drservice.operations.locate import RecoveryEnd, Resolved, WalScanner, resolve
from tests.unit.model.test_reach import FORK, name, with_tails
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


# --- the newest instant that rows and documents share -----------------------------------------------------------


def shared(position: float | None, inventory: WalInventory, *, last_record: float) -> Resolved:
    """Resolve ``consistent`` where documents are proven up to a position and the last record of the WAL begins."""
    target = Target(kind=TargetKind.CONSISTENT, lsn=at(position) if position is not None else None)
    found = SimpleNamespace(end=SimpleNamespace(position=at(last_record + 0.125)))

    def has_record_from(segment: str, begin: Lsn) -> bool:
        asked.append(segment)
        return begin <= at(last_record)

    asked: list[str] = []
    scanner = SimpleNamespace(
        archived=SimpleNamespace(inventory=inventory), dump=lambda _: found, has_record_from=has_record_from
    )
    answer = resolve(target, [MONDAY], inventory, cast("WalScanner", scanner))
    assert set(asked) <= {name(number) for number in range(4, 7)}
    return answer


PIECES = with_tails(archive(*range(2, 6)), {1: {6: 6.75}})


@pytest.mark.parametrize("position", [4.25, 5.75, 6.125, 6.5])
def test_replay_ends_before_the_first_record_behind_the_documents(position: float) -> None:
    """Inclusive, it would replay the record that begins there: a commit that nobody has looked behind."""
    found = shared(position, PIECES, last_record=6.5)
    assert found.replay == ReplayTarget.at_lsn(at(position), inclusive=False)
    assert (found.ends, found.plan.target.lsn) == (RecoveryEnd.TARGET, at(position))


@pytest.mark.parametrize("position", [6.5625, 6.625, 6.75, 7, 9])
def test_where_no_record_begins_behind_the_documents_it_is_the_end_of_the_wal(position: float) -> None:
    """Between begin and end of the last record, at its end, and where documents are ahead of the WAL."""
    found = shared(position, PIECES, last_record=6.5)
    assert (found.replay, found.ends, found.wal_end) == (ReplayTarget.latest(), RecoveryEnd.END_OF_WAL, at(6.625))
    assert found.plan.target == Target(kind=TargetKind.CONSISTENT)
    assert "documents are proven up to" in found.notes[0]


def test_without_documents_it_is_the_latest_position_and_said() -> None:
    found = shared(None, PIECES, last_record=6.5)
    assert (found.replay, found.notes[0]) == (
        ReplayTarget.latest(),
        "no documents follow the rows: it is the latest position",
    )


def test_a_hole_behind_the_documents_is_none_on_the_way_and_one_before_them_is_named() -> None:
    holed = archive(2, 3, 4, 6)
    assert shared(4.5, holed, last_record=6).replay == ReplayTarget.at_lsn(at(4.5), inclusive=False)
    with pytest.raises(WalGapError, match=name(5)):
        shared(6.5, holed, last_record=6.75)
