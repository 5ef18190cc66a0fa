"""Ledger entries as typed values, for reports: nouns only. ``reportreading`` makes them from statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeAlias

from drservice.canonical import Json


class BackupOutcome(Enum):
    """How a backup ended."""

    COMPLETE = "complete"
    DEGRADED = "degraded"
    PARTIAL = "partial"
    FAILED = "failed"


class RestoreOutcome(Enum):
    """How a restore ended."""

    RESTORED = "restored"
    PARTIAL = "partial"
    FAILED = "failed"


class DrillOutcome(Enum):
    """How a drill ended. A drill that must fail and did is ``FAILED`` here."""

    PASSED = "passed"
    FAILED = "failed"
    ABORTED = "aborted"


class CheckOutcome(Enum):
    """What a check found; one that could not be run has not passed."""

    PASSED = "passed"
    FAILED = "failed"
    UNVERIFIED = "unverified"


class Gravity(Enum):
    """How much a failed check weighs."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedEntry:
    """One entry as the caller decoded it: its number, the in-toto statement, who signed it (names or fingerprints)."""

    number: int
    statement: Mapping[str, Json]
    signers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What every entry has."""

    number: int
    kind: str
    service: str | None
    host: str
    run: str | None
    recorded_at: datetime
    tool: str
    is_kept_aside: bool
    """The ledger could not be written at the time; the entry was appended later."""
    signers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """An error as an entry holds it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One component in a backup."""

    component: str
    kind: str
    state: str
    snapshot: str | None
    missing_in_production: int
    corrupt_in_production: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupEntry:
    """A backup."""

    stamp: Stamp
    outcome: BackupOutcome
    point: str | None
    started_at: datetime | None
    ended_at: datetime | None
    components: tuple[Captured, ...]
    error: Trouble | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which instant was asked for and which was reached."""

    requested: str | None
    kind: str | None
    reached_time: datetime | None
    reached_lsn: str | None
    timeline: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Documents counted after a restore."""

    expected: int
    missing: int
    corrupt: int
    extra: int
    missing_in_production: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question of the isolation self-test, or one result of a probe of the repository."""

    name: str
    is_good: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """What a restore and a drill have in common."""

    target: Target | None
    point: str | None
    snapshots: tuple[tuple[str, str], ...]
    phases_ms: tuple[tuple[str, int | None], ...]
    rto_ms: int | None
    documents: Documents | None
    isolation: tuple[Probe, ...]
    environment: str | None
    error: Trouble | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreEntry:
    """A restore that somebody needed."""

    stamp: Stamp
    outcome: RestoreOutcome
    restoration: Restoration


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question asked of the recovered service, and the answer."""

    name: str
    state: CheckOutcome
    gravity: Gravity
    is_not_applicable: bool
    """The question makes no sense for this service: it counts for nothing."""
    owner: str | None
    duration_ms: int | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Objectives in milliseconds; ``None`` where nothing is promised."""

    rpo_ms: int | None = None
    rto_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillEntry:
    """The outcome of a drill."""

    stamp: Stamp
    outcome: DrillOutcome
    restoration: Restoration
    obligation: str
    obligation_entry: int | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    rpo_ms: int | None
    target_accuracy_ms: int | None
    promised: Promise
    not_tested: tuple[str, ...]
    seed: str | None
    mutation: str | None
    is_destroyed: bool
    is_kept: bool
    findings: tuple[str, ...]
    challenge_nonce: str | None
    challenge_lsn: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObligationEntry:
    """What was promised to be tested, written before the test."""

    stamp: Stamp
    obligation: str
    what: str
    plan: str
    plan_sha256: str
    due_at: datetime | None
    promised: Promise
    counts_documents: bool
    checks: tuple[tuple[str, Gravity], ...]
    """Every planned check by name, and how much it weighs."""
    target_kind: str
    target_time: datetime | None
    target_from: datetime | None
    target_to: datetime | None
    seed_commitment: str | None
    mutation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalEntry:
    """A person's decision about an entry."""

    stamp: Stamp
    entry: int
    approver: str
    decision: str
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEntry:
    """A probe of the repository or the store."""

    stamp: Stamp
    probe: str
    is_passed: bool
    results: tuple[Probe, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingEntry:
    """A deficiency that was opened or closed."""

    stamp: Stamp
    finding: str
    is_open: bool
    check: str
    gravity: Gravity
    owner: str | None
    drill_entry: int | None
    detail: str
    due_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A key that was added, rotated or revoked."""

    stamp: Stamp
    action: str
    name: str
    role: str
    public: str
    services: tuple[str, ...]
    previous: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedEntry:
    """Slots of a schedule for which nobody was there."""

    stamp: Stamp
    kind: str
    plan: str | None
    slots: tuple[datetime, ...]
    reason: str
    caught_up_by: str | None
    """The run that makes up for them; ``None``: none does."""
    noticed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEntry:
    """A run of a schedule that ended without its result."""

    stamp: Stamp
    kind: str
    plan: str | None
    outcome: str
    """failed | cancelled."""
    scheduled_for: datetime
    claims: int
    ended_at: datetime
    error: Trouble | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionEntry:
    """What may expire was let go, or marked, or kept."""

    stamp: Stamp
    action: str
    outcome: str
    plan_sha256: str
    planned: tuple[tuple[str, int | None], ...]
    removed: tuple[tuple[str, int | None], ...]
    refused: int
    kept: tuple[tuple[str, int], ...]
    """(why, how many snapshots)."""
    last_verified: tuple[tuple[str, str], ...]
    """(component, snapshot) that stayed because recovery was last proved with them."""
    anomalies: tuple[str, ...]
    is_accepted: bool
    error: Trouble | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessEntry:
    """A day of the access log, in a digest."""

    stamp: Stamp
    log: str
    day: str
    lines: int
    late: int
    sha256: str
    succeeded: int
    refused: int
    failed: int
    sign_ins_refused: int
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An entry that is in the ledger but that this version cannot tell the meaning of."""

    number: int
    reason: str


Entry: TypeAlias = (
    BackupEntry
    | RestoreEntry
    | DrillEntry
    | ObligationEntry
    | ApprovalEntry
    | ProbeEntry
    | FindingEntry
    | KeyEntry
    | MissedEntry
    | FailureEntry
    | RetentionEntry
    | AccessEntry
)
