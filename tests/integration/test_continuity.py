"""The archive compared with what needs it and what is still here: holes are found, and filled where they can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psycopg
import pytest

from drservice import telemetry
from drservice.clock import SystemClock
from drservice.components.postgres.controlfile import crc32c, read_control_file
from drservice.model.ids import SystemId
from drservice.model.wal import Timeline, WalFileName, segment_name, segment_number
from drservice.operations import continuity, walcare
from drservice.operations.continuity import ArchiveWatch, Continuity, keep_continuous
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.walarchive import ArchivedFile, WalArchive
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import SERVICE, Pusher, TempEstate, copy_tree, wait_for

SEGMENT = 1 << 20
SEGMENT_OF_TWO = re.compile(r"00000002[0-9A-F]{16}\Z")


@dataclass(kw_only=True)
class Story:
    """A primary whose archiver broke, died, and was followed by its standby; both are stopped now."""

    estate: TempEstate
    standby: Cluster
    lost: tuple[str, ...]
    """Segments of timeline 1 that only the standby still has, marked as done."""
    content: dict[str, bytes]
    """Of the lost segments, as the primary had written them."""


def offered(cluster: Cluster) -> set[str]:
    """Return the segments that a server wants to have archived."""
    return {path.stem for path in (cluster.data / "pg_wal" / "archive_status").glob(f"{'?' * 24}.ready")}


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    primary = maker.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "''"})
    estate = TempEstate.over(primary)
    estate.initialise()
    primary.start()
    primary.sql("create table orders(id int primary key)")
    with Pusher(estate):
        estate.backup()
    copy = maker.folder("standby")
    done = primary.run("pg_basebackup", "-h", primary.sock, "-U", "postgres", "-D", copy, "-c", "fast", "-R")
    assert done.status == 0, done.stderr.decode()
    standby = maker.over(copy)
    standby.configure(archive_mode="on", archive_command="''", wal_keep_size="'64MB'")
    standby.start()
    wait_for(lambda: primary.value("select count(*) from pg_stat_replication where state = 'streaming'"), "streaming")
    with Pusher(estate) as pusher:
        pusher.drain(primary.switch_wal())
    before = offered(primary)
    for number in range(3):
        primary.sql("insert into orders values (%s)", (number,))
        primary.switch_wal()
    lost = tuple(sorted(offered(primary) - before))
    primary.sql("insert into orders values (99)")
    position = primary.value("select pg_current_wal_flush_lsn()::text")
    wait_for(lambda: standby.value("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)), "the standby")
    primary.kill9()
    standby.sql("select pg_promote()")
    standby.sql("insert into orders values (100)")
    standby.switch_wal()
    standby.switch_wal()
    estate.cluster = standby
    estate.write_configuration(estate.config)
    with Pusher(estate) as pusher:  # what the new primary's own archiver does
        ready = standby.data / "pg_wal" / "archive_status"
        wait_for(lambda: not list(ready.glob("*.ready")), "the new primary to archive")
        assert "00000002.history" in pusher.pushed
    standby.stop("fast")
    content = {name: (primary.data / "pg_wal" / name).read_bytes() for name in lost}
    yield Story(estate=estate, standby=standby, lost=lost, content=content)
    estate.close()
    maker.close()


@dataclass(kw_only=True)
class Site:
    """Copies of repository, state and ``pg_wal`` that a test may change; no server runs."""

    story: Story
    config: Path
    data: Path
    repository: Repository
    scope: Scope
    system_id: SystemId

    @property
    def wal(self) -> Path:
        return self.data / "pg_wal"

    @property
    def state(self) -> Path:
        return self.config.parent / "state"

    def watch(self, *, directory: Path | None = None, alone: bool = False) -> ArchiveWatch:
        where = None if alone else directory or self.data
        return ArchiveWatch(self.repository, self.scope, directory=where, state_dir=self.state, clock=SystemClock())

    def archived(self, name: str) -> bytes | None:
        archive = self.repository.wal(self.scope)
        if not archive.exists(WalFileName.parse(name), system_id=self.system_id):
            return None
        return archive.fetch(WalFileName.parse(name), system_id=self.system_id)

    def taken_out(self) -> str:
        """Take the first segment of timeline 2 out of the archive and return its name."""
        archive = self.repository.wal(self.scope)
        first = next(item for item in archive.listing(self.system_id) if SEGMENT_OF_TWO.match(item.name))
        self.repository.store.delete(first.key)
        return first.name

    def mark(self, name: str, *, was: str, now: str) -> None:
        status = self.wal / "archive_status"
        (status / f"{name}{was}").unlink()
        if now:
            (status / f"{name}{now}").touch()


@pytest.fixture
def site(story: Story, tmp_path: Path) -> Iterator[Site]:
    repository = copy_tree(story.estate.repository, tmp_path / "repository")
    state = copy_tree(story.estate.state, tmp_path / "state")
    config = story.estate.write_configuration(tmp_path / "drservice.yaml", state=state, url=f"file://{repository}")
    data = tmp_path / "data"
    (data / "global").mkdir(parents=True)
    shutil.copy(story.standby.data / "global" / "pg_control", data / "global")
    copy_tree(story.standby.data / "pg_wal", data / "pg_wal")
    hand_over(data)
    service, component = story.estate.parts()
    with story.estate.plane(config) as plane:
        yield Site(
            story=story,
            config=config,
            data=data,
            repository=plane.repository,
            scope=plane.repository.scope(service.name, component.name),
            system_id=read_control_file(data).system_id,
        )


def names_of(found: Continuity) -> list[str]:
    return [name for hole in found.holes for name in hole.names]


# --- T21 ------------------------------------------------------------------------------------------------------


def test_t21_segments_that_a_promoted_standby_marked_as_done_are_found_missing_and_filled(site: Site) -> None:
    lost = site.story.lost
    assert len(lost) == 3
    assert all((site.wal / "archive_status" / f"{name}.done").exists() for name in lost), "PostgreSQL offers them"
    watch = site.watch()
    before = watch.look(fill=False)
    assert names_of(before) == list(lost)
    assert [hole.is_open for hole in before.holes] == [True]
    assert [site.archived(name) for name in lost] == [None] * 3, "looking alone archives nothing"

    found = watch.look(fill=True)
    assert (found.holes, found.filled, found.refused) == ((), lost, {})
    assert {name: site.archived(name) for name in lost} == site.story.content
    assert site.watch(alone=True).look(fill=False).holes == ()


@pytest.mark.long
def test_t21_a_restore_to_the_latest_position_has_what_only_the_standby_had(site: Site) -> None:
    estate = site.story.estate
    refused = estate.refusal("restore", SERVICE, "--to", "latest", "--dry-run", config=site.config, status=5)
    assert "3 WAL segment(s)" in refused["message"]
    site.watch().look(fill=True)
    restored = estate.json("restore", SERVICE, "--to", "latest", "--start", config=site.config)
    with psycopg.connect(restored["environment"]["dsn"]) as connection:
        rows = connection.execute("select array_agg(id order by id) from orders").fetchone()
    estate.json("environment", "destroy", restored["environment"]["id"], config=site.config)
    assert rows == ([0, 1, 2, 99, 100],)


# --- what must not be archived ---------------------------------------------------------------------------------


def test_a_file_that_postgresql_has_begun_to_re_use_fills_nothing(site: Site) -> None:
    """The first page is right, and behind it are still those of another place."""
    name, other = site.story.lost[1], (site.wal / site.story.lost[0]).read_bytes()
    with (site.wal / name).open("r+b") as stream:
        stream.seek(SEGMENT - 8192)
        stream.write(other[:8192])
    found = site.watch().look(fill=True)
    assert names_of(found) == [name]
    assert "is of position" in found.refused[name]
    assert site.archived(name) is None


@pytest.mark.parametrize("spoil", ["cut", "renamed", "link"])
def test_a_file_that_is_not_the_segment_fills_nothing(site: Site, spoil: str) -> None:
    name, other = site.story.lost[1], site.wal / site.story.lost[0]
    path = site.wal / name
    if spoil == "cut":
        os.truncate(path, SEGMENT - 1)
    elif spoil == "renamed":
        shutil.copy(other, path)
    else:
        path.rename(site.data / "elsewhere")
        path.symlink_to(site.data / "elsewhere")
    found = site.watch().look(fill=True)
    assert names_of(found) == [name]
    assert name in found.refused
    assert site.archived(name) is None


def test_another_clusters_directory_fills_nothing(site: Site) -> None:
    path = site.data / "global" / "pg_control"
    control = bytearray(path.read_bytes())
    crc_at = next(
        at for at in range(8, 512, 4) if crc32c(bytes(control[:at])) == struct.unpack_from("<I", control, at)[0]
    )
    control[0] ^= 1
    struct.pack_into("<I", control, crc_at, crc32c(bytes(control[:crc_at])))
    path.write_bytes(control)
    found = site.watch().look(fill=True)
    assert names_of(found) == list(site.story.lost)
    assert (found.filled, found.refused) == ((), {})


def test_what_postgresql_offers_is_left_to_its_archiver(site: Site) -> None:
    """Whoever pauses archive_command wants nothing to be archived; a checkpoint behind it changes nothing."""
    first = site.taken_out()
    for name in (site.story.lost[0], first):
        site.mark(name, was=".done", now=".ready")
    found = site.watch().look(fill=True)
    assert found.waiting == (site.story.lost[0], first)
    assert names_of(found) == [site.story.lost[0], first]
    assert site.archived(first) is None


def test_what_is_archived_with_other_bytes_is_never_written_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that lags shows a hole where there is none."""
    name = site.story.lost[2]
    content = site.story.content[name]
    other = content[: SEGMENT - 1] + b"x"
    archive = site.repository.wal(site.scope)
    archive.put(WalFileName.parse(name), other, system_id=site.system_id, last_write=SystemClock().now())
    whole = WalArchive.listing

    def lagging(self: WalArchive, system_id: SystemId, *, after: WalFileName | None = None) -> Iterator[ArchivedFile]:
        return (item for item in whole(self, system_id, after=after) if item.name != name)

    monkeypatch.setattr(WalArchive, "listing", lagging)
    found = site.watch().look(fill=True)
    assert "other content" in found.refused[name]
    assert site.archived(name) == other


def test_a_segment_without_a_mark_is_filled_once_a_checkpoint_lies_behind_it(site: Site) -> None:
    """As on a server whose archive_mode is off; without the checkpoint it may still be written to."""
    first = site.taken_out()
    site.mark(first, was=".done", now="")
    last = max(path.name for path in site.wal.iterdir() if SEGMENT_OF_TWO.match(path.name))
    assert read_control_file(site.data).checkpoint.segment_number(SEGMENT) == segment_number(last, SEGMENT)
    behind = WalFileName.parse(segment_name(Timeline(2), segment_number(last, SEGMENT) + 1, SEGMENT))
    site.repository.wal(site.scope).put(
        behind, b"as if it had gone on", system_id=site.system_id, last_write=SystemClock().now()
    )
    found = site.watch().look(fill=True)
    assert first in found.filled
    assert site.archived(first) == (site.wal / first).read_bytes()
    assert names_of(found) == [*found.waiting, last], "the server was stopped in the last one"
    assert site.archived(last) is None


def test_what_is_gone_everywhere_is_a_hole_that_asks_for_a_snapshot(site: Site) -> None:
    name = site.story.lost[1]
    (site.wal / name).unlink()
    found = site.watch().look(fill=True)
    [hole] = found.holes
    assert (list(hole.names), hole.is_open) == ([name], True)
    assert set(found.filled) == set(site.story.lost) - {name}


# --- again and again -------------------------------------------------------------------------------------------


def test_later_looks_list_only_what_is_new_and_find_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    whole = WalArchive.listing

    def listing(self: WalArchive, system_id: SystemId, *, after: WalFileName | None = None) -> Iterator[ArchivedFile]:
        asked.append(after.name if after else None)
        return whole(self, system_id, after=after)

    monkeypatch.setattr(WalArchive, "listing", listing)
    monkeypatch.setattr(continuity, "_OVERLAP", 0)
    watch, other = site.watch(alone=True), site.watch()
    assert names_of(watch.look(fill=False)) == list(site.story.lost)
    assert names_of(watch.look(fill=False)) == list(site.story.lost)
    other.look(fill=True)  # another process does
    assert watch.look(fill=False).holes == ()
    watch.look(fill=False)
    first_hole = site.story.lost[0]
    assert asked[0] is None
    assert asked[1] is not None
    assert asked[1] < first_hole, "a hole may be filled by anybody: it is looked at again"
    assert asked[-1] is not None
    assert asked[-1].startswith("00000002"), "without a hole only the newest timeline's end is looked at"
    watch.look(fill=False, whole=True)
    assert asked[-1] is None


def test_a_host_without_an_identity_judges_timelines_by_the_histories_it_has(site: Site) -> None:
    config = site.story.estate.write_configuration(
        site.config.parent / "writer.yaml",
        state=site.state,
        url=f"file://{site.config.parent / 'repository'}",
        identity=None,
    )
    with site.story.estate.plane(config) as plane:
        site.repository = plane.repository
        alone = site.watch(alone=True).look(fill=False)
        assert (alone.holes, alone.unread_histories) == ((), ("00000002.history",)), "not judged, and said so"
        found = site.watch().look(fill=True)
        assert (found.filled, found.unread_histories) == (site.story.lost, ())


def test_a_hole_is_told_once_by_whoever_keeps_looking(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(telemetry, "error", lambda event, **_: told.append(event))
    monkeypatch.setattr(telemetry, "info", lambda event, **_: told.append(event))
    name = site.story.lost[1]
    kept = (site.wal / name).rename(site.data / "kept")
    stop = threading.Event()
    watch = site.watch()
    looks = 0

    def look(**how: bool) -> Continuity:
        nonlocal looks
        looks += 1
        if looks == 4:
            shutil.copy(kept, site.wal / name)
            hand_over(site.wal)
        if looks == 6:
            stop.set()
        return ArchiveWatch.look(watch, **how)

    monkeypatch.setattr(watch, "look", look, raising=False)
    keep_continuous(watch, stop, seconds=0.0)
    holes = [event for event in told if "hole" in event]
    assert holes == ["a hole in the archived WAL", "a hole in the archived WAL is no more"]


def test_whoever_ships_the_wal_fills_what_is_missing_beside_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walcare, "keep_continuous", partial(keep_continuous, seconds=0.05))
    _, component = site.story.estate.parts()
    component = replace(component, data_directory=site.data)
    with walcare.cared_for(site.repository, site.scope, component, state_dir=site.state, clock=SystemClock()):
        wait_for(lambda: site.archived(site.story.lost[-1]) is not None, "the hole to be filled")
    assert not [thread for thread in threading.enumerate() if thread.name == "wal-continuity"]


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_finds_what_is_missing_fills_it_and_says_what_is_left(site: Site) -> None:
    estate, lost = site.story.estate, site.story.lost
    (site.wal / lost[1]).unlink()
    edited = json.loads(site.config.read_text())
    edited["services"][SERVICE]["components"]["database"]["data_directory"] = str(site.data)
    site.config.write_text(json.dumps(edited))
    [found] = estate.json("wal", "check", SERVICE, config=site.config, status=5)["components"]
    assert [(hole["first"], hole["segments"], hole["latest_unreachable"]) for hole in found["holes"]] == [
        (lost[0], 3, True)
    ]
    assert found["filled"] == []
    done = estate.run("wal", "check", SERVICE, "--fill", config=site.config)
    text = done.stdout.decode()
    assert done.status == 5
    assert f"filled: {lost[0]}" in text
    assert f"HOLE: 1 WAL segment(s) from {lost[1]} on are missing" in text
    assert "next: drservice backup erp" in text
    (site.wal / lost[1]).write_bytes(site.story.content[lost[1]])
    hand_over(site.wal)
    [found] = estate.json("wal", "check", "--fill", config=site.config)["components"]
    assert (found["filled"], found["holes"]) == ([lost[1]], [])
