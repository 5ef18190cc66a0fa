"""The proof of a bucket: made when it is due, put on record, shown by `check`, and in nobody's way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from drservice.errors import StoreUnreachableError
from drservice.model.estate import Estate, RepositorySettings
from drservice.model.evidence import EvidenceKind
from drservice.model.storing import LockMode, LockSettings, StoreSettings
from drservice.objectstore import conformance
from drservice.objectstore.conformance import Tried
from drservice.objectstore.interface import Capabilities, CreateMode
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.evidence import Evidence
from drservice.operations.progress import SilentProgress
from drservice.operations.storeproof import check_store_proof, keep_store_proved
from tests.doubles.clock import ManualClock

LOCK = LockSettings(mode=LockMode.COMPLIANCE, days=30)
CAN = Capabilities(create_mode=CreateMode.CONDITIONAL, versioned=True, writable=True)
GOOD = Tried(name="deleting is refused", passed=True, detail="refused")
BAD = Tried(name="shortening is refused", passed=False, detail="accepted")


class Ledger:
    """Hears what is put on record."""

    def __init__(self) -> None:
        self.records: list[tuple[EvidenceKind, Mapping[str, Any]]] = []

    def record(self, kind: EvidenceKind, *, fields: Mapping[str, Any], **_: object) -> None:
        self.records.append((kind, fields))


class Notes(SilentProgress):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


class Bench:
    """An estate on a bucket whose trying is done by the test."""

    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir()
        self.estate = Estate(
            source=folder / "drservice.yaml",
            state_dir=folder,
            repository=RepositorySettings(url="s3://bucket/p"),
            services={},
        )
        self.clock = ManualClock()
        self.ledger = Ledger()
        self.notes = Notes()
        self.answer: Callable[[], tuple[Tried, ...]] = lambda: (GOOD,)
        self.tried = 0

    def try_store(self, *_: object, **__: object) -> tuple[Tried, ...]:
        self.tried += 1
        return self.answer()

    def keep(self) -> object:
        evidence = cast("Evidence", self.ledger)
        return keep_store_proved(self.estate, evidence, clock=self.clock, progress=self.notes)

    def check(self, capabilities: Capabilities = CAN) -> list[tuple[CheckState, str]]:
        checklist = Checklist()
        evidence = cast("Evidence", self.ledger)
        check_store_proof(self.estate, capabilities, evidence, clock=self.clock, progress=self.notes, to=checklist)
        return [(item.state, item.detail) for item in checklist.results]

    def lock(self) -> None:
        settings = replace(self.estate.repository, store=StoreSettings(lock=LOCK))
        self.estate = replace(self.estate, repository=settings)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(conformance, "try_store", made.try_store)
    return made


def test_a_bucket_is_tried_once_a_week_and_each_outcome_is_on_record(bench: Bench) -> None:
    for _ in range(3):
        bench.keep()
    assert bench.tried == 1
    kind, fields = bench.ledger.records[0]
    assert kind is EvidenceKind.PROBE
    assert (fields["probe"], fields["outcome"]) == ("object store", "passed")
    bench.clock.pass_seconds(timedelta(days=7).total_seconds())
    bench.answer = lambda: (GOOD, BAD)
    bench.keep()
    assert [fields["outcome"] for _, fields in bench.ledger.records] == ["passed", "failed"]


def test_a_clock_that_was_set_back_and_another_lock_are_tried_anew(bench: Bench) -> None:
    bench.keep()
    bench.clock.jump(-3600)
    bench.keep()
    assert bench.tried == 2
    bench.lock()
    bench.keep()
    assert bench.tried == 3


def test_a_bucket_that_cannot_be_tried_is_told_and_tried_next_time(bench: Bench) -> None:
    def away() -> tuple[Tried, ...]:
        raise StoreUnreachableError("no answer")

    bench.answer = away
    assert bench.keep() is None
    assert bench.ledger.records == []
    assert "no answer" in bench.notes.told[0]
    bench.answer = lambda: (GOOD,)
    assert bench.keep() is not None


def test_check_shows_the_proof_and_fails_where_a_lock_is_asked_for(bench: Bench) -> None:
    assert bench.check()[0][0] is CheckState.OK
    bench.answer = lambda: (GOOD, BAD)
    bench.clock.pass_seconds(timedelta(days=8).total_seconds())
    assert bench.check() == [(CheckState.WARNING, "shortening is refused: accepted")]
    bench.lock()
    assert bench.check(replace(CAN, lock=LOCK)) == [(CheckState.FAILED, "shortening is refused: accepted")]


def test_check_fails_where_the_bucket_keeps_no_locks_though_they_are_configured(bench: Bench) -> None:
    bench.lock()
    none = replace(CAN, writable=False, warnings=("Object Lock is configured and the bucket has none.",))
    assert bench.check(none) == [(CheckState.FAILED, "Object Lock is configured and the bucket has none.")]
    assert bench.tried == 0


def test_a_host_that_only_reads_tries_nothing(bench: Bench) -> None:
    assert bench.check(replace(CAN, writable=False)) == []
    assert bench.tried == 0


def test_a_directory_has_nothing_to_try(bench: Bench) -> None:
    bench.estate = replace(bench.estate, repository=RepositorySettings(url="file:///srv/r"))
    assert bench.keep() is None
    assert bench.check() == []
    assert bench.tried == 0
