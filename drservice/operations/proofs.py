"""Which snapshots recovery was proved with: by drills and restores on record, and by a restore on this host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice.clock import from_iso
from drservice.errors import DrError, ObjectStoreError, ProofUnknownError
from drservice.model.estate import Service
from drservice.model.ids import SnapshotId
from drservice.operations.evidence import Evidence
from drservice.operations.ledgernotes import ProofNote, ledger_notes
from drservice.operations.measured import recall
from drservice.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """What is known to be recoverable."""

    snapshots: frozenset[SnapshotId]
    """Every snapshot with a proof."""
    last: frozenset[SnapshotId]
    """For each component the snapshots of its newest drill that passed and of its newest proven restore."""
    newest_at: datetime | None
    """When the newest proof was put on record."""


def proofs_of(repository: Repository, evidence: Evidence, service: Service, *, state_dir: Path) -> Proofs:
    """Return what recovery of a service was proved with.

    Raises:
        ProofUnknownError: the ledger cannot be read, or holds a record that nobody can believe: it may be a proof.
        ObjectStoreError: the store did not answer.
    """
    found = _found(evidence, service)
    last = {(item.kind, item.component): SnapshotId(item.snapshot) for item in found}
    here = set(_proved_here(repository, service, state_dir))
    return Proofs(
        snapshots=frozenset({SnapshotId(item.snapshot) for item in found} | here),
        last=frozenset({*last.values(), *here}),
        newest_at=max((from_iso(item.at) for item in found), default=None),
    )


def _found(evidence: Evidence, service: Service) -> list[ProofNote]:
    """Return the proofs in the ledger, oldest first."""
    try:
        notes = ledger_notes(evidence.ledger)
    except ObjectStoreError:
        raise
    except DrError as error:
        raise _unknown(service, error.message) from error
    if notes.last_unbelieved is not None:
        raise _unknown(service, notes.last_unbelieved[1])
    return notes.of(service.name).proofs


def _unknown(service: Service, problem: str) -> ProofUnknownError:
    return ProofUnknownError(f"the ledger cannot tell which snapshots of {service.name} were proved last: {problem}")


def _proved_here(repository: Repository, service: Service, state_dir: Path) -> Iterator[SnapshotId]:
    for component in service.databases():
        known = recall(state_dir, repository.scope(service.name, component.name))
        if known is not None and known.proved:
            yield SnapshotId(known.snapshot)
