"""Keys, statements and ledgers for tests of evidence; everything from fixed seeds, so that bytes repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.canonical import Json
from drservice.clock import Clock, to_iso
from drservice.evidence.anchoring import AnchorPlace
from drservice.evidence.ledger import Ledger
from drservice.evidence.policy import LedgerPolicy, LogKey, RecordKey
from drservice.evidence.signing import Signer
from drservice.evidence.statements import Occasion, Statement, Subject, make_statement
from drservice.model.evidence import EvidenceKind, ledger_origin, seed_commitment
from drservice.model.ids import RepositoryId, RunId, ServiceName, make_ulid
from drservice.objectstore.interface import ObjectStore

REPOSITORY = RepositoryId("01KG9YS7G0B3Y99BTPKZ2W4MAF")
ORIGIN = ledger_origin(REPOSITORY)
START = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
SHA = hashlib.sha256(b"something").hexdigest()


def signer(name: str) -> Signer:
    """Return the same key for the same name, always."""
    return Signer(name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


LOG = signer(ORIGIN)
HOST = signer("db1")
OTHER_HOST = signer("db2")
APPROVER = signer("auditor")
STRANGER = signer("stranger")
POLICY = LedgerPolicy(
    log_keys=(LogKey(name=LOG.name, public_key=LOG.public_key),),
    executors=tuple(RecordKey(name=each.name, public_key=each.public_key) for each in (HOST, OTHER_HOST)),
    approvers=(RecordKey(name=APPROVER.name, public_key=APPROVER.public_key),),
)


def ulid(number: int) -> str:
    """Return a ULID that is the same for the same number."""
    return make_ulid(START, hashlib.sha256(str(number).encode()).digest()[:10])


def iso_or_null(instant: datetime | None) -> str | None:
    return None if instant is None else to_iso(instant)


def occasion(at: datetime, *, run: int | None = None, service: str | None = "erp", host: str = "db1") -> Occasion:
    return Occasion(
        repository=REPOSITORY,
        service=None if service is None else ServiceName(service),
        host=host,
        run=None if run is None else RunId(ulid(run)),
        recorded_at=at,
        tool_version="0.1.0",
    )


def probe(at: datetime, number: int = 0, *, detail: str = "refused") -> Statement:
    """Return a small statement; another ``number`` makes it another event."""
    return make_statement(
        EvidenceKind.PROBE,
        occasion=occasion(at, run=number),
        subject=[],
        fields={"probe": "delete", "outcome": "passed", "results": [{"name": "m", "passed": True, "detail": detail}]},
    )


def backup(at: datetime, number: int) -> Statement:
    component: dict[str, Json] = {
        "component": "database",
        "kind": "postgres",
        "method": "local",
        "snapshot": ulid(number + 1),
        "state": "complete",
        "source_bytes": 1000,
        "read_bytes": 900,
        "stored_bytes": 300,
        "files": 12,
        "start_lsn": "0/2000028",
        "stop_lsn": "0/2000100",
        "timeline": 1,
        "missing_in_production": 0,
        "corrupt_in_production": 0,
    }
    return make_statement(
        EvidenceKind.BACKUP,
        occasion=occasion(at, run=number),
        subject=[Subject("s/erp/database/snapshots/" + ulid(number + 1), SHA)],
        fields={
            "outcome": "complete",
            "point": ulid(number + 2),
            "started_at": to_iso(at),
            "ended_at": to_iso(at),
            "components": [component],
            "error": None,
        },
    )


def recovery_fields(requested: str, kind: str) -> dict[str, Json]:
    """Return what restores and drills have in common."""
    return {
        "target": {
            "requested": requested,
            "kind": kind,
            "reached_time": to_iso(START),
            "reached_lsn": "0/3000000",
            "timeline": 1,
        },
        "point": ulid(3),
        "snapshots": [{"component": "database", "snapshot": ulid(2)}],
        "phases_ms": {"plan": 5, "fetch": 100, "place": 200, "start": 300, "replay": 400, "check": 500},
        "rto_ms": 1505,
        "documents": {"expected": 40, "missing": 0, "corrupt": 0, "extra": 1, "missing_in_production": 0},
        "isolation": [{"name": "network", "isolated": True, "detail": "no route"}],
        "environment": {"id": "env1", "kind": "sandbox"},
        "error": None,
    }


def restore(at: datetime, number: int) -> Statement:
    return make_statement(
        EvidenceKind.RESTORE,
        occasion=occasion(at, run=number),
        subject=[Subject("s/erp/database/snapshots/" + ulid(2), SHA)],
        fields={"outcome": "restored", **recovery_fields("latest", "latest")},
    )


def check(
    name: str, state: str, *, severity: str = "critical", owner: str | None = None, not_applicable: bool = False
) -> dict[str, Json]:
    """Return what a drill says of one check."""
    return {
        "name": name,
        "state": state,
        "severity": severity,
        "not_applicable": not_applicable,
        "owner": owner,
        "duration_ms": 12,
        "detail": "",
    }


SNAPSHOT = Subject("s/erp/database/snapshots/" + ulid(2), SHA)
PLAN = Subject("plan/erp-quarterly", hashlib.sha256(b"the plan").hexdigest())


def obligation(
    at: datetime,
    number: int,
    *,
    seed: bytes | None = None,
    window: tuple[datetime, datetime] | None = None,
    due_at: datetime | None = None,
    mutation: str | None = None,
    service: str = "erp",
) -> Statement:
    begin, end = window or (None, None)
    target: dict[str, Json] = {
        "kind": "latest" if seed is None else "random",
        "time": None,
        "from": iso_or_null(begin),
        "to": iso_or_null(end),
        "seed_commitment": None if seed is None else seed_commitment(seed),
    }
    return make_statement(
        EvidenceKind.OBLIGATION,
        occasion=occasion(at, run=number, service=service),
        subject=[PLAN],
        fields={
            "obligation": ulid(number),
            "what": "drill",
            "plan": {"name": "erp-quarterly", "sha256": PLAN.sha256},
            "due_at": iso_or_null(due_at),
            "criteria": {
                "rto_ms": 1_800_000,
                "rpo_ms": 5000,
                "documents": True,
                "documents_missing": 0,
                "checks": [
                    {"name": "moves-balance", "severity": "critical"},
                    {"name": "sequences", "severity": "warning"},
                ],
            },
            "target": target,
            "mutation": mutation,
        },
    )


def drill(
    at: datetime,
    number: int,
    *,
    entry: int,
    outcome: str = "passed",
    requested: str = "latest",
    seed: bytes | None = None,
    artefacts: Sequence[Subject] = (),
    changes: Mapping[str, Json] | None = None,
) -> Statement:
    """Return what came out of the obligation ``number``, which stands at ``entry``."""
    state = "passed" if outcome == "passed" else "failed"
    fields: dict[str, Json] = {
        **recovery_fields(requested, "latest" if seed is None else "random"),
        "outcome": outcome,
        "obligation": ulid(number),
        "obligation_entry": entry,
        "reasons": [] if outcome == "passed" else ["moves-balance failed: 3 moves do not"],
        "checks": [check("moves-balance", state, owner="finance"), check("sequences", "passed", severity="warning")],
        "rpo_ms": 0,
        "target_accuracy_ms": 3,
        "promised": {"rto_ms": 1_800_000, "rpo_ms": 5000},
        "not_tested": ["logins"],
        "seed": None if seed is None else seed.hex(),
        "mutation": None,
        "destroyed": True,
        "kept": False,
        "findings": [],
        "challenge": {"nonce": hashlib.sha256(f"nonce {number}".encode()).hexdigest(), "lsn": "0/3000000"},
    }
    return make_statement(
        EvidenceKind.DRILL,
        occasion=occasion(at, run=number + 500_000),
        subject=[PLAN, SNAPSHOT, *artefacts],
        fields={**fields, **(changes or {})},
    )


def open_ledger(
    store: ObjectStore,
    state_dir: Path,
    clock: Clock,
    *,
    executor: Signer | None = HOST,
    log: Signer | None = LOG,
    anchors: Sequence[AnchorPlace] = (),
    policy: LedgerPolicy = POLICY,
) -> Ledger:
    return Ledger(
        store,
        origin=ORIGIN,
        policy=policy,
        state_dir=state_dir,
        clock=clock,
        executor=executor,
        log=log,
        anchors=anchors,
    )


def missed(at: datetime, number: int, *, service: str = "erp", caught_up: bool = True) -> Statement:
    """Return two slots of a night that nobody was there for."""
    slots: list[Json] = [to_iso(at - timedelta(hours=hours)) for hours in (4, 3)]
    return make_statement(
        EvidenceKind.MISSED,
        occasion=occasion(at, service=service),
        subject=[],
        fields={
            "event": ulid(number),
            "kind": "backup",
            "plan": None,
            "slots": slots,
            "reason": "no node was there",
            "caught_up_by": ulid(number + 1) if caught_up else None,
            "noticed_at": to_iso(at - timedelta(minutes=1)),
        },
    )


def failure(at: datetime, number: int, *, service: str = "erp", outcome: str = "failed") -> Statement:
    """Return a scheduled run that was lost too often."""
    return make_statement(
        EvidenceKind.FAILURE,
        occasion=occasion(at, run=number, service=service),
        subject=[],
        fields={
            "event": ulid(number),
            "kind": "drill",
            "plan": "erp-quarterly",
            "outcome": outcome,
            "scheduled_for": to_iso(at - timedelta(hours=2)),
            "claims": 3,
            "started_at": to_iso(at - timedelta(hours=1)),
            "ended_at": to_iso(at - timedelta(minutes=5)),
            "error": {"code": "DR905", "message": "its process died"},
        },
    )


def retention(
    at: datetime, number: int, *, outcome: str = "applied", changes: Mapping[str, Json] | None = None
) -> Statement:
    """Return what a night's retention has let go."""
    fields: dict[str, Json] = {
        "action": "retention",
        "outcome": outcome,
        "policy": {"within": "14d", "daily": None, "weekly": None, "monthly": "12mo", "yearly": None},
        "plan": SHA,
        "planned": {"points": 2, "snapshots": 2, "wal_files": 5, "wal_bytes": 500, "packs": 0, "pack_bytes": 0},
        "removed": {"points": 2, "snapshots": 2, "wal_files": 5, "wal_bytes": 500},
        "refused": 0,
        "kept": [{"by": "within", "snapshots": 3}, {"by": "last verified", "snapshots": 1}],
        "last_verified": [{"component": "database", "snapshot": ulid(2)}],
        "anomalies": [],
        "accepted": False,
        "error": None,
        **(changes or {}),
    }
    return make_statement(
        EvidenceKind.RETENTION,
        occasion=occasion(at, run=number),
        subject=[Subject("plan/retention", SHA)],
        fields=fields,
    )


def access(
    at: datetime,
    number: int,
    *,
    day: str,
    log: int = 800,
    previous: tuple[str, str] | None = None,
    changes: Mapping[str, Json] | None = None,
) -> Statement:
    """Return a day of the access log."""
    fields: dict[str, Json] = {
        "event": ulid(number),
        "log": ulid(log),
        "day": day,
        "lines": 12,
        "late": 1,
        "sha256": hashlib.sha256(day.encode()).hexdigest(),
        "outcomes": {"succeeded": 8, "refused": 3, "failed": 1, "sign_ins_refused": 2},
        "first": f"{day}T06:00:00.000000Z",
        "last": f"{day}T18:00:00.000000Z",
        "previous": None if previous is None else {"day": previous[0], "sha256": previous[1]},
        "closed_at": to_iso(at),
        **(changes or {}),
    }
    return make_statement(EvidenceKind.ACCESS, occasion=occasion(at, service=None), subject=[], fields=fields)


def digest_of(day: str) -> tuple[str, str]:
    """Return how the next day names a day of :func:`access`."""
    return day, hashlib.sha256(day.encode()).hexdigest()
