"""Wrong identity, unknown signers, wrong clusters, foreign WAL, impossible targets: refused, nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.clock import SystemClock
from drservice.errors import (
    DrError,
    ExitStatus,
    ForeignSegmentError,
    KeyProblemError,
    NoIdentityError,
    SegmentConflictError,
    SystemIdentifierError,
    TargetDirectoryError,
    TargetOutsideWindowError,
    UnknownSignerError,
    WalError,
    WrongIdentityError,
)
from drservice.model.ids import SnapshotId, SystemId
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn, WalFileName
from drservice.operations.wal import fetch_wal
from drservice.repository.envelope import HostKey
from drservice.repository.keys import DataKey, Identities, make_identity
from drservice.repository.repository import Repository
from drservice.repository.walarchive import PutOutcome
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.faults.world import COMPONENT, LATEST, SERVICE, Listener, Site, World, at_time, flush_lsn


@pytest.fixture
def contents(site: Site) -> Callable[[], dict[str, bytes]]:
    """Reads all objects: to see that nothing was changed."""
    return lambda: {site.key_of(path): path.read_bytes() for path in site.objects()}


def stranger(site: Site) -> Repository:
    """Open the repository as a host that may write to the store but that nobody trusts."""
    trusted = site.repository()
    key = HostKey(host="stranger", private_key=Ed25519PrivateKey.generate())
    opened = site.repository()
    opened._host_key = key
    opened.trust._signers.update(trusted.trust._signers)
    return opened


# --- identities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "another"])
def test_without_the_right_identity_nothing_is_restored_and_the_reason_is_said(
    site: Site, tmp_path: Path, kind: str
) -> None:
    identities, status = Identities(), ExitStatus.USAGE
    expected: type[KeyProblemError] = NoIdentityError
    if kind == "another":
        other = tmp_path / "other.age"
        other.write_text(f"{make_identity()[0]}\n")
        identities, expected, status = Identities.load([f"file:{other}"]), WrongIdentityError, ExitStatus.INTEGRITY
    with pytest.raises(expected) as caught:
        site.restore(LATEST, repository=site.repository(identities=identities))
    assert caught.value.exit_status is status
    site.require_not_restored()


def test_an_identity_taken_away_after_the_plan_stops_the_restore(site: Site) -> None:
    repository = site.repository()

    def lose(step: str) -> None:
        if step == "fetch and place":
            repository.keyring.identities = Identities()
            repository.keyring._open.clear()

    with pytest.raises(NoIdentityError):
        site.restore(LATEST, repository=repository, progress=Listener(on_step=lose))
    site.require_not_restored()


def test_an_identity_taken_away_before_the_replay_never_promotes(site: Site) -> None:
    repository = site.repository()

    def lose(step: str) -> None:
        if step == "replay WAL":
            repository.keyring.identities = Identities()

    with pytest.raises(NoIdentityError):
        site.restore(LATEST, repository=repository, progress=Listener(on_step=lose))
    site.require_never_promoted()


def test_a_file_that_is_no_identity_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_text("AGE-SECRET-KEY-1NOTREALLY\n")
    with pytest.raises(KeyProblemError) as caught:
        Identities.load([f"file:{path}"])
    assert "NOTREALLY" not in caught.value.message + caught.value.hint


# --- signers ----------------------------------------------------------------------------------------------


def test_a_strangers_snapshot_is_listed_as_unreadable_and_never_chosen(
    world: World, site: Site, tmp_path: Path
) -> None:
    forged = site.backup(repository=stranger(site), state_dir=tmp_path / "strange-state").record
    listing = site.repository().snapshots(site.scope())
    ((key, error),) = listing.unreadable.items()
    assert key.endswith(forged.id)
    assert isinstance(error, UnknownSignerError)
    assert [record.id for record in listing.records] == [world.older.id, world.newer.id]
    listener = Listener()
    assert site.restore(at_time(world.late), progress=listener).planned.resolved.plan.snapshot.id == world.newer.id
    assert any(forged.id in note for note in listener.notes)
    assert any(forged.id in finding.key for finding in site.verify().findings)


def test_a_strangers_wal_is_not_replayed_and_the_real_one_can_be_pushed_beside_it(world: World, site: Site) -> None:
    name = world.tail[1]
    (victim,) = site.objects(name)
    victim.unlink()
    repository = stranger(site)
    archive = repository.wal(site.scope())
    data = bytearray((site.spool / name).read_bytes())
    data[-1] ^= 1
    system_id = world.newer.postgres.system_id
    put = archive.put(
        WalFileName.parse(name), bytes(data), system_id=system_id, last_write=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert put is PutOutcome.STORED
    with pytest.raises(UnknownSignerError) as caught:
        site.restore(LATEST)
    assert name in caught.value.message
    site.require_never_promoted()
    with pytest.raises(DrError):
        site.push(site.spool / name)  # says that what is there cannot be used, and stores the real one beside it
    assert site.push(site.spool / name).outcome is PutOutcome.ALREADY_THERE
    assert site.restored_ids(LATEST) == list(range(1, 501))


def test_a_strangers_wrapping_of_a_data_key_does_not_hide_the_real_one(world: World, site: Site) -> None:
    key_id = world.newer.sealed_key_id
    repository = stranger(site)
    repository.keyring.publish(
        DataKey(id=key_id, secret=bytes(32)),
        service=SERVICE,
        recipients=site.repository()._recipients,
        signer=repository.host_key,
        now=datetime(2020, 1, 1, tzinfo=UTC),  # sorts before the real one
    )
    assert len(site.objects(key_id)) == 2
    assert site.restored_ids(LATEST) == list(range(1, 501))


def test_only_a_strangers_wrapping_of_a_data_key_is_refused(world: World, site: Site) -> None:
    key_id = world.newer.sealed_key_id
    for path in site.objects(f"keys/{SERVICE}/{key_id}"):
        path.unlink()
    repository = stranger(site)
    repository.keyring.publish(
        DataKey(id=key_id, secret=bytes(32)),
        service=SERVICE,
        recipients=site.repository()._recipients,
        signer=repository.host_key,
        now=SystemClock().now(),
    )
    with pytest.raises(UnknownSignerError) as caught:
        site.restore(LATEST)
    assert str(world.older.id) in caught.value.hint
    site.require_not_restored()


# --- clusters and WAL -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(maker: ClusterMaker) -> Cluster:
    """A stopped cluster with an identity of its own, and one of its segments in ``root/segment``."""
    cluster = maker.make(wal_segment_mb=1, fresh=True)
    cluster.configure(archive_mode="on", archive_command="'true'")
    cluster.start()
    return cluster


def test_another_cluster_is_refused_and_nothing_is_uploaded(site: Site, foreign: Cluster) -> None:
    other = Site(root=site.root, dsn=foreign.dsn(), data_directory=foreign.data, spool=site.spool)
    before, packs = site.snapshots(), site.objects("/packs/")
    with pytest.raises(SystemIdentifierError) as caught:
        other.backup()
    assert caught.value.exit_status is ExitStatus.INTEGRITY
    assert before[0].postgres.system_id in caught.value.message
    assert site.snapshots() == before
    assert site.objects("/packs/") == packs
    site.require_sound(snapshots=2)


def test_another_clusters_data_directory_behind_the_right_dsn_is_refused(site: Site, foreign: Cluster) -> None:
    mixed = Site(root=site.root, dsn=site.dsn, data_directory=foreign.data, spool=site.spool)
    with pytest.raises(DrError):
        mixed.backup()
    site.require_sound(snapshots=2)


BadSegment = Callable[[bytes], bytes]
BAD_SEGMENTS: dict[str, tuple[BadSegment, str]] = {
    "of another cluster": (lambda b: b[:24] + (12345).to_bytes(8, "little") + b[32:], "system identifier 12345"),
    "of another position": (lambda b: b[:8] + (0).to_bytes(8, "little") + b[16:], "first page is of position"),
    "of another timeline": (lambda b: b[:4] + (9).to_bytes(4, "little") + b[8:], "timeline 9"),
    "of another version": (lambda b: (0xD000).to_bytes(2, "little") + b[2:], "page magic"),
    "cut off": (lambda b: b[: len(b) // 2], "bytes, a segment of this cluster has"),
    "empty": (lambda _: b"", "hold no WAL page header"),
    "zeroed": (lambda b: bytes(len(b)), "page magic"),
}


@pytest.mark.parametrize("kind", BAD_SEGMENTS)
def test_a_segment_that_is_not_what_its_name_says_is_refused_with_the_reason(
    world: World, site: Site, tmp_path: Path, contents: Callable[[], dict[str, bytes]], kind: str
) -> None:
    spoil, reason = BAD_SEGMENTS[kind]
    name = world.tail[-1]
    site.objects(name)[0].unlink()
    before = contents()
    path = tmp_path / name
    path.write_bytes(spoil((site.spool / name).read_bytes()))
    with pytest.raises(ForeignSegmentError) as caught:
        site.push(path)
    assert reason in caught.value.message
    assert contents() == before


def test_other_bytes_under_an_archived_name_are_refused_and_nothing_is_overwritten(
    world: World, site: Site, tmp_path: Path, contents: Callable[[], dict[str, bytes]]
) -> None:
    before = contents()
    path = tmp_path / world.tail[0]
    body = bytearray((site.spool / world.tail[0]).read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(SegmentConflictError):
        site.push(path)
    assert contents() == before
    assert site.push(site.spool / world.tail[0]).outcome is PutOutcome.ALREADY_THERE


def test_a_file_that_is_no_wal_is_refused(site: Site, tmp_path: Path, contents: Callable[[], dict[str, bytes]]) -> None:
    before = contents()
    path = tmp_path / "pg_hba.conf"
    path.write_text("local all all trust\n")
    with pytest.raises(ForeignSegmentError):
        site.push(path)
    with pytest.raises(WalError):
        site.push(tmp_path / "000000010000000000000001")  # not there
    assert contents() == before


def test_fetching_across_a_hole_is_never_the_end_of_the_wal(world: World, site: Site, tmp_path: Path) -> None:
    (victim,) = site.objects(world.tail[1])
    victim.unlink()
    repository = site.repository()
    with pytest.raises(DrError) as caught:
        fetch_wal(
            repository,
            repository.scope(SERVICE, COMPONENT),
            world.tail[1],
            tmp_path / "x",
            system_id=SystemId(world.newer.postgres.system_id),
        )
    assert caught.value.code == "DR213"
    assert world.tail[2] in caught.value.message
    assert not (tmp_path / "x").exists()


# --- targets ----------------------------------------------------------------------------------------------


def test_targets_outside_the_window_are_refused_with_the_window_and_nothing_is_written(
    world: World, site: Site
) -> None:
    beyond = Lsn(flush_lsn(world.cluster).value + (1 << 30))
    targets = (
        at_time(datetime.now(UTC) + timedelta(days=1)),
        at_time(world.older.stopped_at - timedelta(hours=1)),
        Target(kind=TargetKind.LSN, lsn=beyond),
        Target(kind=TargetKind.LSN, lsn=Lsn(1 << 20)),
        Target(kind=TargetKind.NAME, name="never-made"),
        Target(kind=TargetKind.XID, xid=2_000_000_000),
    )
    for target in targets:
        with pytest.raises(TargetOutsideWindowError) as caught:
            site.restore(target)
        assert world.older.id in caught.value.hint, "the hint tells the reachable window"
        assert not site.target_dir.exists()
        site.require_no_environment()
    with pytest.raises(DrError) as unknown:
        site.restore(Target(kind=TargetKind.SNAPSHOT, snapshot=SnapshotId("0" * 26)))
    assert unknown.value.exit_status is ExitStatus.USAGE


def test_a_target_directory_that_is_not_empty_is_left_as_it_is(site: Site, tmp_path: Path) -> None:
    site.target_dir.mkdir()
    (site.target_dir / "precious").write_text("do not touch")
    link = tmp_path / "link"
    link.symlink_to(site.target_dir)
    plain = tmp_path / "plain"
    plain.write_text("a file")
    for place in (site.target_dir, link, plain):
        with pytest.raises(TargetDirectoryError) as caught:
            site.restore(LATEST, into=place)
        assert caught.value.exit_status is ExitStatus.USAGE
    assert [path.name for path in site.target_dir.iterdir()] == ["precious"]
    assert plain.read_text() == "a file"
    site.require_no_environment()
