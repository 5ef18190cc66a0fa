"""Which snapshots recovery was proved with: by drills and restores on record, and by a restore on this host.

A ledger only grows, so what was found in it once is kept in ``state_dir`` with how far was looked: the next look reads
what was added since. Without that file, or with another repository's, the whole ledger is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from drservice import telemetry
from drservice.clock import from_iso, to_iso
from drservice.errors import DrError, ObjectStoreError, ProofUnknownError
from drservice.evidence.statements import Statement
from drservice.model.estate import Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ComponentName, SnapshotId
from drservice.operations.evidence import Evidence
from drservice.operations.measured import recall
from drservice.processes import create_private, make_folder
from drservice.repository.repository import Repository

_PASSED = {EvidenceKind.DRILL: "passed", EvidenceKind.RESTORE: "restored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """What is known to be recoverable."""

    snapshots: frozenset[SnapshotId]
    """Every snapshot with a proof."""
    last: frozenset[SnapshotId]
    """For each component the snapshots of its newest drill that passed and of its newest proven restore."""
    newest_at: datetime | None
    """When the newest proof was put on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A proof in the ledger."""

    kind: str
    component: str
    snapshot: str
    at: str


def proofs_of(repository: Repository, evidence: Evidence, service: Service, *, state_dir: Path) -> Proofs:
    """Return what recovery of a service was proved with.

    Raises:
        ProofUnknownError: the ledger cannot be read or believed.
        ObjectStoreError: the store did not answer.
    """
    path = state_dir / "proofs" / f"{service.name}.json"
    try:
        found = _found(evidence, service, path)
    except ObjectStoreError:
        raise
    except DrError as error:
        raise ProofUnknownError(
            f"the ledger cannot tell which snapshots of {service.name} were proved last: {error.message}"
        ) from error
    last = {(item.kind, item.component): SnapshotId(item.snapshot) for item in found}
    here = set(_proved_here(repository, service, state_dir))
    return Proofs(
        snapshots=frozenset({SnapshotId(item.snapshot) for item in found} | here),
        last=frozenset({*last.values(), *here}),
        newest_at=max((from_iso(item.at) for item in found), default=None),
    )


def _found(evidence: Evidence, service: Service, path: Path) -> list[_Found]:
    """Return the proofs in the ledger, oldest first."""
    known, looked_at = _recalled(path, evidence)
    size = evidence.ledger.size()
    if looked_at > size:
        known, looked_at = [], 0  # of a ledger that was: this one is read from its beginning
    for number in range(looked_at, size):
        statement = evidence.ledger.entry(number).signed.statement
        if statement.service == service.name:
            known += [
                _Found(
                    kind=statement.kind.value,
                    component=component,
                    snapshot=snapshot,
                    at=to_iso(statement.recorded_at),
                )
                for component, snapshot in _proved_by(statement)
            ]
    if size > looked_at:
        _remember(path, evidence, known, size)
    return known


def _recalled(path: Path, evidence: Evidence) -> tuple[list[_Found], int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["repository"] != evidence.repository:
            return [], 0
        return [_Found(**item) for item in content["found"]], int(content["size"])
    except (OSError, ValueError, TypeError, KeyError):
        return [], 0  # never written, or not ours to read: the ledger has it all


def _remember(path: Path, evidence: Evidence, found: list[_Found], size: int) -> None:
    """Keep what was found; a disk that does not take it costs the next look, never this one."""
    temporary = path.with_suffix(f".{os.getpid()}")
    content = {"repository": evidence.repository, "size": size, "found": [asdict(item) for item in found]}
    try:
        make_folder(path.parent)
        try:
            with os.fdopen(create_private(temporary), "w", encoding="utf-8") as stream:
                stream.write(json.dumps(content))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        telemetry.warning("proofs not kept", path=str(path), problem=str(error))


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
