"""Which snapshot and which WAL lead to a target; a refusal names the gap and what can be reached instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.errors import TargetOutsideWindowError, UsageError, WalGapError
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId
from drservice.model.reach import WalInventory, holder_of
from drservice.model.recovery import (
    Target,
    TargetKind,
    choose_plan,
    describe_timelines,
    gaps_of,
    reachable_windows,
    windows_of,
)
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import HistoryEntry, Lsn, Timeline, segment_name
from tests.doubles.repositories import SYSTEM_ID, facts

SIZE = 1 << 20
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(segment: float) -> Lsn:
    """Return the position so many segments into the WAL."""
    return Lsn(int(segment * SIZE))


def snapshot(
    name: str,
    begin: float,
    end: float,
    *,
    timeline: int = 1,
    minute: float = 0,
    state: str = "complete",
    system: str = SYSTEM_ID,
) -> SnapshotRecord:
    return SnapshotRecord(
        id=SnapshotId(name),
        service=ServiceName("erp"),
        component=ComponentName("database"),
        kind="postgres",
        method="local",
        state=SnapshotState(state),
        host="db1",
        started_at=NOON + timedelta(minutes=minute - 1),
        stopped_at=NOON + timedelta(minutes=minute),
        checked_at=NOON + timedelta(minutes=minute),
        key_ids=(KeyId("k"),),
        sealed_key_id=KeyId("k"),
        previous=None,
        source_bytes=0,
        read_bytes=0,
        stored_bytes=0,
        files=0,
        facts=facts(
            start_lsn=at(begin),
            stop_lsn=at(end),
            timeline=Timeline(timeline),
            segment_bytes=SIZE,
            system_id=SystemId(system),
            bad_pages=0 if state == "complete" else 3,
        ),
        header_sha256="",
    )


def archive(
    *numbers: int,
    also: dict[int, Iterable[int]] | None = None,
    branches: dict[int, list[tuple[int, float]]] | None = None,
) -> WalInventory:
    """Return an inventory: segments of timeline 1, of other timelines, and their histories."""
    segments = {Timeline(1): frozenset(numbers)}
    segments.update({Timeline(line): frozenset(held) for line, held in (also or {}).items()})
    return WalInventory(
        system_id=SystemId(SYSTEM_ID),
        segment_bytes=SIZE,
        segments=segments,
        histories={
            Timeline(line): tuple(HistoryEntry(timeline=Timeline(old), end=at(end)) for old, end in entries)
            for line, entries in (branches or {}).items()
        },
        stored_at={},
    )


LATEST = Target(kind=TargetKind.LATEST)


def to_time(minute: float, timeline: int | None = None) -> Target:
    line = Timeline(timeline) if timeline else None
    return Target(kind=TargetKind.TIME, time=NOON + timedelta(minutes=minute), timeline=line)


def to_lsn(segment: float, timeline: int | None = None) -> Target:
    return Target(kind=TargetKind.LSN, lsn=at(segment), timeline=Timeline(timeline) if timeline else None)


MONDAY, TUESDAY = snapshot("MONDAY", 2.5, 3.5), snapshot("TUESDAY", 6.5, 7.5, minute=60)
ALL = archive(*range(2, 11))


# --- which snapshot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (LATEST, "TUESDAY"),
        (to_time(60), "TUESDAY"),
        (to_time(59.9), "MONDAY"),
        (to_time(0), "MONDAY"),
        (to_lsn(7.5), "TUESDAY"),
        (to_lsn(7.4), "MONDAY"),
        (to_lsn(11), "TUESDAY"),
        (Target(kind=TargetKind.SNAPSHOT, snapshot=SnapshotId("MONDAY")), "MONDAY"),
    ],
)
def test_the_newest_snapshot_that_ends_before_the_target_is_the_start(target: Target, chosen: str) -> None:
    plan = choose_plan(target, [MONDAY, TUESDAY], ALL)
    assert plan.snapshot.id == chosen
    assert plan.reach.end == at(11)
    assert plan.reach.gap is None
    assert plan.reasons[0].startswith(f"snapshot {chosen} is the newest that ends at or before")


@pytest.mark.parametrize("kind", [TargetKind.XID, TargetKind.NAME])
def test_what_must_be_located_first_is_located_first(kind: TargetKind) -> None:
    target = Target(kind=kind, xid=7, name="monday")
    assert choose_plan(target, [MONDAY, TUESDAY], ALL, located=at(5)).snapshot is MONDAY
    assert choose_plan(target, [MONDAY, TUESDAY], ALL, located=at(8)).snapshot is TUESDAY
    with pytest.raises(UsageError, match="is not known"):
        choose_plan(target, [MONDAY], ALL)


def test_a_degraded_snapshot_is_the_last_resort_and_says_so() -> None:
    degraded = snapshot("BAD", 6.5, 7.5, minute=60, state="degraded")
    assert choose_plan(LATEST, [MONDAY, degraded], ALL).snapshot is MONDAY
    plan = choose_plan(LATEST, [degraded], ALL)
    assert plan.snapshot is degraded
    assert any("DEGRADED: 3 damaged page(s)" in reason for reason in plan.reasons)
    wanted = Target(kind=TargetKind.SNAPSHOT, snapshot=SnapshotId("BAD"))
    assert choose_plan(wanted, [MONDAY, degraded], ALL).snapshot is degraded


def test_why_others_were_not_taken_is_told() -> None:
    plan = choose_plan(to_time(30), [MONDAY, TUESDAY], ALL)
    [other] = plan.considered
    assert (other.snapshot, other.reason) == ("TUESDAY", "it ends at 2026-01-01T13:00:00.000000Z, after the target")


def test_a_snapshot_of_another_cluster_is_never_a_start() -> None:
    foreign = snapshot("FOREIGN", 2.5, 3.5, system="1111111111111111111")
    with pytest.raises(TargetOutsideWindowError, match="it is of another cluster"):
        choose_plan(LATEST, [foreign], ALL)


# --- refusals -----------------------------------------------------------------------------------------------


def test_without_a_snapshot_nothing_can_be_reached() -> None:
    with pytest.raises(TargetOutsideWindowError, match="There is no snapshot") as caught:
        choose_plan(LATEST, [], ALL)
    assert caught.value.hint == "Reachable: nothing, there is no usable snapshot."


def test_an_instant_before_the_first_snapshot_names_the_window() -> None:
    with pytest.raises(TargetOutsideWindowError, match=r"time 2026-01-01T11:00:00.000000Z cannot be reached") as caught:
        choose_plan(to_time(-60), [MONDAY, TUESDAY], ALL)
    assert "MONDAY: it ends at" in caught.value.message
    assert caught.value.hint == (
        f"Reachable: from 2026-01-01T12:00:00.000000Z ({at(3.5)}, snapshot MONDAY) to {at(11)}."
    )


def test_a_position_behind_the_archive_is_refused_with_where_it_ends() -> None:
    with pytest.raises(TargetOutsideWindowError, match=f"its WAL ends at {at(11)}, before the target"):
        choose_plan(to_lsn(11.1), [MONDAY, TUESDAY], ALL)


def test_a_gap_is_named_with_its_first_file() -> None:
    holed = archive(2, 3, 4, 7, 8)
    with pytest.raises(WalGapError) as caught:
        choose_plan(to_lsn(8), [MONDAY], holed)
    assert (
        "2 WAL segment(s) from 000000010000000000000005 on are missing (0/500000 to 0/700000)" in caught.value.message
    )
    assert f"to {at(5)}" in caught.value.hint
    with pytest.raises(WalGapError, match="does not lead to the latest position"):
        choose_plan(LATEST, [MONDAY], holed)


def test_what_lies_before_a_gap_can_be_reached_and_what_lies_behind_a_later_snapshot_too() -> None:
    holed = archive(2, 3, 4, 6, 7, 8)
    assert choose_plan(to_lsn(5), [MONDAY, TUESDAY], holed).snapshot is MONDAY
    assert choose_plan(to_lsn(9), [MONDAY, TUESDAY], holed).snapshot is TUESDAY
    assert choose_plan(LATEST, [MONDAY, TUESDAY], holed).snapshot is TUESDAY
    assert len(reachable_windows([MONDAY, TUESDAY], holed)) == 2
    [gap] = gaps_of([MONDAY, TUESDAY], holed)
    assert gap.first_name == "000000010000000000000005"


@pytest.mark.parametrize("lost", [2, 3])
def test_a_snapshot_without_the_wal_that_makes_it_consistent_is_useless(lost: int) -> None:
    holed = archive(*(number for number in range(2, 11) if number != lost))
    with pytest.raises(WalGapError, match="the WAL it needs to become consistent is not complete"):
        choose_plan(Target(kind=TargetKind.SNAPSHOT, snapshot=MONDAY.id), [MONDAY], holed)
    assert reachable_windows([MONDAY], holed) == []


def test_a_snapshot_alone_needs_no_more_wal_than_its_own() -> None:
    assert (
        choose_plan(Target(kind=TargetKind.SNAPSHOT, snapshot=MONDAY.id), [MONDAY], archive(2, 3)).reach.segments == 2
    )


def test_a_plan_that_stops_before_a_gap_says_so() -> None:
    plan = choose_plan(to_lsn(4), [MONDAY], archive(2, 3, 4, 7))
    assert any("nothing behind the gap" in reason for reason in plan.reasons)


# --- a hole that only a newer snapshot tells of ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (range(2, 7), "1 WAL segment(s) from 000000010000000000000007 on are missing (0/700000 to 0/800000)"),
        (range(2, 6), "2 WAL segment(s) from 000000010000000000000006 on are missing (0/600000 to 0/800000)"),
        ((2, 3, 4, 7), "2 WAL segment(s) from 000000010000000000000005 on are missing (0/500000 to 0/700000)"),
    ],
    ids=["its last segment", "all of it", "before it and its first"],
)
@pytest.mark.parametrize("state", ["complete", "degraded"])
def test_the_latest_position_is_refused_where_the_newest_snapshots_own_wal_is_missing(
    held: Iterable[int], missing: str, state: str
) -> None:
    newest = snapshot("NEWEST", 6.5, 7.5, minute=60, state=state)
    with pytest.raises(WalGapError) as caught:
        choose_plan(LATEST, [MONDAY, newest], archive(*held))
    assert missing in caught.value.message
    assert "MONDAY: its WAL does not lead to the latest position" in caught.value.message
    assert "NEWEST: the WAL it needs to become consistent is not complete" in caught.value.message


def test_a_hole_before_the_latest_position_is_told_with_the_next_command_on_either_side() -> None:
    with pytest.raises(WalGapError) as caught:
        choose_plan(LATEST, [MONDAY, TUESDAY], archive(*range(2, 7)))
    window = f"Reachable: from 2026-01-01T12:00:00.000000Z ({at(3.5)}, snapshot MONDAY) to {at(7)}."
    assert caught.value.hint == (
        f"{window} Before the gap: drservice restore erp --to latest --without-snapshot TUESDAY."
        " Behind the gap nothing can be reached: take a backup now: drservice backup erp."
    )
    assert choose_plan(LATEST, [MONDAY], archive(*range(2, 7))).snapshot is MONDAY, "the command that is named"


@pytest.mark.parametrize(
    ("held", "command"),
    [((2, 3, 4, 5, 8), f"--lsn {at(5)}"), ((2, 3, 8), "--snapshot MONDAY")],
    ids=["WAL follows", "nothing follows"],
)
def test_before_a_hole_in_the_middle_a_position_or_a_snapshot_is_named(held: tuple[int, ...], command: str) -> None:
    with pytest.raises(WalGapError) as caught:
        choose_plan(LATEST, [MONDAY], archive(*held))
    assert f"Before the gap: drservice restore erp {command}." in caught.value.hint


def test_where_no_snapshot_has_its_wal_no_command_is_named_but_a_new_backup() -> None:
    with pytest.raises(WalGapError) as caught:
        choose_plan(LATEST, [TUESDAY], archive(2, 3, 6))
    assert "Reachable: nothing" in caught.value.hint
    assert "Before the gap" not in caught.value.hint
    assert "take a backup now: drservice backup erp" in caught.value.hint


def test_a_snapshot_that_another_history_or_cluster_has_tells_nothing_about_the_latest_position() -> None:
    left = snapshot("LEFT", 8.5, 9.5, minute=60)
    foreign = snapshot("FOREIGN", 18.5, 19.5, minute=90, system="1111111111111111111")
    present = archive(*range(2, 7), also={2: range(5, 8)}, branches={2: [(1, 5.5)]})
    plan = choose_plan(LATEST, [MONDAY, left, foreign], present)
    assert (plan.snapshot.id, plan.timeline, plan.reach.gap) == ("MONDAY", 2, None)
    named = Target(kind=TargetKind.LATEST, timeline=Timeline(2))
    assert choose_plan(named, [MONDAY, left], present).snapshot.id == "MONDAY"


def test_a_snapshot_on_the_present_timeline_tells_of_wal_that_was_lost_from_the_switch_on() -> None:
    two = snapshot("TWO", 5.6, 5.9, timeline=2, minute=60)
    with pytest.raises(WalGapError, match=r"1 WAL segment\(s\) from 000000020000000000000005 on"):
        choose_plan(LATEST, [MONDAY, two], FORKED)
    named = Target(kind=TargetKind.LATEST, timeline=Timeline(1))
    assert choose_plan(named, [MONDAY, two], FORKED).reach.end == at(9), "the branch that was left is whole"


def test_a_snapshot_whose_last_segment_is_archived_as_a_partial_one_misses_nothing() -> None:
    plan = choose_plan(LATEST, [MONDAY, TUESDAY], with_partials(archive(*range(2, 7)), {1: {7}}))
    assert (plan.snapshot.id, plan.reach.gap) == ("TUESDAY", None)


def test_instants_that_lie_before_a_lost_snapshot_are_reached_as_before() -> None:
    holed = archive(*range(2, 7))
    for target in (to_lsn(7), to_time(30)):
        plan = choose_plan(target, [MONDAY, TUESDAY], holed)
        assert (plan.snapshot.id, plan.reach.gap) == ("MONDAY", None)


# --- timelines ----------------------------------------------------------------------------------------------


BRANCHED = archive(*range(2, 7), also={2: range(5, 9)}, branches={2: [(1, 5.5)]})


def test_the_latest_timeline_that_descends_from_the_snapshot_is_followed() -> None:
    plan = choose_plan(LATEST, [MONDAY], BRANCHED)
    assert (plan.timeline, plan.reach.end) == (2, at(9))


def test_a_timeline_can_be_named() -> None:
    plan = choose_plan(to_lsn(6.5, timeline=1), [MONDAY], BRANCHED)
    assert (plan.timeline, plan.reach.end) == (1, at(7))
    with pytest.raises(TargetOutsideWindowError, match="timeline 7 does not descend from its timeline 1"):
        choose_plan(to_lsn(6.5, timeline=7), [MONDAY], BRANCHED)


def test_the_segment_of_a_switch_is_taken_from_the_newer_timeline_if_it_is_there() -> None:
    path = BRANCHED.path_to(Timeline(2))
    assert [holder_of(number, path, BRANCHED) for number in (4, 5, 6, 9)] == [1, 2, 2, None]
    without = archive(*range(2, 7), also={2: range(6, 9)}, branches={2: [(1, 5.5)]})
    assert holder_of(5, without.path_to(Timeline(2)), without) == 1


def test_an_ancestors_segment_behind_the_switch_never_fills_a_hole() -> None:
    holed = archive(*range(2, 11), also={2: [5, 8]}, branches={2: [(1, 5.5)]})
    with pytest.raises(WalGapError, match="000000020000000000000006"):
        choose_plan(to_lsn(8.5, timeline=2), [MONDAY], holed)


def test_a_snapshot_taken_behind_the_switch_does_not_lead_to_the_new_timeline() -> None:
    late = snapshot("LATE", 5.6, 6.2, minute=30)
    with pytest.raises(TargetOutsideWindowError, match="timeline 2 does not descend"):
        choose_plan(to_lsn(8, timeline=2), [late], BRANCHED)
    with pytest.raises(TargetOutsideWindowError, match="left timeline 1 before its end; --timeline 1 reaches"):
        choose_plan(LATEST, [late], BRANCHED)
    assert choose_plan(Target(kind=TargetKind.LATEST, timeline=Timeline(1)), [late], BRANCHED).timeline == 1


def test_the_latest_position_lies_on_the_newest_timeline_even_if_a_branch_that_was_left_has_higher_ones() -> None:
    left = snapshot("LEFT", 8.5, 9.5, minute=60)
    present = archive(*range(2, 12), also={2: range(5, 9)}, branches={2: [(1, 5.5)]})
    plan = choose_plan(LATEST, [MONDAY, left], present)
    assert (plan.snapshot.id, plan.timeline) == ("MONDAY", 2)
    newer = snapshot("NEWER", 6.5, 7.5, timeline=2, minute=90)
    assert choose_plan(LATEST, [MONDAY, left, newer], present).snapshot is newer
    assert choose_plan(to_time(100), [MONDAY, left, newer], present).snapshot is newer
    assert choose_plan(to_time(70), [MONDAY, left, newer], present).snapshot.id == "MONDAY"


def test_grandchildren_are_followed_through_all_their_ancestors() -> None:
    three = archive(*range(2, 6), also={2: [5, 6], 3: [6, 7, 8]}, branches={2: [(1, 5.5)], 3: [(1, 5.5), (2, 6.5)]})
    plan = choose_plan(LATEST, [MONDAY], three)
    assert (plan.timeline, plan.reach.end) == (3, at(9))
    on_two = snapshot("TWO", 5.7, 6.2, timeline=2, minute=5)
    assert choose_plan(LATEST, [on_two], three).timeline == 3


def test_without_its_history_file_the_present_timeline_is_refused_and_the_old_one_must_be_named() -> None:
    lost = archive(*range(2, 7), also={2: range(5, 9)})
    with pytest.raises(TargetOutsideWindowError, match="history file of timeline 2 is not archived"):
        choose_plan(LATEST, [MONDAY], lost)
    assert choose_plan(Target(kind=TargetKind.LATEST, timeline=Timeline(1)), [MONDAY], lost).timeline == 1


# --- whatever is archived -----------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.frozensets(st.integers(2, 20)),
    st.lists(st.tuples(st.floats(2, 18), st.floats(0.1, 3)), max_size=4),
    st.floats(1, 22),
)
def test_a_plan_never_promises_wal_that_is_not_there(
    held: frozenset[int], spans: list[tuple[float, float]], wanted: float
) -> None:
    inventory = archive(*held)
    snapshots = [snapshot(f"S{n}", begin, begin + length, minute=begin) for n, (begin, length) in enumerate(spans)]
    target = to_lsn(wanted)
    usable = [
        one
        for one in snapshots
        if one.postgres.stop_lsn <= at(wanted)
        and set(range(one.postgres.start_lsn.value // SIZE, -(-at(wanted).value // SIZE))) <= held
    ]
    try:
        plan = choose_plan(target, snapshots, inventory)
    except (TargetOutsideWindowError, WalGapError):
        assert usable == [], "a snapshot led there and was not found"
        return
    assert plan.snapshot in usable
    assert plan.snapshot.postgres.stop_lsn == max(one.postgres.stop_lsn for one in usable)


@given(st.frozensets(st.integers(2, 20)))
def test_windows_and_gaps_never_overlap(held: frozenset[int]) -> None:
    inventory = archive(*held)
    snapshots = [snapshot("A", 2.5, 3.5), snapshot("B", 9.5, 10.5, minute=60)]
    windows = windows_of(snapshots, inventory)
    for window in windows:
        first = window.first.postgres.start_lsn.value // SIZE
        assert set(range(first, window.end.value // SIZE)) <= held
        assert int(window.last_segment[-8:], 16) in held
    for gap in gaps_of(snapshots, inventory):
        assert not set(range(gap.begin.value // SIZE, gap.end.value // SIZE)) & held


def test_targets_are_told_in_words() -> None:
    assert to_time(0).describe() == "time 2026-01-01T12:00:00.000000Z"
    assert to_lsn(1).describe() == "LSN 0/100000"
    assert Target(kind=TargetKind.XID, xid=7).describe() == "transaction 7"
    assert Target(kind=TargetKind.NAME, name="x").describe() == "restore point x"
    assert Target(kind=TargetKind.SNAPSHOT, snapshot=SnapshotId("X")).describe() == "the end of snapshot X"
    assert LATEST.describe() == "the latest archived position"
    shared = Target(kind=TargetKind.CONSISTENT)
    assert shared.describe() == "the newest instant that rows and documents share"
    assert replace(shared, lsn=at(1)).describe() == "the newest instant that rows and documents share (LSN 0/100000)"


def test_what_rows_and_documents_share_needs_the_wal_up_to_there_and_without_a_position_all_of_it() -> None:
    held = archive(2, 3, 4, 6)
    shared = Target(kind=TargetKind.CONSISTENT, lsn=at(4.5))
    assert (shared.is_latest, LATEST.is_latest, to_lsn(4.5).is_latest) == (False, True, False)
    assert choose_plan(shared, [MONDAY], held).reach.end == at(5), "the hole lies behind it"
    with pytest.raises(WalGapError):
        choose_plan(replace(shared, lsn=at(6.5)), [MONDAY], held)
    assert replace(shared, lsn=None).is_latest
    with pytest.raises(WalGapError, match="cannot be reached"):
        choose_plan(replace(shared, lsn=None), [MONDAY], held)
    with pytest.raises(TargetOutsideWindowError, match="ends at"):
        choose_plan(replace(shared, lsn=at(3)), [MONDAY], held)


# --- where the present history branched off and has no segment of its own yet ---------------------------------


FORKED = archive(*range(2, 9), also={2: []}, branches={2: [(1, 5.5)]})


def test_an_ancestors_segment_is_followed_to_the_fork_and_not_one_byte_further() -> None:
    plan = choose_plan(LATEST, [MONDAY], FORKED)
    assert (plan.timeline, plan.reach.end, plan.reach.fork, plan.reach.gap) == (2, at(5.5), at(5.5), None)
    with pytest.raises(TargetOutsideWindowError, match="WAL ends at"):
        choose_plan(to_lsn(5.75), [MONDAY], FORKED)


def test_a_fork_at_the_border_of_segments_gives_nothing_of_the_left_history() -> None:
    border = archive(*range(2, 9), also={2: []}, branches={2: [(1, 5)]})
    plan = choose_plan(LATEST, [MONDAY], border)
    assert (plan.timeline, plan.reach.end, plan.reach.fork) == (2, at(5), None)
    assert holder_of(5, border.path_to(Timeline(2)), border) is None


def test_a_missing_first_segment_of_the_present_timeline_is_a_gap_if_later_ones_are_there() -> None:
    holed = archive(*range(2, 9), also={2: [6, 7]}, branches={2: [(1, 5.5)]})
    with pytest.raises(WalGapError, match="000000020000000000000005"):
        choose_plan(LATEST, [MONDAY], holed)
    assert choose_plan(to_lsn(5.25), [MONDAY], holed).reach.end == at(5.5)


# --- the last segment, as far as it was written ---------------------------------------------------------------


def with_partials(inventory: WalInventory, partials: dict[int, set[int]]) -> WalInventory:
    return replace(inventory, partials={Timeline(line): frozenset(held) for line, held in partials.items()})


def test_wal_goes_on_into_a_partial_segment_that_follows_without_a_hole() -> None:
    plan = choose_plan(LATEST, [MONDAY], with_partials(archive(2, 3, 4), {1: {5}}))
    assert (plan.reach.segments, plan.reach.end, plan.reach.gap) == (4, at(6), None)
    assert plan.reach.partial == f"{segment_name(Timeline(1), 5, SIZE)}.partial"


@pytest.mark.parametrize(
    ("inventory", "partials"),
    [
        (archive(2, 3, 4, 5), {1: {5}}),
        (archive(2, 3, 4), {1: {6}}),
        (archive(2, 3, 4), {2: {5}}),
        (BRANCHED, {1: {5}}),
    ],
    ids=["a whole one is there", "a hole lies before it", "another timeline's", "its timeline was left"],
)
def test_a_partial_segment_that_is_not_the_end_of_the_way_is_not_taken(
    inventory: WalInventory, partials: dict[int, set[int]]
) -> None:
    plan = choose_plan(LATEST, [MONDAY], with_partials(inventory, partials))
    assert plan.reach.partial is None
    assert plan.reach == choose_plan(LATEST, [MONDAY], inventory).reach


def test_a_partial_segment_never_bridges_a_gap() -> None:
    with pytest.raises(WalGapError):
        choose_plan(LATEST, [MONDAY], with_partials(archive(2, 3, 4, 6), {1: {5, 7}}))


def test_the_way_over_a_branch_and_the_timelines_are_told_in_words() -> None:
    plan = choose_plan(LATEST, [MONDAY], BRANCHED)
    assert f"the way leads along timeline 1 up to {at(5.5)}, then 2" in plan.reasons
    assert describe_timelines(BRANCHED) == [f"1 to {at(7)}", f"2 branched off 1 at {at(5.5)} to {at(9)}"]
    lost = archive(*range(2, 7), also={3: [7]}, branches={2: [(1, 5.5)]})
    assert describe_timelines(lost)[1:] == [
        f"2 branched off 1 at {at(5.5)} without WAL of its own",
        f"3 has no history file to {at(8)}",
    ]
    with pytest.raises(TargetOutsideWindowError, match="along timeline 7") as refused:
        choose_plan(to_lsn(6.5, timeline=7), [MONDAY], BRANCHED)
    assert f"2 branched off 1 at {at(5.5)}" in refused.value.hint
