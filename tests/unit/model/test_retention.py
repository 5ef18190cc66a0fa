"""Retention's plan: the calendar, what is protected whatever its age, and what nobody can push out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from drservice.model.ids import SnapshotId, SystemId
from drservice.model.retention import Kept, Period, RetentionPlan, RetentionPolicy, plan_retention
from drservice.model.retentionstock import Contents, Hold, StoredPoint, StoredSnapshot
from drservice.model.retentionwal import plan_wal
from drservice.model.snapshot import SnapshotState
from tests.doubles.retention import DATABASE, DOCUMENTS, NOW, SYSTEM, history, point, snapshot, wal

DAY = timedelta(days=1)
POLICY = RetentionPolicy(
    within=Period.parse("14d"),
    daily=Period.parse("30d"),
    weekly=Period.parse("12w"),
    monthly=Period.parse("24mo"),
    yearly=Period.parse("7y"),
)
SHORT = RetentionPolicy(within=Period.parse("36h"))


def planned(
    snapshots: Sequence[StoredSnapshot],
    *,
    policy: RetentionPolicy = SHORT,
    points: Sequence[StoredPoint] = (),
    accepted: bool = False,
    holds: Sequence[Hold] = (),
    verified: Sequence[StoredSnapshot] = (),
    unreadable: Sequence[tuple[StoredSnapshot, ...]] = (),
    unreadable_points: Sequence[str] = (),
) -> RetentionPlan:
    contents = Contents(
        snapshots=tuple(snapshots),
        points=tuple(points),
        last_verified=frozenset(item.id for item in verified),
        verified=frozenset(item.id for item in verified),
        holds=tuple(holds),
        unreadable=frozenset(item.key for group in unreadable for item in group),
        unreadable_points=tuple(unreadable_points),
    )
    return plan_retention(contents, policy=policy, now=NOW, accepted=accepted)


def kept_by(plan: RetentionPlan) -> dict[SnapshotId, Kept | None]:
    return {item.id: verdict.kept for item, verdict in plan.snapshots}


# --- periods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("36h", datetime(2026, 3, 30, 0, tzinfo=UTC)),
        ("14d", datetime(2026, 3, 17, 12, tzinfo=UTC)),
        ("12w", datetime(2026, 1, 6, 12, tzinfo=UTC)),
        ("1mo", datetime(2026, 2, 28, 12, tzinfo=UTC)),
        ("25mo", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("7y", datetime(2019, 3, 31, 12, tzinfo=UTC)),
        ("99999y", datetime(1970, 1, 1, tzinfo=UTC)),
        ("99999w", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_period_reaches_back_by_the_calendar(text: str, before: datetime) -> None:
    assert Period.parse(text).before(NOW) == before
    assert str(Period.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0d", "14", "d", "1.5d", "-3d", "14 d", "14D"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="period"):
        Period.parse(text)


# --- slots -------------------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_ever_expires() -> None:
    plan = planned([snapshot(9000 * DAY), snapshot(DAY)], policy=RetentionPolicy())
    assert set(kept_by(plan).values()) == {Kept.NO_POLICY}


def test_nightly_snapshots_of_years_thin_out_to_days_weeks_months_and_years() -> None:
    nightly = [snapshot(number * DAY) for number in range(9 * 365)]
    plan = planned(nightly, policy=POLICY)
    kept = [item for item, verdict in plan.snapshots if verdict.kept is not None]
    ages = [(NOW - item.stored_at).days for item in kept]
    assert [age for age in ages if age <= 30] == list(range(30, -1, -1))
    mondays = {item.stored_at.date() for item in kept if 30 < (NOW - item.stored_at).days <= 84}
    firsts = {item.stored_at.date() for item in kept if item.stored_at.day == 1}
    assert all(day.weekday() == 0 or day.day == 1 for day in mondays)
    assert len([day for day in mondays if day.weekday() == 0]) == 7
    assert len([day for day in firsts if day >= datetime(2024, 4, 1, tzinfo=UTC).date()]) == 24
    assert {item.stored_at.date().isoformat() for item in kept if (NOW - item.stored_at).days > 731} == {
        f"{year}-01-01" for year in (2020, 2021, 2022, 2023, 2024)
    }
    assert not plan.anomalies


def test_the_first_of_a_slot_stands_for_it_and_a_choice_never_changes_as_time_passes() -> None:
    hourly = [snapshot(timedelta(hours=hours), number=hours) for hours in range(24 * 40)]
    contents = Contents(snapshots=tuple(hourly))
    gone: set[SnapshotId] = set()
    for days in range(0, 400, 8):
        plan = plan_retention(contents, policy=POLICY, now=NOW + days * DAY)
        kept = {item.id for item, verdict in plan.snapshots if verdict.kept not in {None, Kept.NEWEST}}
        assert not kept & gone, "what expired once is not wanted later"
        gone = {item.id for item in plan.expired}


def test_a_damaged_snapshot_stands_for_a_day_only_if_there_is_no_other() -> None:
    degraded = snapshot(20 * DAY, state=SnapshotState.DEGRADED)
    partial = snapshot(20 * DAY - timedelta(hours=1), state=SnapshotState.PARTIAL)
    good = snapshot(20 * DAY - timedelta(hours=2))
    alone = snapshot(18 * DAY, state=SnapshotState.DEGRADED)
    kept = kept_by(planned([degraded, partial, good, alone, snapshot(DAY)], policy=POLICY))
    assert [kept[item.id] for item in (degraded, partial, good, alone)] == [None, None, Kept.DAILY, Kept.DAILY]


def test_every_verdict_tells_why() -> None:
    first, second, newest = snapshot(20 * DAY), snapshot(20 * DAY - timedelta(hours=1)), snapshot(DAY)
    reasons = [verdict.reason for _, verdict in planned([first, second, newest], policy=POLICY).snapshots]
    assert reasons == ["stands for its day, for 30d", f"{first.id} stands for its day", "stored within 14d"]
    (_, old), _ = planned([first, newest]).snapshots
    assert "older than every period" in old.reason


# --- protected, whatever its age ---------------------------------------------------------------------------------


def test_the_last_proved_the_newest_and_the_newest_undamaged_stay() -> None:
    proved, gone = snapshot(900 * DAY), snapshot(800 * DAY)
    good = snapshot(300 * DAY)
    newest = snapshot(200 * DAY, state=SnapshotState.DEGRADED)
    kept = kept_by(planned([proved, gone, good, newest], verified=[proved]))
    assert kept == {proved.id: Kept.VERIFIED, gone.id: None, good.id: Kept.NEWEST, newest.id: Kept.NEWEST}


def test_a_point_keeps_every_snapshot_it_binds() -> None:
    database = snapshot(20 * DAY)
    documents = snapshot(20 * DAY - timedelta(hours=1), component=DOCUMENTS)
    earlier = snapshot(20 * DAY + timedelta(hours=1), component=DOCUMENTS)
    rest = [snapshot(DAY), snapshot(DAY, component=DOCUMENTS)]
    whole = point(database, documents)
    plan = planned([database, documents, earlier, *rest], points=[whole], verified=[database])
    kept = kept_by(plan)
    assert (kept[database.id], kept[documents.id], kept[earlier.id]) == (Kept.VERIFIED, Kept.POINT, None)
    assert not plan.expired_points


def test_a_point_goes_with_the_last_reason_for_its_snapshots() -> None:
    old = [snapshot(20 * DAY), snapshot(20 * DAY, component=DOCUMENTS)]
    new = [snapshot(DAY), snapshot(DAY, component=DOCUMENTS)]
    gone, stays = point(*old), point(*new)
    plan = planned([*old, *new], points=[gone, stays])
    assert (plan.expired_points, set(plan.expired)) == ((gone,), set(old))


def hold(purpose: str, age: timedelta, *, lasts: timedelta = DAY) -> Hold:
    return Hold(key="hold/x", purpose=purpose, component=DATABASE, since=NOW - age, until=NOW - age + lasts)


def test_a_running_restore_keeps_everything_until_its_hold_ends() -> None:
    old, new = snapshot(20 * DAY), snapshot(timedelta(hours=1))
    assert kept_by(planned([old, new], holds=[hold("restore", timedelta(hours=2))]))[old.id] is Kept.HOLD
    assert kept_by(planned([old, new], holds=[hold("restore", 2 * DAY)]))[old.id] is None
    assert kept_by(planned([old, new], holds=[hold("something new", timedelta(0))]))[old.id] is Kept.HOLD


def test_a_running_backup_keeps_what_was_stored_since_and_nothing_older() -> None:
    policy = RetentionPolicy(within=Period.parse("1h"))
    old, during, new = snapshot(20 * DAY), snapshot(timedelta(hours=3)), snapshot(timedelta(hours=2))
    kept = kept_by(planned([old, during, new], policy=policy, holds=[hold("backup", timedelta(hours=4))]))
    assert kept == {old.id: None, during.id: Kept.HOLD, new.id: Kept.NEWEST}


def test_what_an_unreadable_object_may_need_stays() -> None:
    old, new, spoilt = snapshot(20 * DAY), snapshot(DAY), snapshot(19 * DAY)
    files = [snapshot(20 * DAY, component=DOCUMENTS), snapshot(DAY, component=DOCUMENTS)]
    broken = point(spoilt, files[0])
    plan = planned([old, new, *files], points=[broken], unreadable=[(spoilt,)])
    assert not plan.expired_points
    assert kept_by(plan)[old.id] is Kept.UNREADABLE
    assert kept_by(plan)[files[0].id] is Kept.POINT
    lost = planned([old, new, *files], unreadable_points=["s/erp/points/x"])
    assert set(kept_by(lost).values()) == {Kept.UNREADABLE}


# --- what somebody with a host's key could try -------------------------------------------------------------------


def test_a_thousand_backdated_snapshots_push_nothing_out_and_freeze_the_plan() -> None:
    good = [snapshot(number * DAY) for number in range(400)]
    before = {item.id for item in planned(good, policy=POLICY).remaining}
    forged = [snapshot(timedelta(seconds=n), number=n, claimed=-n * timedelta(hours=9)) for n in range(1, 1000)]
    plan = planned([*good, *forged], policy=POLICY)
    assert before <= {item.id for item in plan.remaining}
    assert plan.is_frozen
    assert any("999 snapshots" in text or "1000 snapshots" in text for text in plan.anomalies)


def test_a_snapshot_from_the_future_is_never_the_newest() -> None:
    good, forged = snapshot(20 * DAY), snapshot(DAY, claimed=400 * DAY)
    plan = planned([good, forged])
    assert kept_by(plan) == {good.id: Kept.NEWEST, forged.id: Kept.SUSPECT}
    assert plan.is_frozen


def test_what_a_person_has_looked_at_is_frozen_no_more_and_expires_in_time() -> None:
    good, forged = snapshot(20 * DAY), snapshot(10 * DAY, claimed=400 * DAY)
    plan = planned([good, forged], accepted=True)
    assert not plan.is_frozen
    assert kept_by(plan) == {good.id: Kept.NEWEST, forged.id: None}


def test_void_snapshots_alone_are_never_taken_for_expired_without_a_look() -> None:
    copied = [snapshot(20 * DAY + number * timedelta(minutes=1), number=number, void=True) for number in range(5)]
    plan = planned(copied)
    assert plan.is_frozen
    assert not plan.expired


@pytest.mark.parametrize(
    ("newest", "word"),
    [
        ({"source_bytes": 10 << 20}, "the one before"),
        ({"source_bytes": 900 << 20}, "the one before"),
        ({"stored_bytes": 99 << 20}, "encrypted"),
    ],
)
def test_a_jump_of_size_or_of_change_freezes_the_plan(newest: dict[str, int], word: str) -> None:
    usual = [snapshot(number * DAY) for number in range(2, 9)]
    assert not planned([*usual, snapshot(DAY)]).anomalies
    plan = planned([*usual, snapshot(DAY, **newest)])  # type: ignore[arg-type]  # sizes are the only words here
    assert plan.is_frozen
    assert word in plan.anomalies[0]


def test_a_first_snapshot_and_a_small_one_are_no_jump() -> None:
    small = [snapshot(3 * DAY, source_bytes=1000, stored_bytes=1000), snapshot(DAY, source_bytes=10, stored_bytes=10)]
    assert not planned(small).anomalies
    assert not planned([snapshot(DAY, stored_bytes=100 << 20)]).anomalies


# --- WAL (T35) ---------------------------------------------------------------------------------------------------


def test_wal_before_the_oldest_snapshot_goes_and_everything_from_its_start_stays() -> None:
    files = [wal(number) for number in range(95, 105)] + [
        wal(96, suffix=".00000028.backup"),
        wal(97, suffix=".partial"),
    ]
    plan = plan_wal([*files, history(2)], system_id=SYSTEM, snapshots=[snapshot(DAY, segment=100)], now=NOW)
    assert sorted(item.name.name[8:24] for item in plan.expired) == sorted(
        item.name.name[8:24] for item in (*(wal(number) for number in range(95, 100)), wal(96), wal(97))
    )
    assert plan.remaining == 6


def test_t35_positions_decide_and_not_names_when_a_new_timeline_runs_below_the_old_one() -> None:
    old, after_recovery = snapshot(9 * DAY, segment=200), snapshot(DAY, segment=150)
    files = [wal(number, timeline=line) for line in (1, 2) for number in (140, 150, 199, 200)]
    plan = plan_wal(files, system_id=SYSTEM, snapshots=[old, after_recovery], now=NOW)
    assert {item.name.name for item in plan.expired} == {wal(140, timeline=line).name.name for line in (1, 2)}


def test_t35_wal_without_a_snapshot_and_wal_that_just_arrived_stay() -> None:
    files = [wal(1), wal(2), history(2)]
    assert not plan_wal(files, system_id=SYSTEM, snapshots=[], now=NOW).expired
    other = snapshot(2 * DAY, system_id=SystemId("1"))
    assert not plan_wal(files, system_id=SYSTEM, snapshots=[other], now=NOW).expired, "its first snapshot may run"
    fresh = [wal(1, age=6 * DAY), wal(2)]
    plan = plan_wal(fresh, system_id=SYSTEM, snapshots=[snapshot(DAY, segment=100)], now=NOW)
    assert [item.name.name for item in plan.expired] == [wal(2).name.name]


def test_wal_of_a_cluster_goes_long_after_another_took_over() -> None:
    other = [snapshot(30 * DAY, system_id=SystemId("1")), snapshot(DAY, system_id=SystemId("1"))]
    plan = plan_wal([wal(1), wal(2), history(2)], system_id=SYSTEM, snapshots=other, now=NOW)
    assert len(plan.expired) == 2
    archiving = [wal(1), wal(2, age=10 * DAY)]
    assert not plan_wal(archiving, system_id=SYSTEM, snapshots=other, now=NOW).expired


def test_snapshots_that_disagree_about_segments_keep_all_wal() -> None:
    odd = snapshot(DAY, segment=100)
    assert odd.wal is not None
    other = replace(odd, id=SnapshotId("x"), wal=replace(odd.wal, segment_bytes=1 << 20))
    assert not plan_wal([wal(1)], system_id=SYSTEM, snapshots=[odd, other], now=NOW).expired
