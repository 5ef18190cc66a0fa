"""From a real ledger to a bundle that the verifier accepts."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.canonical import canonical_bytes
from drservice.errors import DrError, EvidenceIncompleteError, LedgerGapError, UnknownSignerError
from drservice.evidence import bundle as bundle_module
from drservice.evidence.anchoring import AnchorPlace
from drservice.evidence.bundle import ReportWishes, build_bundle, read_contents
from drservice.evidence.ledger import Ledger, artefact_key
from drservice.evidence.listing import entry_key
from drservice.evidence.report import Period, ServiceFacts, Verified
from drservice.evidence.statements import Subject, sign_statement
from drservice.evidence.verification import verify_bundle
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.bundles import policy_json
from tests.doubles.clock import ManualClock

LOG_TEXT = b"replayed to 02:09:57\n"
DIGEST = hashlib.sha256(LOG_TEXT).hexdigest()
POLICY = canonical_bytes(policy_json())
WISHES = ReportWishes(
    period=Period(begin=made.START - timedelta(days=1), end=made.START + timedelta(days=30)),
    services=(ServiceFacts(name="erp"),),
)


@pytest.fixture(autouse=True)
def _quick_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PDF has tests of its own, with real typst."""
    monkeypatch.setattr(bundle_module, "render_pdf", lambda view: b"%PDF- of " + view.as_of_iso.encode())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(made.START)


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def ledger(store: MemoryStore, clock: ManualClock, tmp_path: Path) -> Ledger:
    place = AnchorPlace("second-region", MemoryStore(clock=clock))
    return made.open_ledger(store, tmp_path / "state", clock, anchors=[place])


def tell(ledger: Ledger, clock: ManualClock) -> None:
    """A backup, a drill with an artefact, a checkpoint that is anchored, then another one."""
    ledger.begin(made.occasion(clock.now(), service=None))
    ledger.append(made.backup(clock.now(), 10))
    entry = ledger.append(made.obligation(clock.now(), 20)).number
    sha256 = ledger.store_artefact(LOG_TEXT)
    ledger.append(made.drill(clock.now(), 20, entry=entry, artefacts=[Subject("artefact/log", sha256)]))
    ledger.checkpoint()
    ledger.anchor()
    clock.sleep(60)
    ledger.append(made.backup(clock.now(), 30))
    ledger.checkpoint()


def test_what_a_ledger_holds_becomes_a_bundle_that_is_accepted(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    tell(ledger, clock)
    contents = read_contents(ledger, repository=made.REPOSITORY, policy=POLICY)
    built = build_bundle(contents, target=tmp_path / "b.zip", wishes=WISHES, signers=[made.HOST])
    verified = verify_bundle(tmp_path / "b.zip")
    assert (verified.size, verified.is_complete, verified.manifest_signed_by) == (5, True, made.HOST.name)
    assert verified.last_anchor is not None
    assert verified.last_anchor[:2] == ("second-region", 4)
    assert list(contents.artefacts) == [DIGEST]
    assert built.report.posture[0].verified is Verified.IN_PERIOD
    assert built.report.drills[0].objections == ()
    assert built.report.unreadable == ()


def test_entries_behind_the_newest_checkpoint_wait_for_the_next_bundle(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    tell(ledger, clock)
    ledger.append(made.backup(clock.now(), 40))
    contents = read_contents(ledger, repository=made.REPOSITORY, policy=POLICY)
    assert len(contents.entries) == 5
    build_bundle(contents, target=tmp_path / "b.zip", wishes=WISHES)
    assert verify_bundle(tmp_path / "b.zip").size == 5


def test_a_bundle_of_one_service_holds_all_entries_and_its_own_artefacts(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    tell(ledger, clock)
    contents = read_contents(ledger, repository=made.REPOSITORY, policy=POLICY, only_service="reporting")
    assert len(contents.entries) == 5
    assert contents.artefacts == {}
    wishes = ReportWishes(period=WISHES.period, services=WISHES.services, only_service="reporting")
    build_bundle(contents, target=tmp_path / "b.zip", wishes=wishes)
    verified = verify_bundle(tmp_path / "b.zip")
    assert (verified.service, verified.entries) == ("reporting", 5)


def test_a_ledger_without_a_checkpoint_is_not_exported(ledger: Ledger, clock: ManualClock) -> None:
    ledger.begin(made.occasion(clock.now(), service=None))
    with pytest.raises(EvidenceIncompleteError, match="no signed checkpoint"):
        read_contents(ledger, repository=made.REPOSITORY, policy=POLICY)


def test_a_ledger_that_was_changed_is_not_exported(ledger: Ledger, clock: ManualClock, store: MemoryStore) -> None:
    tell(ledger, clock)
    store.delete(entry_key(1))
    store.create(entry_key(1), sign_statement(made.backup(clock.now(), 11), [made.HOST]))
    with pytest.raises(DrError):
        build_bundle(
            read_contents(ledger, repository=made.REPOSITORY, policy=POLICY), target=Path("never"), wishes=WISHES
        )


def test_an_entry_signed_by_a_stranger_is_not_exported(ledger: Ledger, clock: ManualClock, store: MemoryStore) -> None:
    tell(ledger, clock)
    store.delete(entry_key(1))
    store.create(entry_key(1), sign_statement(made.backup(clock.now(), 10), [made.STRANGER]))
    with pytest.raises((UnknownSignerError, EvidenceIncompleteError)):
        read_contents(ledger, repository=made.REPOSITORY, policy=POLICY)


def test_an_artefact_that_is_gone_stops_the_export_and_leaves_nothing(
    ledger: Ledger, clock: ManualClock, store: MemoryStore, tmp_path: Path
) -> None:
    tell(ledger, clock)
    contents = read_contents(ledger, repository=made.REPOSITORY, policy=POLICY)
    store.delete(artefact_key(DIGEST))
    target = tmp_path / "out" / "b.zip"
    target.parent.mkdir()
    with pytest.raises(DrError, match=DIGEST):
        build_bundle(contents, target=target, wishes=WISHES)
    assert list(target.parent.iterdir()) == []


def test_an_entry_is_read_by_the_leaf_hash_it_was_verified_with(ledger: Ledger, clock: ManualClock) -> None:
    tell(ledger, clock)
    leaf = ledger.tree().leaf(1)
    assert ledger.raw_of_leaf(1, leaf) == ledger.raw(1)
    for number, other in ((2, leaf), (1, bytes(32)), (77, leaf)):
        with pytest.raises(LedgerGapError, match=str(number)):
            ledger.raw_of_leaf(number, other)
