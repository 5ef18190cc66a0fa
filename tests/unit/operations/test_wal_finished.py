"""A segment that is still being written is not archived: the whole one could never follow it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.errors import WalError
from drservice.operations.wal import push_wal
from drservice.repository.walarchive import PutOutcome
from tests.doubles.repositories import Site
from tests.doubles.walhelpers import name_of, segment_content


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.create(tmp_path)


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    (tmp_path / "pg_wal" / "archive_status").mkdir(parents=True)
    return tmp_path / "pg_wal"


def push(site: Site, wal: Path, number: int) -> PutOutcome:
    return push_wal(site.repository(), site.scope, wal / name_of(number), state_dir=site.state_dir).outcome


def test_t16_a_segment_that_the_server_still_writes_is_refused_and_archived_when_it_is_finished(
    site: Site, wal: Path
) -> None:
    path = wal / name_of(4)
    path.write_bytes(segment_content(4, seed=1))
    (wal / name_of(5)).write_bytes(segment_content(2))  # recycled
    with pytest.raises(WalError, match="still being written"):
        push(site, wal, 4)
    assert not [key for key in site.keys("s/") if "/wal/" in key]
    path.write_bytes(segment_content(4, seed=2))
    (wal / "archive_status" / f"{name_of(4)}.ready").touch()
    assert push(site, wal, 4) is PutOutcome.STORED


def test_one_that_the_server_has_left_or_that_was_set_aside_is_archived(site: Site, wal: Path) -> None:
    for number in (4, 5):
        (wal / name_of(number)).write_bytes(segment_content(number))
    assert push(site, wal, 4) is PutOutcome.STORED
    (wal / "archive_status").rmdir()
    assert push(site, wal, 5) is PutOutcome.STORED
