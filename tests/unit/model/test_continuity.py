"""Which holes in the archived WAL matter, and what each of them takes away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.model.continuity import holes_of
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId
from drservice.model.reach import TailSegment, WalInventory
from drservice.model.recovery import gaps_of
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import HistoryEntry, Lsn, Timeline
from tests.doubles.repositories import SYSTEM_ID, facts

SIZE = 1 << 20
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def snapshot(name: str, begin: float, end: float, *, timeline: int = 1, system: str = SYSTEM_ID) -> SnapshotRecord:
    """Return a snapshot from one position to another, counted in segments."""
    return SnapshotRecord(
        id=SnapshotId(name),
        service=ServiceName("erp"),
        component=ComponentName("database"),
        kind="postgres",
        method="local",
        state=SnapshotState.COMPLETE,
        host="db1",
        started_at=NOON,
        stopped_at=NOON,
        checked_at=NOON,
        key_ids=(KeyId("k"),),
        sealed_key_id=KeyId("k"),
        previous=None,
        source_bytes=0,
        read_bytes=0,
        stored_bytes=0,
        files=0,
        facts=facts(
            start_lsn=Lsn(int(begin * SIZE)),
            stop_lsn=Lsn(int(end * SIZE)),
            timeline=Timeline(timeline),
            segment_bytes=SIZE,
            system_id=SystemId(system),
        ),
        header_sha256="",
    )


def archive(held: Mapping[int, set[int]], switches: Mapping[int, tuple[int, float]] | None = None) -> WalInventory:
    """Return an archive: segments per timeline, and per timeline which one it left and where."""
    histories: dict[Timeline, tuple[HistoryEntry, ...]] = {}
    for timeline, (parent, at) in sorted((switches or {}).items()):
        entry = HistoryEntry(timeline=Timeline(parent), end=Lsn(int(at * SIZE)))
        histories[Timeline(timeline)] = (*histories.get(Timeline(parent), ()), entry)
    return WalInventory(
        system_id=SYSTEM_ID,
        segment_bytes=SIZE,
        segments={Timeline(timeline): frozenset(numbers) for timeline, numbers in held.items()},
        histories=histories,
    )


MONDAY, TUESDAY = snapshot("MON", 3.1, 4.5), snapshot("TUE", 8.1, 8.9)


def told(inventory: WalInventory, *records: SnapshotRecord) -> list[tuple[int, list[int]]]:
    return [(hole.timeline, list(hole.numbers)) for hole in holes_of(records, inventory)]


def test_an_archive_without_holes_behind_the_oldest_snapshot_has_none_that_matter() -> None:
    assert told(archive({1: {1, 3, 4, 5}}), MONDAY) == []
    assert told(archive({1: set(range(3, 20))}), MONDAY, TUESDAY) == []
    assert told(archive({1: {1, 9}})) == [], "without a snapshot nothing needs the WAL"


def test_a_hole_cuts_what_is_before_it_and_is_closed_by_a_snapshot_behind_it() -> None:
    inventory = archive({1: {3, 4, 5, 8, 9}})
    [hole] = holes_of([MONDAY, TUESDAY], inventory)
    assert (list(hole.numbers), hole.spoilt, hole.cut, hole.is_open) == ([6, 7], (), ("MON",), False)
    [hole] = holes_of([MONDAY], inventory)
    assert hole.is_open
    assert "the latest position cannot be reached" in hole.describe()
    assert (hole.first_name, hole.follower) == ("000000010000000000000006", "000000010000000000000008")


def test_each_of_several_holes_is_told() -> None:
    assert told(archive({1: {3, 4, 6, 8, 9, 11}}), MONDAY) == [(1, [5]), (1, [7]), (1, [10])]


def test_a_snapshot_misses_its_own_wal_also_where_nothing_follows() -> None:
    [hole] = holes_of([TUESDAY, MONDAY], archive({1: {3, 4, 5, 6, 7}}))
    assert (list(hole.numbers), hole.spoilt, hole.cut) == ([8], ("TUE",), ("MON",))
    assert hole.is_open


def test_pieces_of_the_last_segment_serve_a_snapshot_as_far_as_they_go() -> None:
    inventory = archive({1: {3, 4, 5, 6, 7}})
    for end, missing in ((8.95, []), (8.5, [(1, [8])])):
        tail = {Timeline(1): {8: TailSegment(end=Lsn(int(end * SIZE)))}}
        assert told(replace(inventory, tails=tail), MONDAY, TUESDAY) == missing
    behind = {Timeline(1): {9: TailSegment(end=Lsn(int(9.5 * SIZE)))}}
    assert told(replace(inventory, tails=behind), MONDAY) == [(1, [8])], "pieces behind a hole"


def test_a_hole_before_a_promotion_is_a_hole_of_the_old_timeline() -> None:
    inventory = archive({1: {3, 4, 5}, 2: {8, 9}}, {2: (1, 8.5)})
    [hole] = holes_of([MONDAY], inventory)
    assert (hole.timeline, list(hole.numbers), hole.is_open) == (1, [6, 7], True)
    behind = snapshot("WED", 9.1, 9.2, timeline=2)
    [hole] = holes_of([MONDAY, behind], inventory)
    assert (hole.cut, hole.is_open) == (("MON",), False)


def test_in_the_segment_of_a_switch_the_childs_file_is_the_one_that_counts() -> None:
    switched = {2: (1, 8.5)}
    assert told(archive({1: {3, 4, 5, 6, 7}, 2: {8, 9}}, switched), MONDAY) == []
    assert told(archive({1: {3, 4, 5, 6, 7, 8}, 2: {9}}, switched), MONDAY) == [(2, [8])]
    assert told(archive({1: {3, 4, 5, 6, 7, 8}}, switched), MONDAY) == [], "nothing of the child is archived yet"
    assert told(archive({1: {3, 4, 5, 6, 7}, 2: {8}}, {2: (1, 8)}), MONDAY) == [], "a switch between two segments"
    assert told(archive({1: {3, 4, 5, 6}, 2: {8}}, {2: (1, 8)}), MONDAY) == [(1, [7])]


def test_a_branch_that_was_left_has_holes_of_its_own_that_are_not_open() -> None:
    inventory = archive({1: {3, 4, 5, 6, 8}, 2: {5, 6}}, {2: (1, 5.5)})
    [hole] = holes_of([MONDAY], inventory)
    assert (hole.timeline, list(hole.numbers), hole.is_open) == (1, [7], False)


def test_snapshots_of_another_cluster_need_nothing_here() -> None:
    assert told(archive({1: {3, 9}}), snapshot("OLD", 3.1, 4.5, system="1")) == []


@settings(max_examples=200, deadline=None)
@given(
    one=st.frozensets(st.integers(1, 14)),
    two=st.frozensets(st.integers(7, 14)),
    switch=st.sampled_from([7.0, 7.5, 9.25]),
    begins=st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True),
)
def test_whatever_a_window_ends_at_is_a_hole_here(
    one: frozenset[int], two: frozenset[int], switch: float, begins: list[int]
) -> None:
    inventory = archive({1: set(one), 2: {number for number in two if number >= int(switch)}}, {2: (1, switch)})
    records = [snapshot(f"S{begin}", begin + 0.1, begin + 0.3) for begin in begins]
    missing = {(hole.timeline, number) for hole in holes_of(records, inventory) for number in hole.numbers}
    for gap in gaps_of(records, inventory):
        assert (gap.timeline, gap.begin.segment_number(SIZE)) in missing
