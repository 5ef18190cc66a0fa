"""How the target of a drill is chosen: by a seed that is committed to, never by whoever runs it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.errors import TargetOutsideWindowError
from drservice.model.estate import DrillPlan, DrillTarget
from drservice.model.evidence import seed_commitment, target_from_seed
from drservice.model.ids import ServiceName
from drservice.model.recovery import TargetKind
from drservice.operations.drillplan import choose_target
from drservice.operations.instants import ProvenSpan

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
SPAN = ProvenSpan(begin=NOON - 10 * HOUR, end=NOON - HOUR)


def plan(target: DrillTarget, *, time: datetime | None = None, within: timedelta | None = None) -> DrillPlan:
    return DrillPlan(name="quarterly", service=ServiceName("erp"), target=target, time=time, within=within)


def test_the_latest_position_needs_no_seed() -> None:
    chosen = choose_target(plan(DrillTarget.LATEST), span=SPAN, now=NOON)
    assert (chosen.target.kind, chosen.seed, chosen.notes) == (TargetKind.LATEST, None, ())
    assert chosen.fields() == {"kind": "latest", "time": None, "from": None, "to": None, "seed_commitment": None}


def test_the_newest_instant_that_rows_and_documents_share_is_found_by_the_restore() -> None:
    chosen = choose_target(plan(DrillTarget.CONSISTENT), span=SPAN, now=NOON)
    assert (chosen.target.kind, chosen.target.lsn, chosen.seed) == (TargetKind.CONSISTENT, None, None)
    assert chosen.fields() == {"kind": "consistent", "time": None, "from": None, "to": None, "seed_commitment": None}


def test_a_random_target_is_the_one_its_seed_gives_and_only_the_commitment_is_published() -> None:
    chosen = choose_target(plan(DrillTarget.RANDOM), span=SPAN, now=NOON)
    assert chosen.seed is not None
    assert SPAN.end is not None
    assert chosen.target.time == target_from_seed(chosen.seed, SPAN.begin, SPAN.end - TICK)
    published = chosen.fields()
    assert published["seed_commitment"] == seed_commitment(chosen.seed)
    assert chosen.seed.hex() not in str(published)
    assert published["time"] is None, "who reads the obligation does not know the instant"


@given(hours=st.integers(min_value=1, max_value=9))
def test_a_random_target_lies_before_the_last_proof_and_within_what_the_plan_says(hours: int) -> None:
    chosen = choose_target(plan(DrillTarget.RANDOM, within=hours * HOUR + TICK), span=SPAN, now=NOON)
    assert chosen.target.time is not None
    assert SPAN.end is not None
    assert NOON - hours * HOUR - TICK <= chosen.target.time < SPAN.end
    assert (chosen.begin, chosen.end) == (NOON - hours * HOUR - TICK, SPAN.end - TICK)


@pytest.mark.parametrize(
    ("span", "within"),
    [
        (ProvenSpan(begin=NOON - HOUR, end=None), None),
        (ProvenSpan(begin=NOON - HOUR, end=NOON - HOUR), None),
        (SPAN, timedelta(minutes=30)),
    ],
)
def test_without_anything_to_choose_from_the_latest_position_is_taken_and_said(
    span: ProvenSpan, within: timedelta | None
) -> None:
    chosen = choose_target(plan(DrillTarget.RANDOM, within=within), span=span, now=NOON)
    assert (chosen.kind, chosen.seed) == (DrillTarget.LATEST, None)
    (note,) = chosen.notes
    assert "the latest position it is" in note


def test_no_instant_is_chosen_that_no_look_at_the_documents_covers() -> None:
    covered = ProvenSpan(begin=SPAN.begin, end=SPAN.end, documents=NOON - 4 * HOUR)
    chosen = choose_target(plan(DrillTarget.RANDOM), span=covered, now=NOON)
    assert (chosen.begin, chosen.end) == (SPAN.begin, NOON - 4 * HOUR)
    (note,) = chosen.notes
    assert "when the documents were looked at last" in note, "what was left out is told as not tested"


@pytest.mark.parametrize("documents", [None, SPAN.begin - HOUR, NOON])
def test_looks_that_cover_all_or_nothing_leave_the_choice_as_it_is(documents: datetime | None) -> None:
    span = ProvenSpan(begin=SPAN.begin, end=SPAN.end, documents=documents)
    chosen = choose_target(plan(DrillTarget.RANDOM), span=span, now=NOON)
    assert SPAN.end is not None
    assert (chosen.end, chosen.notes) == (SPAN.end - TICK, ())


def test_one_instant_is_enough_to_choose_from() -> None:
    chosen = choose_target(plan(DrillTarget.RANDOM), span=ProvenSpan(begin=NOON - TICK, end=NOON), now=NOON)
    assert chosen.target.time == NOON - TICK


def test_a_named_instant_before_the_oldest_snapshot_is_refused() -> None:
    with pytest.raises(TargetOutsideWindowError, match="lies before"):
        choose_target(plan(DrillTarget.TIME, time=SPAN.begin - TICK), span=SPAN, now=NOON)
    chosen = choose_target(plan(DrillTarget.TIME, time=SPAN.begin), span=SPAN, now=NOON)
    assert chosen.target.time == SPAN.begin
    assert chosen.fields()["time"] == "2026-11-26T02:00:00.000000Z"
