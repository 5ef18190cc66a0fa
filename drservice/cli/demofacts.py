"""What the demo saw, as values: what its judgement, its JSON document and its report are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import ClassVar

from drservice.cli.oracle import Comparison, Exposure, Order
from drservice.model.runs import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """One recovery point in numbers. ``snapshot``: the database's; sizes are those of all components."""

    point: str
    snapshot: str
    started_at: datetime
    stopped_at: datetime
    """End of the database's snapshot: the instant the point stands for."""
    source_bytes: int
    read_bytes: int
    stored_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFacts:
    """What became of the documents."""

    comparison: Comparison
    """Seen from those who filed them."""
    expected: int
    """The restore's own count of documents that the recovered rows refer to."""
    missing: int
    corrupt: int
    rows: int
    """Rows in the recovered database that refer to a document."""
    root: str
    """The recovered filestore."""
    rpo_seconds: float
    """The longest time that a filed document had to wait for the end of a pass that has it."""
    rpo_promised_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillFacts:
    """How the drill ended."""

    passed: bool
    reasons: tuple[str, ...]
    target: str
    kind: str
    checks: int
    checks_passed: int
    not_tested: tuple[str, ...]
    destroyed: bool
    rto_ms: int | None
    rpo_ms: int | None
    record: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MutationFacts:
    """How the drill ended that had to fail."""

    mutation: str
    detected: bool
    """It failed, and for the right reason."""
    noticed: tuple[str, ...]
    record: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFacts:
    """The ledger and its bundle."""

    records: int
    anchored: int
    """How many of them a second store vouches for."""
    verified: bool
    """The bundle's own verifier, in a process of its own, found nothing wrong."""
    told: str
    """Its last word."""
    bundle_bytes: int
    report_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NightFacts:
    """What became of a night's backup, as the catalogue has it; instants of the catalogue's week."""

    day: date
    slot: datetime
    state: RunState
    """Of what stands for the slot: its own run, or the note that it was missed."""
    run: str
    """The run that made the backup: the slot's own, or the one that caught up."""
    run_state: RunState
    started_at: datetime | None
    not_before: datetime | None
    """Until when the calendar had it wait."""
    point: str | None
    stored_bytes: int
    seconds: float
    """From its claim to its end."""

    @property
    def caught_up(self) -> bool:
        """Whether it was missed and another run made up for it."""
        return self.state is RunState.MISSED and self.run_state is RunState.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledFacts:
    """A run of another schedule."""

    slot: datetime
    run: str
    state: RunState
    host: str | None
    """Who did it."""
    verdict: str | None
    """Of a drill."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeFacts:
    """A message as it arrived."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFacts:
    """What a catalogue knows that the store can tell it again."""

    points: frozenset[tuple[str, str]]
    """Id and state of each recovery point."""
    windows: frozenset[tuple[str, int, int]]
    """Component, timeline and first position of each stretch of WAL."""
    reaches: int
    """Up to which position the WAL reaches, all stretches together."""
    records: frozenset[tuple[int, str]]
    """Number and hash of each record of the ledger."""
    runs: int
    """Rows of runs, which are the catalogue's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """The catalogue before it was destroyed, right after it was made anew, and after ``rebuild``."""

    before: KnownFacts
    empty: KnownFacts
    after: KnownFacts
    was_gone: bool
    """Server ended and folder removed."""
    seconds: float
    """From the empty catalogue to the end of ``rebuild``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeekFacts:
    """The week that ``up`` protected the plant by itself."""

    holiday: date
    fault: date
    loss_on: date
    drill_on: date
    expected_to_wait: frozenset[date]
    nights: tuple[NightFacts, ...]
    verification: ScheduledFacts
    drill: ScheduledFacts
    messages: tuple[NoticeFacts, ...]
    """Everything that on-call was told."""
    loss: LossFacts
    points: frozenset[str]
    """What the catalogue knows at the end of the week."""
    first_stored_bytes: int
    seconds: float

    @property
    def missed(self) -> NightFacts:
        """The night of the fault."""
        return next(night for night in self.nights if night.day == self.fault)

    @property
    def notices(self) -> tuple[NoticeFacts, ...]:
        """The messages that are about the missed slot."""
        slot = self.missed.slot.strftime("%Y-%m-%dT%H:%M:%S")
        return tuple(message for message in self.messages if "missed" in message.title and slot in message.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLossFacts:
    """What the loss of the database's machine cost, seen from those who entered orders."""

    PROMISED_SECONDS: ClassVar[float] = 1.0
    """How old an acknowledged order may be that is lost with the machine."""

    acknowledged: int
    """Orders sold that were acknowledged before the machine died, today's all."""
    entered: int
    """Of the last shift, in the middle of which it died."""
    lost: tuple[str, ...]
    unwanted: tuple[str, ...]
    """There, not whole or never entered by anybody."""
    lost_seconds: float
    """From the oldest lost acknowledgement to the end of the machine; 0 if none is lost."""
    died_at: datetime
    seconds: float
    """From its end until a server with what was recovered answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the demo measured."""

    week: WeekFacts | None = None
    """``None``: the story was told without it."""

    backups: tuple[BackupFacts, ...]
    exposures: tuple[Exposure, ...]
    """Committed work at risk, looked at many times between the first backup and the decision."""
    orders: tuple[Order, ...]
    found: frozenset[str]
    """Numbers of the orders in the recovered database."""
    comparison: Comparison
    documents: DocumentFacts
    history_rows: int
    history_is_the_same: bool
    mistake_is_real: bool
    """Production has lost the table."""
    host_cannot_read: bool
    """The production host could not open what it had written."""
    target: datetime
    dropped_at: datetime
    decided_at: datetime
    used_snapshot: str
    used_from: datetime
    reached: datetime | None
    """Time of the last transaction replayed."""
    probes: int
    phases: Mapping[str, float]
    rto_seconds: float
    """From the decision to the end of the checks, waiting for the last WAL included."""
    rpo_promised_seconds: float
    rto_promised_seconds: float
    drill: DrillFacts
    mutation: MutationFacts
    host_loss: HostLossFacts
    evidence: EvidenceFacts
    repository_bytes: int
    environment: str
    dsn: str

    @property
    def worst(self) -> Exposure:
        """The look at which the most time was at risk."""
        return max(self.exposures, key=lambda seen: seen.seconds)

    def breached(self) -> bool:
        """Tell whether a promise was not kept although nothing was wrong."""
        return (
            self.worst.seconds > self.rpo_promised_seconds
            or self.rto_seconds > self.rto_promised_seconds
            or self.documents.rpo_seconds > self.documents.rpo_promised_seconds
            or self.host_loss.lost_seconds > HostLossFacts.PROMISED_SECONDS
        )
