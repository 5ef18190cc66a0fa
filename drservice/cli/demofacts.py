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
    exposures: tuple[Exposure, ...]
    """Filed documents that the repository had not yet, looked at as often as the orders."""
    rpo_promised_seconds: float

    @property
    def worst(self) -> Exposure:
        """The look at which the most time was at risk."""
        return max(self.exposures, key=lambda seen: seen.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeutralFacts:
    """What was done to the drill's copy so that it reaches nobody, as the drill itself has it."""

    scripts: tuple[str, ...]
    """Modules whose own script was run."""
    mails_held: int
    mail_servers_off: int
    scheduled_actions_off: int
    questions: int
    """How often the copy was asked afterwards whether something still reaches out, and does not."""
    production_is_as_it_was: bool
    """In production as many mails wait, and servers and actions are on, as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillFacts:
    """How the drill ended."""

    passed: bool
    reasons: tuple[str, ...]
    target: str
    kind: str
    checks: int
    checks_passed: int
    odoo_checks: int
    """Of those that passed, how many asked for what Odoo itself relies on."""
    neutral: NeutralFacts | None
    """``None``: the copy was not neutralized."""
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
class DocumentLossFacts:
    """What the loss of the machine cost in documents, seen from those who filed them."""

    PROMISED_SECONDS: ClassVar[float] = 5.0
    """How old an acknowledged document may be that is lost with the machine."""

    acknowledged: int
    """Filed and acknowledged before the machine died, those that were there from the beginning too."""
    filed: int
    """Of the last shift."""
    lost: tuple[str, ...]
    """Acknowledged, and the document or its row is gone."""
    lost_seconds: float
    """From the oldest lost acknowledgement to the end of the machine; 0 if none is lost."""
    dangling: tuple[str, ...]
    """Rows that came back without their document."""
    unwanted: tuple[str, ...]
    """There with other content than was filed, or filed by nobody."""
    told_missing: int
    """The restore's own count of rows without a document."""
    told_corrupt: int
    behind_seconds: float | None
    """How much older than the rows the newest look at the documents was, as the restore says; ``None``: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentFacts:
    """What came back of the lost machine at the newest instant that rows and documents share."""

    PROMISED_SECONDS: ClassVar[float] = DocumentLossFacts.PROMISED_SECONDS
    """It is as old as the documents are."""

    orders_lost: int
    """Acknowledged before the machine died, and newer than that instant."""
    documents_lost: int
    lost_seconds: float
    """Age of the oldest of both."""
    dangling: tuple[str, ...]
    """Rows without their document: there must be none."""
    unwanted: tuple[str, ...]
    """Orders and documents that are torn, of other content, or nobody's."""
    told_missing: int
    """The restore's own count of rows without a document."""
    seconds: float
    """Until the recovered server ran, beside the other recovery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneFacts:
    """What became of the clone with the configuration."""

    commit: str
    """Where it was."""
    recovered: str | None
    """Where the one is that came back; ``None``: it is no clone."""
    has_edits: bool
    """What was not committed came back, too."""

    @property
    def is_same(self) -> bool:
        """Whether everything came back."""
        return self.recovered == self.commit and self.has_edits


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLossFacts:
    """What the loss of the plant's machine cost, seen from those who entered orders and filed documents."""

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
    documents: DocumentLossFacts
    consistent: ConsistentFacts
    """The same loss, recovered the other way."""
    clone: CloneFacts | None
    """``None``: git is not installed, and the configuration is a plain folder."""
    died_at: datetime
    seconds: float
    """From its end until a server with what was recovered answered."""

    @property
    def effective_rpo_seconds(self) -> float:
        """The larger loss of the two: the service is as old as the older half of it."""
        return max(self.lost_seconds, self.documents.lost_seconds)

    def breached(self) -> bool:
        """Tell whether more was lost than is promised, or nobody had looked at the documents for longer than that."""
        documents = self.documents
        return (
            self.lost_seconds > self.PROMISED_SECONDS
            or documents.lost_seconds > documents.PROMISED_SECONDS
            or (documents.behind_seconds is not None and documents.behind_seconds > documents.PROMISED_SECONDS)
            or self.consistent.lost_seconds > ConsistentFacts.PROMISED_SECONDS
        )


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
            or self.documents.worst.seconds > self.documents.rpo_promised_seconds
            or self.host_loss.breached()
        )
