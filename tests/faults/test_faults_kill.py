"""kill -9 at every stage of backup, push and restore: nothing partial is visible, the next run succeeds and re-uses."""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from datetime import timedelta

import pytest

from drservice.clock import SystemClock
from drservice.environments.interface import EnvironmentState
from drservice.environments.sandbox import list_sandboxes, reap
from drservice.repository.walarchive import PutOutcome
from tests.doubles.clock import ManualClock
from tests.faults.doomed import Doom, run_doomed
from tests.faults.world import LATEST, Site, World, empty

KILLED = -signal.SIGKILL

BACKUP_STAGES = {
    "before the hold": (Doom(verb="backup", operations=["create"], part="hold/"), 0, False),
    "before the data key": (Doom(verb="backup", operations=["create"], part="keys/"), 0, False),
    "after the data key": (Doom(verb="backup", operations=["create"], part="keys/", when="after"), 0, False),
    "before a data pack": (Doom(verb="backup", operations=["create"], part="/packs/"), 0, False),
    "after a data pack, before its journal": (
        Doom(verb="backup", operations=["create"], part="/packs/", when="after"),
        0,
        False,
    ),
    "waiting for the WAL": (Doom(verb="backup", operations=["stat"], part="/wal/"), 0, True),
    "before the tree": (Doom(verb="backup", operations=["create"], part="/nodes/"), 0, True),
    "after the tree": (Doom(verb="backup", operations=["create"], part="/nodes/", when="after"), 0, True),
    "before the snapshot object": (Doom(verb="backup", operations=["create"], part="/snapshots/"), 0, True),
    "after the snapshot object, before the cache": (
        Doom(verb="backup", operations=["create"], part="/snapshots/", when="after"),
        1,
        True,
    ),
}


@pytest.mark.parametrize("stage", BACKUP_STAGES)
def test_a_backup_killed_at_any_stage_leaves_nothing_partial_and_the_next_re_uses(site: Site, stage: str) -> None:
    doom, visible, reuses = BACKUP_STAGES[stage]
    full_bytes = sum(path.stat().st_size for path in site.objects("/packs/"))
    shutil.rmtree(site.state_dir / "cache")  # so that the killed backup has everything to upload
    with site.archiving():
        assert run_doomed(site, doom) == KILLED
    site.require_sound(snapshots=2 + visible)
    result = site.backup()
    site.require_sound(snapshots=3 + visible)
    if reuses:
        assert result.record.stored_bytes < full_bytes / 4, "what was uploaded before the kill was stored again"
    else:
        assert result.record.stored_bytes > full_bytes / 2
    assert site.restored_ids(LATEST) == list(range(1, 501))


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_backup_killed_at_every_single_call_leaves_nothing_partial(site: Site, when: str) -> None:
    for at in itertools.count(1):
        before = len(site.snapshots())
        with site.archiving():
            status = run_doomed(site, Doom(verb="backup", at=at, when=when))
        site.require_sound(snapshots=len(site.snapshots()))
        if status == 0:
            assert at > 10
            return
        assert len(site.snapshots()) - before in (0, 1)
        site.backup()  # it learns of the key that the killed one left: otherwise each would have a call more


PUSH_STAGES = {
    "before it is stored": (Doom(verb="push", operations=["create"], part="/wal/"), PutOutcome.STORED),
    "after it is stored": (
        Doom(verb="push", operations=["create"], part="/wal/", when="after"),
        PutOutcome.ALREADY_THERE,
    ),
    "after it is verified": (
        Doom(verb="push", operations=["stat"], part="/wal/", when="after"),
        PutOutcome.ALREADY_THERE,
    ),
}


@pytest.mark.parametrize("stage", PUSH_STAGES)
def test_a_push_killed_at_any_stage_leaves_no_half_segment_and_the_next_succeeds(
    world: World, site: Site, stage: str
) -> None:
    doom, outcome = PUSH_STAGES[stage]
    name = world.tail[-1]
    path = site.spool / name
    (archived,) = site.objects(name)
    archived.unlink()  # as if it had never been pushed
    assert run_doomed(site, Doom(**{**vars(doom), "path": str(path)})) == KILLED
    assert bool(site.objects(name)) is (outcome is PutOutcome.ALREADY_THERE)
    site.require_sound(snapshots=2)
    assert site.push(path).outcome is outcome
    site.require_sound(snapshots=2)
    assert site.restored_ids(LATEST) == list(range(1, 501))


# (where it dies, is the directory a whole one already)
RESTORE_STAGES = {
    "reading the list of snapshots": (Doom(verb="restore", operations=["list"], part="/snapshots/"), False),
    "planning": (Doom(verb="restore", operations=["list"], part="/wal/"), False),
    "at the isolation self-test": (Doom(verb="restore", step="isolation self-test"), False),
    "before placing": (Doom(verb="restore", step="fetch and place"), False),
    "fetching a pack": (Doom(verb="restore", operations=["read"], part="/packs/"), False),
    "before pg_control": (Doom(verb="restore", step="make durable"), False),
    "before the replay": (Doom(verb="restore", step="replay WAL"), True),
    "in the replay": (Doom(verb="restore", operations=["list"], part=".history"), True),
    "after promotion": (Doom(verb="restore", step="prove the target"), True),
}


@pytest.mark.parametrize("stage", RESTORE_STAGES)
def test_a_restore_killed_at_any_stage_is_found_by_the_reaper_and_the_next_succeeds(site: Site, stage: str) -> None:
    doom, is_whole = RESTORE_STAGES[stage]
    assert run_doomed(site, doom) == KILLED
    assert (site.target_dir / "global" / "pg_control").exists() is is_whole
    left = list_sandboxes(site.environments_dir)
    started = stage in {"in the replay", "after promotion"}
    if started:  # the server has a keeper, which outlives us: the environment's term ends it
        assert [item.state for item in left] == [EnvironmentState.RUNNING]
        reap(site.environments_dir, ManualClock(left[0].expires_at + timedelta(seconds=1)))
    else:
        assert all(item.state is EnvironmentState.DEAD for item in left)
        assert [item.id for item in left] == reap(site.environments_dir, SystemClock())
    site.require_sound(snapshots=2)
    empty(site.target_dir)
    assert site.restore(LATEST).into == site.target_dir
    assert (site.target_dir / "global" / "pg_control").exists()


@pytest.mark.long
def test_a_server_whose_restore_was_killed_stops_by_itself_and_never_promotes(site: Site) -> None:
    assert run_doomed(site, RESTORE_STAGES["in the replay"][0]) == KILLED
    deadline = time.monotonic() + 60
    while list_sandboxes(site.environments_dir)[0].state is EnvironmentState.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (site.target_dir / "recovery.signal").exists()
    assert not (site.target_dir / "pg_wal" / "00000002.history").exists()


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_restore_killed_at_every_single_call_leaves_nothing_partial(site: Site, when: str) -> None:
    for at in itertools.count(1):
        status = run_doomed(site, Doom(verb="restore", at=at, when=when))
        left = list_sandboxes(site.environments_dir)
        reap(site.environments_dir, ManualClock(SystemClock().now() + timedelta(days=1)))
        site.require_sound(snapshots=2)
        if status == 0:
            assert left == []
            assert at > 10
            return
        site.give_back_timelines()
        empty(site.target_dir)
