"""The ledger: every record lands once, in order, whatever the store does; the signer never goes back."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.errors import (
    AnchorError,
    BadSignatureError,
    BusyError,
    CheckpointError,
    DamagedObjectError,
    DrError,
    LedgerError,
    LedgerGapError,
    LedgerMissingError,
    LedgerRollbackError,
    LogKeyError,
    MissingObjectError,
    StatementError,
    StoreUnreachableError,
    UnknownSignerError,
)
from drservice.evidence.anchoring import AnchorPlace, anchor_prefix
from drservice.evidence.ledger import Ledger, artefact_key
from drservice.evidence.listing import entry_key
from drservice.evidence.notes import Checkpoint, sign_note
from drservice.evidence.policy import LedgerPolicy, LogKey
from drservice.evidence.signing import Signer, load_key, load_log_key, make_log_key
from drservice.evidence.statements import Statement, keep_aside_mark, sign_statement
from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.clock import ManualClock
from tests.doubles.stores import (
    Fault,
    FaultyStore,
    MissingStore,
    RecordingStore,
    StaleListStore,
    When,
    bit_flipping_store,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(made.START)


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def ledger(store: MemoryStore, tmp_path: Path, clock: ManualClock) -> Ledger:
    return begun(store, tmp_path / "state", clock)


def begun(store: ObjectStore, state_dir: Path, clock: ManualClock, *places: AnchorPlace) -> Ledger:
    ledger = made.open_ledger(store, state_dir, clock, anchors=places)
    ledger.begin(made.occasion(made.START, service=None))
    return ledger


def probes(ledger: Ledger, *numbers: int) -> list[int]:
    return [ledger.append(made.probe(made.START, number)).number for number in numbers]


def runs(ledger: Ledger) -> list[str]:
    return [str(entry.signed.statement.predicate["run"]) for entry in ledger.entries(1)]


# --- appending --------------------------------------------------------------------------------------------


def test_records_are_numbered_without_a_gap_and_read_back(ledger: Ledger) -> None:
    assert probes(ledger, 1, 2, 3) == [1, 2, 3]
    assert runs(ledger) == [made.ulid(number) for number in (1, 2, 3)]
    assert ledger.entry(2).signers == (made.HOST.fingerprint,)
    assert ledger.raw(2) == sign_statement(made.probe(made.START, 2), [made.HOST])


def test_a_ledger_begins_with_its_log_key_once(ledger: Ledger, store: MemoryStore, tmp_path: Path) -> None:
    first = ledger.entry(0)
    assert first.signed.statement.predicate["key"] == {
        "name": "log",
        "role": "log",
        "public": f"ed25519:{made.LOG.public_key.hex()}",
    }
    assert set(first.signers) == {made.HOST.fingerprint, made.LOG.fingerprint}
    again = ledger.begin(made.occasion(made.START, service=None, host="db2"))
    assert (again.number, again.sha256) == (0, first.signed.sha256)
    other = made.open_ledger(store, tmp_path / "other", ManualClock(), log=made.STRANGER)
    with pytest.raises(LogKeyError, match="another log key"):
        other.begin(made.occasion(made.START, service=None))


def test_nothing_is_appended_to_a_ledger_that_was_not_begun(tmp_path: Path, clock: ManualClock) -> None:
    ledger = made.open_ledger(MemoryStore(clock=clock), tmp_path, clock)
    with pytest.raises(LedgerMissingError):
        probes(ledger, 1)
    with pytest.raises(LedgerMissingError):
        ledger.checkpoint()


def test_a_host_without_keys_signs_nothing(store: MemoryStore, tmp_path: Path, clock: ManualClock) -> None:
    ledger = made.open_ledger(store, tmp_path, clock, executor=None, log=None)
    statement = made.probe(made.START)
    for call in (lambda: ledger.append(statement), lambda: ledger.keep_aside(statement), ledger.checkpoint):
        with pytest.raises(LogKeyError):
            call()


def test_the_same_statement_again_stands_where_it_stood(ledger: Ledger) -> None:
    first = ledger.append(made.probe(made.START, 1))
    probes(ledger, 2)
    assert ledger.append(made.probe(made.START, 1)) == first
    assert ledger.size() == 3


def test_two_hosts_that_append_at_once_both_land(tmp_path: Path, clock: ManualClock) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    begun(DirectoryStore(root), tmp_path / "first", clock)
    barrier = threading.Barrier(4)
    problems: list[BaseException] = []

    def write(host: int) -> None:
        try:
            ledger = made.open_ledger(DirectoryStore(root), tmp_path / f"host{host}", ManualClock(made.START))
            barrier.wait()
            probes(ledger, *range(host * 100, host * 100 + 15))
        except BaseException as error:  # noqa: BLE001 - told to the test
            problems.append(error)

    threads = [threading.Thread(target=write, args=(host,)) for host in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    found = runs(made.open_ledger(DirectoryStore(root), tmp_path / "reader", clock))
    assert sorted(found) == sorted(made.ulid(host * 100 + number) for host in range(1, 5) for number in range(15))
    for host in range(1, 5):
        own = [made.ulid(host * 100 + number) for number in range(15)]
        assert [run for run in found if run in own] == own, "each host's records keep their order"


def append_in_process(root: Path, state_dir: Path, first: int) -> None:
    ledger = made.open_ledger(DirectoryStore(root), state_dir, SystemClock())
    probes(ledger, *range(first, first + 15))


@pytest.mark.parametrize("shared", [True, False], ids=["one host", "two hosts"])
def test_two_processes_that_append_at_once_both_land(tmp_path: Path, clock: ManualClock, *, shared: bool) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    begun(DirectoryStore(root), tmp_path / "first", clock)
    context = multiprocessing.get_context("spawn")
    folders = [tmp_path / ("host" if shared else f"host{number}") for number in (1, 2)]
    processes = [
        context.Process(target=append_in_process, args=(root, folder, number * 100))
        for number, folder in enumerate(folders, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    reader = made.open_ledger(DirectoryStore(root), tmp_path / "reader", clock)
    assert sorted(runs(reader)) == sorted(made.ulid(n * 100 + number) for n in (1, 2) for number in range(15))


def test_a_lost_reply_is_no_second_record(tmp_path: Path, clock: ManualClock, store: MemoryStore) -> None:
    begun(store, tmp_path / "first", clock)
    fault = Fault(at=1, operations={"create"}, when=When.AFTER)
    with FaultyStore(store, fault) as faulty:
        ledger = made.open_ledger(faulty, tmp_path / "state", clock)
        with pytest.raises(StoreUnreachableError):
            probes(ledger, 1)
        assert probes(ledger, 1, 2) == [1, 2]
    assert runs(ledger) == [made.ulid(1), made.ulid(2)]


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("operation", ["create", "list", "read_versions", "stat"])
def test_any_failing_call_leaves_the_record_once_or_kept_aside(
    tmp_path: Path, clock: ManualClock, store: MemoryStore, operation: str, when: When
) -> None:
    begun(store, tmp_path / "first", clock)
    for at in (1, 2, 3):
        number = at + 10 * list(When).index(when)
        faulty = FaultyStore(store, Fault(at=at, operations={operation}, when=when))
        ledger = made.open_ledger(faulty, tmp_path / f"state{at}", clock)
        statement = made.probe(made.START, number)
        try:
            ledger.append(statement)
        except DrError:
            assert faulty.fired == 1
            ledger.keep_aside(statement)
        mended = made.open_ledger(store, tmp_path / f"state{at}", clock)
        mended.flush_pending()
        assert runs(mended).count(made.ulid(number)) == 1
        assert mended.pending() == ()


def test_an_append_costs_a_few_calls_however_long_the_ledger_is(tmp_path: Path, clock: ManualClock) -> None:
    recording = RecordingStore(MemoryStore(clock=clock))
    ledger = begun(recording, tmp_path / "state", clock)
    probes(ledger, *range(1, 200))
    recording.calls.clear()
    probes(ledger, 500)
    assert sorted(operation for operation, _ in recording.calls) == ["create", "list", "list", "server_time"]
    ledger.checkpoint()
    assert recording.count("read_versions") == 201, "each entry is read once before it is signed for"
    clock.pass_seconds(60)
    recording.calls.clear()
    made.open_ledger(recording, tmp_path / "another", clock).append(made.probe(clock.now(), 501))
    assert recording.count("read_versions") == 2, "the newest record and the newest checkpoint are dated before it"
    recording.calls.clear()
    made.open_ledger(recording, tmp_path / "state", clock).checkpoint()
    read = {key for operation, key in recording.calls if operation == "read_versions"}
    assert len(read) == 3, "and never again: only what is new, and the checkpoints"


# --- kept aside -------------------------------------------------------------------------------------------


def test_records_kept_aside_are_appended_before_the_next_in_their_order(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.keep_aside(made.probe(made.START, number))
    assert len(ledger.pending()) == 3
    assert probes(ledger, 4) == [4]
    assert runs(ledger) == [made.ulid(number) for number in (1, 2, 3, 4)]
    late = ledger.entry(1).signed.statement
    assert late.is_kept_aside
    assert late.recorded_at == made.START
    assert ledger.pending() == ()


def test_a_crash_between_append_and_removal_does_not_double(
    ledger: Ledger, tmp_path: Path, clock: ManualClock, store: MemoryStore
) -> None:
    path = ledger.keep_aside(made.probe(made.START, 1))
    kept = path.read_bytes()
    ledger.flush_pending()
    path.write_bytes(kept)  # as if the removal had never happened
    for state_dir in (tmp_path / "state", tmp_path / "elsewhere"):
        again = made.open_ledger(store, state_dir, clock)
        target = state_dir / "evidence" / "pending" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(kept)
        assert [record.number for record in again.flush_pending()] == [1]
        assert again.pending() == ()
    assert runs(ledger) == [made.ulid(1)]


def test_records_wait_until_the_store_is_back(tmp_path: Path, clock: ManualClock, store: MemoryStore) -> None:
    begun(store, tmp_path / "first", clock)
    away = FaultyStore(store, Fault(at=1, times=1_000))
    ledger = made.open_ledger(away, tmp_path / "state", clock)
    ledger.keep_aside(made.probe(made.START, 1))
    for _ in range(2):
        with pytest.raises(StoreUnreachableError):
            ledger.flush_pending()
    assert len(ledger.pending()) == 1
    back = made.open_ledger(store, tmp_path / "state", clock)
    assert [record.number for record in back.flush_pending()] == [1]


def test_a_damaged_file_among_those_kept_aside_is_told(ledger: Ledger) -> None:
    path = ledger.keep_aside(made.probe(made.START, 1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerError, match="damaged"):
        probes(ledger, 2)


def test_a_full_disk_here_and_a_store_away_is_told(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "state" / "evidence" / "pending").write_text("a file where the folder should be")
    with pytest.raises(LedgerError, match="cannot"):
        ledger.keep_aside(made.probe(made.START, 1))


def test_an_obligation_is_never_kept_aside(ledger: Ledger) -> None:
    with pytest.raises(StatementError):
        ledger.keep_aside(made.obligation(made.START, 1))


# --- reading ----------------------------------------------------------------------------------------------


def test_a_gap_is_named(ledger: Ledger, store: MemoryStore, tmp_path: Path, clock: ManualClock) -> None:
    probes(ledger, 1, 2, 3)
    store.delete(entry_key(2))
    fresh = made.open_ledger(store, tmp_path / "fresh", clock)
    for call in (fresh.size, fresh.checkpoint, lambda: probes(fresh, 9), lambda: list(fresh.entries())):
        with pytest.raises(LedgerGapError, match="entry 2 "):
            call()


def test_a_ledger_that_lost_its_end_is_a_rollback_for_who_has_seen_it(ledger: Ledger, store: MemoryStore) -> None:
    probes(ledger, 1, 2, 3)
    store.delete(entry_key(3))
    for call in (ledger.size, lambda: probes(ledger, 9), ledger.checkpoint):
        with pytest.raises(LedgerRollbackError, match="entry 3"):
            call()


def test_a_stale_listing_is_neither_a_gap_nor_a_rollback(tmp_path: Path, clock: ManualClock) -> None:
    stale = StaleListStore(MemoryStore(clock=clock))
    ledger = begun(stale, tmp_path / "state", clock)
    stale.freeze()
    assert probes(ledger, 1, 2, 3) == [1, 2, 3]
    assert ledger.checkpoint().checkpoint.size == 4
    assert stale.hidden > 0


def test_the_oldest_version_that_can_be_believed_is_the_record(tmp_path: Path, clock: ManualClock) -> None:
    store = MemoryStore(versioned=True)
    ledger = begun(store, tmp_path / "state", clock)
    probes(ledger, 1)
    truth = ledger.raw(1)
    forged = sign_statement(made.probe(made.START, 1, detail="other"), [made.HOST])
    store.plant_version(entry_key(1), forged)
    store.plant_version(entry_key(1), None)
    fresh = made.open_ledger(store, tmp_path / "fresh", clock)
    assert fresh.raw(1) == truth
    assert fresh.checkpoint().checkpoint.root == ledger.tree().root()


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"no record", StatementError),
        (sign_statement(made.probe(made.START), [made.STRANGER]), UnknownSignerError),
        (sign_statement(made.probe(made.START), [made.HOST])[:-1], StatementError),
    ],
    ids=["garbage", "stranger", "cut"],
)
def test_a_foreign_record_stops_the_signer_and_not_the_writers(
    ledger: Ledger, store: MemoryStore, raw: bytes, error: type[DrError]
) -> None:
    store.create(entry_key(1), raw)
    assert probes(ledger, 2) == [2]
    with pytest.raises(error, match="entry 1"):
        ledger.checkpoint()


def test_a_flipped_bit_is_found_when_it_is_read(ledger: Ledger, store: MemoryStore, tmp_path: Path) -> None:
    probes(ledger, 1)
    flipped = bit_flipping_store(store, chooses=lambda key: key == entry_key(1), position=200)
    with pytest.raises((StatementError, BadSignatureError), match="entry 1"):
        made.open_ledger(flipped, tmp_path / "fresh", ManualClock()).tree()
    assert flipped.damaged > 0


def test_a_lost_or_torn_cache_costs_only_time(ledger: Ledger, tmp_path: Path, store: MemoryStore) -> None:
    probes(ledger, 1, 2, 3)
    root = ledger.tree().root()
    (cache,) = (tmp_path / "state" / "evidence").glob("*.leaves")
    whole = cache.read_bytes()
    for damaged in (b"", whole[:-5], whole[:100] + b"\xff" + whole[101:], b"\x00" * 500):
        cache.write_bytes(damaged)
        again = made.open_ledger(store, tmp_path / "state", ManualClock(made.START))
        assert again.tree().root() == root
        assert again.append(made.probe(made.START, 3)).number == 3


def test_artefacts_come_back_whole_or_not_at_all(ledger: Ledger, store: MemoryStore) -> None:
    sha256 = ledger.store_artefact(b"a log")
    assert ledger.store_artefact(b"a log") == sha256
    assert ledger.artefact(sha256) == b"a log"
    store.plant_version(artefact_key(sha256), b"another log")
    with pytest.raises(DamagedObjectError):
        ledger.artefact(sha256)
    with pytest.raises(DamagedObjectError):
        ledger.store_artefact(b"a log")
    with pytest.raises(MissingObjectError):
        ledger.artefact(made.SHA)


# --- checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_covers_everything_and_is_signed_once(ledger: Ledger, clock: ManualClock) -> None:
    probes(ledger, 1, 2)
    signed = ledger.checkpoint()
    assert (signed.checkpoint.size, signed.checkpoint.root) == (3, ledger.tree().root())
    assert signed.checkpoint.extensions == ("time 2026-03-01T02:00:00.000000Z",)
    clock.pass_seconds(60)
    assert ledger.checkpoint() == signed
    probes(ledger, 3)
    assert [each.checkpoint.size for each in (ledger.checkpoint(), *ledger.checkpoints())] == [4, 3, 4]


def test_a_store_set_back_to_yesterday_is_not_signed(tmp_path: Path, clock: ManualClock) -> None:
    second = AnchorPlace("second", MemoryStore(clock=clock))
    store = MemoryStore(clock=clock)
    ledger = begun(store, tmp_path / "state", clock, second)
    probes(ledger, 1, 2)
    ledger.checkpoint()
    ledger.anchor()
    clock.pass_seconds(60)
    yesterday = MemoryStore(clock=clock)
    for number in (0, 1):
        yesterday.create(entry_key(number), store.read(entry_key(number)))
    recovered = made.open_ledger(yesterday, tmp_path / "new host", clock, anchors=[second])
    assert probes(recovered, 7) == [2], "writing goes on"
    with pytest.raises(LedgerRollbackError, match="anchor in second"):
        recovered.checkpoint()
    probes(recovered, 8, 9)
    with pytest.raises(LedgerRollbackError, match="first 3 entries"):
        recovered.checkpoint()
    with pytest.raises(LedgerRollbackError):
        made.open_ledger(yesterday, tmp_path / "state", clock).checkpoint()


def test_what_was_signed_here_binds_even_without_store_and_anchor(
    ledger: Ledger, store: MemoryStore, tmp_path: Path, clock: ManualClock
) -> None:
    probes(ledger, 1)
    ledger.checkpoint()
    store.delete("ledger/checkpoint/000000000002")
    store.plant_version(entry_key(1), sign_statement(made.probe(made.START, 5), [made.HOST]))
    for cache in (tmp_path / "state" / "evidence").glob("*.leaves"):
        cache.unlink()
    with pytest.raises(LedgerRollbackError, match="signed here"):
        made.open_ledger(store, tmp_path / "state", clock).checkpoint()


def test_a_replaced_record_is_noticed_by_who_has_seen_it(ledger: Ledger, store: MemoryStore) -> None:
    probes(ledger, 1, 2)
    store.plant_version(entry_key(1), sign_statement(made.probe(made.START, 1, detail="longer than"), [made.HOST]))
    with pytest.raises(LedgerRollbackError, match="entry 1"):
        ledger.checkpoint()


def test_a_key_outside_its_range_of_sizes_does_not_sign(store: MemoryStore, tmp_path: Path, clock: ManualClock) -> None:
    keys = (LogKey(name=made.LOG.name, public_key=made.LOG.public_key, to_size=1),)
    policy = LedgerPolicy(log_keys=keys, executors=made.POLICY.executors)
    ledger = made.open_ledger(store, tmp_path, clock, policy=policy)
    ledger.begin(made.occasion(made.START, service=None))
    assert ledger.checkpoint().checkpoint.size == 1
    probes(ledger, 1)
    with pytest.raises(LogKeyError, match="size 2"):
        ledger.checkpoint()


@pytest.mark.parametrize("size", [1, 9])
def test_a_checkpoint_of_a_stranger_stops_the_signer(ledger: Ledger, store: MemoryStore, size: int) -> None:
    probes(ledger, 1)
    text = Checkpoint(origin=made.ORIGIN, size=size, root=bytes(32), extensions=()).text
    store.create(f"ledger/checkpoint/{size:012d}", sign_note(text, [made.STRANGER]))
    with pytest.raises(CheckpointError, match="known key"):
        ledger.checkpoint()


# --- anchors ----------------------------------------------------------------------------------------------


def test_an_anchor_is_the_checkpoint_in_a_second_store(tmp_path: Path, clock: ManualClock) -> None:
    second = MemoryStore(clock=clock)
    ledger = begun(MemoryStore(clock=clock), tmp_path, clock, AnchorPlace("second", second))
    assert ledger.last_anchors() == (("second", None),)
    with pytest.raises(LedgerMissingError):
        ledger.anchor()
    signed = ledger.checkpoint()
    (anchor,) = ledger.anchor()
    assert second.read(f"{anchor_prefix(made.ORIGIN)}000000000001") == signed.note
    clock.pass_seconds(90)
    assert anchor.age(clock.now()).total_seconds() == 90
    assert ledger.anchor() == (anchor,)
    assert ledger.last_anchors() == (("second", anchor),)


@pytest.mark.parametrize("damage", ["unreachable", "flipped", "stranger", "moved"])
def test_an_anchor_that_cannot_be_read_is_never_no_anchor(tmp_path: Path, clock: ManualClock, damage: str) -> None:
    second = MemoryStore(clock=clock)
    ledger = begun(MemoryStore(clock=clock), tmp_path / "state", clock, AnchorPlace("second", second))
    ledger.checkpoint()
    ledger.anchor()
    probes(ledger, 1)
    key = f"{anchor_prefix(made.ORIGIN)}000000000001"
    place: ObjectStore = second
    if damage == "unreachable":
        place = FaultyStore(second, Fault(at=1, times=99))
    elif damage == "flipped":
        place = bit_flipping_store(second, chooses=lambda _: True)
    elif damage == "stranger":
        second.plant_version(key, sign_note("drservice/x\n1\nAAAA\n", [made.STRANGER]))
    else:
        second.create(key.replace("01", "07"), second.read(key))
    broken = made.open_ledger(ledger._store, tmp_path / "state", clock, anchors=[AnchorPlace("second", place)])
    for call in (broken.checkpoint, broken.anchor, broken.last_anchors):
        with pytest.raises((AnchorError, StoreUnreachableError)):
            call()


def test_a_hidden_checkpoint_in_the_store_does_not_make_the_signer_forget(ledger: Ledger, store: MemoryStore) -> None:
    probes(ledger, 1)
    signed = ledger.checkpoint()
    hiding = MissingStore(store, chooses=lambda key: key.startswith("ledger/checkpoint/"))
    blind = made.open_ledger(hiding, ledger._folder.parent, ManualClock(made.START))
    assert blind._remembered() == signed
    assert blind.latest_checkpoint() is None
    assert hiding.withheld > 0


# --- keys -------------------------------------------------------------------------------------------------


def test_the_log_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    assert load_log_key(tmp_path, "log") is None
    key = make_log_key(tmp_path / "state", "log")
    assert make_log_key(tmp_path / "state", "log").public_key == key.public_key
    path = tmp_path / "state" / "log.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["log.key"]
    path.chmod(0o640)
    with pytest.raises(LogKeyError, match="open to others"):
        load_key(path, "log")
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(LogKeyError, match="no usable key"):
        make_log_key(tmp_path / "state", "log")
    assert path.read_text() == "nonsense", "what is there is never overwritten"


def test_a_signing_key_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="pickled"):
        made.HOST.__reduce__()


def test_a_busy_ledger_is_told(ledger: Ledger, tmp_path: Path, clock: ManualClock, store: MemoryStore) -> None:
    other = made.open_ledger(store, tmp_path / "state", clock)
    with ledger._lock(), pytest.raises(BusyError):
        other.append(made.probe(made.START, 1))


def test_approvals_are_signed_by_the_approver_alone(ledger: Ledger) -> None:
    statement: Statement = made.probe(made.START, 1)
    signers: tuple[Signer, ...] = (made.APPROVER,)
    assert ledger.append(statement, signers=signers).number == 1
    assert ledger.entry(1).signers == (made.APPROVER.fingerprint,)
    assert keep_aside_mark(statement).identity == statement.identity
