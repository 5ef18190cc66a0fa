"""Retention on real stores: a directory, and S3 buckets with and without versions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.opening import open_store
from drservice.operations.retention import RetentionState
from tests.doubles.retained import DELETIONS, Later, RetainedService
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, moto_server


@contextlib.contextmanager
def store_of(kind: str, tmp_path: Path) -> Iterator[ObjectStore]:
    """Give an empty store."""
    if kind == "directory":
        folder = tmp_path / "repository"
        folder.mkdir()
        yield DirectoryStore(folder)
        return
    buckets = MotoBuckets[kind]
    with moto_server(MotoBehaviour.CONDITIONAL, buckets) as server, server.credentials():
        yield open_store(server.url_for(f"retention-{kind.lower()}", "estate"), lock_dir=tmp_path / "locks")


@pytest.mark.parametrize("kind", ["directory", "PLAIN", "VERSIONED"])
def test_a_plan_changes_nothing_and_what_expired_is_gone_for_good(kind: str, tmp_path: Path) -> None:
    with store_of(kind, tmp_path) as store:
        service = RetainedService.filled(tmp_path, store)
        later = Later(store, days=40)
        before = service.site.sizes()
        assert service.inspect(later).state is RetentionState.PLANNED
        assert service.site.sizes() == before
        gone = service.listing("/points/")[:2] + service.listing("/snapshots/")[:2]
        outcome = service.apply(later)
        assert outcome.state is RetentionState.APPLIED
        assert outcome.removed is not None
        assert len(outcome.removed.points + outcome.removed.snapshots + outcome.removed.wal) == DELETIONS
        assert service.segments() == [6]
        assert not set(gone) & set(service.site.keys())
        assert all(not list(store.read_versions(key)) for key in gone), "no version of it is left either"
        (record,) = service.site.repository().snapshots(service.site.scope).records
        restored = service.site.restore(record.id, tmp_path / "restored")
        assert restored == {
            str(path.relative_to(service.site.source)): path.read_bytes()
            for path in service.site.source.rglob("*")
            if path.is_file()
        }
