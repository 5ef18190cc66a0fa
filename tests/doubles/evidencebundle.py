"""A signed ledger in memory, made of a story: what bundles are built from in tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.canonical import canonical_bytes
from drservice.clock import to_iso
from drservice.evidence.bundle import BundleContents, ReportWishes
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.notes import Checkpoint, sign_note
from drservice.evidence.signing import Signer
from drservice.evidence.statements import PAYLOAD_TYPE, sign_payload
from tests.doubles.evidencestory import PERIOD, REPOSITORY, SCENARIOS, Story, at, estate, good_quarter

ORIGIN = f"drservice/{REPOSITORY}"


def _signer(name: str) -> Signer:
    return Signer(name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuarter:
    """Keys, entries and notes of a quarter of erp; everything is the same in every run."""

    log: Signer = field(default_factory=lambda: _signer(ORIGIN))
    executor: Signer = field(default_factory=lambda: _signer("dr1"))

    def story(self, *, days: int = 90) -> Story:
        return good_quarter(log_key=self.log.public_key, executor_key=self.executor.public_key, days=days)

    def signed(self, story: Story) -> list[bytes]:
        """Return the envelopes; entry 0 and 1 speak of keys and are the log key's."""
        return [
            sign_payload(canonical_bytes(statement), PAYLOAD_TYPE, [self.log if number < 2 else self.executor])
            for number, statement in enumerate(story.statements)
        ]

    def note(self, entries: Sequence[bytes], when: datetime) -> bytes:
        tree = MerkleTree(leaf_hash(raw) for raw in entries)
        extension = f"time {to_iso(when)}"
        text = Checkpoint(origin=ORIGIN, size=len(tree), root=tree.root(), extensions=(extension,)).text
        return sign_note(text, [self.log])

    def policy(self) -> bytes:
        executor = {"name": "dr1", "key": f"ed25519:{self.executor.public_key.hex()}", "services": []}
        value = {
            "schema": "drservice/evidence-policy/v1",
            "origin": ORIGIN,
            "log_keys": [
                {"name": ORIGIN, "key": f"ed25519:{self.log.public_key.hex()}", "from_size": 0, "to_size": None}
            ],
            "executors": [{**executor, "from_entry": 0, "to_entry": None}],
            "approvers": [],
            "anchors": [{"name": "second-region", "max_age_ms": None, "known": []}],
            "obligations": [],
            "drills": [],
            "tolerance_ms": 300_000,
            "manifest_signed": False,
        }
        return json.dumps(value, indent=1).encode()

    def contents(self, story: Story | None = None) -> BundleContents:
        """Return everything a bundle needs, with one artefact named by the last entry of the good quarter."""
        told = story or self.story()
        log = b"what the drill printed\n" * 1000
        digest = hashlib.sha256(log).hexdigest()
        told.backup(at(89.5), "erp", subject=[{"name": "artefact/log", "digest": {"sha256": digest}}])
        entries = self.signed(told)
        anchored = self.note(entries[:40], at(31, hour=5))
        return BundleContents(
            repository=REPOSITORY,
            origin=ORIGIN,
            entries=entries,
            checkpoint=self.note(entries, at(89.8)),
            earlier={40: anchored},
            anchors={"second-region": {40: anchored}},
            artefacts={digest: lambda: (log[begin : begin + 4096] for begin in range(0, len(log), 4096))},
            policy=self.policy(),
        )

    def wishes(self) -> ReportWishes:
        return ReportWishes(period=PERIOD, services=estate()[:1], scenarios=SCENARIOS)


def altered(contents: BundleContents, **changes: object) -> BundleContents:
    return replace(contents, **changes)  # type: ignore[arg-type] # a test names the fields it breaks
