"""Which snapshots recovery was proved with: by drills and restores on record, and by a restore on this host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice.errors import DrError, ObjectStoreError, ProofUnknownError
from drservice.evidence.statements import Statement
from drservice.model.estate import Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ComponentName, SnapshotId
from drservice.operations.evidence import Evidence
from drservice.operations.measured import recall
from drservice.repository.repository import Repository

_LOOKED_AT = 2000
_PASSED = {EvidenceKind.DRILL: "passed", EvidenceKind.RESTORE: "restored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """What is known to be recoverable."""

    snapshots: frozenset[SnapshotId]
    """Every snapshot with a proof, as far back as was looked."""
    last: frozenset[SnapshotId]
    """For each component the snapshots of its newest drill that passed and of its newest proven restore."""
    newest_at: datetime | None
    """When the newest proof was put on record."""


def proofs_of(repository: Repository, evidence: Evidence, service: Service, *, state_dir: Path) -> Proofs:
    """Return what recovery of a service was proved with.

    Raises:
        ProofUnknownError: the ledger cannot be read or believed, or its newest records do not reach back to a proof.
        ObjectStoreError: the store did not answer.
    """
    last: dict[tuple[EvidenceKind, ComponentName], SnapshotId] = {}
    proved: set[SnapshotId] = set()
    newest_at: datetime | None = None
    try:
        size = evidence.ledger.size()
        for entry in evidence.newest_first(service=service.name, most=_LOOKED_AT):
            statement = entry.signed.statement
            for component, snapshot in _proved_by(statement):
                last.setdefault((statement.kind, component), snapshot)
                proved.add(snapshot)
                newest_at = newest_at or statement.recorded_at
    except ObjectStoreError:
        raise
    except DrError as error:
        raise ProofUnknownError(
            f"the ledger cannot tell which snapshots of {service.name} were proved last: {error.message}"
        ) from error
    unproved = {name for name in service.components if not any(name == component for _, component in last)}
    if size > _LOOKED_AT and unproved:
        raise ProofUnknownError(
            f"none of the newest {_LOOKED_AT} records is a proof of {', '.join(sorted(unproved))} of {service.name}"
        )
    here = set(_proved_here(repository, service, state_dir))
    return Proofs(snapshots=frozenset(proved | here), last=frozenset({*last.values(), *here}), newest_at=newest_at)


def _proved_by(statement: Statement) -> Iterator[tuple[ComponentName, SnapshotId]]:
    """Yield what a record proves; a drill that was meant to fail proves nothing."""
    predicate = statement.predicate
    if statement.kind not in _PASSED or predicate["outcome"] != _PASSED[statement.kind]:
        return
    if predicate.get("mutation") is not None:
        return
    snapshots = predicate["snapshots"]
    assert isinstance(snapshots, list), "the schema was checked"
    for item in snapshots:
        assert isinstance(item, Mapping), "the schema was checked"
        yield ComponentName(str(item["component"])), SnapshotId(str(item["snapshot"]))


def _proved_here(repository: Repository, service: Service, state_dir: Path) -> Iterator[SnapshotId]:
    for component in service.databases():
        known = recall(state_dir, repository.scope(service.name, component.name))
        if known is not None and known.proved:
            yield SnapshotId(known.snapshot)
