"""Retention and kill -9: whatever was deleted so far, what is left is whole, and the next run does the rest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.objectstore.directory import DirectoryStore
from drservice.operations.retention import RetentionState
from tests.doubles.retained import DELETIONS, Later, RetainedService
from tests.doubles.stores import When
from tests.faults.triggers import TriggerStore


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
def test_retention_killed_at_any_deletion_and_repeated_ends_as_if_nothing_had_happened(
    at: int, when: When, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    store = DirectoryStore(folder)
    service = RetainedService.filled(tmp_path, store)
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
