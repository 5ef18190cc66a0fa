"""A ledger with every kind of record, and what attackers with more and more keys can do to a bundle of it."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import to_iso
from drservice.evidence.anchoring import AnchorPlace
from drservice.evidence.ledger import Ledger
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.notes import Checkpoint, sign_note
from drservice.evidence.signing import Signer
from drservice.evidence.statements import (
    PAYLOAD_TYPE,
    Statement,
    Subject,
    decode_envelope,
    keep_aside_mark,
    make_statement,
    sign_payload,
    sign_statement,
)
from drservice.evidence.verification import VerificationError, Verified, _Verification
from drservice.model.evidence import EvidenceKind, target_from_seed
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.bundles import Files, bundle_files, public, refreshed, with_manifest
from tests.doubles.clock import ManualClock

SEED = hashlib.sha256(b"seed").digest()
WINDOW = (made.START - timedelta(days=7), made.START)
RANDOM, FAILED, PLANTED, OPEN = 100, 101, 102, 103
"""Numbers of obligations: answered at a random target; failed; with a planted fault; not answered."""
DUE = made.START + timedelta(hours=1)
END = made.START + timedelta(minutes=210)
"""When the newest checkpoint is signed."""


class Memory:
    """A bundle in a dictionary."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.names = set(files)

    def read(self, name: str) -> bytes:
        return self._files[name]


def verify(files: Files, policy: bytes | None = None) -> Verified:
    given = None if policy is None else (policy, "the given policy")
    return _Verification(Memory(files), given).run()  # type: ignore[arg-type]  # it reads like a folder


def refused(files: Files, policy: bytes | None = None) -> VerificationError | None:
    """Return what the verifier finds wrong, ``None`` if nothing."""
    try:
        verify(files, policy)
    except VerificationError as error:
        return error
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """The ledger, and its untouched bundle."""

    ledger: Ledger
    files: Files
    raws: tuple[bytes, ...]
    """The records by number."""

    @property
    def size(self) -> int:
        return len(self.raws)


def make_plant(folder: Path) -> Plant:
    """Build the ledger: 22 entries, checkpoints of sizes 1, 6 and 22, the one of 6 anchored."""
    clock = ManualClock(made.START)
    ledger = made.open_ledger(
        MemoryStore(clock=clock), folder, clock, anchors=[AnchorPlace("second", MemoryStore(clock=clock))]
    )
    ledger.begin(made.occasion(made.START, service=None))
    ledger.checkpoint()

    def append(make: Callable[[datetime], Statement], *signers: Signer) -> int:
        clock.pass_seconds(600)
        return ledger.append(make(clock.now()), signers=signers).number

    first, second = (Subject(f"artefact/{name}", ledger.store_artefact(name.encode())) for name in ("log", "plan"))
    append(lambda at: made.backup(at, 1))
    append(lambda at: made.restore(at, 5), made.OTHER_HOST)
    chosen = append(lambda at: made.obligation(at, RANDOM, seed=SEED, window=WINDOW, due_at=DUE))
    failed = append(lambda at: made.obligation(at, FAILED, due_at=DUE))
    planted = append(lambda at: made.obligation(at, PLANTED, mutation="row-deleted"))
    ledger.checkpoint()
    ledger.anchor()
    requested = to_iso(target_from_seed(SEED, *WINDOW))
    done = append(
        lambda at: made.drill(at, RANDOM, entry=chosen, seed=SEED, requested=requested, artefacts=[first, second])
    )
    append(lambda at: made.drill(at, FAILED, entry=failed, outcome="failed"))
    append(lambda at: made.drill(at, PLANTED, entry=planted, outcome="failed", changes={"mutation": "row-deleted"}))
    approved = ledger.entry(done).signed.sha256
    append(lambda at: approval(at, done, approved), made.APPROVER)
    append(lambda at: made.probe(at, 40))
    append(lambda at: finding(at, "opened"))
    append(lambda at: finding(at, "closed"))
    append(lambda at: key_entry(at, "added", "host2", "executor", made.STRANGER))
    append(lambda at: made.obligation(at, OPEN, due_at=at - timedelta(seconds=60)))
    append(lambda at: keep_aside_mark(made.probe(at - timedelta(hours=1), 41)))
    append(lambda at: key_entry(at, "revoked", "db2", "executor", made.OTHER_HOST))
    append(lambda at: made.missed(at, 80))
    append(lambda at: made.failure(at, 82))
    append(lambda at: made.retention(at, 83))
    append(lambda at: made.access(at, 84, day="2026-02-27"))
    append(lambda at: made.access(at, 85, day="2026-02-28", previous=made.digest_of("2026-02-27")))
    ledger.checkpoint()
    raws = tuple(entry.signed.raw for entry in ledger.entries())
    return Plant(ledger=ledger, files=bundle_files(ledger), raws=raws)


def approval(at: datetime, entry: int, sha256: str) -> Statement:
    return make_statement(
        EvidenceKind.APPROVAL,
        occasion=made.occasion(at),
        subject=[Subject(f"ledger/{entry:012d}", sha256)],
        fields={"entry": entry, "approver": "auditor", "decision": "approved", "comment": "seen"},
    )


def finding(at: datetime, state: str, number: int = 60) -> Statement:
    return make_statement(
        EvidenceKind.FINDING,
        occasion=made.occasion(at),
        subject=[],
        fields={
            "finding": made.ulid(number),
            "state": state,
            "check": "moves-balance",
            "severity": "critical",
            "owner": "finance",
            "drill_entry": 7,
            "detail": state,
            "due_at": None,
        },
    )


def key_entry(at: datetime, action: str, name: str, role: str, key: Signer, previous: str | None = None) -> Statement:
    return make_statement(
        EvidenceKind.KEY,
        occasion=made.occasion(at, service=None),
        subject=[Subject(f"key/{key.fingerprint}", hashlib.sha256(key.public_key).hexdigest())],
        fields={
            "action": action,
            "key": {"name": name, "role": role, "public": public(key)},
            "services": [],
            "previous": previous,
        },
    )


# --- edits ------------------------------------------------------------------------------------------------


def edits(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield ``value`` with one thing changed, for every field, item, key and length in it."""
    if isinstance(value, Mapping):
        yield f"{path}: field added", {**value, "zz": 1}
        for name, item in value.items():
            yield f"{path}.{name}: field removed", {key: each for key, each in value.items() if key != name}
            for what, other in edits(item, f"{path}.{name}"):
                yield what, {**value, name: other}
    elif isinstance(value, list):
        yield f"{path}: item added", [*value, copy.deepcopy(value[0]) if value else "zz"]
        for index, item in enumerate(value):
            yield f"{path}[{index}]: item removed", [*value[:index], *value[index + 1 :]]
            for what, other in edits(item, f"{path}[{index}]"):
                yield what, [*value[:index], other, *value[index + 1 :]]
    elif isinstance(value, bool):
        yield path, not value
    elif isinstance(value, int):
        yield path, value + 1
    elif isinstance(value, str):
        yield path, _other_text(value)
    else:
        yield path, "zz"


def _other_text(text: str) -> str:
    """Return text of the same form that says something else."""
    for position in reversed(range(len(text))):
        if text[position].isdigit():
            return f"{text[:position]}{(int(text[position]) + 1) % 10}{text[position + 1 :]}"
    return text + "x"


def with_entry(files: Files, number: int, raw: bytes) -> Files:
    """Exchange the bytes of an entry, and make the manifest fit."""
    return refreshed({**files, f"entries/{number:012d}.json": raw})


def payload_edits(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the payload of a record with one thing changed."""
    payload, _ = decode_envelope(raw, PAYLOAD_TYPE, "the record")
    for what, value in edits(parse_canonical(payload)):
        yield what, canonical_bytes(value)


def with_payload(raw: bytes, payload: bytes) -> bytes:
    """Exchange the payload and leave the signatures as they were."""
    envelope = parse_canonical(raw)
    assert isinstance(envelope, dict)
    return canonical_bytes({**envelope, "payload": base64.b64encode(payload).decode()})


def signers_of(raw: bytes) -> list[Signer]:
    """Return the keys that signed a record."""
    known = {each.fingerprint: each for each in (made.LOG, made.HOST, made.OTHER_HOST, made.APPROVER, made.STRANGER)}
    return [known[keyid] for keyid, _ in decode_envelope(raw, PAYLOAD_TYPE, "the record")[1]]


def signed_anew(raw: bytes, payload: bytes) -> bytes:
    """Sign another payload with the keys that signed the record."""
    return sign_payload(payload, PAYLOAD_TYPE, signers_of(raw))


def record(statement: Statement, *signers: Signer) -> bytes:
    return sign_statement(statement, signers or [made.HOST])


def rewritten(
    files: Files, raws: Sequence[bytes], *, keep: Sequence[str] = ("checkpoints/", "anchors/"), log: Signer = made.LOG
) -> Files:
    """Write the whole log anew with the log key; what ``keep`` names, others have seen and it stays."""
    tree = MerkleTree(leaf_hash(raw) for raw in raws)
    kept = {
        name: raw
        for name, raw in files.items()
        if not name.startswith(("entries/", "checkpoint")) and (not name.startswith("anchors/") or "anchors/" in keep)
    }
    kept.update(
        {name: raw for name, raw in files.items() if name.startswith("checkpoints/") and "checkpoints/" in keep}
    )
    kept["checkpoint"] = note(len(raws), tree.root(), END, log)
    for number, raw in enumerate(raws):
        kept[f"entries/{number:012d}.json"] = raw
    return with_manifest(kept, size=len(raws))


def note(size: int, root: bytes, at: datetime | None, log: Signer = made.LOG) -> bytes:
    extensions = () if at is None else (f"time {to_iso(at)}",)
    return sign_note(Checkpoint(origin=made.ORIGIN, size=size, root=root, extensions=extensions).text, [log])
