"""The documents of the API. Names never change their meaning within ``/api/v1``; more of them may come.

Times are ISO 8601 in UTC, sizes bytes, durations seconds; positions in WAL are written as PostgreSQL writes them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$", max_length=63)]
"""Of services and plans."""
Ulid = Annotated[str, StringConstraints(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,64}$")]
"""A name people give: printable ASCII."""
RoleName = Literal["viewer", "auditor", "operator", "restorer", "approver", "admin"]
KindName = Literal["backup", "verify", "drill", "restore", "documents", "retention", "destroy"]
DutyName = Literal["overdue", "failed", "missed", "never drilled", "due", "done"]
StateName = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled", "missed"]

ConditionName = Literal[
    "unprotected", "promise broken", "overdue", "not proved", "close to its promise", "promise kept"
]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable: DR and three digits."""
    hint: str
    exit_status: int
    mistakes: list[str] = []


class Given(BaseModel):
    """What somebody sends: nothing that is not asked for, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Promise(BaseModel):
    """A promise and what was measured; ``None`` = not promised, or never measured."""

    promised_seconds: float | None
    measured_seconds: float | None


class CaptureDocument(BaseModel):
    """How the documents of a filestore are captured as they come; ``None`` = not known."""

    component: str
    state: str
    """starting, streaming, stalled; absent: it does not run although it is wanted; silent: its host tells nothing."""
    durable_until: datetime | None
    """Up to here each document that rows refer to is stored, or known to be lost; by the database's clock."""
    seconds_at_risk: float | None
    """As it said just now; ``None`` while it is silent."""
    pending: int | None
    missing_in_production: int | None
    corrupt_in_production: int | None
    in_database: int | None
    """Attachments that are inside the database, and covered by its own backup."""
    not_covered: int | None
    """Attachments that are outside filestore and database: in no backup."""
    problem: str | None
    remedy: str | None
    told_at: datetime


class ServiceDocument(BaseModel):
    """A service against its promises."""

    name: str
    tier: int
    owner: str
    condition: str
    reasons: list[str]
    backed_up_at: datetime | None
    backed_up_state: str | None
    verified_at: datetime | None
    """When the last drill passed; ``None`` if none did, or a later one did not."""
    reachable_until: datetime | None
    seconds_at_risk: float | None
    """Of committed work, in the databases."""
    documents_seconds_at_risk: float | None
    """Of documents that rows refer to; ``None`` also where there are none."""
    effective_rpo_seconds: float | None
    """The larger of both: what the service as a whole would lose now."""
    documents_promised_seconds: float | None
    documents: list[CaptureDocument]
    """Of each filestore that is streamed."""
    rpo: Promise
    rto: Promise
    strain: float | None
    """The promise nearest to its limit, as a share of it; above 1 it is broken."""
    missed: int
    running: int
    components: list[str]


class ServicePage(BaseModel):
    """Services by name."""

    items: list[ServiceDocument]
    next: str | None
    """``after`` of the next page."""


class PointDocument(BaseModel):
    """A recovery point."""

    id: str
    service: str
    created_at: datetime
    state: str
    verified_at: datetime | None
    members: dict[str, Any]


class PointPage(BaseModel):
    """Recovery points, newest first."""

    items: list[PointDocument]
    next: str | None


class StretchDocument(BaseModel):
    """A stretch of a cluster's WAL without a gap."""

    component: str
    timeline: int
    from_lsn: str
    to_lsn: str
    from_time: datetime | None
    to_time: datetime | None


class InstantsDocument(BaseModel):
    """Instants from one to another."""

    from_time: datetime
    to_time: datetime


class WindowDocument(BaseModel):
    """What can be reached: per cluster, and for all clusters together with the gaps in between."""

    service: str
    clusters: list[StretchDocument]
    reachable: list[InstantsDocument]
    gaps: list[InstantsDocument]


class RunDocument(BaseModel):
    """A run."""

    id: str
    service: str
    kind: KindName
    plan: str
    state: StateName
    scheduled_for: datetime | None
    requested_by: str
    requested_at: datetime
    host: str | None
    claimed_by: str | None
    epoch: int
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_by: str | None
    parameters: dict[str, Any]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    caught_up_by: str | None


class RunPage(BaseModel):
    """Runs, newest request first."""

    items: list[RunDocument]
    next: str | None


class EventDocument(BaseModel):
    """Something that happened in a run."""

    number: int
    at: datetime
    kind: str
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events in order; ask again with ``after`` = the last number."""

    items: list[EventDocument]
    over: bool
    """Nothing follows the last of these."""


class BackupRequest(Given):
    """A backup of the whole service."""


class DrillRequest(Given):
    """A drill; without a plan the service's only one, or one to the latest position."""

    plan: Name | None = None


class RestoreRequest(Given):
    """An isolated restore: nothing of production is touched, and the environment reaches nothing."""

    to: Annotated[AwareDatetime, Field(strict=False)] | Literal["latest"] = "latest"


class EnvironmentDocument(BaseModel):
    """A recovered system on a host, as that host last told."""

    id: str
    service: str
    host: str
    purpose: str
    state: str
    dsn: str
    """A libpq string that reaches it from its host; nothing else does."""
    created_at: datetime
    expires_at: datetime
    seen_at: datetime | None
    """When its host was last seen: what is told is as old as that."""
    made_by: str | None
    """The run that is still at work in it."""
    ended_by: str | None
    """The run that is about to end it."""


class EnvironmentPage(BaseModel):
    """The environments of a service, newest first."""

    items: list[EnvironmentDocument]


class Enqueued(BaseModel):
    """A run that waits to be taken by a host."""

    run: str
    state: StateName


class RecordDocument(BaseModel):
    """A record of the ledger, as the catalogue knows it. Proof is the bundle, not this."""

    entry: int
    kind: str
    service: str | None
    host: str
    run: str | None
    recorded_at: datetime
    outcome: str | None
    sha256: str
    predicate: dict[str, Any]


class RecordPage(BaseModel):
    """Records, newest first."""

    items: list[RecordDocument]
    next: str | None


class DrillDocument(BaseModel):
    """A drill on record."""

    entry: int
    recorded_at: datetime
    outcome: str | None


class ObligationDocument(BaseModel):
    """How a service stands with its drills in a period."""

    service: str
    state: DutyName
    due_at: datetime | None
    """By when the next drill has to be there, by its schedule and the newest result."""
    reason: str | None
    last: DrillDocument | None
    passed: DrillDocument | None
    done: int
    """Drills of the period that passed."""
    failed: int
    missed: int
    """Slots of the period that are on record as missed, and that no run made up for."""
    open: int
    """Obligations that nothing has answered yet."""
    overdue: int
    """Obligations that should have been answered."""


class ObligationPage(BaseModel):
    """Services, the worst first."""

    period_from: datetime
    period_to: datetime
    items: list[ObligationDocument]
    next: str | None


class VerificationDocument(BaseModel):
    """What the verifier that every bundle carries says about a bundle made now."""

    verified: bool
    manifest_sha256: str
    lines: list[str]
    """Its output; of a failure, the first thing that is wrong."""


class SlotDocument(BaseModel):
    """A time at which a run is to start."""

    service: str
    kind: KindName
    plan: str
    at: datetime
    avoided: str | None
    """The window that delays or throttles it, if the calendar has one then."""


class ScheduleDocument(BaseModel):
    """The next slots of what is scheduled, soonest first."""

    items: list[SlotDocument]
    next: str | None


class GateRequest(Given):
    """May this service be released now? With a name, an open gate leaves that restore point (role operator)."""

    restore_point: Label | None = None


class GateCheck(BaseModel):
    """One thing the gate looked at."""

    name: str
    state: str
    detail: str
    remedy: str


class GateDocument(BaseModel):
    """The answer of the gate with its reasons."""

    service: str
    open: bool
    at: datetime
    checks: list[GateCheck]
    reasons: list[str]
    """Why it is closed; empty if it is open."""
    restore_points: list[dict[str, Any]]


class TokenRequestDocument(Given):
    """A token for a program. It is never worth more than the account that makes it, now or later."""

    name: Label
    roles: Annotated[list[RoleName], Field(min_length=1, max_length=6)]
    services: Annotated[list[Name], Field(max_length=1000)] = []
    """Empty = all that the account has."""
    days: Annotated[int, Field(ge=1, le=366)] = 90


class TokenDocument(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    account: str
    roles: list[str]
    services: list[str]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewToken(TokenDocument):
    """A token that was made just now."""

    secret: str | None
    """Shown once: a repeated request with the same Idempotency-Key gets ``null`` here."""


class TokenList(BaseModel):
    """Tokens, newest first."""

    items: list[TokenDocument]


class Me(BaseModel):
    """Who asks."""

    account: str
    roles: list[str]
    services: list[str]
    """Empty = all."""


class Health(BaseModel):
    """Whether the process lives, or can answer."""

    status: Literal["ok"]


class Readiness(Health):
    """Whether it can answer, and by which configuration."""

    configuration: Literal["in force", "refused"]
    """``refused``: the file was changed and is not valid; the one before is in force."""
