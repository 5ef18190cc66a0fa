"""Whatever is tampered with in a bundle, the verifier names it; docs/tamper.md is the table of it, made by these tests.

``python -m tests.faults.test_faults_tamper`` writes the table anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import to_iso
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.statements import (
    PAYLOAD_TYPE,
    Statement,
    Subject,
    decode_statement,
    keep_aside_mark,
    sign_payload,
)
from drservice.evidence.verification import Step
from drservice.model.evidence import EvidenceKind
from tests.doubles import evidence as made
from tests.doubles.bundles import Files, bundle_files, manifest_note, policy_json, record_key, refreshed, with_manifest
from tests.faults.tampering import (
    END,
    FAILED,
    OPEN,
    RANDOM,
    SEED,
    WINDOW,
    Plant,
    approval,
    edits,
    finding,
    key_entry,
    make_plant,
    note,
    payload_edits,
    record,
    refused,
    rewritten,
    signed_anew,
    verify,
    with_entry,
    with_payload,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "tamper.md"
HEAD = """# Tampering, and what the verifier says

Made by `tests/faults/test_faults_tamper.py`; do not edit. Each line is a way of tampering with a bundle of 22 records
of every kind, tried on every field, file or place it applies to. *With* says what the attacker holds beside the bundle:
*nothing* (he makes the manifest fit), *host key* (he signs records anew), *log key* (he also rebuilds the tree and
signs checkpoints; what was anchored before stays). The steps are those of [evidence](evidence.md).

| tampering | with | cases | step | the verifier says, for example |
|---|---|---|---|---|
"""
RENEW = "run `python -m tests.faults.test_faults_tamper`"
TAIL = """
## What is not detected

{undetected} of {forged} edits of single fields in records remain unnoticed when the attacker holds the host's and the
log key, *and* nothing of the log was anchored or noted elsewhere before: the record is then simply another record. With
an anchor in a second store, or a `known` root in the policy, every one of them is refused (step 5) in what the anchor
covers. The {seen} edits refused without any anchor contradict their schema, their obligation or another record.

Cutting a log back to an earlier checkpoint, with every later one removed, leaves a bundle that is as valid as it was on
that day. A `known` root, `max_age_ms` of an anchor, or `obligations` in the policy refuse it.

In a bundle without `manifest.note` the reports, `service` and `period` can be edited unseen; the verifier says so in a
remark. The policy in a bundle can name any keys: the verifier prints their fingerprints, and one given with `--policy`
replaces it.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One bundle that was tampered with, and what the verifier's message has to name."""

    name: str
    files: Files
    mentions: str
    policy: bytes | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Cases of one kind: a line of the table."""

    what: str
    keys: str
    steps: tuple[Step, ...]
    cases: Callable[[Plant], Iterator[Case]]


@cache
def plant() -> Plant:
    with tempfile.TemporaryDirectory() as folder:
        return make_plant(Path(folder))


# --- files ------------------------------------------------------------------------------------------------


def every_file_edited(p: Plant) -> Iterator[Case]:
    for name, raw in p.files.items():
        if name != "manifest.json":
            yield Case(name, {**p.files, name: raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:]}, name)


def every_file_removed(p: Plant) -> Iterator[Case]:
    for name in p.files:
        yield Case(name, {each: raw for each, raw in p.files.items() if each != name}, name)


def a_file_added(p: Plant) -> Iterator[Case]:
    for name in ("entries/000000000022.json", "artefacts/" + "0" * 64, "sitecustomize.py"):
        yield Case(name, {**p.files, name: b"x"}, name)


def a_file_added_and_listed(p: Plant) -> Iterator[Case]:
    for name in ("sitecustomize.py", "entries/../x", "anchors/second/1"):
        yield Case(name, refreshed({**p.files, name: b"x"}), repr(name))


def every_manifest_field(p: Plant) -> Iterator[Case]:
    manifest = parse_canonical(p.files["manifest.json"])
    labels = (".service", ".period.from", ".period.to")
    for what, value in edits(manifest):
        if what not in labels:
            yield Case(what, {**p.files, "manifest.json": canonical_bytes(value)}, "")


def signed_manifest_fields(p: Plant) -> Iterator[Case]:
    signed = bundle_files(p.ledger, signer=made.HOST)
    manifest = parse_canonical(signed["manifest.json"])
    assert isinstance(manifest, dict)
    time = to_iso(END)
    for change in ({"service": "erp"}, {"period": {"from": time, "to": None}}, {"period": {"from": None, "to": time}}):
        yield Case(str(change), {**signed, "manifest.json": canonical_bytes({**manifest, **change})}, "manifest.note")
    yield Case("report", refreshed({**signed, "report.html": b"<p>all is well</p>"}), "manifest.note")
    forged = manifest_note(signed["manifest.json"], made.STRANGER)
    yield Case("stranger", {**signed, "manifest.note": forged}, "manifest.note")


def an_unsigned_manifest_where_a_signed_one_is_asked_for(p: Plant) -> Iterator[Case]:
    yield Case("removed", p.files, "manifest.note", canonical_bytes(policy_json(manifest_signed=True)))


def artefacts(p: Plant) -> Iterator[Case]:
    names = [name for name in p.files if name.startswith("artefacts/")]
    for name, other in zip(names, reversed(names), strict=True):
        yield Case(f"{name} edited", refreshed({**p.files, name: b"other"}), name)
        yield Case(f"{name} exchanged", refreshed({**p.files, name: p.files[other]}), name)
        removed = {each: raw for each, raw in p.files.items() if each != name}
        yield Case(f"{name} removed", refreshed(removed), name.rpartition("/")[2])
    stranger = "artefacts/" + made.SHA
    yield Case("added", refreshed({**p.files, stranger: b"something"}), stranger)


# --- records ----------------------------------------------------------------------------------------------


def every_field_edited(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws):
        for what, payload in payload_edits(raw):
            files = with_entry(p.files, number, with_payload(raw, payload))
            yield Case(f"entry {number}{what}", files, f"entry {number} ")


def every_envelope_field_edited(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws):
        for what, value in edits(parse_canonical(raw)):
            yield Case(f"entry {number}{what}", with_entry(p.files, number, canonical_bytes(value)), "entr")


def every_field_signed_anew(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws):
        for what, payload in payload_edits(raw):
            files = with_entry(p.files, number, signed_anew(raw, payload))
            yield Case(f"entry {number}{what}", files, f"from entry {0 if number == 0 else 1 if number < 6 else 6} on")


def every_anchored_field_rewritten(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws[:6]):
        for what, payload in payload_edits(raw):
            raws = [*p.raws[:number], signed_anew(raw, payload), *p.raws[number + 1 :]]
            yield Case(f"entry {number}{what}", rewritten(p.files, raws, keep=("anchors/",)), "anchors/second")


def every_record_removed(p: Plant) -> Iterator[Case]:
    for number in range(p.size):
        raws = [*p.raws[:number], *p.raws[number + 1 :]]
        yield Case(f"entry {number}", with_records(p, raws, size=p.size), "entr")
        gap = refreshed({name: raw for name, raw in p.files.items() if name != f"entries/{number:012d}.json"})
        yield Case(f"entry {number}, a gap", gap, "entr")


def two_records_swapped(p: Plant) -> Iterator[Case]:
    for number in range(p.size - 1):
        raws = [*p.raws[:number], p.raws[number + 1], p.raws[number], *p.raws[number + 2 :]]
        yield Case(f"{number} and {number + 1}", with_records(p, raws, size=p.size), "from entry")
    yield Case("reversed", with_records(p, p.raws[::-1], size=p.size), "from entry")


def truncated(p: Plant) -> Iterator[Case]:
    for size in range(1, p.size):
        yield Case(f"to {size}", with_records(p, p.raws[:size], size=size), f"{size} entries")


def a_record_replayed_in_place(p: Plant) -> Iterator[Case]:
    for number in range(1, p.size):
        yield Case(f"over {number}", with_entry(p.files, number, p.raws[number - 1]), "from entry")


def with_records(p: Plant, raws: Sequence[bytes], *, size: int) -> Files:
    """Return the bundle with other records and the same checkpoints."""
    files = {name: raw for name, raw in p.files.items() if not name.startswith("entries/")}
    return with_manifest({**files, **{f"entries/{n:012d}.json": raw for n, raw in enumerate(raws)}}, size=size)


# --- checkpoints, anchors, proofs -------------------------------------------------------------------------


def edited_notes(p: Plant, names: Sequence[str]) -> Iterator[Case]:
    for name in names:
        lines = p.files[name].decode().split("\n")
        for index, line in enumerate(lines[:-1]):
            position = len(line) // 2
            other = "A" if line[position : position + 1] != "A" else "B"
            changed = f"{line[:position]}{other}{line[position + 1 :]}" if line else "x"
            raw = "\n".join([*lines[:index], changed, *lines[index + 1 :]]).encode()
            yield Case(f"{name} line {index + 1}", refreshed({**p.files, name: raw}), "checkpoint")
            removed = "\n".join([*lines[:index], *lines[index + 1 :]]).encode()
            yield Case(f"{name} line {index + 1} removed", refreshed({**p.files, name: removed}), "checkpoint")


def newest_checkpoint_edited(p: Plant) -> Iterator[Case]:
    yield from edited_notes(p, ["checkpoint"])
    tree = MerkleTree(leaf_hash(raw) for raw in p.raws)
    stranger = note(p.size, tree.root(), END, made.STRANGER)
    yield Case("by a stranger", refreshed({**p.files, "checkpoint": stranger}), made.STRANGER.name)
    timeless = note(p.size, tree.root(), None)
    yield Case("without a time", refreshed({**p.files, "checkpoint": timeless}), "does not say when")
    ranges: list[Json] = [{**key, "to_size": 21} for key in policy_keys("log_keys")]
    yield Case("out of the key's range", p.files, "may sign it", canonical_bytes(policy_json(log_keys=ranges)))


def policy_keys(role: str) -> list[dict[str, Json]]:
    keys = policy_json()[role]
    assert isinstance(keys, list)
    return keys


def earlier_notes_edited(p: Plant) -> Iterator[Case]:
    for case in edited_notes(p, [name for name in p.files if name.startswith(("checkpoints/", "anchors/"))]):
        yield Case(case.name, case.files, "s/")
    other = "anchors/second/000000000007"
    yield Case("moved", refreshed({**p.files, other: p.files["anchors/second/000000000006"]}), other)


def forked(p: Plant) -> Iterator[Case]:
    for size in range(1, p.size + 1):
        fork = note(size, leaf_hash(b"another history"), END)
        name = f"anchors/third/{size:012d}"
        yield Case(f"at {size}", refreshed({**p.files, name: fork}), name)


def set_back(p: Plant) -> Iterator[Case]:
    for size in range(1, 6):
        yield Case(f"to {size}", rewritten(p.files, p.raws[:size], keep=("anchors/",)), "anchors/second/000000000006")


def set_back_behind_a_known_root(p: Plant) -> Iterator[Case]:
    root = parse_root(p.files["checkpoint"])
    known: list[Json] = [{"name": "second", "max_age_ms": None, "known": [{"size": p.size, "root": root}]}]
    policy = canonical_bytes(policy_json(anchors=known))
    for size in range(1, p.size):
        yield Case(f"to {size}", rewritten(p.files, p.raws[:size], keep=()), f"for size {p.size}", policy)


def parse_root(raw: bytes) -> str:
    return raw.decode().split("\n")[2]


def proofs_edited(p: Plant) -> Iterator[Case]:
    files = bundle_files(p.ledger, selection=[0, 4, 7])
    for name in [name for name in files if name.startswith("proofs/")]:
        for what, value in edits(parse_canonical(files[name])):
            number = int(name[7:19])
            yield Case(f"{name}{what}", refreshed({**files, name: canonical_bytes(value)}), f"{number}")
        yield Case(f"{name} removed", refreshed({each: raw for each, raw in files.items() if each != name}), name)


def consistency_edited(p: Plant) -> Iterator[Case]:
    files = bundle_files(p.ledger, selection=[0, 4, 7])
    for name in [name for name in files if name.startswith("consistency/")]:
        for what, value in edits(parse_canonical(files[name])):
            yield Case(f"{name}{what}", refreshed({**files, name: canonical_bytes(value)}), f"{int(name[12:24])}")
        yield Case(f"{name} removed", refreshed({each: raw for each, raw in files.items() if each != name}), name)


def anchors_missing(p: Plant) -> Iterator[Case]:
    wanted: list[Json] = [{"name": "second", "max_age_ms": None, "known": []}]
    policy = canonical_bytes(policy_json(anchors=wanted))
    removed = refreshed({name: raw for name, raw in p.files.items() if not name.startswith("anchors/")})
    yield Case("removed", removed, "second", policy)
    aged: list[Json] = [{"name": "second", "max_age_ms": 60_000, "known": []}]
    yield Case("too old", p.files, "second", canonical_bytes(policy_json(anchors=aged)))


# --- with the log key: the tree is right, what the records say is not ----------------------------------------


def appended(p: Plant, *raws: bytes) -> Files:
    return rewritten(p.files, [*p.raws, *raws])


def signed_by_strangers(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws[6:], 6):
        payload = decode_statement(raw).payload
        raws = [*p.raws[:number], sign_payload(payload, PAYLOAD_TYPE, [made.STRANGER])]
        yield Case(f"entry {number}", rewritten(p.files, raws), f"entry {number} ")


def not_allowed(p: Plant) -> Iterator[Case]:
    probe = made.probe(END, 70)
    yield Case("revoked", appended(p, record(probe, made.OTHER_HOST)), "entry 16 revoked")
    yield Case("approver as host", appended(p, record(probe, made.APPROVER)), "role")
    yield Case("log key as host", appended(p, record(probe, made.LOG)), "role")
    yield Case("host as approver", appended(p, record(approval(END, 1, made.SHA))), "role")
    for foreign in (made.obligation(END, 71, service="hr"), made.missed(END, 76, service="hr")):
        raws = [*p.raws[:16], record(foreign, made.OTHER_HOST)]
        yield Case(f"other service, {foreign.kind.value}", rewritten(p.files, raws), "hr")
    key = key_entry(END, "added", "x", "executor", made.STRANGER)
    yield Case("key by an approver", appended(p, record(key, made.APPROVER)), "may not say that")
    rotation = key_entry(END, "rotated", "db1", "executor", made.OTHER_HOST, previous=made.HOST.fingerprint)
    yield Case("rotation by one key", appended(p, record(rotation)), "both")
    short: list[Json] = [record_key(made.HOST, to_entry=10), *policy_keys("executors")[1:]]
    yield Case("out of range", p.files, "entry 11", canonical_bytes(policy_json(executors=short)))
    revoked = record(key_entry(END, "revoked", "log", "log", made.LOG))
    yield Case("checkpoint by a revoked log key", appended(p, revoked), "entry 22 revoked")


def slots_of(statement: Statement) -> list[Json]:
    slots = statement.predicate["slots"]
    assert isinstance(slots, list)
    return slots


def replayed(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws):
        if number:
            yield Case(f"entry {number} again", appended(p, raw), "")
    for number, statement in (
        (1, made.backup(END, 1)),
        (2, made.restore(END, 5)),
        (3, made.obligation(END, RANDOM)),
        (7, made.drill(END, FAILED, entry=4)),
        (17, made.missed(END, 80)),
        (18, made.failure(END, 82)),
        (19, made.retention(END, 83)),
        (21, made.access(END, 85, day="2026-03-01", previous=made.digest_of("2026-02-28"))),
    ):
        yield Case(f"entry {number} under a new date", appended(p, record(statement)), f"entry {number}:")


def dated_wrong(p: Plant) -> Iterator[Case]:
    for hours in (-1, -24, 1):
        probe = made.probe(END + timedelta(hours=hours), 72)
        yield Case(f"{hours} h", appended(p, record(probe)), "entry 22 ")
    hidden = record(made.probe(END - timedelta(hours=2), 41))
    yield Case("not marked as late", rewritten(p.files, [*p.raws[:15], hidden]), "entry 15 ")
    early = made.backup(END - timedelta(hours=3), 73)
    yield Case("behind a checkpoint", rewritten(p.files, [*p.raws[:6], record(early)]), "back-dated")
    turned = made.missed(END, 77)
    for name, change in (
        ("slots out of order", {"slots": [*reversed(slots_of(turned))]}),
        ("noticed before they came", {"noticed_at": slots_of(turned)[0]}),
    ):
        missed = Statement(kind=turned.kind, subject=(), predicate={**turned.predicate, **change})
        yield Case(name, appended(p, record(missed)), "out of order, or noticed them before")
    failed = made.failure(END, 78)
    early_end = {"started_at": to_iso(END), "ended_at": to_iso(END - timedelta(minutes=1))}
    failure = Statement(kind=failed.kind, subject=(), predicate={**failed.predicate, **early_end})
    yield Case("a run that ended before it began", appended(p, record(failure)), "ended before it began")
    plain = made.backup(END, 74)
    for name, minutes in (("ended before it began", -1), ("ended after it was recorded", 6)):
        ended: dict[str, Json] = {"ended_at": to_iso(END + timedelta(minutes=minutes))}
        backup = Statement(kind=plain.kind, subject=plain.subject, predicate={**plain.predicate, **ended})
        yield Case(name, appended(p, record(backup)), "ended before it began, or after it was recorded")
        if minutes < 0:
            yield Case(f"{name}, late", appended(p, record(keep_aside_mark(backup))), "ended before it began")


def drills(p: Plant) -> Iterator[Case]:
    def judged(name: str, mentions: str, statement: Statement, at: int = 6) -> Case:
        return Case(name, rewritten(p.files, [*p.raws[:at], record(statement)]), mentions)

    at = END - timedelta(minutes=90)
    good = made.drill(at, FAILED, entry=4).predicate["target"]
    assert isinstance(good, dict)
    yield judged("no such obligation", "none stands there", made.drill(at, 99, entry=3))
    yield judged("obligation at another entry", "none stands there", made.drill(at, FAILED, entry=3))
    yield judged("obligation later", "none stands there", made.drill(at, OPEN, entry=14))
    changes: dict[str, tuple[str, dict[str, Json]]] = {
        "other promise": ("promised", {"promised": {"rto_ms": 1, "rpo_ms": 5000}}),
        "other fault": ("mutation", {"mutation": "row-deleted"}),
        "other target": ("target", {"target": {**good, "requested": "latest", "kind": "time"}}),
        "slower than promised": ("rto_ms", {"rto_ms": 1_800_001}),
        "no recovery time": ("rto_ms", {"rto_ms": None}),
        "more lost than promised": ("rpo_ms", {"rpo_ms": 5001}),
        "check left out": ("moves-balance", {"checks": [made.check("sequences", "passed", severity="warning")]}),
        "not isolated": ("isolated", {"isolation": [{"name": "network", "isolated": False, "detail": ""}]}),
        "error": ("DR300", {"error": {"code": "DR300", "message": "x"}}),
    }
    for word in ("missing", "corrupt"):
        counts = {"expected": 40, "missing": 0, "corrupt": 0, "extra": 0, "missing_in_production": 0, word: 1}
        changes[f"{word} document"] = (word, {"documents": counts})
    for name, (mentions, change) in changes.items():
        yield judged(name, mentions, made.drill(at, FAILED, entry=4, changes=change))
    warning = made.check("sequences", "passed", severity="warning")
    for state in ("failed", "unverified"):
        checks: list[Json] = [made.check("moves-balance", state), warning]
        yield judged(f"check {state}", state, made.drill(at, FAILED, entry=4, changes={"checks": checks}))
    plain = made.drill(at, FAILED, entry=4)
    bare = Statement(kind=plain.kind, subject=(Subject("plan/other", made.SHA),), predicate=plain.predicate)
    yield judged("other plan", "plan", bare)
    foreign = Statement(kind=plain.kind, subject=plain.subject, predicate={**plain.predicate, "service": "hr"})
    yield judged("other service", "service", foreign)
    other = bytes(32)
    yield judged("other seed", "commit", made.drill(at, RANDOM, entry=3, seed=other, requested=to_iso(WINDOW[0])))
    yield judged("chosen target", "leads to", made.drill(at, RANDOM, entry=3, seed=SEED, requested=to_iso(WINDOW[0])))
    yield judged("seed hidden", "seed", made.drill(at, RANDOM, entry=3))
    seeded = made.drill(at, FAILED, entry=4, changes={"seed": SEED.hex()})
    yield judged("seed without commitment", "seed", seeded)
    twice = Statement(
        kind=plain.kind,
        subject=plain.subject,
        predicate={**plain.predicate, "run": made.ulid(9), "challenge": None, "recorded_at": to_iso(END)},
    )
    yield Case("answered twice", appended(p, record(twice)), "entry 7 has answered")


def passed_with_something_missing(p: Plant) -> Iterator[Case]:
    at = END - timedelta(minutes=90)
    target = made.drill(at, FAILED, entry=4).predicate["target"]
    assert isinstance(target, dict)
    good, warning = made.check("moves-balance", "passed"), made.check("sequences", "passed", severity="warning")
    changes: dict[str, tuple[str, dict[str, Json]]] = {
        "isolation not tested": ("isolation", {"isolation": []}),
        "no position": ("reached_lsn", {"target": {**target, "reached_lsn": None}}),
        "no timeline": ("timeline", {"target": {**target, "timeline": None}}),
        "no environment": ("environment", {"environment": None}),
        "no accuracy": ("target_accuracy_ms", {"target_accuracy_ms": None}),
        "no challenge": ("challenge", {"challenge": None}),
        "no documents": ("not counted", {"documents": None}),
        "no snapshots": ("no snapshot", {"snapshots": []}),
        "other snapshot": (made.ulid(9), {"snapshots": [{"component": "database", "snapshot": made.ulid(9)}]}),
        "left behind": ("neither destroyed nor kept", {"destroyed": False, "kept": False}),
        "a reason against it": ("posted-lines", {"reasons": ["posted-lines failed"]}),
        "nothing asked": ("no planned check", {"checks": []}),
        "nothing applicable": (
            "no planned check",
            {
                "checks": [
                    made.check("moves-balance", "unverified", not_applicable=True),
                    made.check("sequences", "unverified", severity="warning", not_applicable=True),
                ]
            },
        ),
        "failed as a warning": (
            "planned was critical",
            {"checks": [made.check("moves-balance", "failed", severity="warning"), warning]},
        ),
        "passed as a warning": (
            "planned was critical",
            {"checks": [made.check("moves-balance", "passed", severity="warning"), warning]},
        ),
        "failed, said to be not applicable": (
            "not applicable and failed",
            {"checks": [made.check("moves-balance", "failed", not_applicable=True), warning]},
        ),
        "not applicable, never planned": (
            "vacuum",
            {"checks": [good, warning, made.check("vacuum", "unverified", not_applicable=True)]},
        ),
        "failed, never planned": ("vacuum", {"checks": [good, warning, made.check("vacuum", "failed")]}),
        "failed and passed": ("stands twice", {"checks": [made.check("moves-balance", "failed"), good, warning]}),
    }
    for name, (mentions, change) in changes.items():
        statement = made.drill(at, FAILED, entry=4, changes=change)
        yield Case(name, rewritten(p.files, [*p.raws[:6], record(statement)]), mentions)
    plain = made.drill(at, FAILED, entry=4)
    unnamed = Statement(kind=plain.kind, subject=(made.PLAN,), predicate=plain.predicate)
    yield Case("snapshot not named", rewritten(p.files, [*p.raws[:6], record(unnamed)]), made.ulid(2))


def other_contradictions(p: Plant) -> Iterator[Case]:
    wrong = approval(END, 7, made.SHA)
    yield Case("approval of other bytes", appended(p, record(wrong, made.APPROVER)), "entry 7")
    future = approval(END, 40, made.SHA)
    yield Case("approval in advance", appended(p, record(future, made.APPROVER)), "entry 40")
    yield Case("finding closed, never opened", appended(p, record(finding(END, "closed", 61))), made.ulid(61))
    plain = made.obligation(END, 74)
    empty = Statement(kind=plain.kind, subject=(), predicate=plain.predicate)
    yield Case("obligation without its plan", appended(p, record(empty)), "plan")


def days_of_access(p: Plant) -> Iterator[Case]:
    def day(name: str, mentions: str, at: str, previous: tuple[str, str] | None, **changes: Json) -> Case:
        said = made.access(END, 90, day=at, previous=previous, changes=changes)
        return Case(name, appended(p, record(said)), mentions)

    last = made.digest_of("2026-02-28")
    yield day("a day dropped", "a day was dropped", "2026-03-02", made.digest_of("2026-03-01"))
    yield day("begun anew under its name", "a day was dropped", "2026-03-01", None)
    yield day("a day told twice", "follows 2026-02-28", "2026-02-28", last)
    yield day("another digest before", "a day was dropped", "2026-03-01", ("2026-02-28", made.SHA))
    counts: dict[str, Json] = {"succeeded": 8, "refused": 3, "failed": 1, "sign_ins_refused": 4}
    yield day("more refused sign-ins than refusals", "other lines", "2026-03-01", last, outcomes=counts)
    yield day("lines left out of the counts", "other lines", "2026-03-01", last, lines=13)
    yield Case("a day in the middle left out", rewritten(p.files, [*p.raws[:20], p.raws[21]]), "a day was dropped")


def retention_against_itself(p: Plant) -> Iterator[Case]:
    def told(name: str, mentions: str, outcome: str, **changes: Json) -> Case:
        return Case(name, appended(p, record(made.retention(END, 91, outcome=outcome, changes=changes))), mentions)

    yield told("another plan", "its own plan", "applied", plan="0" * 64)
    yield told("frozen, and something went", "something went", "frozen")
    yield told("marked, and something went", "something went", "marked", action="prune")
    yield told("applied with an error", "own numbers", "applied", error={"code": "DR300", "message": "x"})
    yield told("applied, and the store refused", "own numbers", "applied", refused=1)


def not_in_the_schema(p: Plant) -> Iterator[Case]:
    for number, raw in enumerate(p.raws[6:], 6):
        for what, payload in payload_edits(raw):
            if what.endswith(("field added", "field removed")) and "kept_aside" not in what:
                raws = [*p.raws[:number], signed_anew(raw, payload), *p.raws[number + 1 :]]
                yield Case(f"entry {number}{what}", rewritten(p.files, raws), f"entry {number}")


def late_obligation(p: Plant) -> Iterator[Case]:
    plain = made.obligation(END, 75)
    late = keep_aside_mark(made.probe(END, 1)).predicate["kept_aside"]
    forged = Statement(kind=plain.kind, subject=plain.subject, predicate={**plain.predicate, "kept_aside": late})
    raw = sign_payload(forged.payload(), PAYLOAD_TYPE, [made.HOST])
    yield Case("obligation kept aside", appended(p, raw), "kept_aside")


def expectations(p: Plant) -> Iterator[Case]:
    without = rewritten(p.files, p.raws[:14], keep=())
    expected = canonical_bytes(policy_json(obligations=[made.ulid(OPEN)]))
    yield Case("obligation dropped", without, made.ulid(OPEN), expected)
    count: list[Json] = [{"service": "erp", "at_least": 4, "from": None, "to": None}]
    yield Case("fewer obligations", without, "erp", canonical_bytes(policy_json(drills=count)))


def anchored_obligation_dropped(p: Plant) -> Iterator[Case]:
    raws = [raw for number, raw in enumerate(p.raws) if number not in {4, 7, 8, 9, 14}]
    yield Case("with its failed drill", rewritten(p.files, raws), "000000000006")


S = Step
GROUPS = (
    Group("a byte of a file", "nothing, manifest kept", (S.MANIFEST,), every_file_edited),
    Group("a file removed", "nothing, manifest kept", (S.MANIFEST,), every_file_removed),
    Group("a file added", "nothing, manifest kept", (S.MANIFEST,), a_file_added),
    Group("a file added that has no place", "nothing", (S.MANIFEST,), a_file_added_and_listed),
    Group("a field of the manifest", "nothing", (S.MANIFEST, S.POLICY, S.CHECKPOINT, S.TREE), every_manifest_field),
    Group("a label or report under a signed manifest", "nothing", (S.POLICY,), signed_manifest_fields),
    Group(
        "the manifest's signature removed, policy asks for it",
        "nothing",
        (S.POLICY,),
        an_unsigned_manifest_where_a_signed_one_is_asked_for,
    ),
    Group("an artefact edited, exchanged, removed, added", "nothing", (S.ARTEFACTS,), artefacts),
    Group("a field of a record", "nothing", (S.TREE,), every_field_edited),
    Group("a field of a record's envelope", "nothing", (S.TREE,), every_envelope_field_edited),
    Group("a record removed", "nothing", (S.TREE,), every_record_removed),
    Group("two records swapped; all reversed", "nothing", (S.TREE,), two_records_swapped),
    Group("the end cut off", "nothing", (S.CHECKPOINT,), truncated),
    Group("a record over its neighbour", "nothing", (S.TREE,), a_record_replayed_in_place),
    Group("a line of the newest checkpoint", "nothing", (S.CHECKPOINT,), newest_checkpoint_edited),
    Group("a line of an earlier checkpoint or anchor", "nothing", (S.HISTORY,), earlier_notes_edited),
    Group("a field of an inclusion proof", "nothing", (S.TREE,), proofs_edited),
    Group("a field of a consistency proof", "nothing", (S.HISTORY,), consistency_edited),
    Group("anchors removed or aged, policy asks for them", "nothing", (S.EXPECTATIONS,), anchors_missing),
    Group("a field of a record, signed anew", "host key", (S.TREE,), every_field_signed_anew),
    Group("a field of an anchored record, log rebuilt", "log key", (S.HISTORY,), every_anchored_field_rewritten),
    Group("set back behind an anchor", "log key", (S.HISTORY,), set_back),
    Group("set back behind a known root", "log key", (S.HISTORY,), set_back_behind_a_known_root),
    Group("a second history shown to somebody else", "log key", (S.HISTORY,), forked),
    Group("failed drill and anchored obligation dropped", "log key", (S.HISTORY,), anchored_obligation_dropped),
    Group("signed by an unknown key", "log key", (S.SIGNATURES,), signed_by_strangers),
    Group("revoked key, other role, service or range", "log key", (S.AUTHORITY,), not_allowed),
    Group("a field added or removed, signed anew, log rebuilt", "log key", (S.STATEMENTS,), not_in_the_schema),
    Group("an obligation said to have been kept aside", "log key", (S.STATEMENTS,), late_obligation),
    Group("a record replayed, also under a new date", "log key", (S.AUTHORITY, S.TIMES), replayed),
    Group("dated back or forward", "log key", (S.TIMES,), dated_wrong),
    Group("a drill against its obligation or its own numbers", "log key", (S.OBLIGATIONS,), drills),
    Group("a drill that passed with something missing", "log key", (S.OBLIGATIONS,), passed_with_something_missing),
    Group("approvals, findings, obligations that contradict", "log key", (S.OBLIGATIONS,), other_contradictions),
    Group("a day of the access log dropped, doubled or miscounted", "log key", (S.OBLIGATIONS,), days_of_access),
    Group("retention that contradicts itself", "log key", (S.OBLIGATIONS,), retention_against_itself),
    Group("obligations dropped that the policy expects", "log key", (S.EXPECTATIONS,), expectations),
)


@cache
def line_of(index: int) -> str:
    """Try every case of a group and return its line of the table."""
    group = GROUPS[index]
    messages = []
    steps = set()
    for case in group.cases(plant()):
        error = refused(case.files, case.policy)
        assert error is not None, f"{group.what}: {case.name} is not noticed"
        assert error.step in group.steps, f"{group.what}: {case.name}: {error}"
        assert case.mentions in error.what, f"{group.what}: {case.name}: {error}"
        messages.append(error.what)
        steps.add(error.step.value)
    shown = messages[len(messages) // 2].replace("|", "\\|")
    numbers = ", ".join(str(step) for step in sorted(steps))
    return f"| {group.what} | {group.keys} | {len(messages)} | {numbers} | {shown} |\n"


@cache
def forgeries() -> tuple[int, int]:
    """Count edits with every key and without any anchor: how many there are, how many remain unnoticed."""
    total = unnoticed = 0
    for number, raw in enumerate(plant().raws):
        for _, payload in payload_edits(raw):
            raws = [*plant().raws[:number], signed_anew(raw, payload), *plant().raws[number + 1 :]]
            total += 1
            unnoticed += refused(rewritten(plant().files, raws, keep=())) is None
    return total, unnoticed


def tail() -> str:
    total, unnoticed = forgeries()
    return TAIL.format(undetected=unnoticed, forged=total, seen=total - unnoticed)


def document() -> str:
    return HEAD + "".join(line_of(index) for index in range(len(GROUPS))) + tail()


def test_the_untouched_bundle_passes_every_step() -> None:
    verified = verify(plant().files)
    assert (verified.size, verified.is_complete) == (22, True)
    assert (verified.drills, verified.mutations_noticed) == ({"failed": 1, "passed": 1}, 1)
    assert verified.overdue_obligations == (made.ulid(OPEN),)
    assert verified.late_entries == (15,)
    assert set(verified.counts) == {kind.value for kind in EvidenceKind}


@pytest.mark.parametrize("index", range(len(GROUPS)), ids=lambda index: GROUPS[index].what.replace(" ", "-"))
def test_tampering_is_refused_and_named_and_the_table_tells_it(index: int) -> None:
    assert line_of(index) in DOCUMENT.read_text(encoding="utf-8"), RENEW


def test_a_failed_drill_dropped_after_its_obligation_was_anchored_leaves_the_obligation_overdue() -> None:
    p = plant()
    verified = verify(rewritten(p.files, [raw for number, raw in enumerate(p.raws) if number not in {7, 9}]))
    assert verified.overdue_obligations == (made.ulid(FAILED), made.ulid(OPEN))


def test_a_given_policy_makes_every_edit_of_the_enclosed_one_harmless() -> None:
    p = plant()
    given = canonical_bytes(policy_json())
    expected = verify(p.files, given)
    for what, value in edits(policy_json()):
        files = refreshed({**p.files, "policy.json": canonical_bytes(value)})
        assert verify(files, given) == expected, what


def test_the_enclosed_policy_is_never_believed_without_showing_its_keys() -> None:
    p = plant()
    strangers: list[Json] = [*policy_keys("executors"), record_key(made.STRANGER)]
    files = refreshed({**p.files, "policy.json": canonical_bytes(policy_json(executors=strangers))})
    verified = verify(files)
    assert verified.policy_source == "bundle"
    assert any(made.STRANGER.fingerprint in line for line in verified.keys)


def test_an_unsigned_manifest_is_remarked_and_a_signed_one_names_its_signer() -> None:
    p = plant()
    assert any("unsigned" in remark for remark in verify(p.files).remarks)
    signed = verify(bundle_files(p.ledger, signer=made.HOST))
    assert signed.manifest_signed_by == "db1"
    assert not signed.remarks


def test_the_page_has_a_line_for_each_way_of_tampering_and_counts_what_is_not_detected() -> None:
    """What the lines say is compared by the test above, each by its own."""
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page.startswith(HEAD), RENEW
    assert page.endswith(tail()), RENEW
    lines = page.removeprefix(HEAD).removesuffix(tail()).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {group.what}" for group in GROUPS], RENEW


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
