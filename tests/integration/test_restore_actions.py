"""What a restored server does at its target, along which timelines it got there, and which one it begins (T34)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.cli.restoreshutdown import recovery_settings
from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import ClusterState, read_control_file
from drservice.components.postgres.recovery import TargetAction, quote_setting
from drservice.environments.sandbox import open_sandbox
from drservice.errors import ProofError, TargetOutsideWindowError, UsageError
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn, Timeline
from drservice.operations.feeder import Feeder
from drservice.operations.promoting import promote_paused
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import Afterwards, RestoreResult
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import Pusher, TempEstate, wait_for

LATEST = Target(kind=TargetKind.LATEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Notes 1 to 3 on timeline 1; ``instant`` lies between 1 and 2. Everything is archived, the server has ended."""

    estate: TempEstate
    maker: ClusterMaker
    instant: datetime
    after_two: Lsn

    def restore(self, goal: Target, name: str | None = None, **changes: Any) -> RestoreResult:
        """Restore into a directory of this name, or leave it running."""
        into = self.estate.cluster.root / "restored" / name if name is not None else None
        with self.estate.plane() as plane:
            request = replace(self.estate.request(goal, into=into), **changes)
            return run_restore(self.estate.restore_context(plane), request)

    @contextmanager
    def running(self, name: str) -> Iterator[TempEstate]:
        """Start a restored directory with its own configuration, as production."""
        cluster = self.maker.over(self.estate.cluster.root / "restored" / name)
        cluster.start()
        try:
            yield replace(self.estate, cluster=cluster)
        finally:
            cluster.stop()

    def notes(self, target: Target) -> list[int]:
        """Return which notes a recovery to a target has."""
        with self.estate.restored(target) as (_, connection):
            return [row[0] for row in connection.execute("select id from notes order by id").fetchall()]

    @property
    def to_instant(self) -> Target:
        return Target(kind=TargetKind.TIME, time=self.instant, timeline=Timeline(1))


@pytest.fixture(scope="module")
def world(template_cache: Path) -> Iterator[World]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "''"})
    estate = TempEstate.over(cluster)
    estate.initialise()
    cluster.start()
    with Pusher(estate) as pusher:
        cluster.sql("create table notes (id int primary key)")
        estate.backup()
        note(cluster, 1)
        instant = cluster.value("select clock_timestamp()")
        cluster.sql("select pg_sleep(0.01)")
        note(cluster, 2)
        after_two = Lsn.parse(cluster.value("select pg_current_wal_insert_lsn()::text"))
        note(cluster, 3)
        pusher.drain(cluster.switch_wal())
    cluster.stop()
    (cluster.root / "restored").mkdir()
    hand_over(cluster.root / "restored")
    yield World(estate=estate, maker=maker, instant=instant, after_two=after_two)
    estate.close()
    maker.close()


def note(cluster: Cluster, number: int) -> None:
    cluster.sql("insert into notes values (%s)", (number,))


def archive(estate: TempEstate, number: int) -> None:
    """Commit a note and archive it, with whatever the server announced before."""
    with Pusher(estate) as pusher:
        note(estate.cluster, number)
        pusher.drain(estate.cluster.switch_wal())


# --- timelines --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_t34_two_restores_from_one_point_archive_side_by_side_and_both_are_found_again(world: World) -> None:
    first = world.restore(world.to_instant, "first").reached.timeline
    second = world.restore(world.to_instant, "second").reached.timeline  # the first one has not archived anything yet
    assert 1 < first < second
    with world.running("second") as estate:
        archive(estate, 30)
    with world.running("first") as estate:
        archive(estate, 20)
    assert world.notes(along(1)) == [1, 2, 3]
    assert world.notes(along(first)) == [1, 20]
    assert world.notes(along(second)) == [1, 30]
    assert world.notes(LATEST) == [1, 30], "the highest is the present history, as PostgreSQL's latest is"
    # A third generation, from a later point of a branch.
    third = world.restore(along(first), "third")
    assert third.reached.timeline > second
    assert any("along timeline 1 up to" in reason for reason in third.planned.resolved.plan.reasons)
    with pytest.raises(TargetOutsideWindowError) as refused:
        world.notes(along(99))
    assert "along timeline 99" in refused.value.message
    assert f"{first} branched off 1 at" in refused.value.hint
    assert f"{second} branched off 1 at" in refused.value.hint


@pytest.mark.long
def test_an_instant_and_a_position_are_reached_along_the_timeline_that_is_named(world: World) -> None:
    assert world.notes(world.to_instant) == [1]
    assert world.notes(Target(kind=TargetKind.LSN, lsn=world.after_two, timeline=Timeline(1))) == [1, 2]


def test_t34_the_proof_notices_a_server_that_takes_another_timeline_than_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the feeder's answers guard against: without them PostgreSQL takes the number of another copy."""
    taken = [world.restore(world.to_instant, name).reached.timeline for name in ("fourth", "fifth")]
    assert taken[0] < taken[1]
    monkeypatch.setattr(Feeder, "_is_taken", lambda *_: False)
    with pytest.raises(ProofError, match="taken for it was"):
        world.restore(world.to_instant, "sixth")


# --- actions ----------------------------------------------------------------------------------------------------


def test_a_paused_server_is_read_only_at_its_target_and_can_be_promoted_there(world: World) -> None:
    result = world.restore(world.to_instant, action=TargetAction.PAUSE, afterwards=Afterwards.LEAVE_RUNNING)
    environment = open_sandbox(world.estate.state / "environments" / result.environment.id)
    try:
        assert result.reached.timeline == 1
        with psycopg.connect(environment.dsn, autocommit=True) as connection:
            assert connection.execute("select id from notes").fetchall() == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("insert into notes values (99)")
        reached = promote_paused(environment, clock=SystemClock())
        assert (reached.lsn, reached.timeline > 1) == (result.reached.lsn, True)
        with psycopg.connect(environment.dsn, autocommit=True) as connection:
            connection.execute("insert into notes values (99)")
            assert connection.execute("select id from notes order by id").fetchall() == [(1,), (99,)]
        with pytest.raises(UsageError, match="not paused"):
            promote_paused(environment, clock=SystemClock())
    finally:
        environment.destroy()


@pytest.mark.long
def test_a_cluster_that_shut_down_at_its_target_goes_on_to_it_when_it_is_started(world: World) -> None:
    result = world.restore(world.to_instant, "shutdown", action=TargetAction.SHUTDOWN)
    data = world.estate.cluster.root / "restored" / "shutdown"
    assert result.reached.timeline == 1
    assert read_control_file(data).state is ClusterState.SHUT_DOWN_IN_RECOVERY
    assert (data / "recovery.signal").exists()
    settings = dict(recovery_settings(result, world.estate.config))
    restored = world.maker.over(data)
    restored.start(wait=False)
    assert restored.wait_ended() != 0, "recovery.signal without restore_command"
    program = f"{sys.executable} -m drservice "
    settings["restore_command"] = settings["restore_command"].replace("drservice ", program, 1)
    world.estate.identity.chmod(0o644)
    restored.configure(**{name: quote_setting(value) for name, value in settings.items()})
    restored.start()
    wait_for(lambda: not restored.value("select pg_is_in_recovery()"), "the promotion")
    assert restored.sql("select id from notes") == [(1,)]
    assert restored.value("select timeline_id from pg_control_checkpoint()") > 1
    restored.stop()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"action": TargetAction.PAUSE}, "needs --start, and no --into"),
        ({"action": TargetAction.SHUTDOWN, "afterwards": Afterwards.LEAVE_RUNNING}, "needs --into, no --start"),
        ({"action": TargetAction.SHUTDOWN, "target": LATEST}, "always promotes"),
        ({"action": TargetAction.SHUTDOWN, "database": "postgres"}, "whole cluster"),
    ],
)
def test_an_action_that_leads_nowhere_is_refused_before_anything_is_written(
    world: World, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        world.restore(world.to_instant, "refused", **changes)
    assert not (world.estate.cluster.root / "restored" / "refused").exists()


def along(timeline: int) -> Target:
    return Target(kind=TargetKind.LATEST, timeline=Timeline(timeline))
