"""Plans whose last segment is in pieces: served where its timeline ends, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from drservice.errors import WalGapError
from drservice.model.reach import TailSegment, WalInventory, measure_reach
from drservice.model.recovery import choose_plan, describe_timelines, windows_of
from drservice.model.wal import Timeline, segment_name
from drservice.operations.locate import plan_segments
from tests.unit.model.test_recovery import LATEST, MONDAY, SIZE, TUESDAY, archive, at, to_lsn

FORK = {2: [(1, 5.5)]}


def with_tails(inventory: WalInventory, tails: Mapping[int, Mapping[int, float]]) -> WalInventory:
    """Add segments in pieces: number to where they end."""
    return replace(
        inventory,
        tails={
            Timeline(line): {number: TailSegment(end=at(end)) for number, end in held.items()}
            for line, held in tails.items()
        },
    )


def name(number: int, timeline: int = 1) -> str:
    return segment_name(Timeline(timeline), number, SIZE)


def test_pieces_of_the_last_segment_extend_what_can_be_reached_to_their_end() -> None:
    held = with_tails(archive(*range(2, 6)), {1: {6: 6.5}})
    reach = choose_plan(LATEST, [MONDAY], held).reach
    assert (reach.end, reach.tail, reach.segments, reach.gap) == (at(6.5), name(6), 5, None)
    [window] = windows_of([MONDAY], held)
    assert (window.end, window.last_segment) == (at(6.5), name(6))
    assert describe_timelines(held) == [f"1 to {at(6.5)}"]


def test_a_position_inside_the_pieces_is_in_reach_and_one_behind_them_is_not() -> None:
    held = with_tails(archive(*range(2, 6)), {1: {6: 6.5}})
    assert choose_plan(to_lsn(6.25), [MONDAY], held).reach.tail == name(6)
    with pytest.raises(Exception, match="WAL ends at"):
        choose_plan(to_lsn(6.75), [MONDAY], held)


@pytest.mark.parametrize("behind", [{"whole": 7}, {"pieces": 7.5}])
def test_an_unfinished_segment_with_later_wal_is_a_hole(behind: dict[str, float]) -> None:
    whole = [7] if "whole" in behind else []
    pieces = {7: behind["pieces"]} if "pieces" in behind else {}
    held = with_tails(archive(*range(2, 6), *whole), {1: {6: 6.5, **pieces}})
    reach = measure_reach(MONDAY, held, Timeline(1))
    assert (reach.end, reach.tail) == (at(6), None)
    assert reach.gap is not None
    assert (reach.gap.begin, reach.gap.first_name) == (at(6), name(6))
    with pytest.raises(WalGapError, match=name(6)):
        choose_plan(LATEST, [MONDAY], held)


def test_pieces_without_the_first_one_are_nothing() -> None:
    held = with_tails(archive(*range(2, 6)), {1: {6: 6}})
    reach = choose_plan(LATEST, [MONDAY], held).reach
    assert (reach.end, reach.tail) == (at(6), None)


def test_pieces_that_end_before_a_newer_snapshot_does_are_not_the_latest_position() -> None:
    held = with_tails(archive(*range(2, 7)), {1: {7: 7.25}})
    with pytest.raises(WalGapError, match=f"{at(7.25)} to "):
        choose_plan(LATEST, [MONDAY, TUESDAY], held)
    assert choose_plan(to_lsn(7.25), [MONDAY], held).reach.end == at(7.25)


def test_in_the_segment_of_a_switch_the_childs_pieces_serve_once_they_go_on_behind_it() -> None:
    forked = archive(*range(2, 9), also={2: []}, branches=FORK)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {2: {5: 5.75}})).reach
    assert (reach.end, reach.tail, reach.fork) == (at(5.75), name(5, 2), None)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {2: {5: 5.25}})).reach
    assert (reach.end, reach.tail, reach.fork) == (at(5.5), None, at(5.5)), "the ancestor's own file leads further"


def test_an_ancestors_pieces_serve_up_to_the_fork_and_must_reach_it() -> None:
    forked = archive(*range(2, 5), also={2: []}, branches=FORK)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {1: {5: 5.75}})).reach
    assert (reach.end, reach.tail, reach.fork, reach.gap) == (at(5.5), name(5), at(5.5), None)
    short = with_tails(forked, {1: {5: 5.25}})
    with pytest.raises(WalGapError, match=f"{at(5.25)} to "):
        choose_plan(LATEST, [MONDAY], short)
    assert choose_plan(to_lsn(5.2), [MONDAY], short).reach.end == at(5.25)


def test_a_childs_pieces_behind_the_switch_need_all_of_the_way_there() -> None:
    forked = archive(*range(2, 6), also={2: [5, 6]}, branches=FORK)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {2: {7: 7.5}})).reach
    assert (reach.end, reach.tail) == (at(7.5), name(7, 2))
    holed = archive(*range(2, 6), also={2: [5]}, branches=FORK)
    with pytest.raises(WalGapError, match=name(6, 2)):
        choose_plan(LATEST, [MONDAY], with_tails(holed, {2: {7: 7.5}}))


def test_a_childs_copy_that_ends_before_the_switch_does_not_hide_what_the_ancestors_pieces_have() -> None:
    forked = archive(*range(2, 5), also={2: []}, branches=FORK)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {1: {5: 5.75}, 2: {5: 5.25}})).reach
    assert (reach.end, reach.tail, reach.fork, reach.gap) == (at(5.5), name(5), at(5.5), None)
    reach = choose_plan(LATEST, [MONDAY], with_tails(forked, {1: {5: 5.75}, 2: {5: 5.6}})).reach
    assert (reach.end, reach.tail, reach.fork, reach.gap) == (at(5.6), name(5, 2), None, None)


@pytest.mark.parametrize(
    ("ancestors", "childs", "end"), [(None, 5.25, 5.25), (5.2, 5.25, 5.25), (5.3, 5.25, 5.3), (5.25, 5.25, 5.25)]
)
def test_pieces_that_do_not_reach_the_switch_are_not_the_latest_position_whose_ever_they_are(
    ancestors: float | None, childs: float, end: float
) -> None:
    forked = archive(*range(2, 5), also={2: []}, branches=FORK)
    held = with_tails(forked, {1: {} if ancestors is None else {5: ancestors}, 2: {5: childs}})
    with pytest.raises(WalGapError, match=f"{at(end)} to "):
        choose_plan(LATEST, [MONDAY], held)
    assert choose_plan(to_lsn(end), [MONDAY], held).reach.end == at(end)


def test_the_partial_segment_of_the_old_timeline_serves_up_to_the_switch() -> None:
    """After a failover nothing of the new timeline is archived before its first segment is full."""
    forked = replace(archive(*range(2, 5), also={2: []}, branches=FORK), partials={Timeline(1): frozenset({5})})
    plan = choose_plan(LATEST, [MONDAY], forked)
    reach = plan.reach
    assert (reach.end, reach.fork, reach.gap) == (at(5.5), at(5.5), None)
    assert (reach.partial, reach.segments) == (f"{name(5)}.partial", 4)
    assert plan_segments(plan, forked)[-1] == name(5)
    later = replace(forked, segments={**forked.segments, Timeline(2): frozenset({5, 6})})
    assert choose_plan(LATEST, [MONDAY], later).reach.partial is None, "the new timeline's own file begins with it"
    [window] = windows_of([MONDAY], forked)
    assert (window.end, window.last_segment) == (at(5.5), f"{name(5)}.partial")
