"""Nodes and stores that die while what happened is put on record: no event is lost, and none stands twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.catalogue.database import Database, open_catalogue
from drservice.catalogue.ledgeroutbox import LedgerOutbox, put_missed
from drservice.catalogue.witnessing import carry_out
from drservice.evidence.signing import Signer
from drservice.evidence.verification import verify_bundle
from drservice.model.evidence import EvidenceKind
from drservice.model.runs import RunKind
from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.operations.evidence import Evidence
from tests.doubles import evidence as made
from tests.doubles.bundles import bundle_files, write_folder
from tests.doubles.catalogue import CatalogueServer, set_clock
from tests.doubles.clock import ManualClock
from tests.doubles.stores import When
from tests.faults.triggers import TriggerStore

EVENTS = 3


@pytest.fixture(scope="module")
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


def evidence_of(host: Signer, store: ObjectStore, folder: Path, clock: ManualClock) -> Evidence:
    return Evidence(
        repository=made.REPOSITORY,
        ledger=made.open_ledger(store, folder / host.name, clock, executor=host),
        host=host.name,
        clock=clock,
        signer=host,
        problem=None,
        holds_log_key=True,
    )


def events_wait(database: Database, clock: ManualClock) -> None:
    for number in range(EVENTS):
        with database.session() as session:
            put_missed(
                session,
                service="erp",
                kind=RunKind.BACKUP,
                plan="",
                slots=[(made.ulid(number), clock.now() - timedelta(hours=EVENTS - number))],
                reason="no node was there",
                caught_up_by=None,
            )


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("at", range(1, EVENTS + 1))
def test_a_host_killed_at_any_entry_is_followed_by_another_and_each_event_stands_once(
    at: int, when: When, catalogues: CatalogueServer, tmp_path: Path
) -> None:
    database = catalogues.database()
    folder = tmp_path / "repository"
    folder.mkdir()
    store = DirectoryStore(folder)
    clock = ManualClock(store.server_time())
    set_clock(database, clock.now())
    first = evidence_of(made.HOST, store, tmp_path, clock)
    first.ledger.begin(made.occasion(clock.now(), service=None))
    events_wait(database, clock)
    database.close()
    pid = os.fork()
    if pid == 0:
        doomed = TriggerStore(
            store,
            lambda _: os.kill(os.getpid(), signal.SIGKILL),
            operations=["create"],
            part="ledger/0",
            at=at,
            when=when,
        )
        try:
            carry_out(open_catalogue(database.url), evidence_of(made.HOST, doomed, tmp_path, clock))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert LedgerOutbox(database).backlog().waiting == EVENTS - at + 1, "what was killed is not noted"
    clock.pass_seconds(60)
    second = evidence_of(made.OTHER_HOST, store, tmp_path, clock)
    carry_out(database, second)
    told = [
        entry.signed.statement.predicate["event"]
        for entry in second.ledger.entries()
        if entry.signed.statement.kind is EvidenceKind.MISSED
    ]
    assert told == [made.ulid(number) for number in range(EVENTS)]
    assert not LedgerOutbox(database).is_waiting()
    second.ledger.checkpoint()
    verify_bundle(write_folder(bundle_files(second.ledger), tmp_path / "bundle"))
