"""Retention on real stores: a directory, whose process is killed for real, and S3 buckets with and without versions."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.opening import open_store
from drservice.operations.retention import RetentionState
from tests.doubles.retained import Later, RetainedService
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, moto_server
from tests.doubles.stores import When
from tests.faults.triggers import TriggerStore

DELETIONS = 2 + 2 + 5
"""Points, snapshots, and segments 1 to 5."""


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


def filled(tmp_path: Path, store: ObjectStore) -> RetainedService:
    """Three snapshots with their points and WAL; to a store of forty days later all but the newest have expired."""
    service = RetainedService.create(tmp_path, store=store)
    service.wal(1, 2, 3)
    for segment in (4, 5, 6):
        service.night(segment=segment, pause_days=0.0001)  # stores tell whole seconds, or ticks: names tell the order
    return service


@pytest.mark.parametrize("kind", ["directory", "PLAIN", "VERSIONED"])
def test_a_plan_changes_nothing_and_what_expired_is_gone_for_good(kind: str, tmp_path: Path) -> None:
    with store_of(kind, tmp_path) as store:
        service = filled(tmp_path, store)
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


def in_a_process(work: Callable[[], object]) -> int:
    """Do something in a process of its own and return the signal that ended it, 0 if none did."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - a child of a test must never come back into the test
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed by itself"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("at", [*range(1, DELETIONS + 1)])
def test_killed_at_any_deletion_and_repeated_it_ends_as_if_nothing_had_happened(
    at: int, when: When, tmp_path: Path
) -> None:
    with store_of("directory", tmp_path) as store:
        service = filled(tmp_path, store)
        doomed = TriggerStore(
            Later(store, days=40),
            lambda _: os.kill(os.getpid(), signal.SIGKILL),
            operations=["delete"],
            part="",
            at=at,
            when=when,
        )
        assert in_a_process(lambda: service.apply(doomed)) == signal.SIGKILL
        listing = service.site.repository().snapshots(service.site.scope)
        assert not listing.unreadable
        points = service.site.repository().points(service.service.name).listing().points
        assert {m.snapshot for point in points for m in point.members} <= {record.id for record in listing.records}
        assert service.apply(Later(store, days=40)).state is RetentionState.APPLIED
        assert service.segments() == [6]
        assert len(service.listing("/snapshots/")) == len(service.listing("/points/")) == 1
