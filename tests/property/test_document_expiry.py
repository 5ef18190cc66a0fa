"""How documents expire, against a model of production: no instant that can be recovered ever loses one.

The model is a history of contents that come, go, are collected and come again, of passes, and of a writer of sets that
stores only what it does not count as stored, with all that the rule allows it: it learns of a pass late, and commits
come late. The oracle is the history itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.model import retentiondocuments
from drservice.model.ids import ComponentName, SnapshotId
from drservice.model.retentiondocuments import DocumentSetFile, horizon_of, plan_sets
from drservice.model.retentionstock import StoredSnapshot, StoredWalk
from drservice.model.snapshot import SnapshotState

HOUR = timedelta(hours=1)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENTS = ComponentName("documents")
DATABASE = ComponentName("database")
CONTENTS = 6


def at(hour: float) -> datetime:
    return BEGAN + hour * HOUR


def snapshot(
    hour: float,
    *,
    component: ComponentName = DOCUMENTS,
    hours: float = 0,
    state: SnapshotState = SnapshotState.COMPLETE,
    asked: bool = True,
    lag: float = 0,
) -> StoredSnapshot:
    """Return a snapshot that began at ``hour``, took ``hours`` and was stored ``lag`` hours after its end."""
    stopped = at(hour + hours)
    return StoredSnapshot(
        component=component,
        id=SnapshotId(f"{component}-{hour:09.3f}"),
        stored_at=stopped + lag * HOUR,
        stopped_at=stopped,
        state=state,
        source_bytes=1,
        stored_bytes=1,
        wal=None,
        walk=StoredWalk(length=hours * HOUR, is_asked=asked) if component == DOCUMENTS else None,
    )


def set_at(hour: float) -> DocumentSetFile:
    return DocumentSetFile(key=f"s/erp/documents/documents/{hour:09.3f}", stored_at=at(hour), stored_bytes=1)


# --- The model ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """Production, a repository and a writer of sets, hour by hour."""

    chance: random.Random
    rows: set[int] = field(default_factory=set)
    files: set[int] = field(default_factory=set)
    history: list[frozenset[int]] = field(default_factory=list)
    passes: list[tuple[StoredSnapshot, frozenset[int]]] = field(default_factory=list)
    pending: list[tuple[int, StoredSnapshot, frozenset[int]]] = field(default_factory=list)
    sets: list[tuple[DocumentSetFile, frozenset[int]]] = field(default_factory=list)
    clusters: list[StoredSnapshot] = field(default_factory=list)
    base: StoredSnapshot | None = None
    learned: int = 0

    def hour(self, now: int, *, walk: bool) -> None:
        """Let one hour pass: rows change, the collector runs, the writer looks, a pass may be taken."""
        for content in range(CONTENTS):
            if self.chance.random() < 0.05:
                self.rows ^= {content}
        self.files |= self.rows
        self.look(now)
        if self.chance.random() < 0.5:
            self.files &= self.rows  # Odoo's collection: what no row refers to now
        self.history.append(frozenset(self.rows))
        if walk:
            self.clusters.append(snapshot(now, component=DATABASE))
            lag = self.chance.choice([0, 2, 11])
            self.pending.append((now + lag, snapshot(now + 0.01, lag=lag), frozenset(self.files)))
        for item in [item for item in self.pending if item[0] <= now]:
            self.pending.remove(item)
            self.passes.append(item[1:])

    def look(self, now: int) -> None:
        """Store what is not counted as stored; hear of passes every twelve hours."""
        if now - self.learned >= 12 or self.base is None:
            self.learned = now
            self.base = self.passes[-1][0] if self.passes else None
        counted: set[int] = set()
        for walk, contents in self.passes:
            if walk is self.base:
                counted |= contents
        for stored, contents in self.sets:
            if self.base is None or stored.stored_at > self.base.stopped_at:
                counted |= contents
        new = self.rows - counted
        if new:
            self.sets.append((set_at(now), frozenset(new)))

    def expire(self, oldest: int) -> None:
        """Let clusters older than ``oldest`` go, and every pass and set that may."""
        self.clusters = [item for item in self.clusters if item.stored_at >= at(oldest)]
        walks = [walk for walk, _ in self.passes]
        horizon = horizon_of(walks, self.clusters)
        plan = plan_sets([stored for stored, _ in self.sets], DOCUMENTS, passes=walks, clusters=self.clusters)
        gone = set(plan.expired)
        self.sets = [item for item in self.sets if item[0] not in gone]
        if horizon.before is not None:
            before, kept = horizon.before, {item.key for item in horizon.kept}
            self.passes = [item for item in self.passes if item[0].stored_at > before or item[0].key in kept]

    def lost(self) -> Iterator[tuple[int, set[int]]]:
        """Yield the instants whose documents are not all there, with what is missing."""
        stored: set[int] = set()
        for _, contents in (*self.passes, *self.pending_contents(), *self.sets):
            stored |= contents
        if not self.clusters:
            return
        first = min(item.stored_at for item in self.clusters)
        for hour, rows in enumerate(self.history):
            if at(hour) >= first and rows - stored:
                yield hour, set(rows - stored)

    def pending_contents(self) -> Iterator[tuple[StoredSnapshot, frozenset[int]]]:
        yield from ((walk, contents) for _, walk, contents in self.pending)


def play(seed: int, *, hours: int = 600, every: int = 24, kept: int = 72) -> World:
    """Live through a history, with retention running all the time; assert that nothing is ever lost."""
    world = World(random.Random(seed))
    for now in range(hours):
        world.hour(now, walk=now % every == every - 1)
        if now % 6 == 5:
            world.expire(now - kept)
            assert list(world.lost()) == [], f"seed {seed}, hour {now}"
    return world


def play_many() -> None:
    for seed in range(60):
        play(seed, every=8, kept=24)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), every=st.sampled_from([8, 24, 48]), kept=st.sampled_from([24, 72, 200]))
def test_no_instant_that_can_be_recovered_loses_a_document(seed: int, every: int, kept: int) -> None:
    play(seed, every=every, kept=kept)


def test_what_may_go_does_go() -> None:
    world = play(7)
    assert min(stored.stored_at for stored, _ in world.sets) > at(300)
    assert len(world.passes) < 10


def test_a_rule_that_forgets_writers_who_rely_on_older_sets_loses_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is able to find what the rule is there for."""
    monkeypatch.setattr(retentiondocuments, "RELIANCE", timedelta(days=-30))
    with pytest.raises(AssertionError, match="seed"):
        play_many()


def test_a_rule_without_a_pass_before_the_first_instant_loses_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retentiondocuments, "BEHIND", timedelta(days=-3))
    with pytest.raises(AssertionError, match="seed"):
        play_many()


# --- What stays, one by one ---------------------------------------------------------------------------------------

CLUSTER = snapshot(500, component=DATABASE)
OLD, BASE = snapshot(300), snapshot(400)


def test_a_set_goes_when_two_complete_passes_lie_between_it_and_the_first_instant() -> None:
    sets = [set_at(100), set_at(299), set_at(350), set_at(450)]
    plan = plan_sets(sets, DOCUMENTS, passes=[OLD, BASE], clusters=[CLUSTER])
    assert [item.id for item in plan.expired] == [sets[0].id]
    assert plan.remaining == 3
    assert BASE.id in plan.reason
    assert OLD.id in plan.reason


@pytest.mark.parametrize(
    "base",
    [
        snapshot(400, state=SnapshotState.DEGRADED),
        snapshot(400, state=SnapshotState.PARTIAL),
        snapshot(400, asked=False),
        snapshot(490),
    ],
    ids=["production had lost some", "partial", "nobody asked the rows", "too late"],
)
def test_nothing_goes_because_of_a_pass_that_does_not_have_everything(base: StoredSnapshot) -> None:
    plan = plan_sets([set_at(100)], DOCUMENTS, passes=[OLD, base], clusters=[CLUSTER])
    older = plan_sets([set_at(100)], DOCUMENTS, passes=[base], clusters=[CLUSTER])
    assert plan.expired == older.expired == ()


def test_without_a_snapshot_of_the_database_everything_stays() -> None:
    plan = plan_sets([set_at(100)], DOCUMENTS, passes=[OLD, BASE], clusters=[])
    assert (plan.expired, plan.remaining) == ((), 1)


def test_an_older_snapshot_of_the_database_brings_its_instants_back() -> None:
    older = snapshot(200, component=DATABASE)
    assert plan_sets([set_at(100)], DOCUMENTS, passes=[OLD, BASE], clusters=[older, CLUSTER]).expired == ()
