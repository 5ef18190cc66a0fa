"""Notes of the ledger: proofs and findings of any age are found, each entry is read once, forgers are not believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.errors import LedgerError, StoreUnreachableError
from drservice.evidence.ledger import Ledger
from drservice.evidence.listing import entry_key
from drservice.evidence.policy import LedgerPolicy, RecordKey
from drservice.evidence.statements import Statement
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.operations import ledgernotes
from drservice.operations.evidence import Evidence
from drservice.operations.findings import open_findings
from drservice.operations.ledgernotes import ledger_notes
from drservice.operations.serviceinfo import _drills
from tests.doubles import evidence as made
from tests.doubles.clock import ManualClock
from tests.doubles.stores import Fault, FaultyStore, RecordingStore
from tests.faults.tampering import finding, key_entry

DATABASE = PostgresSettings(name=ComponentName("database"), dsn="")
ERP = Service(name=ServiceName("erp"), components={DATABASE.name: DATABASE})


class Bench:
    """A ledger in memory, written by two hosts and read by one."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(made.START)
        self.store = MemoryStore(clock=self.clock)
        self.folder = folder
        self.ledger().begin(made.occasion(made.START, service=None))

    def ledger(self, store: ObjectStore | None = None, *, policy: LedgerPolicy = made.POLICY) -> Ledger:
        return made.open_ledger(store or self.store, self.folder / "reader", self.clock, policy=policy)

    def evidence(self, *, policy: LedgerPolicy = made.POLICY) -> Evidence:
        return Evidence(
            repository=made.REPOSITORY,
            ledger=self.ledger(policy=policy),
            host="db1",
            clock=self.clock,
            signer=made.HOST,
            problem=None,
            holds_log_key=True,
        )

    def append(self, *statements: Statement, by: Sequence[object] = (made.HOST,)) -> int:
        number = -1
        for statement in statements:
            number = self.ledger().append(statement, signers=by).number  # type: ignore[arg-type]  # signers, all of them
        return number

    def drill(self, number: int, outcome: str = "passed") -> int:
        return self.append(made.drill(self.clock.now(), number, entry=0, outcome=outcome))

    def reads(self) -> int:
        """Return how many entries a look reads."""
        asked = RecordingStore(self.store)
        ledger_notes(self.ledger(asked))
        return sum(name == "read_versions" and key.startswith("ledger/0") for name, key in asked.calls)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


LIMITED = replace(
    made.POLICY,
    executors=(
        RecordKey(name="db1", public_key=made.HOST.public_key),
        RecordKey(name="db2", public_key=made.OTHER_HOST.public_key, services=(ServiceName("hr"),)),
    ),
)


def test_a_proof_and_a_finding_are_found_however_many_records_came_after_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgernotes, "_BATCH", 7)
    passed = bench.drill(1)
    bench.append(finding(bench.clock.now(), "opened"))
    for number in range(60):
        bench.append(made.probe(bench.clock.now(), number))
    drills, problem = _drills(bench.evidence(), ERP)
    assert ([(drill.number, drill.outcome) for drill in drills], problem) == ([(passed, "passed")], None)
    assert [item.check for item in open_findings(bench.evidence(), ERP)] == ["moves-balance"]
    bench.append(finding(bench.clock.now(), "closed"))
    assert open_findings(bench.evidence(), ERP) == []


def test_each_entry_is_read_once_and_a_look_reads_what_was_added(bench: Bench) -> None:
    bench.drill(1)
    assert bench.reads() == 2
    assert bench.reads() == 1, "the last one tells whether it is the same ledger"
    bench.drill(2, "failed")
    assert bench.reads() == 2
    drills, _ = _drills(bench.evidence(), ERP)
    assert [drill.outcome for drill in drills] == ["failed", "passed"]


def test_a_drill_by_a_host_that_may_not_write_for_the_service_proves_nothing(bench: Bench) -> None:
    forged = made.drill(bench.clock.now(), 1, entry=0)
    number = bench.append(forged, by=(made.OTHER_HOST,))
    assert _drills(bench.evidence(policy=LIMITED), ERP) == ([], None)
    trusted = replace(LIMITED, executors=(LIMITED.executors[0], replace(LIMITED.executors[1], services=())))
    drills, _ = _drills(bench.evidence(policy=trusted), ERP)
    assert [drill.number for drill in drills] == [number], "with other keys that are believed all of it is read again"


def test_a_key_that_was_revoked_signs_nothing_behind_its_end_also_in_a_later_look(bench: Bench) -> None:
    bench.drill(1)
    bench.append(key_entry(bench.clock.now(), "revoked", "db2", "executor", made.OTHER_HOST))
    assert bench.reads() == 3
    bench.append(made.drill(bench.clock.now(), 2, entry=0, outcome="failed"), by=(made.OTHER_HOST,))
    drills, _ = _drills(bench.evidence(), ERP)
    assert [drill.outcome for drill in drills] == ["passed"]


def test_a_record_that_nobody_can_believe_closes_what_lies_before_it_and_not_what_follows(bench: Bench) -> None:
    bench.drill(1)
    bench.store.create(entry_key(2), b"{}")
    drills, problem = _drills(bench.evidence(), ERP)
    assert drills == []
    assert problem is not None
    assert "entry 2" in problem
    with pytest.raises(LedgerError, match="entry 2"):
        open_findings(bench.evidence(), ERP)
    after = bench.drill(2)
    drills, problem = _drills(bench.evidence(), ERP)
    assert ([drill.number for drill in drills], problem) == ([after], None)
    assert open_findings(bench.evidence(), ERP) == []


def test_a_store_that_goes_away_in_the_middle_costs_only_what_was_not_read_yet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgernotes, "_BATCH", 2)
    monkeypatch.setattr(ledgernotes, "_READERS", 1)
    for number in range(9):
        bench.append(made.probe(bench.clock.now(), number))
    fault = Fault(at=6, operations=["read_versions"])
    with pytest.raises(StoreUnreachableError):
        ledger_notes(bench.ledger(FaultyStore(bench.store, fault)))
    assert bench.reads() == 10 - 4 + 1, "two batches were kept"


def test_another_ledger_in_the_place_of_the_one_that_was_read_is_read_from_its_beginning(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.drill(1)
    assert first.reads() == 2
    second = Bench(tmp_path / "other")
    second.clock.pass_seconds(timedelta(days=1).total_seconds())
    second.append(made.probe(second.clock.now(), 1))
    second.folder = tmp_path
    for path in (tmp_path / "reader" / "evidence").glob("*.leaves"):
        path.unlink()
    assert _drills(second.evidence(), ERP) == ([], None)
