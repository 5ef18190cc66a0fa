"""What an evidence report says: values only, no judgement, no layout.

``reportbuilding`` makes a :class:`Report` from the ledger's entries and what the caller knows of the estate;
``reportview`` turns it into words; ``reporthtml`` and ``reportpdf`` set the words.

The report is written *as of the end of its period*: nothing in it depends on the hour at which it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from drservice.evidence.reportentries import (
    AccessEntry,
    ApprovalEntry,
    BackupEntry,
    DrillEntry,
    FailureEntry,
    FindingEntry,
    Gravity,
    KeyEntry,
    MissedEntry,
    ObligationEntry,
    ProbeEntry,
    Promise,
    RestoreEntry,
    RetentionEntry,
    Unreadable,
)

# --- what the caller knows ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From ``begin`` up to, but without, ``end``; aware."""

    begin: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.begin.tzinfo is None or self.end.tzinfo is None or self.begin >= self.end:
            raise ValueError("a period begins before it ends, both with a time zone")

    def holds(self, instant: datetime) -> bool:
        """Tell whether an instant lies in the period."""
        return self.begin <= instant < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFacts:
    """A component of a service: whether anything backs it up, and why not."""

    name: str
    kind: str
    is_protected: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """A service as the configuration declares it."""

    name: str
    owner: str = ""
    tier: int | None = None
    promise: Promise = field(default_factory=Promise)
    components: tuple[ComponentFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Something that can be drilled. ``service`` is ``None`` where it can be drilled with every service."""

    name: str
    """A drill plan's name, or a mutation's."""
    text: str = ""
    service: str | None = None
    is_mutation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFacts:
    """A place outside the repository that holds a checkpoint of the log."""

    name: str
    tree_size: int
    anchored_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFacts:
    """Which log the report is about. ``root_hash`` is the root of the tree of ``tree_size`` entries, in hex."""

    repository: str
    origin: str
    tree_size: int
    root_hash: str
    anchors: tuple[AnchorFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """Everything that is not in the entries."""

    ledger: LedgerFacts
    period: Period
    services: tuple[ServiceFacts, ...]
    """All services of the estate, also those nobody protects: a report that leaves them out hides them."""
    scenarios: tuple[Scenario, ...] = ()
    only_service: str | None = None
    """Say nothing about other services (the bundle holds all entries all the same)."""


# --- what the report says -----------------------------------------------------------------------------------


class Keeping(Enum):
    """One promise beside what was measured."""

    KEPT = "kept"
    BREACHED = "breached"
    NOT_MEASURED = "not measured"
    NOT_PROMISED = "nothing promised"


class BackedUp(Enum):
    """Whether a service is backed up. Says nothing about recoverability."""

    COMPLETE = "backed up"
    DEGRADED = "degraded"
    PARTIAL = "partial"
    FAILED = "last backup failed"
    NEVER = "never backed up"


class Verified(Enum):
    """Whether a drill has shown that a service comes back. A state of its own."""

    IN_PERIOD = "verified"
    BEFORE = "verified before the period"
    FAILED = "last drill failed"
    NEVER = "not verified"


class Standing(Enum):
    """What to think of a service, at a glance."""

    PROVED = "proved"
    ATTENTION = "attention"
    BREACHED = "breached"
    NOT_PROVED = "not proved"


class DrillVerdict(Enum):
    """A drill's outcome, read with what it was for."""

    PASSED = "passed"
    FAILED = "failed"
    ABORTED = "aborted"
    DETECTED = "must fail, and did"
    UNDETECTED = "must fail, but passed"


class ObligationState(Enum):
    """What became of something that was promised to be tested, at the end of the period."""

    ANSWERED = "answered"
    LATE = "answered late"
    OPEN = "open"
    MISSED = "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Obligation:
    """An obligation and its answer. ``answered_after``: the entry that answered it only after the period."""

    entry: ObligationEntry
    state: ObligationState
    answer: DrillEntry | None
    verdict: DrillVerdict | None
    answered_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A drill in the period.

    ``objections`` are contradictions between the drill and what was written down before it: other criteria, a seed that
    is not the committed one, promised checks that were not run.
    """

    entry: DrillEntry
    obligation: ObligationEntry | None
    verdict: DrillVerdict
    chosen_by_seed: datetime | None
    """The instant that the seed chooses in the obligation's window, worked out anew; ``None`` for other targets."""
    checks_not_run: tuple[str, ...]
    objections: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One objective over the period: the last value, the worst, and from how many drills."""

    promised_ms: int | None
    last_ms: int | None
    worst_ms: int | None
    samples: int
    keeping: Keeping


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePosture:
    """The state of one service at the end of the period."""

    facts: ServiceFacts
    is_declared: bool
    """Whether the configuration knows the service; one that only the ledger knows is shown too."""
    standing: Standing
    rpo: Measured
    rto: Measured
    backed_up: BackedUp
    last_backup: BackupEntry | None
    """The last one that left a recovery point."""
    verified: Verified
    last_passed: DrillEntry | None
    drills: int
    """In the period, mutation drills not counted."""
    overdue: int
    open_obligations: int
    open_findings: int
    unprotected: tuple[ComponentFacts, ...]


class DeviationKind(Enum):
    """Kinds of exceptions, the gravest first."""

    UNDETECTED = "mutation not detected"
    CONTRADICTION = "contradiction"
    UNREADABLE = "entry not understood"
    ISOLATION = "isolation broken"
    DRILL_FAILED = "drill failed"
    DRILL_ABORTED = "drill aborted"
    OBLIGATION_MISSED = "drill missed"
    OBJECTIVE = "promise breached"
    DOCUMENTS = "documents missing"
    RESTORE = "restore incomplete"
    BACKUP = "backup incomplete"
    SLOT_MISSED = "slot missed"
    RUN_FAILED = "run failed"
    RETENTION = "retention"
    CHECK = "check not passed"
    FINDING = "finding open"
    PROBE = "probe failed"
    UNPROTECTED = "not protected"
    LEFT_BEHIND = "environment left behind"
    LATE = "drill late"
    KEPT_ASIDE = "recorded later"
    REJECTED = "rejected"
    NOT_ANCHORED = "not anchored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One exception: something that is not as promised."""

    kind: DeviationKind
    gravity: Gravity
    service: str | None
    text: str
    entries: tuple[int, ...]
    at: datetime | None


class GapKind(Enum):
    """Why something was not tested."""

    SERVICE = "service without a drill"
    COMPONENT = "component without a backup"
    SCENARIO = "scenario not exercised"
    CHECK = "check not run"
    SAID = "said by the drill"
    SCOPE = "outside of any drill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that was not tested, so that nobody takes it for tested."""

    kind: GapKind
    subject: str
    text: str
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageCell:
    """One scenario with one service: how often in the period, and when last at all."""

    runs: int
    last: DrillEntry | None
    verdict: DrillVerdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """One scenario; ``cells`` follow the report's services, ``None`` where it does not apply."""

    scenario: Scenario
    cells: tuple[CoverageCell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupTally:
    """Backups of one service in the period, by outcome."""

    service: str
    total: int
    complete: int
    degraded: int
    partial: int
    failed: int
    first_at: datetime | None
    last_at: datetime | None
    longest_gap_ms: int | None
    """The longest time in the period without a new recovery point, the period's ends included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpan:
    """A key of the ledger and the entries for which it counts."""

    entry: KeyEntry
    ended_by: int | None
    """The entry that rotated or revoked it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything an evidence report says."""

    ledger: LedgerFacts
    period: Period
    only_service: str | None
    newest_at: datetime | None
    """When the newest readable entry was recorded."""
    posture: tuple[ServicePosture, ...]
    deviations: tuple[Deviation, ...]
    drills: tuple[Drill, ...]
    restores: tuple[RestoreEntry, ...]
    gaps: tuple[Gap, ...]
    coverage: tuple[CoverageRow, ...]
    obligations: tuple[Obligation, ...]
    backups: tuple[BackupTally, ...]
    findings: tuple[FindingEntry, ...]
    """Of each finding that was open at some time in the period, its last entry."""
    approvals: tuple[ApprovalEntry, ...]
    probes: tuple[ProbeEntry, ...]
    missed: tuple[MissedEntry, ...]
    failures: tuple[FailureEntry, ...]
    retention: tuple[RetentionEntry, ...]
    access: tuple[AccessEntry, ...]
    keys: tuple[KeySpan, ...]
    unreadable: tuple[Unreadable, ...]
    populations: tuple[tuple[str, int, int], ...]
    """(kind, entries in the ledger, entries in the period)."""
