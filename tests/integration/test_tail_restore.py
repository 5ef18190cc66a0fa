"""Restores from WAL that is in pieces: of a server whose last segment nobody archived, and that is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import read_control_file
from drservice.errors import SegmentAbsentError, SegmentConflictError, TargetOutsideWindowError, WalGapError
from drservice.model.ids import SystemId
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn, Timeline, segment_begin, segment_number
from drservice.operations.info import component_info
from drservice.operations.progress import SilentProgress
from drservice.operations.restoreplan import plan_restore
from drservice.operations.streamstate import state_path
from drservice.operations.verify import run_verify
from drservice.operations.wal import fetch_wal
from drservice.operations.walboard import StreamBoard
from drservice.repository.verify import Depth
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import Pusher, TempEstate

LATEST = Target(kind=TargetKind.LATEST)
ONE = Timeline(1)
MIB = 1 << 20
Cut = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Note 1 is archived; notes 2 to 5, and the point ``here`` behind 3, lie in a segment that only the server has.

    The server was killed. ``ends`` are positions inside the segment: where its WAL ended after each note.
    """

    estate: TempEstate
    system_id: SystemId
    previous: str
    """The last segment that is archived."""
    name: str
    wal: bytes
    """The last segment as far as it was flushed."""
    between: datetime
    """After note 2, before note 3."""
    after_all: datetime
    ends: dict[int, int]
    base: Path

    @property
    def begin(self) -> Lsn:
        return segment_begin(segment_number(self.name, MIB), MIB)

    def stream(self, *runs: Sequence[Cut], data: bytes | None = None) -> list[Path]:
        """Store what receivers cut from the segment, each run one writer's, and return the objects."""
        with self.estate.plane() as plane:
            service, component = self.estate.parts()
            scope = plane.repository.scope(service.name, component.name)
            key = plane.repository.day_keys(service.name).today()
            made: list[Path] = []
            for cuts in runs:
                tail = plane.repository.tail(scope)
                for start, end in cuts:
                    piece = tail.put(
                        (data or self.wal)[start:end],
                        system_id=self.system_id,
                        timeline=ONE,
                        start=self.begin + start,
                        server_time=self.after_all,
                        segment_bytes=MIB,
                        key=key,
                    )
                    made.append(self.estate.repository / tail.key_of(self.system_id, piece))
        return made

    def notes(self, target: Target) -> tuple[list[int], tuple[str, ...]]:
        """Return which notes a restore brings back, and what it remarks."""
        with self.estate.restored(target) as (result, connection):
            rows = connection.execute("select id from notes order by id").fetchall()
            return [row[0] for row in rows], result.planned.resolved.notes

    def spread(self, *, count: int = 12) -> list[Cut]:
        step = len(self.wal) // count
        places = [*range(0, step * count, step), len(self.wal)]
        return list(pairwise(places))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, template_cache: Path) -> Iterator[World]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "''"})
    estate = TempEstate.over(cluster)
    estate.initialise()
    cluster.start()
    with Pusher(estate) as pusher:
        cluster.sql("create table notes (id int primary key)")
        estate.backup()
        note(cluster, 1)
        previous = cluster.switch_wal()
        pusher.drain(previous)
    ends = {1: 0}
    ends[2] = note(cluster, 2)
    between = cluster.value("select clock_timestamp()")
    cluster.sql("select pg_sleep(0.01)")
    ends[3] = note(cluster, 3)
    cluster.sql("select pg_create_restore_point('here')")
    for number in (4, 5):
        ends[number] = note(cluster, number)
    after_all = cluster.value("select clock_timestamp()")
    name = cluster.value("select pg_walfile_name(pg_current_wal_lsn())")
    flushed = Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text"))
    cluster.kill9()
    wal = (cluster.data / "pg_wal" / name).read_bytes()[: flushed.value % MIB]
    kept = tmp_path_factory.mktemp("kept") / "repository"
    shutil.copytree(estate.repository, kept)
    yield World(
        estate=estate,
        system_id=read_control_file(cluster.data).system_id,
        previous=previous,
        name=name,
        wal=wal,
        between=between,
        after_all=after_all,
        ends=ends,
        base=kept,
    )
    estate.close()
    maker.close()


@pytest.fixture
def world(made: World) -> World:
    """Without any piece, whatever the test before has stored."""
    shutil.rmtree(made.estate.repository)
    shutil.copytree(made.base, made.estate.repository)
    return made


def note(cluster: Cluster, number: int) -> int:
    """Commit a note and return where in its segment the WAL ended then."""
    cluster.sql("insert into notes values (%s)", (number,))
    return Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()::text")).value % MIB


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_latest_position_is_the_last_byte_in_pieces_whatever_runs_wrote_them(world: World) -> None:
    cuts = world.spread()
    world.stream(
        cuts[:7], [(0, cuts[4][1]), *cuts[5:]]
    )  # killed after seven pieces, and begun anew from the segment's begin
    found, notes = world.notes(LATEST)
    assert found == [1, 2, 3, 4, 5]
    assert any(f"{world.name}, is put together from pieces" in text for text in notes)
    assert not any("WARNING" in text for text in notes)
    archived = world.estate.repository / f"s/erp/database/wal/{world.system_id}/00000001"
    assert world.name not in {path.name for path in archived.iterdir()}, "it is never stored under its name"


def test_a_promotion_of_which_nothing_is_stored_is_told_before_the_latest_position_is_restored(world: World) -> None:
    """The repository cannot know; production does, and so does a receiver that saw it."""
    estate = world.estate

    def warnings() -> list[str]:
        with estate.plane() as plane:
            planned = plan_restore(estate.restore_context(plane), estate.request(LATEST))
        assert planned.resolved.plan.timeline == ONE
        return [text for text in planned.resolved.notes if "of which nothing is stored" in text]

    assert warnings() == []
    (estate.cluster.data / "standby.signal").touch()
    hand_over(estate.cluster.data)
    estate.cluster.start()
    try:
        assert warnings() == [], "a standby of it is on the timeline that is stored"
        estate.cluster.sql("select pg_promote()")
        (text,) = warnings()
        assert text.startswith("WARNING: production is on timeline 2, of which nothing is stored yet")
    finally:
        estate.cluster.stop()
    service, component = estate.parts()
    board = StreamBoard(
        service=service.name,
        component=component.name,
        synchronous=False,
        state_dir=estate.state,
        clock=SystemClock(),
        observe=lambda _: None,
    )
    for system_id, told in ((world.system_id, 1), (SystemId("7000000000000000001"), 0)):
        board.state = replace(board.state, system_id=system_id, timeline=Timeline(3))
        board.publish_last()
        assert len(warnings()) == told, "only what the receiver of this very cluster saw counts"
    state_path(estate.state, service.name, component.name).unlink()


def test_an_instant_inside_the_pieces_is_reached_exactly(world: World) -> None:
    world.stream(world.spread())
    assert world.notes(Target(kind=TargetKind.TIME, time=world.between))[0] == [1, 2]


@pytest.mark.long
def test_a_position_and_a_name_inside_the_pieces_are_reached_exactly(world: World) -> None:
    world.stream(world.spread())
    after_three = world.begin + world.ends[3]
    assert world.notes(Target(kind=TargetKind.LSN, lsn=after_three))[0] == [1, 2, 3]
    assert world.notes(Target(kind=TargetKind.NAME, name="here"))[0] == [1, 2, 3]


def test_a_damaged_piece_ends_the_window_there_and_everybody_says_so(world: World) -> None:
    cuts = [(0, world.ends[3]), (world.ends[3], world.ends[4]), (world.ends[4], len(world.wal))]
    broken = world.stream(cuts)[1]
    damage(broken)
    found, notes = world.notes(LATEST)
    assert found == [1, 2, 3]
    [warning] = [text for text in notes if "WARNING" in text]
    assert "more was stored" in warning
    assert broken.name in warning
    after_four = world.begin + world.ends[4]
    with pytest.raises(TargetOutsideWindowError, match="cannot be reached"):
        world.notes(Target(kind=TargetKind.LSN, lsn=after_four))
    with world.estate.plane() as plane:
        service, component = world.estate.parts()
        verified = run_verify(
            plane.repository,
            service,
            component,
            depth=Depth.DATA,
            percent=100,
            clock=plane.clock,
            progress=SilentProgress(),
        ).verified
    assert [finding.key.rsplit("/", 1)[-1] for finding in verified.findings] == [broken.name]


@pytest.mark.long
def test_a_missing_piece_ends_the_window_there(world: World) -> None:
    world.stream([(0, world.ends[3]), (world.ends[4], len(world.wal))])
    found, notes = world.notes(LATEST)
    assert found == [1, 2, 3]
    assert any("is missing, although what follows it was stored" in text for text in notes)


def test_two_histories_in_the_pieces_are_refused_and_what_both_agree_on_can_be_had(world: World) -> None:
    other = world.wal[: world.ends[3]] + bytes(byte ^ 0xFF for byte in world.wal[world.ends[3] :])
    world.stream(world.spread())
    world.stream([(0, len(world.wal))], data=other)
    with pytest.raises(SegmentConflictError) as refused:
        world.notes(LATEST)
    assert "two histories" in refused.value.message
    lsn = refused.value.hint.split("--lsn ")[1].split(" ")[0]
    assert world.notes(Target(kind=TargetKind.LSN, lsn=Lsn.parse(lsn)))[0] == [1, 2, 3]


def test_segments_that_are_whole_in_pieces_count_as_whole(world: World, tmp_path: Path) -> None:
    stored = world.estate.repository / f"s/erp/database/wal/{world.system_id}/00000001/{world.previous}"
    with world.estate.plane() as plane:
        service, component = world.estate.parts()
        scope = plane.repository.scope(service.name, component.name)

        def fetch(name: str) -> bytes:
            fetch_wal(plane.repository, scope, name, tmp_path / name, system_id=world.system_id)
            return (tmp_path / name).read_bytes()

        whole = fetch(world.previous)
        stored.unlink()
        tail, key = plane.repository.tail(scope), plane.repository.day_keys(service.name).today()
        begin = segment_begin(segment_number(world.previous, MIB), MIB)
        pieces = [
            tail.put(
                whole[at : at + MIB // 4],
                system_id=world.system_id,
                timeline=ONE,
                start=begin + at,
                server_time=world.between,
                segment_bytes=MIB,
                key=key,
            )
            for at in range(0, MIB, MIB // 4)
        ]
        world.stream(world.spread())
        assert fetch(world.previous) == whole
        with pytest.raises(SegmentAbsentError):
            fetch(world.name)  # not finished: never for a standby
        assert world.notes(LATEST)[0] == [1, 2, 3, 4, 5]
        (world.estate.repository / tail.key_of(world.system_id, pieces[2])).unlink()
        with pytest.raises(WalGapError):
            fetch(world.previous)
        with pytest.raises(WalGapError):
            world.notes(LATEST)


def test_the_window_ends_with_the_pieces_and_needs_no_identity(world: World) -> None:
    world.stream(world.spread())
    blind = world.estate.write_configuration(world.estate.root / "blind.yaml", identity=None)
    with world.estate.plane(blind) as plane:
        service, component = world.estate.parts()
        known = component_info(plane.repository, service, component, state_dir=world.estate.state, clock=plane.clock)
    [window] = known.windows
    assert window.window.end == world.begin + len(world.wal)
    assert abs(window.to_time - world.after_all) < timedelta(milliseconds=1)
