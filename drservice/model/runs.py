"""Runs: one execution of an operation, its states, and the moves between them.

A run is planned by a slot of a schedule or asked for by somebody, waits in a queue, is claimed by a host under an
epoch, and ends. Every write of a claimed run names its epoch: a host that slept through the loss of its lease changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class RunKind(Enum):
    """What a run does."""

    BACKUP = "backup"
    VERIFY = "verify"
    DRILL = "drill"
    RESTORE = "restore"
    """An isolated restore; its environment stays until it is destroyed or expires."""
    DOCUMENTS = "documents"
    """A pass over documents between backups."""
    RETENTION = "retention"
    """Lets go of what has expired."""
    DESTROY = "destroy"
    """Ends an environment, on the host that has it."""


class RunState(Enum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    """It ended and something is missing from its result, which says what."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    MISSED = "missed"
    """Nobody was there when its slot came; caught up by another run or skipped by policy."""

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return not MOVES[self]


MOVES: Mapping[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED, RunState.FAILED}),
    RunState.RUNNING: frozenset(
        {RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED, RunState.QUEUED}
    ),
    RunState.SUCCEEDED: frozenset(),
    RunState.PARTIAL: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.MISSED: frozenset(),
}
"""From RUNNING back to QUEUED goes a run whose host died: it resumes from what it had uploaded."""
