"""A quarter in the life of a small estate, as ledger statements: what reports and bundles are tested with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from drservice.canonical import Json
from drservice.clock import to_iso
from drservice.evidence.report import (
    AnchorFacts,
    ComponentFacts,
    LedgerFacts,
    Period,
    ReportInputs,
    Scenario,
    ServiceFacts,
)
from drservice.evidence.reportentries import DecodedEntry, Promise
from drservice.evidence.statements import fingerprint
from drservice.model.evidence import seed_commitment, target_from_seed

REPOSITORY = "01JG000000000000000000000R"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = Period(begin=BEGIN, end=datetime(2026, 4, 1, tzinfo=UTC))
SEED = hashlib.sha256(b"a seed for tests").digest()
MINUTE, SECOND = 60_000, 1_000

Fields = Mapping[str, Json]


def at(day: float, *, hour: int = 2) -> datetime:
    """An instant so many days after the period began."""
    return BEGIN + timedelta(days=day, hours=hour, minutes=14, microseconds=123_456)


def ulid(number: int) -> str:
    return f"01JG{number:022d}"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Story:
    """Statements in the order in which they are told; each is complete, and every field can be replaced."""

    def __init__(self) -> None:
        self.statements: list[dict[str, Json]] = []

    def add(
        self,
        kind: str,
        when: datetime,
        service: str | None,
        fields: Fields,
        **replaced: Json,
    ) -> int:
        """Tell one statement and return its number."""
        number = len(self.statements)
        subject = replaced.pop("subject", [{"name": f"run/{number}", "digest": {"sha256": sha(str(number))}}])
        predicate: dict[str, Json] = {
            "repository": REPOSITORY,
            "service": service,
            "host": "dr1",
            "run": ulid(1000 + number),
            "recorded_at": to_iso(when),
            "tool": {"name": "drservice", "version": "0.2.0"},
            **fields,
            **replaced,
        }
        self.statements.append(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": subject,
                "predicateType": f"urn:drservice:evidence:{kind}:v1",
                "predicate": predicate,
            }
        )
        return number

    def key(self, when: datetime, name: str, role: str, *, public_key: bytes | None = None, **replaced: Json) -> int:
        public = f"ed25519:{public_key.hex() if public_key else sha(name + role)}"
        key: Fields = {"name": name, "role": role, "public": public}
        fields: Fields = {"action": "added", "key": key, "services": [], "previous": None}
        named: Fields = {"name": f"key/{fingerprint(bytes.fromhex(public[8:]))}", "digest": {"sha256": _digest(public)}}
        return self.add("key", when, None, fields, **{"subject": [named], **replaced})

    def backup(self, when: datetime, service: str, **replaced: Json) -> int:
        component: Fields = {
            "component": "database",
            "kind": "postgres",
            "method": "local",
            "snapshot": ulid(7),
            "state": "complete",
            "source_bytes": 52_000_000_000,
            "read_bytes": 1_400_000_000,
            "stored_bytes": 310_000_000,
            "files": 4211,
            "start_lsn": "3/2A000028",
            "stop_lsn": "3/2A0001F0",
            "timeline": 1,
            "missing_in_production": 0,
            "corrupt_in_production": 0,
        }
        fields: Fields = {
            "outcome": "complete",
            "point": ulid(8),
            "started_at": to_iso(when - timedelta(minutes=4)),
            "ended_at": to_iso(when),
            "components": [component],
            "error": None,
        }
        return self.add("backup", when, service, fields, **replaced)

    def restore(self, when: datetime, service: str, **replaced: Json) -> int:
        return self.add("restore", when, service, {"outcome": "restored", **_restoration(when)}, **replaced)

    def obligation(self, when: datetime, service: str, number: int, **replaced: Json) -> int:
        fields: Fields = {
            "obligation": ulid(number),
            "what": "drill",
            "plan": {"name": f"{service}-quarterly", "sha256": sha(service)},
            "due_at": to_iso(when + timedelta(days=1)),
            "criteria": {
                "rto_ms": 30 * MINUTE,
                "rpo_ms": 5 * SECOND,
                "documents": True,
                "documents_missing": 0,
                "checks": planned("target", "amcheck", "moves-balance"),
            },
            "target": _window(when),
            "mutation": None,
        }
        return self.add("obligation", when, service, fields, **{"subject": _plan(service), **replaced})

    def drill(self, when: datetime, service: str, number: int, entry: int, **replaced: Json) -> int:
        """Tell a drill that passed, answering ``entry``; ``replaced`` changes what came out."""
        obligation = self.statements[entry]["predicate"] if entry < len(self.statements) else {}
        window = obligation.get("recorded_at") if isinstance(obligation, Mapping) else None
        told = datetime.fromisoformat(window) if isinstance(window, str) else when
        fields: Fields = {
            "outcome": "passed",
            **_restoration(told),
            "obligation": ulid(number),
            "obligation_entry": entry,
            "reasons": [],
            "checks": [
                _check("target", "reached 02:09:57.310 of timeline 1, asked for 02:09:57.312"),
                _check("amcheck", "412 relations, 0 corrupt"),
                _check("checksums", "52 GB, 0 pages wrong"),
                _check("documents", "481,203 of 481,203 present with their SHA-1"),
                _check("moves-balance", "count is 0, expected = 0", owner="finance"),
            ],
            "rpo_ms": 240,
            "target_accuracy_ms": 2,
            "promised": {"rto_ms": 30 * MINUTE, "rpo_ms": 5 * SECOND},
            "not_tested": ["outgoing mail: no mail server is reachable from the sandbox"],
            "seed": SEED.hex(),
            "mutation": None,
            "destroyed": True,
            "kept": False,
            "findings": [],
            "challenge": {"nonce": sha(f"nonce {number}")[:32], "lsn": "3/2B0000A8"},
        }
        subject = [*_plan(service), *_snapshots(service)]
        return self.add("drill", when, service, fields, **{"subject": subject, **replaced})

    def finding(self, when: datetime, service: str, number: int, **replaced: Json) -> int:
        fields: Fields = {
            "finding": ulid(number),
            "state": "opened",
            "check": "moves-balance",
            "severity": "warning",
            "owner": "finance",
            "drill_entry": None,
            "detail": "3 stock moves without a counterpart",
            "due_at": to_iso(when + timedelta(days=30)),
        }
        return self.add("finding", when, service, fields, **replaced)

    def entries(self) -> list[DecodedEntry]:
        return [
            DecodedEntry(number=number, statement=statement, signers=("dr1",))
            for number, statement in enumerate(self.statements)
        ]


def _plan(service: str) -> Sequence[Json]:
    return [{"name": f"plan/{service}-quarterly", "digest": {"sha256": sha(service)}}]


def _snapshots(service: str) -> Sequence[Json]:
    return [
        {"name": f"s/{service}/{component}/snapshots/{ulid(number)}", "digest": {"sha256": sha(component)}}
        for component, number in (("database", 7), ("documents", 9))
    ]


def _digest(public: str) -> str:
    return hashlib.sha256(bytes.fromhex(public[8:])).hexdigest()


def _window(when: datetime) -> Fields:
    return {
        "kind": "random",
        "time": None,
        "from": to_iso(when - timedelta(days=7)),
        "to": to_iso(when),
        "seed_commitment": seed_commitment(SEED),
    }


def _restoration(when: datetime) -> dict[str, Json]:
    chosen = to_iso(target_from_seed(SEED, when - timedelta(days=7), when))
    return {
        "target": {
            "requested": chosen,
            "kind": "random",
            "reached_time": chosen,
            "reached_lsn": "3/2B000060",
            "timeline": 1,
        },
        "point": ulid(8),
        "snapshots": [{"component": "database", "snapshot": ulid(7)}, {"component": "documents", "snapshot": ulid(9)}],
        "phases_ms": {
            "plan": 1_900,
            "fetch": 171_000,
            "place": 42_000,
            "start": 3_100,
            "replay": 88_000,
            "check": 66_000,
        },
        "rto_ms": 372_000,
        "documents": {"expected": 481_203, "missing": 0, "corrupt": 0, "extra": 12, "missing_in_production": 2},
        "isolation": [
            {"name": "network", "isolated": True, "detail": "no route; 6 of 6 connections refused"},
            {"name": "credentials", "isolated": True, "detail": "no production secret in the environment"},
            {"name": "mail", "isolated": True, "detail": "no socket outside the sandbox"},
        ],
        "environment": {"id": ulid(11), "kind": "sandbox"},
        "error": None,
    }


def _check(
    name: str, detail: str, *, state: str = "passed", severity: str = "critical", owner: str | None = None
) -> Fields:
    return {
        "name": name,
        "state": state,
        "severity": severity,
        "not_applicable": False,
        "owner": owner,
        "duration_ms": 4_200,
        "detail": detail,
    }


check = _check


def planned(*names: str) -> list[Json]:
    """Return critical checks as an obligation names them."""
    return [{"name": name, "severity": "critical"} for name in names]


def estate() -> tuple[ServiceFacts, ...]:
    """Three services: one drilled, one in trouble, one that nobody drills."""
    return (
        ServiceFacts(
            name="erp",
            owner="plant-it@example.com",
            tier=1,
            promise=Promise(rpo_ms=5 * SECOND, rto_ms=30 * MINUTE),
            components=(
                ComponentFacts(name="database", kind="postgres", is_protected=True),
                ComponentFacts(name="documents", kind="odoo-filestore", is_protected=True),
            ),
        ),
        ServiceFacts(
            name="reporting",
            owner="controlling@example.com",
            tier=2,
            promise=Promise(rpo_ms=60 * SECOND, rto_ms=5 * MINUTE),
            components=(
                ComponentFacts(name="database", kind="postgres", is_protected=True),
                ComponentFacts(name="cubes", kind="directory", is_protected=False, note="rebuilt from the database"),
            ),
        ),
        ServiceFacts(name="integrations", owner="plant-it@example.com", tier=2, promise=Promise(rto_ms=60 * MINUTE)),
    )


SCENARIOS = (
    Scenario(name="erp-quarterly", service="erp"),
    Scenario(name="reporting-quarterly", service="reporting"),
    Scenario(name="wal-segment-dropped", is_mutation=True),
    Scenario(name="document-encrypted", is_mutation=True),
)


def inputs(
    size: int, *, only_service: str | None = None, services: Iterable[ServiceFacts] | None = None
) -> ReportInputs:
    """The caller's part: an anchored ledger of ``size`` entries."""
    return ReportInputs(
        ledger=LedgerFacts(
            repository=REPOSITORY,
            origin=f"drservice/{REPOSITORY}",
            tree_size=size,
            root_hash=sha("root"),
            anchors=(AnchorFacts(name="second-region", tree_size=size, anchored_at=at(89)),),
        ),
        period=PERIOD,
        services=estate() if services is None else tuple(services),
        scenarios=SCENARIOS,
        only_service=only_service,
    )


def good_quarter(*, log_key: bytes | None = None, executor_key: bytes | None = None, days: int = 90) -> Story:
    """Only erp, and all is well: nightly backups, two drills that passed, two with damage built in that was noticed."""
    story = Story()
    story.key(at(-30), "drservice", "log", public_key=log_key)
    story.key(at(-30), "dr1", "executor", public_key=executor_key)
    for day in range(days):
        story.backup(at(day, hour=1), "erp")
        if day in {20, 75}:
            entry = story.obligation(at(day), "erp", 50 + day)
            story.drill(at(day, hour=3), "erp", 50 + day, entry)
        if day in {30, 31}:
            mutation = "wal-segment-dropped" if day == 30 else "document-encrypted"
            entry = story.obligation(at(day), "erp", 50 + day, mutation=mutation)
            story.drill(at(day, hour=3), "erp", 50 + day, entry, mutation=mutation, outcome="failed",
                        reasons=["segment 00000001000000030000002A is missing"],
                        checks=[_check("target", "WAL ends before the target", state="failed")])  # fmt: skip
    return story


def whole_quarter() -> Story:
    """The good quarter of erp beside a reporting service in trouble."""
    story = good_quarter()
    for day in range(0, 90, 2):
        outcome: dict[str, Json] = {}
        if day in {40, 42}:
            error: Fields = {"code": "DR710", "message": "the server closed the connection during the backup"}
            outcome = {"outcome": "failed", "point": None, "components": [], "error": error}
        story.backup(at(day, hour=4), "reporting", **outcome)
    promised: Fields = {"rto_ms": 5 * MINUTE, "rpo_ms": 60 * SECOND}
    criteria: Fields = {
        **promised, "documents": False, "documents_missing": 0, "checks": planned("target", "cube-totals")}  # fmt: skip
    entry = story.obligation(at(50), "reporting", 301, criteria=criteria)
    story.drill(at(50, hour=5), "reporting", 301, entry, promised=promised, documents=None, outcome="failed",
                reasons=["RTO 6 min 12 s, promised 5 min", "check cube-totals could not be run"],
                checks=[_check("target", "reached"), _check("cube-totals", "timeout after 60 s: no answer",
                                                            state="unverified", owner="controlling")],
                not_tested=["cubes: not backed up"])  # fmt: skip
    story.obligation(at(70), "reporting", 302, criteria=criteria)
    story.finding(at(50, hour=6), "reporting", 303, check="cube-totals", severity="critical", owner="controlling",
                  detail="the check needs more than 60 s", drill_entry=entry + 1)  # fmt: skip
    story.restore(at(60), "erp", outcome="partial", documents={
        "expected": 481_190, "missing": 1, "corrupt": 0, "extra": 0, "missing_in_production": 0})  # fmt: skip
    probes: list[Json] = [{"name": "delete refused", "passed": True, "detail": "locked until 2026-05-04"}]
    story.add("probe", at(61), None, {"probe": "object lock", "outcome": "passed", "results": probes})
    approval: Fields = {"entry": entry, "approver": "cio", "decision": "approved", "comment": "seen"}
    story.add("approval", at(62), "reporting", approval)
    return story
