"""Recovery points: the worst snapshot decides, and the order in which files are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.model.ids import SnapshotId
from drservice.model.points import PointState, files_at, instant_of, member_of, order_for_documents, state_of
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from tests.unit.model.test_snapshot import NOW, WHOLE, record_with

MINUTE = timedelta(minutes=1)


def walk(begin: float, end: float, state: SnapshotState = SnapshotState.COMPLETE) -> SnapshotRecord:
    """Return a snapshot of files, in minutes."""
    return replace(
        record_with(WHOLE),
        id=SnapshotId(f"{begin:06.1f}"),
        started_at=NOW + begin * MINUTE,
        stopped_at=NOW + end * MINUTE,
        state=state,
    )


def ids(records: Sequence[SnapshotRecord]) -> list[float]:
    return [float(record.id) for record in records]


@pytest.mark.parametrize(
    ("states", "point"),
    [
        ([SnapshotState.COMPLETE], PointState.COMPLETE),
        ([SnapshotState.COMPLETE, SnapshotState.DEGRADED], PointState.DEGRADED),
        ([SnapshotState.PARTIAL, SnapshotState.DEGRADED], PointState.PARTIAL),
    ],
)
def test_a_point_is_as_good_as_its_worst_snapshot(states: list[SnapshotState], point: PointState) -> None:
    members = [member_of(walk(0, 1, state)) for state in states]
    assert state_of(members) is state_of(reversed(members)) is point


WALKS = [walk(30, 31), walk(0, 1), walk(10, 12), walk(20, 21)]


def test_documents_of_an_instant_are_looked_for_in_the_first_pass_that_began_after_it() -> None:
    assert ids(order_for_documents(WALKS, NOW + 5 * MINUTE)) == [10, 20, 30, 0]
    assert ids(order_for_documents(WALKS, NOW + 10 * MINUTE)) == [10, 20, 30, 0], "begun at the instant is after it"
    assert ids(order_for_documents(WALKS, NOW + 11 * MINUTE)) == [20, 30, 10, 0], "one under way may have missed it"
    assert ids(order_for_documents(WALKS, NOW + 99 * MINUTE)) == [30, 20, 10, 0]
    assert ids(order_for_documents(WALKS, None)) == [30, 20, 10, 0]


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 60))
def test_every_snapshot_is_looked_into_once(begins: list[int], minute: int) -> None:
    walks = [walk(begin, begin + 1) for begin in begins]
    ordered = order_for_documents(walks, NOW + minute * MINUTE)
    assert sorted(ids(ordered)) == sorted(begins)
    late = [begin for begin in begins if begin >= minute]
    assert not late or ids(ordered)[0] == min(late)


def test_a_folder_is_taken_as_it_was_before_the_instant() -> None:
    def taken(minute: float | None) -> float | None:
        found = files_at(WALKS, None if minute is None else NOW + minute * MINUTE)
        return None if found is None else float(found.id)

    assert [taken(11), taken(12), taken(99), taken(None)] == [0, 10, 30, 30]
    assert taken(-5) == 0, "the first one after it, if there is none before"
    assert files_at([], None) is None


def test_a_point_without_a_database_stands_for_the_beginning_of_its_files() -> None:
    assert instant_of([member_of(walk(10, 12)), member_of(walk(20, 21))]) == NOW + 10 * MINUTE
