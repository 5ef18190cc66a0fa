"""Whatever a store holds: retention is idempotent, keeps points whole, and later arrivals push nothing out."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from drservice.model.retention import Kept, Period, RetentionPlan, RetentionPolicy, plan_retention
from drservice.model.retentionstock import Contents, StoredPoint, StoredSnapshot
from drservice.model.retentionwal import plan_wal
from drservice.model.snapshot import SnapshotState
from tests.doubles.retention import DATABASE, DOCUMENTS, NOW, SYSTEM, history, point, snapshot, wal

PERIODS = st.none() | st.builds(Period, st.integers(1, 60), st.sampled_from(["h", "d", "w", "mo", "y"]))
POLICIES = st.builds(
    RetentionPolicy, within=PERIODS, daily=PERIODS, weekly=PERIODS, monthly=PERIODS, yearly=PERIODS
).filter(lambda policy: policy.is_set)
AGES = st.integers(0, 4000).map(lambda hours: timedelta(hours=hours * 5))
STATES = st.sampled_from(list(SnapshotState))


@st.composite
def services(draw: st.DrawFn) -> Contents:
    """A service with points of two components, loose snapshots, proofs."""
    snapshots: list[StoredSnapshot] = []
    points: list[StoredPoint] = []
    for number, age in enumerate(draw(st.lists(AGES, max_size=25))):
        database = snapshot(age, number=number, state=draw(STATES), segment=draw(st.integers(0, 300)))
        snapshots.append(database)
        if draw(st.booleans()):
            snapshots.append(snapshot(age, component=DOCUMENTS, number=number, state=draw(STATES)))
            points.append(point(database, snapshots[-1]))
    proved = draw(st.sets(st.sampled_from(snapshots), max_size=3)) if snapshots else set()
    return Contents(
        snapshots=tuple(snapshots),
        points=tuple(points),
        verified=frozenset(item.id for item in proved),
        last_verified=frozenset(item.id for item in proved),
    )


def after(contents: Contents, plan: RetentionPlan) -> Contents:
    """What is left once a plan has been carried out."""
    return Contents(
        snapshots=plan.remaining,
        points=tuple(item for item in contents.points if item not in plan.expired_points),
        verified=contents.verified,
        last_verified=contents.last_verified,
    )


@given(services(), POLICIES)
def test_the_newest_and_the_last_proved_always_stay_and_points_stay_whole(
    contents: Contents, policy: RetentionPolicy
) -> None:
    plan = plan_retention(contents, policy=policy, now=NOW, accepted=True)
    kept = {item.key for item in plan.remaining}
    for component in {item.component for item in contents.snapshots}:
        own = [item for item in contents.snapshots if item.component == component]
        assert max(own, key=lambda item: (item.stored_at, item.id)).key in kept
    assert {item.key for item in contents.snapshots if item.id in contents.last_verified} <= kept
    for item, verdict in plan.points:
        assert verdict.reason
        if verdict.kept is not None:
            assert set(item.members) <= kept
        else:
            assert not set(item.members) & kept
    assert all(verdict.reason for _, verdict in plan.snapshots)


@given(services(), POLICIES)
def test_what_is_left_expires_no_further_at_the_same_instant(contents: Contents, policy: RetentionPolicy) -> None:
    plan = plan_retention(contents, policy=policy, now=NOW, accepted=True)
    again = plan_retention(after(contents, plan), policy=policy, now=NOW, accepted=True)
    assert not again.expired
    assert not again.expired_points


@given(
    services(),
    POLICIES,
    st.lists(st.tuples(st.integers(0, 3600 * 24 * 3), st.integers(-3_000_000, 3_000_000)), max_size=20),
)
def test_what_arrives_later_pushes_nothing_out_whatever_it_claims(
    contents: Contents, policy: RetentionPolicy, forged: list[tuple[int, int]]
) -> None:
    """But the places of the newest, which move on, and slots of snapshots that are worth less."""
    good = Contents(
        snapshots=tuple(item for item in contents.snapshots if not item.damage),
        verified=contents.verified,
        last_verified=contents.last_verified,
    )
    arrivals = tuple(
        snapshot(timedelta(seconds=-seconds), number=5000 + number, claimed=timedelta(seconds=claim))
        for number, (seconds, claim) in enumerate(forged)
    )
    now = NOW + timedelta(days=4)
    before = plan_retention(good, policy=policy, now=now, accepted=True)
    plan = plan_retention(
        Contents(snapshots=good.snapshots + arrivals, verified=good.verified, last_verified=good.last_verified),
        policy=policy,
        now=now,
        accepted=True,
    )
    wanted = {item.key for item, verdict in before.snapshots if verdict.kept not in {None, Kept.NEWEST}}
    assert wanted <= {item.key for item in plan.remaining}


@given(services(), POLICIES, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3), AGES), max_size=60))
def test_no_wal_goes_that_a_remaining_snapshot_needs(
    contents: Contents, policy: RetentionPolicy, archived: list[tuple[int, int, timedelta]]
) -> None:
    plan = plan_retention(contents, policy=policy, now=NOW, accepted=True)
    files = [wal(number, timeline=line, age=age) for number, line, age in archived] + [history(2)]
    going = plan_wal(files, system_id=SYSTEM, snapshots=plan.remaining, now=NOW).expired
    needed = [item.wal.segment for item in plan.remaining if item.component == DATABASE and item.wal is not None]
    for item in going:
        assert needed
        assert int(item.name.name[8:16], 16) * 256 + int(item.name.name[16:24], 16) < min(needed)
        assert item.name.name != "00000002.history"
