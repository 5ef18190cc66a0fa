"""Truncated, flipped or missing objects: named, another snapshot offered, never a silent partial restore, healable."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.errors import (
    BadSignatureError,
    DamagedObjectError,
    DrError,
    ExitStatus,
    FormatError,
    MissingObjectError,
    RepositoryMissingError,
    TargetOutsideWindowError,
    UnknownNameError,
    UnknownSignerError,
    WalError,
)
from drservice.objectstore.directory import DirectoryStore
from drservice.operations.progress import SilentProgress
from drservice.operations.restoreplan import plan_restore
from drservice.operations.restorerequest import Afterwards, RestoreRequest
from drservice.operations.verify import run_verify
from drservice.repository.verify import Depth
from tests.faults.triggers import TriggerStore
from tests.faults.world import LATEST, PREFIX, SERVICE, Listener, Site, World, at_time, empty, end_of


def truncate(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0x10
    path.write_bytes(body)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "flipped": flip, "missing": remove}
OTHER_DAMAGES = (
    ("packs", "truncated"),
    ("packs", "missing"),
    ("nodes", "truncated"),
    ("nodes", "flipped"),
    ("key", "flipped"),
    ("key", "missing"),
)


def only_of_the_newer(site: Site, world: World, kind: str) -> Path:
    """Return the file of a pack that the newer snapshot uses and the older one does not."""
    repository = site.repository()
    names = []
    for record in (world.newer, world.older):
        packs = repository.open_snapshot(site.scope(), record.id).packs
        names.append({use.name for use in (packs.data if kind == "packs" else packs.nodes)})
    name = min(names[0] - names[1])
    return site.repository_dir / PREFIX / kind / name[:2] / name


def victim_of(site: Site, world: World, kind: str) -> Path:
    if kind == "key":
        return next((site.repository_dir / "keys" / SERVICE / world.newer.sealed_key_id).iterdir())
    return only_of_the_newer(site, world, kind)


def verify(site: Site) -> tuple[set[str], tuple[str, ...]]:
    """Verify as the command does; returns the keys with findings and the condemned packs."""
    outcome = run_verify(
        site.repository(),
        site.service,
        site.component,
        depth=Depth.DATA,
        percent=100,
        clock=SystemClock(),
        progress=SilentProgress(),
    )
    return {finding.key for finding in outcome.verified.findings}, outcome.condemned


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("packs", "flipped"),
        ("nodes", "missing"),
        ("key", "truncated"),
        *(pytest.param(kind, damage, marks=pytest.mark.long) for kind, damage in OTHER_DAMAGES),
    ],
)
def test_a_damaged_part_of_a_snapshot_is_named_and_the_other_snapshot_offered(
    world: World, site: Site, kind: str, damage: str
) -> None:
    victim = victim_of(site, world, kind)
    DAMAGES[damage](victim)
    with pytest.raises(DrError) as caught:
        site.restore(LATEST)
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    assert str(world.newer.id) in caught.value.message
    named = victim.name[:16] if kind != "key" else world.newer.sealed_key_id
    assert named in caught.value.message
    assert str(world.older.id) in caught.value.hint
    assert f"--without-snapshot {world.newer.id}" in caught.value.hint
    site.require_not_restored()
    # What the hint says works, and gives every row.
    empty(site.target_dir)
    assert site.restored_ids(LATEST, without=frozenset({world.newer.id})) == list(range(1, 501))
    # verify finds it, condemns what can be stored again, and the next backup stores it again.
    found, condemned = verify(site)
    prefix = site.key_of(victim.parent) if kind == "key" else site.key_of(victim)
    assert any(key.startswith(prefix) or str(world.newer.id) in key for key in found)
    if kind != "key":
        assert condemned == (site.key_of(victim),)
    healed = site.backup()
    assert site.restored_ids(end_of(healed.record))[-1] >= 500
    if kind != "key":
        opened = site.repository().open_snapshot(site.scope(), healed.record.id)
        assert victim.name not in {use.name for use in (*opened.packs.data, *opened.packs.nodes)}


def test_the_end_of_a_damaged_snapshot_offers_the_end_of_the_nearest_other(world: World, site: Site) -> None:
    remove(only_of_the_newer(site, world, "packs"))
    with pytest.raises(MissingObjectError) as caught:
        site.restore(end_of(world.newer))
    assert f"--snapshot {world.older.id}" in caught.value.hint
    site.require_not_restored()


def test_a_repository_copied_without_its_times_is_restored_by_the_name_of_a_snapshot(world: World, site: Site) -> None:
    later = time.time() + 13 * 3600
    for path in site.objects():
        os.utime(path, (later, later))
    with pytest.raises(TargetOutsideWindowError, match="void"):
        site.restore(LATEST)
    assert site.restored_ids(end_of(world.newer))


def test_without_any_other_snapshot_the_error_says_so(world: World, site: Site) -> None:
    remove(only_of_the_newer(site, world, "packs"))
    (site.repository_dir / PREFIX / "snapshots" / world.older.id).unlink()
    with pytest.raises(MissingObjectError) as caught:
        site.restore(LATEST)
    assert "No other snapshot reaches this target" in caught.value.hint
    site.require_not_restored()


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_an_unreadable_snapshot_object_is_told_loudly_and_an_older_one_is_taken(
    world: World, site: Site, damage: str
) -> None:
    victim = site.repository_dir / PREFIX / "snapshots" / world.newer.id
    if damage == "flipped":
        body = bytearray(victim.read_bytes())
        body[40] ^= 0x10  # in the signed header
        victim.write_bytes(body)
    else:
        truncate(victim)
    listener = Listener()
    planned = plan_restore(
        site.restore_context(site.repository(), listener),
        RestoreRequest(
            service=site.service,
            component=site.component,
            target=at_time(world.late),
            into=site.target_dir,
            afterwards=Afterwards.STOP,
        ),
    )
    assert planned.resolved.plan.snapshot.id == world.older.id
    assert len(planned.unreadable) == 1
    assert str(world.newer.id) in planned.unreadable[0]
    assert any("WARNING" in note and str(world.newer.id) in note for note in listener.notes)
    assert site.restored_ids(at_time(world.late)) == list(range(1, 401))
    with pytest.raises(UnknownNameError) as caught:
        site.restore(end_of(world.newer))
    assert str(world.newer.id) in caught.value.message
    assert str(world.older.id) in caught.value.hint
    assert site.key_of(victim) in verify(site)[0]


def test_a_snapshot_object_with_a_damaged_body_is_found_before_anything_is_placed(world: World, site: Site) -> None:
    victim = site.repository_dir / PREFIX / "snapshots" / world.newer.id
    body = bytearray(victim.read_bytes())
    body[-1] ^= 0x10
    victim.write_bytes(body)
    with pytest.raises(DamagedObjectError) as caught:
        site.restore(LATEST)
    assert str(world.newer.id) in caught.value.message
    assert str(world.older.id) in caught.value.hint
    site.require_not_restored()
    assert not site.target_dir.exists() or not any(site.target_dir.iterdir())
    assert site.key_of(victim) in verify(site)[0]


def test_a_snapshot_object_that_is_gone_leaves_the_older_one(world: World, site: Site) -> None:
    (site.repository_dir / PREFIX / "snapshots" / world.newer.id).unlink()
    assert site.restored_ids(LATEST) == list(range(1, 501))
    site.require_sound(snapshots=1)
    site.backup()  # the cache still speaks of the lost one
    site.require_sound(snapshots=2)


REPOSITORY_FILE: dict[str, type[DrError] | tuple[type[DrError], ...]] = {
    "truncated": FormatError,
    "flipped": (FormatError, BadSignatureError, UnknownSignerError),  # by which field the middle byte falls into
    "missing": RepositoryMissingError,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_repository_file_stops_everything_before_anything_is_written(site: Site, damage: str) -> None:
    before = site.objects()
    DAMAGES[damage](site.repository_dir / "drservice-repository.json")
    with pytest.raises(REPOSITORY_FILE[damage]):
        site.repository()
    assert len(site.objects()) - len(before) == (-1 if damage == "missing" else 0)


def test_a_signed_field_changed_in_the_repository_file_is_a_bad_signature(site: Site) -> None:
    path = site.repository_dir / "drservice-repository.json"
    path.write_bytes(path.read_bytes().replace(b'"created_at":"20', b'"created_at":"21'))
    with pytest.raises(BadSignatureError):
        site.repository()


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_wal_file_in_the_middle_never_promotes(world: World, site: Site, damage: str) -> None:
    name = world.tail[0]
    (victim,) = site.objects(name)
    DAMAGES[damage](victim)
    listener = Listener()
    with pytest.raises(DrError) as caught:
        site.restore(LATEST, progress=listener)
    assert "replay WAL" in listener.steps
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    assert name in caught.value.message
    site.require_never_promoted()
    assert site.key_of(victim) in verify(site)[0]
    # The source still has it: the first push says what is wrong and mends it, the next one is fine.
    with pytest.raises(DamagedObjectError):
        site.push(site.spool / name)
    site.push(site.spool / name)
    empty(site.target_dir)
    assert site.restored_ids(LATEST) == list(range(1, 501))


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_last_wal_file_that_the_target_needs_is_refused_before_anything_is_written(
    world: World, site: Site, damage: str
) -> None:
    # The proof that 'late' can be reached is read from the newest segment.
    (victim,) = site.objects(world.tail[3])
    DAMAGES[damage](victim)
    with pytest.raises(DrError) as caught:
        site.restore(at_time(world.late))
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    assert world.tail[3] in caught.value.message
    site.require_not_restored()
    assert not site.target_dir.exists()


def test_a_hole_in_the_wal_is_named_and_refused_before_anything_is_written(world: World, site: Site) -> None:
    (victim,) = site.objects(world.tail[1])
    victim.unlink()
    for target in (at_time(world.late), LATEST):
        with pytest.raises((WalError, DrError)) as caught:
            site.restore(target)
        assert world.tail[1] in caught.value.message + caught.value.hint
        assert not site.target_dir.exists()
        site.require_no_environment()
    # What lies before the hole can still be reached.
    assert site.restored_ids(at_time(world.between)) == list(range(1, 201))
    # The source fills it.
    site.push(site.spool / world.tail[1])
    assert site.restored_ids(at_time(world.late)) == list(range(1, 401))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_segment_that_vanishes_after_the_plan_never_promotes(world: World, site: Site, position: int) -> None:
    name = world.tail[position]
    (victim,) = site.objects(name)
    listener = Listener(on_step=lambda step: victim.unlink() if step == "replay WAL" else None)
    with pytest.raises(DrError) as caught:
        site.restore(LATEST, progress=listener)
    assert not victim.exists()
    assert name in caught.value.message
    site.require_never_promoted()
    site.push(site.spool / name)
    empty(site.target_dir)
    assert site.restored_ids(LATEST) == list(range(1, 501))


def test_swapped_wal_files_are_found(world: World, site: Site) -> None:
    (first,), (second,) = site.objects(world.tail[0]), site.objects(world.tail[1])
    swap(first, second)
    with pytest.raises(DrError) as caught:
        site.restore(LATEST)
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    site.require_never_promoted()
    assert {site.key_of(first), site.key_of(second)} <= verify(site)[0]


def test_swapped_snapshot_objects_are_both_unreadable_and_nothing_is_restored(world: World, site: Site) -> None:
    folder = site.repository_dir / PREFIX / "snapshots"
    swap(folder / world.newer.id, folder / world.older.id)
    with pytest.raises(DrError) as caught:
        site.restore(LATEST)
    assert "2 cannot be read" in caught.value.message
    assert not site.target_dir.exists()


def test_a_snapshot_moved_to_another_service_is_not_believed_there(world: World, site: Site) -> None:
    folder = site.repository_dir / "s" / "payroll" / "database" / "snapshots"
    folder.mkdir(parents=True)
    shutil.copy2(site.repository_dir / PREFIX / "snapshots" / world.newer.id, folder / world.newer.id)
    repository = site.repository()
    other = repository.scope(type(SERVICE)("payroll"), site.component.name)
    listing = repository.snapshots(other)
    assert listing.records == ()
    assert len(listing.unreadable) == 1


def test_a_pack_exchanged_for_another_is_found(world: World, site: Site) -> None:
    victim = only_of_the_newer(site, world, "packs")
    other = next(path for path in site.objects("/packs/") if path.name != victim.name)
    shutil.copyfile(other, victim)
    with pytest.raises(DrError) as caught:
        site.restore(LATEST)
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    site.require_not_restored()
    assert site.key_of(victim) in verify(site)[0]


def swap(first: Path, second: Path) -> None:
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def test_a_pack_that_vanishes_while_a_backup_runs_is_stored_again(site: Site) -> None:
    shared = max(site.objects("/packs/"), key=lambda path: path.stat().st_size)  # every snapshot lives on it
    size = shared.stat().st_size
    # The second look at re-used packs comes before pg_backup_stop: what vanished is read again.
    with TriggerStore(
        DirectoryStore(site.repository_dir),
        lambda _: shared.unlink(),
        operations=["create"],
        part="/packs/",
    ) as store:
        healed = site.backup(store).record
    assert healed.stored_bytes > size / 2
    assert site.restored_ids(end_of(healed))[:500] == list(range(1, 501))
