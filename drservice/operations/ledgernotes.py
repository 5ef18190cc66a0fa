"""What the ledger says of each service, noted as it is read: the last drills, proofs, and findings that are open.

A ledger only grows, so every entry is read once on a host: what was found is kept beside the host's copy of its leaf
hashes, with how far was looked, and the next look reads what was added since. However old a proof or a finding is, it
is found. Without that file, with other keys that are believed, or with another ledger, all of it is read again.

Only what its signer may write counts. An entry that nobody can believe is noted by its number: whoever asks decides
whether what he looks for could stand there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from drservice import telemetry
from drservice.canonical import Json, canonical_bytes
from drservice.clock import to_iso
from drservice.errors import DrError, LedgerError, ObjectStoreError
from drservice.evidence.authority import Authority
from drservice.evidence.ledger import Entry, Ledger
from drservice.evidence.policy import LedgerPolicy
from drservice.evidence.statements import Statement
from drservice.model.evidence import EvidenceKind
from drservice.processes import create_private, make_folder

_VERSION = 1
_BATCH = 500
_READERS = 8
_PASSED = {EvidenceKind.DRILL: "passed", EvidenceKind.RESTORE: "restored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillNote:
    """An ordinary drill on record."""

    number: int
    at: str
    outcome: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingNote:
    """A finding that nothing has closed."""

    finding: str
    check: str
    severity: str
    drill_entry: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofNote:
    """A snapshot that recovery was proved with: by a drill that passed, or a proven restore."""

    kind: str
    component: str
    snapshot: str
    at: str


@dataclass(slots=True, kw_only=True)
class ServiceNotes:
    """What the ledger says of one service."""

    last_drill: DrillNote | None = None
    passed_drill: DrillNote | None = None
    findings: dict[str, FindingNote] = field(default_factory=dict)
    """Open ones, oldest first."""
    proofs: list[ProofNote] = field(default_factory=list)
    """Oldest first."""


@dataclass(slots=True, kw_only=True)
class LedgerNotes:
    """What the ledger says, up to ``size`` entries."""

    policy: str
    """Whose signatures were believed, by a hash."""
    size: int = 0
    tail: str = ""
    """SHA-256 of the last entry that was read: another ledger has another one."""
    ended: dict[str, int] = field(default_factory=dict)
    """Keys that entries have rotated out or revoked."""
    unbelieved: dict[int, str] = field(default_factory=dict)
    """Entries that nobody can believe, with the reason."""
    services: dict[str, ServiceNotes] = field(default_factory=dict)

    def of(self, service: str) -> ServiceNotes:
        """Return what is noted of a service."""
        return self.services.get(service, ServiceNotes())

    @property
    def last_unbelieved(self) -> tuple[int, str] | None:
        """The last entry that nobody can believe, with the reason; what is noted behind it stands."""
        return max(self.unbelieved.items(), default=None)

    def doubt_about(self, service: str) -> str | None:
        """Return why something newer than the proof of a service may be unknown, ``None`` if nothing is."""
        passed, last = self.of(service).passed_drill, self.last_unbelieved
        return None if last is None or (passed is not None and passed.number > last[0]) else last[1]


def ledger_notes(ledger: Ledger) -> LedgerNotes:
    """Bring the notes up to the ledger's end and return them.

    Raises:
        LedgerError, ObjectStoreError: the ledger cannot be read; what was read is noted.
    """
    path, policy = ledger.memory("notes"), _policy_hash(ledger.policy)
    size = ledger.size()
    notes = _recalled(path, policy)
    if notes is None or notes.size > size or not _is_of(ledger, notes):
        notes = LedgerNotes(policy=policy)
    authority = Authority(ledger.policy, ended=notes.ended)
    for first in range(notes.size, size, _BATCH):
        numbers = range(first, min(first + _BATCH, size))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="ledger") as pool:
            for number, found in zip(numbers, pool.map(partial(_read, ledger), numbers), strict=True):
                _note(notes, authority, number, found)
        notes.ended = dict(authority.ended)
        _remember(path, notes)
    return notes


def _read(ledger: Ledger, number: int) -> Entry | DrError:
    try:
        return ledger.entry(number)
    except (ObjectStoreError, LedgerError):
        raise
    except DrError as error:
        return error


def _note(notes: LedgerNotes, authority: Authority, number: int, found: Entry | DrError) -> None:
    notes.size = number + 1
    if isinstance(found, DrError):
        notes.unbelieved[number] = found.message
        notes.tail = ""
        return
    notes.tail = found.signed.sha256
    try:
        authority.judge(found)
    except DrError as error:
        telemetry.warning("a record is not believed", entry=number, problem=error.message)
        return
    statement = found.signed.statement
    if statement.service is None:
        return
    service = notes.services.setdefault(statement.service, ServiceNotes())
    if statement.kind is EvidenceKind.FINDING:
        _note_finding(service, statement)
    elif statement.kind in _PASSED and statement.predicate.get("mutation") is None:
        if statement.kind is EvidenceKind.DRILL:
            _note_drill(service, number, statement)
        if statement.predicate["outcome"] == _PASSED[statement.kind]:
            service.proofs.extend(_proofs(statement))


def _note_drill(service: ServiceNotes, number: int, statement: Statement) -> None:
    """Note a drill that was not meant to fail."""
    target = statement.predicate["target"]
    assert isinstance(target, Mapping), "the schema was checked"
    drill = DrillNote(
        number=number,
        at=to_iso(statement.recorded_at),
        outcome=str(statement.predicate["outcome"]),
        target=str(target["requested"]),
    )
    service.last_drill = drill
    if drill.outcome == "passed":
        service.passed_drill = drill


def _note_finding(service: ServiceNotes, statement: Statement) -> None:
    predicate = statement.predicate
    identifier, opened_by = str(predicate["finding"]), predicate["drill_entry"]
    if predicate["state"] == "closed":
        service.findings.pop(identifier, None)
        return
    service.findings[identifier] = FindingNote(
        finding=identifier,
        check=str(predicate["check"]),
        severity=str(predicate["severity"]),
        drill_entry=opened_by if isinstance(opened_by, int) else None,
    )


def _proofs(statement: Statement) -> Iterator[ProofNote]:
    snapshots = statement.predicate["snapshots"]
    assert isinstance(snapshots, list), "the schema was checked"
    for item in snapshots:
        assert isinstance(item, Mapping), "the schema was checked"
        yield ProofNote(
            kind=statement.kind.value,
            component=str(item["component"]),
            snapshot=str(item["snapshot"]),
            at=to_iso(statement.recorded_at),
        )


# --- the memory of it ---------------------------------------------------------------------------------------


def _policy_hash(policy: LedgerPolicy) -> str:
    """Return what changes with whose records are believed."""
    keys: list[list[Json]] = [
        [role, key.public_key.hex(), [*sorted(key.services)], key.from_entry, key.to_entry]
        for role, found in (("executor", policy.executors), ("approver", policy.approvers))
        for key in found
    ]
    logs: list[list[Json]] = [["log", key.public_key.hex(), [], key.from_size, key.to_size] for key in policy.log_keys]
    ordered: list[Json] = [*sorted([*keys, *logs], key=repr)]
    return hashlib.sha256(canonical_bytes(ordered)).hexdigest()


def _is_of(ledger: Ledger, notes: LedgerNotes) -> bool:
    """Tell whether the last entry that was read stands where it stood; one nobody believes proves nothing."""
    if notes.size == 0:
        return True
    if not notes.tail:
        return False
    try:
        return ledger.entry(notes.size - 1).signed.sha256 == notes.tail
    except ObjectStoreError:
        raise
    except DrError:
        return False


def _recalled(path: Path, policy: str) -> LedgerNotes | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["version"], content["policy"]) != (_VERSION, policy):
            return None
        return LedgerNotes(
            policy=policy,
            size=int(content["size"]),
            tail=str(content["tail"]),
            ended={str(key): int(number) for key, number in content["ended"].items()},
            unbelieved={int(number): str(reason) for number, reason in content["unbelieved"].items()},
            services={str(name): _service(item) for name, item in content["services"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # never written, or not ours to read: the ledger has it all


def _service(item: Any) -> ServiceNotes:  # noqa: ANN401 - JSON is anything; what does not fit is read again
    return ServiceNotes(
        last_drill=None if item["last_drill"] is None else DrillNote(**item["last_drill"]),
        passed_drill=None if item["passed_drill"] is None else DrillNote(**item["passed_drill"]),
        findings={str(name): FindingNote(**found) for name, found in item["findings"].items()},
        proofs=[ProofNote(**found) for found in item["proofs"]],
    )


def _remember(path: Path, notes: LedgerNotes) -> None:
    """Keep the notes; a disk that does not take them costs the next look, never this one."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        make_folder(path.parent)
        try:
            with os.fdopen(create_private(temporary), "w", encoding="utf-8") as stream:
                stream.write(json.dumps({"version": _VERSION, **asdict(notes)}))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        telemetry.warning("notes of the ledger not kept", path=str(path), problem=str(error))
