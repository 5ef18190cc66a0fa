"""The witness of a node: has written what waits in a process that ends again, and leaves alone what it cannot write."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from drservice import processes
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import LedgerOutbox, put_missed
from drservice.catalogue.tables import Access, AccessDay, LedgerEvent, Run
from drservice.clock import to_iso
from drservice.evidence.ledger import Entry
from drservice.evidence.signing import make_log_key
from drservice.model.estate import CatchUp
from drservice.model.evidence import EvidenceKind, ledger_origin
from drservice.model.runs import RunKind
from drservice.node.witnessing import Ended, Witness
from drservice.operations.enroll import begin_ledger
from drservice.wiring.evidence import open_evidence
from tests.doubles.catalogue import set_clock
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, SERVICE, TempEstate
from tests.doubles.evidence import ulid
from tests.integration.node.test_node_scheduler import QUARTER_HOURLY, a_scheduler, an_estate, with_catch_up

LINE = {"address": "192.0.2.1", "method": "GET", "route": "page.overview", "status": 200}


@pytest.fixture
def estate(template_cache: Path) -> Iterator[TempEstate]:
    maker = ClusterMaker(cache=template_cache)
    made = TempEstate.over(maker.make())
    made.initialise()
    yield made
    maker.close()


def begin(estate: TempEstate) -> None:
    with estate.plane() as plane:
        make_log_key(plane.estate.state_dir, ledger_origin(plane.repository.id))
        with open_evidence(plane) as evidence:
            begin_ledger(evidence)


def entries(estate: TempEstate, kind: EvidenceKind) -> list[Entry]:
    with estate.plane() as plane, open_evidence(plane) as evidence:
        return [entry for entry in evidence.ledger.entries() if entry.signed.statement.kind is kind]


def witness(database: Database, estate: TempEstate) -> Witness:
    return Witness(database, estate=estate.estate, log_level="info")


def call(estate: TempEstate, *words: str, status: int = 0) -> dict[str, Any]:
    """Run ``drservice evidence access``."""
    done = subprocess.run(
        [*PROGRAM, "--config", str(estate.config), "evidence", "access", *words, "--json"],
        capture_output=True,
        env=processes.clean_environment({"HOME": str(estate.root)}),
        timeout=120,
        check=False,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def something_happens(database: Database, number: int = 1) -> None:
    with database.session() as session:
        put_missed(
            session,
            service=SERVICE,
            kind=RunKind.BACKUP,
            plan="",
            slots=[(ulid(number), datetime.now(UTC) - timedelta(hours=1))],
            reason="no node was there",
            caught_up_by=None,
        )


def test_what_waits_is_written_in_a_process_of_its_own_and_nothing_is_started_for_nothing(
    database: Database, estate: TempEstate
) -> None:
    begin(estate)
    own = witness(database, estate)
    assert own.look() is None
    something_happens(database)
    assert own.look() is Ended.DONE
    (entry,) = entries(estate, EvidenceKind.MISSED)
    with database.session() as session:
        assert session.execute(select(LedgerEvent.entry)).scalar_one() == entry.number
    assert own.look() is None


def test_what_another_host_has_to_write_starts_no_process_every_few_seconds(
    database: Database, estate: TempEstate
) -> None:
    begin(estate)
    own = witness(database, estate)
    something_happens(database)
    ended: list[Ended | None] = []

    def write(_: object, __: object) -> int:
        ended.extend((own.look(), own.look()))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        LedgerOutbox(database).carry(write)
    assert ended == [Ended.NOTHING, None]
    assert witness(database, estate).look() is Ended.DONE


def test_a_day_of_the_access_log_that_is_over_is_closed_and_put_on_record(
    database: Database, estate: TempEstate
) -> None:
    begin(estate)
    now = datetime.now(UTC)
    with database.session() as session:
        session.execute(insert(Access).values(at=now - timedelta(days=1), **LINE))
    set_clock(database, now + timedelta(days=1))
    assert witness(database, estate).look() is Ended.DONE
    (entry,) = entries(estate, EvidenceKind.ACCESS)
    said = entry.signed.statement.predicate
    with database.session() as session:
        row = session.execute(select(AccessDay)).scalar_one()
    assert (row.entry, row.log, row.sha256) == (entry.number, said["log"], said["sha256"])
    document = json.loads(estate.config.read_text())
    estate.config.write_text(json.dumps({**document, "catalogue": database.url}))
    assert call(estate)["days"] == [{"day": row.day, "record": entry.number, "closed_at": to_iso(row.closed_at)}]
    assert call(estate, row.day)["sha256"] == said["sha256"]
    with database.session() as session:
        session.execute(update(Access).values(status=404))
    told = call(estate, row.day, status=5)["error"]
    assert f"are not those of record {entry.number}: sha256 is" in told["message"]
    assert "no day 2020-01-01" in call(estate, "2020-01-01", status=2)["error"]["message"]


def test_a_host_without_keys_or_ledger_says_so_once_and_tries_no_sooner_than_in_ten_minutes(
    database: Database, estate: TempEstate, capfd: pytest.CaptureFixture[str]
) -> None:
    something_happens(database)
    own = witness(database, estate)
    assert own.look() is Ended.UNABLE, "nobody has begun a ledger"
    assert own.look() is None
    own._next_try = 0.0
    assert own.look() is Ended.UNABLE
    assert capfd.readouterr().err.count("this host cannot put on record what happened") == 1
    begin(estate)
    own._next_try = 0.0
    assert own.look() is Ended.DONE
    assert len(entries(estate, EvidenceKind.MISSED)) == 1


def test_a_store_that_is_away_is_tried_again_later_and_later(database: Database, estate: TempEstate) -> None:
    begin(estate)
    something_happens(database)
    own = witness(database, estate)
    away = estate.repository.with_name("away")
    estate.repository.rename(away)
    waits = []
    for _ in range(3):
        assert own.look() is Ended.TROUBLE
        waits.append(own._wait_seconds)
        assert own.look() is None, "it is too soon"
        own._next_try = 0.0
    assert waits == [20.0, 40.0, 80.0]
    assert LedgerOutbox(database).is_waiting()
    away.rename(estate.repository)
    assert own.look() is Ended.DONE
    assert len(entries(estate, EvidenceKind.MISSED)) == 1


@pytest.mark.parametrize(("policy", "is_caught_up"), [(CatchUp.RUN_ONCE, True), (CatchUp.SKIP, False)])
def test_a_schedulers_missed_slots_wait_for_the_ledger_with_the_run_that_makes_up_for_them(
    database: Database, policy: CatchUp, *, is_caught_up: bool
) -> None:
    estate = with_catch_up(an_estate("erp", backup=QUARTER_HOURLY), policy)
    begin = datetime(2026, 3, 2, 12, 1, tzinfo=UTC)
    set_clock(database, begin)
    first, _ = a_scheduler(database, estate)
    first.tick()
    later = begin + timedelta(hours=2, minutes=11)
    set_clock(database, later)
    second, told = a_scheduler(database, estate)
    second.tick()
    second.tick()
    with database.session() as session:
        row = session.execute(select(LedgerEvent)).scalar_one()
        missed = session.execute(select(Run).where(Run.id == row.event)).scalar_one()
    assert (row.kind, row.service, missed.state) == ("missed", "erp", "missed")
    assert row.fields["slots"] == [to_iso(slot) for slot in told[0].slots]
    assert len(row.fields["slots"]) > 1
    assert row.fields["noticed_at"] == to_iso(later)
    assert row.fields["caught_up_by"] == told[0].caught_up_by == missed.caught_up_by
    assert (row.fields["caught_up_by"] is not None) is is_caught_up
