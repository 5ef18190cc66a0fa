"""Who may sign which entry: the ledger's readers and the stand-alone verifier give the same answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.canonical import Json, canonical_bytes
from drservice.errors import UnknownSignerError
from drservice.evidence.authority import Authority
from drservice.evidence.ledger import Ledger
from drservice.evidence.policy import LedgerPolicy, LogKey, RecordKey
from drservice.evidence.signing import Signer
from drservice.evidence.statements import Statement
from drservice.evidence.verification import Step
from drservice.model.ids import ServiceName
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.bundles import bundle_files, policy_json, record_key
from tests.doubles.clock import ManualClock
from tests.faults.tampering import approval, key_entry, refused

RIGHTS = LedgerPolicy(
    log_keys=(LogKey(name=made.LOG.name, public_key=made.LOG.public_key),),
    executors=(
        RecordKey(name="db1", public_key=made.HOST.public_key),
        RecordKey(name="db2", public_key=made.OTHER_HOST.public_key, services=(ServiceName("hr"),), to_entry=3),
    ),
    approvers=(RecordKey(name="auditor", public_key=made.APPROVER.public_key),),
)
SAME_RIGHTS: dict[str, Json] = {
    "executors": [record_key(made.HOST), record_key(made.OTHER_HOST, services=["hr"], to_entry=3)]
}
AT = made.START
HR = made.missed(AT, 7, service="hr")
ERP = made.missed(AT, 8)


def story(*written: tuple[Statement, Sequence[Signer]]) -> Callable[[Ledger], None]:
    def write(ledger: Ledger) -> None:
        for statement, signers in written:
            ledger.append(statement, signers=signers)

    return write


def probe(number: int) -> tuple[Statement, Sequence[Signer]]:
    return made.probe(AT, number), (made.HOST,)


def rotated() -> Statement:
    return key_entry(AT, "rotated", "db1", "executor", made.STRANGER, previous=made.HOST.fingerprint)


STORIES = {
    "a host": (story((ERP, [made.HOST])), None),
    "its own service": (story((HR, [made.OTHER_HOST])), None),
    "no service in particular": (story((made.access(AT, 1, day="2026-02-27"), [made.OTHER_HOST])), None),
    "another service": (story((ERP, [made.OTHER_HOST])), "may not write for erp"),
    "one of two may": (story((ERP, [made.OTHER_HOST, made.HOST])), None),
    "behind its range": (story(probe(1), probe(2), probe(3), (HR, [made.OTHER_HOST])), "of this number"),
    "an approver as host": (story((ERP, [made.APPROVER])), "role does not sign missed"),
    "a host as approver": (story(probe(1), (approval(AT, 1, made.SHA), [made.HOST])), "role does not sign approval"),
    "the log key as host": (story((ERP, [made.LOG])), "role does not sign missed"),
    "a revoked key": (
        story((key_entry(AT, "revoked", "db1", "executor", made.HOST), [made.LOG]), (ERP, [made.HOST])),
        "which entry 1 revoked",
    ),
    "a key by a limited host": (
        story((key_entry(AT, "added", "x", "executor", made.STRANGER), [made.OTHER_HOST])),
        "key",
    ),
    "a key by an approver": (story((key_entry(AT, "added", "x", "executor", made.STRANGER), [made.APPROVER])), "key"),
    "a rotation by the new key alone": (story((rotated(), [made.LOG])), "both|old and the new"),
    "a key by a revoked host": (
        story(
            (key_entry(AT, "revoked", "db1", "executor", made.HOST), [made.LOG]),
            (key_entry(AT, "added", "x", "executor", made.STRANGER), [made.HOST]),
        ),
        "revoked",
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_readers_of_the_ledger_believe_what_the_verifier_believes(name: str, tmp_path: Path) -> None:
    write, reason = STORIES[name]
    clock = ManualClock(AT)
    ledger = made.open_ledger(MemoryStore(clock=clock), tmp_path, clock)
    ledger.begin(made.occasion(AT, service=None))
    write(ledger)
    ledger.checkpoint()
    error = refused(bundle_files(ledger), canonical_bytes(policy_json(**SAME_RIGHTS)))
    authority = Authority(RIGHTS)
    *before, last = ledger.entries()
    for entry in before:
        authority.judge(entry)
    if reason is None:
        authority.judge(last)
        assert error is None
    else:
        with pytest.raises(UnknownSignerError, match=reason):
            authority.judge(last)
        assert error is not None
        assert error.step in {Step.AUTHORITY, Step.OBLIGATIONS}


def test_keys_that_earlier_entries_ended_are_carried_into_a_later_look(tmp_path: Path) -> None:
    clock = ManualClock(AT)
    ledger = made.open_ledger(MemoryStore(clock=clock), tmp_path, clock)
    ledger.begin(made.occasion(AT, service=None))
    story((key_entry(AT, "revoked", "db1", "executor", made.HOST), [made.LOG]), (ERP, [made.HOST]))(ledger)
    first = Authority(RIGHTS)
    for entry in ledger.entries(0, 2):
        first.judge(entry)
    assert first.ended == {made.HOST.fingerprint: 1}
    with pytest.raises(UnknownSignerError, match="which entry 1 revoked"):
        Authority(RIGHTS, ended=first.ended).judge(ledger.entry(2))


def test_a_host_that_lists_no_log_key_believes_the_beginning_by_the_host_that_signed_it_too(tmp_path: Path) -> None:
    clock = ManualClock(AT)
    unaware = replace(RIGHTS, log_keys=())
    ledger = made.open_ledger(MemoryStore(clock=clock), tmp_path, clock, policy=unaware)
    ledger.begin(made.occasion(AT, service=None))
    Authority(unaware).judge(ledger.entry(0))
    limited = replace(unaware, executors=(replace(unaware.executors[0], services=(ServiceName("erp"),)),))
    with pytest.raises(UnknownSignerError, match="a limited one"):
        Authority(limited).judge(ledger.entry(0))
