"""Recovery points as objects: members for everybody, the baseline for readers, nothing believed that was moved."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.canonical import Json
from drservice.errors import DamagedObjectError, MissingObjectError, NoIdentityError, UnknownSignerError
from drservice.model.ids import PointId, ServiceName
from drservice.model.points import PointState, RecoveryPoint, instant_of, member_of, state_of
from drservice.objectstore.memory import MemoryStore
from drservice.repository import layout
from drservice.repository.keys import Identities
from tests.doubles.repositories import Site, new_host

ERP = ServiceName("erp")
SECRET: Mapping[str, Json] = {"baselines": {"database": {"values": {"posted": "17"}}}}


def publish(site: Site, *, minutes: int = 0) -> RecoveryPoint:
    """Capture a snapshot and publish the point it makes."""
    site.write({"base/1/1259": b"page" * 2048})
    members = [member_of(site.capture())]
    repository = site.repository()
    return repository.points(ERP).publish(
        members,
        at=instant_of(members) + timedelta(minutes=minutes),
        state=state_of(members),
        secret=SECRET,
        signer=repository.host_key,
        now=site.clock.now(),
    )


def test_a_point_is_read_as_it_was_published(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    point = publish(site)
    points = site.repository(identities=site.identities()).points(ERP)
    listing = points.listing()
    assert listing.points == (point,)
    assert listing.unreadable == {}
    assert points.secret(point.id) == SECRET
    (member,) = point.members
    assert member.position is not None
    assert (point.state, member.component, member.kind) == (PointState.COMPLETE, "database", "postgres")


def test_points_are_listed_by_the_instant_they_stand_for(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    late, early = publish(site, minutes=5), publish(site)
    assert site.repository().points(ERP).listing().points == (early, late)


def test_who_writes_a_point_cannot_read_its_baseline(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    point = publish(site)
    writer = site.repository(identities=Identities()).points(ERP)
    assert writer.listing().points == (point,)
    with pytest.raises(NoIdentityError):
        writer.secret(point.id)
    assert b"posted" not in site.store.read(layout.point_key(ERP, point.id))


def test_a_point_under_another_name_or_by_a_stranger_is_told_and_not_listed(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    point = publish(site)
    moved = layout.point_key(ERP, PointId("01KG9YS7G0B3Y99BTPKZ2W4MAF"))
    site.store.create(moved, site.store.read(layout.point_key(ERP, point.id)))
    stranger = new_host("stranger")
    by_stranger = (
        site.repository()
        .points(ERP)
        .publish(point.members, at=point.at, state=point.state, secret=SECRET, signer=stranger, now=site.clock.now())
    )
    listing = site.repository().points(ERP).listing()
    assert listing.points == (point,)
    problems = {key: type(error) for key, error in listing.unreadable.items()}
    assert problems == {moved: DamagedObjectError, layout.point_key(ERP, by_stranger.id): UnknownSignerError}


def test_a_changed_body_is_noticed(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    point = publish(site)
    key = layout.point_key(ERP, point.id)
    body = bytearray(site.store.read(key))
    body[-1] ^= 1
    other = MemoryStore()
    for info in site.store.list(""):
        other.create(info.key, bytes(body) if info.key == key else site.store.read(info.key))
    points = site.repository(store=other, identities=site.identities()).points(ERP)
    assert list(points.listing().unreadable) == [key]
    with pytest.raises(DamagedObjectError):
        points.secret(point.id)


def test_what_is_no_point_is_passed_over_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    site.store.create("s/erp/points/README", b"not ours")
    points = site.repository(identities=site.identities()).points(ERP)
    assert points.listing().points == ()
    assert points.listing().unreadable == {}
    with pytest.raises(MissingObjectError):
        points.secret(PointId("01KG9YS7G0B3Y99BTPKZ2W4MAF"))
