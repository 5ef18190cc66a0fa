"""How far documents follow the rows: by positions of one history, else by time; only whole looks count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from drservice.model.documents import Covered, DocumentPosition, Look, RowsAt, StoredSet, covered_at, newest_look
from drservice.model.ids import KeyId, SystemId
from drservice.model.wal import HistoryEntry, Lsn, Timeline, timeline_path

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = RowsAt(system_id=SystemId("7"), timeline=Timeline(1), lsn=Lsn(1000), instant=NOON)


def taken(*, seconds: float, lsn: int, whole: bool = True, timeline: int = 1) -> StoredSet:
    return StoredSet(
        id=f"SET-{lsn}",
        key=f"s/erp/documents/documents/SET-{lsn}",
        position=DocumentPosition(
            system_id=SystemId("7"),
            timeline=Timeline(timeline),
            lsn=Lsn(lsn),
            server_time=NOON + timedelta(seconds=seconds),
        ),
        documents=1,
        plain_bytes=1,
        key_id=KeyId("K"),
        previous=None,
        is_whole=whole,
        stored_bytes=1,
        stored_at=NOON,
    )


def covered(*sets: StoredSet) -> Covered:
    return covered_at([], sets, ROWS)


def test_a_look_behind_the_rows_covers_them() -> None:
    assert covered(taken(seconds=-5, lsn=900), taken(seconds=1, lsn=1000)).behind_seconds == 0


def test_rows_behind_the_newest_look_are_said_by_how_much() -> None:
    found = covered(taken(seconds=-9, lsn=800), taken(seconds=-5, lsn=999))
    assert (found.newest, found.by, found.behind_seconds) == (NOON - timedelta(seconds=5), "SET-999", 5)


def test_a_position_counts_more_than_a_clock_that_was_set_back() -> None:
    assert covered(taken(seconds=-3600, lsn=1001)).behind_seconds == 0


def test_a_look_at_another_cluster_or_at_a_newer_branch_proves_nothing() -> None:
    """Production was put back: its rows of today say nothing of documents filed on the branch that was left."""
    assert covered(taken(seconds=60, lsn=900, timeline=2)).newest is None
    foreign = taken(seconds=60, lsn=5000)
    foreign = replace(foreign, position=replace(foreign.position, system_id=SystemId("8")))
    assert covered(foreign).newest is None


def test_of_an_older_timeline_only_what_lies_before_the_rows_counts() -> None:
    rows = replace(ROWS, timeline=Timeline(2))
    before, abandoned = taken(seconds=-60, lsn=900), taken(seconds=60, lsn=1001)
    assert covered_at([], [before, abandoned], rows).behind_seconds == 60


def test_a_clock_that_ran_ahead_is_not_believed_beyond_what_the_store_saw() -> None:
    assert covered(replace(taken(seconds=3600, lsn=900), stored_at=NOON - timedelta(seconds=30))).behind_seconds == 30


def test_a_set_that_compared_nothing_proves_nothing() -> None:
    assert covered(taken(seconds=5, lsn=2000, whole=False)) == Covered(newest=None, by=None, behind_seconds=0)


# --- the newest position of a history ---------------------------------------------------------------------------

PATH = timeline_path(Timeline(2), [HistoryEntry(timeline=Timeline(1), end=Lsn(1000))])


def look(lsn: int, timeline: int = 1) -> Look:
    return Look(timeline=Timeline(timeline), lsn=Lsn(lsn), at=NOON, by=f"{timeline}/{lsn}")


def test_the_look_that_leads_furthest_counts_whatever_order_they_come_in() -> None:
    assert newest_look([look(500), look(1000), look(900)], PATH) == look(1000)
    assert newest_look([look(1200, 2), look(1000)], PATH) == look(1200, 2)


def test_a_look_at_a_branch_that_was_left_or_that_nobody_is_on_leads_nowhere() -> None:
    assert newest_look([look(1001), look(400)], PATH) == look(400), "timeline 1 was left at 1000"
    assert newest_look([look(1001)], PATH) is None
    assert newest_look([look(2000, 3)], PATH) is None
    assert newest_look([], PATH) is None
