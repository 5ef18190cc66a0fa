"""What happened in the catalogue reaches the ledger: all of it, once, and in an order that the verifier accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.orm import Session

from drservice.catalogue.accesslog import ALLOWANCE, AccessLog
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import MOST_SLOTS, LedgerOutbox, Waiting, put_event, put_missed
from drservice.catalogue.rebuild import _rebuild_records, catch_up_records
from drservice.catalogue.requests import AccessEntry, Requests
from drservice.catalogue.runs import RunRequest, Runs
from drservice.catalogue.tables import Access, AccessDay, Document, LedgerEvent, Record
from drservice.catalogue.witnessing import _Scribe, carry_out
from drservice.clock import to_iso
from drservice.errors import LogKeyError, StoreUnreachableError, WorkerDiedError
from drservice.evidence.ledger import Entry, Ledger
from drservice.evidence.listing import entry_key
from drservice.evidence.policy import LedgerPolicy, RecordKey
from drservice.evidence.signing import Signer
from drservice.evidence.verification import verify_bundle
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ServiceName
from drservice.model.runs import RunKind, RunState
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.operations.evidence import Evidence
from drservice.operations.progress import SilentProgress
from tests.doubles import evidence as made
from tests.doubles.bundles import bundle_files, write_folder
from tests.doubles.catalogue import set_clock
from tests.doubles.clock import ManualClock
from tests.doubles.stores import Fault, FaultyStore, When
from tests.faults.triggers import TriggerStore

LEASE = timedelta(seconds=30)
SLOT = made.START - timedelta(hours=1)
DAY = datetime(2026, 2, 27, tzinfo=UTC)
LINE = {"address": "::1", "method": "GET", "route": "page.overview", "status": 200}


@dataclass(kw_only=True)
class Bench:
    """A ledger in memory, and hosts that may write it."""

    store: MemoryStore
    clock: ManualClock
    folder: Path

    def evidence(
        self, host: Signer = made.HOST, *, store: ObjectStore | None = None, policy: LedgerPolicy = made.POLICY
    ) -> Evidence:
        ledger = made.open_ledger(
            store or self.store, self.folder / host.name, self.clock, executor=host, policy=policy
        )
        return Evidence(
            repository=made.REPOSITORY,
            ledger=ledger,
            host=host.name,
            clock=self.clock,
            signer=host,
            problem=None,
            holds_log_key=True,
        )

    def entries(self, *kinds: EvidenceKind) -> list[Entry]:
        found = self.evidence().ledger.entries()
        return [entry for entry in found if not kinds or entry.signed.statement.kind in kinds]

    def require_verified(self, folder: Path) -> tuple[str, ...]:
        """Let the stand-alone verifier judge everything; returns its remarks."""
        ledger = self.evidence().ledger
        ledger.checkpoint()
        return verify_bundle(write_folder(bundle_files(ledger), folder)).remarks


@pytest.fixture
def bench(tmp_path: Path, database: Database) -> Bench:
    clock = ManualClock(made.START)
    set_clock(database, made.START)
    bench = Bench(store=MemoryStore(clock=clock), clock=clock, folder=tmp_path)
    bench.evidence().ledger.begin(made.occasion(made.START, service=None))
    return bench


def scheduled(database: Database, kind: RunKind = RunKind.BACKUP, *, minutes: int = 0, by: str = "schedule") -> str:
    """Put a run into the queue that a slot asks for."""
    slot = SLOT + timedelta(minutes=minutes)
    run = Runs(database).request(
        RunRequest(service="erp", kind=kind, requested_by=by, scheduled_for=slot if by == "schedule" else None)
    )
    assert run is not None
    return run


def ended(database: Database, run: str, state: RunState, result: Document | None = None) -> None:
    runs = Runs(database)
    claim = runs.claim(run, host="db1", lease=LEASE)
    assert claim is not None
    error = None if state is RunState.SUCCEEDED else {"code": "DR300", "message": "no space", "hint": "h"}
    assert runs.finish(claim, state, result=result, error=error)


# --- failed runs ------------------------------------------------------------------------------------------------


def test_a_scheduled_run_that_failed_is_on_record_with_its_slot_and_reason(
    database: Database, bench: Bench, tmp_path: Path
) -> None:
    run = scheduled(database)
    ended(database, run, RunState.FAILED)
    assert carry_out(database, bench.evidence()) == 1
    (entry,) = bench.entries(EvidenceKind.FAILURE)
    said = entry.signed.statement.predicate
    assert (said["run"], said["event"], said["service"]) == (run, run, "erp")
    assert (said["outcome"], said["scheduled_for"], said["claims"]) == ("failed", to_iso(SLOT), 1)
    assert said["error"] == {"code": "DR300", "message": "no space"}
    bench.require_verified(tmp_path / "bundle")
    assert carry_out(database, bench.evidence()) == 0, "nothing waits any more"


def test_runs_that_nobody_could_end_are_on_record_too(database: Database, bench: Bench) -> None:
    """The reaper's last word, a run that nobody may take, and one that was cancelled."""
    runs = Runs(database, most_claims=1)
    lost, refused, cancelled = (scheduled(database, minutes=number) for number in range(3))
    assert runs.claim(lost, host="db1", lease=LEASE) is not None
    set_clock(database, made.START + timedelta(minutes=1))
    assert runs.reap() == []
    assert runs.refuse(refused, {"code": "DR901", "message": "its service is gone"})
    runs.cancel(cancelled, "ops")
    assert carry_out(database, bench.evidence()) == 3
    told = {entry.signed.statement.predicate["run"]: entry for entry in bench.entries(EvidenceKind.FAILURE)}
    outcomes = {run: told[run].signed.statement.predicate["outcome"] for run in (lost, refused, cancelled)}
    assert outcomes == {lost: "failed", refused: "failed", cancelled: "cancelled"}
    assert "ops" not in str(told[cancelled].signed.statement.predicate), "no person is named"


def test_what_ended_well_or_was_asked_for_by_a_person_does_not_wait(database: Database, bench: Bench) -> None:
    ended(database, scheduled(database), RunState.SUCCEEDED)
    ended(database, scheduled(database, by="ops"), RunState.FAILED)
    assert not LedgerOutbox(database).is_waiting()
    assert carry_out(database, bench.evidence()) == 0


def test_a_drill_that_is_on_record_is_not_told_of_twice_and_one_that_is_not_is(database: Database) -> None:
    ended(database, scheduled(database, RunKind.DRILL), RunState.FAILED, {"record": 17})
    assert not LedgerOutbox(database).is_waiting()
    ended(database, scheduled(database, RunKind.DRILL, minutes=1), RunState.FAILED, {"record": None})
    assert LedgerOutbox(database).backlog().waiting == 1


def test_of_passes_over_documents_the_first_that_fails_waits_and_not_each_that_follows(database: Database) -> None:
    states = [RunState.FAILED, RunState.FAILED, RunState.SUCCEEDED, RunState.FAILED, RunState.FAILED]
    for number, state in enumerate(states):
        set_clock(database, made.START + timedelta(seconds=number))
        ended(database, scheduled(database, RunKind.DOCUMENTS, minutes=number), state)
    assert LedgerOutbox(database).backlog().waiting == 2


def test_a_fact_that_was_rolled_back_never_waits(database: Database) -> None:
    def dies() -> None:
        with database.session() as session:
            missed(session)
            raise WorkerDiedError("in the middle of the transaction")

    with pytest.raises(WorkerDiedError):
        dies()
    assert not LedgerOutbox(database).is_waiting()


# --- missed slots -----------------------------------------------------------------------------------------------


def missed(session: Session, count: int = 2, *, service: str = "erp", caught_up_by: str | None = None) -> None:
    slots = [(made.ulid(7000 + number), SLOT - timedelta(minutes=count - number)) for number in range(count)]
    put_missed(
        session,
        service=service,
        kind=RunKind.BACKUP,
        plan="",
        slots=slots,
        reason="no node was there",
        caught_up_by=caught_up_by,
    )


def test_missed_slots_are_on_record_and_many_of_them_in_several_records(
    database: Database, bench: Bench, tmp_path: Path
) -> None:
    with database.session() as session:
        missed(session, MOST_SLOTS + 5, caught_up_by=made.ulid(1))
    assert carry_out(database, bench.evidence()) == 2
    said = [entry.signed.statement.predicate for entry in bench.entries(EvidenceKind.MISSED)]
    assert [len(each["slots"]) for each in said] == [MOST_SLOTS, 5]  # type: ignore[arg-type]  # lists, by the schema
    assert {each["caught_up_by"] for each in said} == {made.ulid(1)}
    bench.require_verified(tmp_path / "bundle")


# --- once in effect ---------------------------------------------------------------------------------------------


class _KilledError(Exception):
    """Stands for the end of the process."""


def test_a_host_that_ends_between_ledger_and_catalogue_leaves_no_second_record(
    database: Database, bench: Bench, tmp_path: Path
) -> None:
    with database.session() as session:
        missed(session)
    scribe = _Scribe(bench.evidence())

    def killed(session: Session, waiting: Waiting) -> int:
        scribe.write(session, waiting)
        raise _KilledError

    with pytest.raises(_KilledError):
        LedgerOutbox(database).carry(killed)
    assert len(bench.entries(EvidenceKind.MISSED)) == 1
    assert LedgerOutbox(database).is_waiting()
    bench.clock.pass_seconds(60)
    assert carry_out(database, bench.evidence(made.OTHER_HOST)) == 1, "another host notes it"
    (entry,) = bench.entries(EvidenceKind.MISSED)
    with database.session() as session:
        assert session.execute(select(LedgerEvent.entry)).scalar_one() == entry.number
    bench.require_verified(tmp_path / "bundle")


def test_without_looking_there_would_be_a_second_record(
    database: Database, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard broken: nobody looks for the event, and the verifier names the replay."""
    monkeypatch.setattr(_Scribe, "_known", lambda *_: None)
    monkeypatch.setattr(Ledger, "_first_of", lambda *_: None)
    with database.session() as session:
        missed(session)
    carry_out(database, bench.evidence())
    with database.session() as session:
        session.execute(update(LedgerEvent).values(entry=None))
    bench.clock.pass_seconds(60)
    carry_out(database, bench.evidence(made.OTHER_HOST))
    assert len(bench.entries(EvidenceKind.MISSED)) == 2
    with pytest.raises(Exception, match="replays entry 1: the same event"):
        bench.require_verified(tmp_path / "bundle")


def test_a_host_that_slept_through_the_loss_of_its_turn_writes_no_second_record(
    database: Database, bench: Bench
) -> None:
    """It is stopped right before it creates the entry; meanwhile another host writes the event at that number."""
    with database.session() as session:
        missed(session)
    other = bench.evidence(made.OTHER_HOST)
    waiting = Waiting(
        event=made.ulid(7000), kind=EvidenceKind.MISSED, service="erp", run=None, fields=_fields(database)
    )

    def others_turn(_: str) -> None:
        with database.session() as session:
            assert _Scribe(other).write(session, waiting) == 1

    store = TriggerStore(bench.store, others_turn, operations=["create"], part="ledger/", at=1, when=When.BEFORE)
    with database.session() as session:
        assert _Scribe(bench.evidence(store=store)).write(session, waiting) == 1
    (entry,) = bench.entries(EvidenceKind.MISSED)
    assert entry.signed.statement.predicate["host"] == made.OTHER_HOST.name


def _fields(database: Database) -> Document:
    with database.session() as session:
        return session.execute(select(LedgerEvent.fields)).scalar_one()


def test_a_store_that_is_away_leaves_everything_waiting_and_the_next_try_writes_it_once(
    database: Database, bench: Bench
) -> None:
    with database.session() as session:
        missed(session)
    for when in When:
        fault = Fault(at=1, operations=["create"], when=when)
        with pytest.raises(StoreUnreachableError):
            carry_out(database, bench.evidence(store=FaultyStore(bench.store, fault)))
        assert LedgerOutbox(database).is_waiting()
    assert carry_out(database, bench.evidence()) == 1
    assert len(bench.entries(EvidenceKind.MISSED)) == 1, "the lost reply of the second try was an entry"


def test_only_one_host_writes_at_a_time(database: Database, bench: Bench) -> None:
    with database.session() as session:
        missed(session)

    def write(session: Session, waiting: Waiting) -> int:
        assert LedgerOutbox(database).carry(lambda *_: pytest.fail("two at once")) is None
        return _Scribe(bench.evidence()).write(session, waiting)

    assert LedgerOutbox(database).carry(write) is not None


# --- who may write ----------------------------------------------------------------------------------------------


def limited(*services: str) -> LedgerPolicy:
    keys = (
        RecordKey(name="db1", public_key=made.HOST.public_key),
        RecordKey(name="db2", public_key=made.OTHER_HOST.public_key, services=tuple(map(ServiceName, services))),
    )
    return replace(made.POLICY, executors=keys)


def test_a_host_carries_what_its_key_may_sign_and_leaves_the_rest_to_others(database: Database, bench: Bench) -> None:
    with database.session() as session:
        missed(session)
        put_missed(
            session, service="hr", kind=RunKind.BACKUP, plan="", slots=[(made.ulid(8000), SLOT)], reason="r",
            caught_up_by=None,
        )  # fmt: skip
    assert carry_out(database, bench.evidence(made.OTHER_HOST, policy=limited("hr"))) == 1
    assert [entry.signed.statement.service for entry in bench.entries(EvidenceKind.MISSED)] == ["hr"]
    assert carry_out(database, bench.evidence()) == 1


def test_a_host_without_a_key_that_is_believed_says_so_and_changes_nothing(database: Database, bench: Bench) -> None:
    with database.session() as session:
        missed(session)
    mute = replace(bench.evidence(), problem="nobody lists its key", signer=None)
    with pytest.raises(LogKeyError, match="nobody lists its key"):
        carry_out(database, mute)
    assert len(bench.entries()) == 1
    assert LedgerOutbox(database).is_waiting()


def test_an_event_that_cannot_be_spelled_is_told_and_holds_up_no_other(database: Database, bench: Bench) -> None:
    with database.session() as session:
        put_event(
            session,
            Waiting(
                event=made.ulid(1),
                kind=EvidenceKind.MISSED,
                service="erp",
                run=None,
                fields={"plan": None, "reason": "", "kind": "backup"},
            ),
        )
        missed(session)
    assert carry_out(database, bench.evidence()) == 2
    backlog = LedgerOutbox(database).backlog()
    assert (backlog.waiting, backlog.problems) == (0, 1)
    with database.session() as session:
        problem = session.execute(select(LedgerEvent.problem).where(LedgerEvent.event == made.ulid(1))).scalar_one()
    assert "a missed statement is wrong" in str(problem)
    assert len(bench.entries(EvidenceKind.MISSED)) == 1


# --- the access log ---------------------------------------------------------------------------------------------


def line(database: Database, at: datetime, status: int = 200, route: str = "page.overview") -> None:
    """Write a line of the access log as the web does, at an instant."""
    set_clock(database, at)
    Requests(database).log(
        AccessEntry(
            account="alice", token=None, address="192.0.2.7", method="GET", route=route, service="erp", status=status
        )
    )


def closed_at(database: Database, at: datetime) -> list[str]:
    set_clock(database, at)
    return list(AccessLog(database).close_days())


def test_a_day_is_closed_when_it_is_over_by_the_catalogues_clock_and_not_before(database: Database) -> None:
    line(database, DAY + timedelta(hours=9))
    over = DAY + timedelta(days=1) + ALLOWANCE
    assert closed_at(database, over - timedelta(seconds=1)) == []
    assert closed_at(database, over) == ["2026-02-27"]
    assert closed_at(database, over + timedelta(hours=1)) == []


def test_days_are_on_record_in_a_chain_without_a_person_in_them(
    database: Database, bench: Bench, tmp_path: Path
) -> None:
    for hours, status, route in (
        (9, 200, "page.overview"),
        (10, 404, "api.runs.get"),
        (11, 401, "page.sign-in.try"),
        (12, 503, "api.runs.list"),
        (48 + 9, 303, "page.sign-in.try"),
    ):
        line(database, DAY + timedelta(hours=hours), status, route)
    assert closed_at(database, made.START + timedelta(days=1)) == ["2026-02-27", "2026-03-01"]
    bench.clock.pass_seconds(86400)
    assert carry_out(database, bench.evidence()) == 2
    first, second = (entry.signed.statement.predicate for entry in bench.entries(EvidenceKind.ACCESS))
    assert first["outcomes"] == {"succeeded": 1, "refused": 2, "failed": 1, "sign_ins_refused": 1}
    assert (first["lines"], first["late"], first["previous"]) == (4, 0, None)
    assert (first["first"], first["last"]) == tuple(to_iso(DAY + timedelta(hours=hours)) for hours in (9, 12))
    assert second["previous"] == {"day": "2026-02-27", "sha256": first["sha256"]}
    assert first["log"] == second["log"]
    assert not any(word in str((first, second)) for word in ("alice", "192.0.2.7"))
    assert not [remark for remark in bench.require_verified(tmp_path / "bundle") if "access log" in remark]


def test_a_line_that_comes_after_its_day_was_closed_is_counted_with_the_next_day_and_said_to_be(
    database: Database,
) -> None:
    line(database, DAY + timedelta(hours=9))
    assert closed_at(database, DAY + timedelta(days=1, hours=1)) == ["2026-02-27"]
    with database.session() as session:  # its transaction ended an hour late, or the clock was set back
        session.execute(insert(Access).values(at=DAY + timedelta(hours=23), **LINE))
    before = AccessLog(database).digest("2026-02-27")
    assert before is not None
    assert before[0].lines == 1, "what was told does not change"
    line(database, DAY + timedelta(days=1, hours=9))
    assert closed_at(database, DAY + timedelta(days=2, hours=1)) == ["2026-02-28"]
    found = AccessLog(database).digest("2026-02-28")
    assert found is not None
    assert (found[0].lines, found[0].late) == (2, 1)
    with database.session() as session:
        session.execute(insert(Access).values(at=DAY + timedelta(hours=22), **LINE))
    assert closed_at(database, DAY + timedelta(days=3, hours=1)) == ["2026-03-01"], "it waits for no further line"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda session: session.execute(update(Access).values(account="mallory").where(Access.status == 404)),
        lambda session: session.execute(delete(Access).where(Access.status == 404)),
        lambda session: session.execute(
            text(
                "INSERT INTO access (at, address, method, route, status, day)"
                " SELECT at, address, method, route, status, day FROM access WHERE status = 404"
            )
        ),
    ],
    ids=["edited", "deleted", "added"],
)
def test_lines_that_were_tampered_with_do_not_have_the_digest_on_record(
    database: Database, tamper: Callable[[Session], object]
) -> None:
    for hours, status in ((9, 200), (10, 404), (11, 200)):
        line(database, DAY + timedelta(hours=hours), status)
    closed_at(database, DAY + timedelta(days=1, hours=1))
    before = AccessLog(database).digest("2026-02-27")
    assert before == AccessLog(database).digest("2026-02-27"), "counted twice it is the same"
    with database.session() as session:
        tamper(session)
    after = AccessLog(database).digest("2026-02-27")
    assert before is not None
    assert after is not None
    assert before[0].sha256 != after[0].sha256


def test_a_catalogue_from_a_backup_begins_another_log_and_the_ledger_still_verifies(
    database: Database, bench: Bench, tmp_path: Path
) -> None:
    for day in range(2):
        line(database, DAY + timedelta(days=day, hours=9))
    closed_at(database, made.START + timedelta(days=1))
    bench.clock.pass_seconds(86400)
    assert carry_out(database, bench.evidence()) == 2
    with database.session() as session:  # as it was in the first night, when the second day had not begun
        session.execute(delete(AccessDay).where(AccessDay.day == "2026-02-28"))
        session.execute(update(Access).values(day=None).where(Access.day == "2026-02-28"))
    assert closed_at(database, made.START + timedelta(days=1)) == ["2026-02-28"]
    assert carry_out(database, bench.evidence()) == 1
    first, _, again = (entry.signed.statement.predicate for entry in bench.entries(EvidenceKind.ACCESS))
    assert again["previous"] is None
    assert again["log"] != first["log"]
    assert any("begins another access log" in remark for remark in bench.require_verified(tmp_path / "bundle"))


# --- whose records are believed ---------------------------------------------------------------------------------


def test_a_record_by_a_host_that_may_not_write_for_its_service_has_no_row(database: Database, bench: Bench) -> None:
    forger = bench.evidence(made.OTHER_HOST)
    forger.ledger.append(made.probe(bench.clock.now(), 1))
    bench.evidence().ledger.append(made.probe(bench.clock.now(), 2))
    assert catch_up_records(database, bench.evidence(policy=limited("hr")).ledger) == 2
    assert entries(database) == [0, 2]


def test_a_rebuild_removes_what_was_believed_wrongly_and_tells_why(database: Database, bench: Bench) -> None:
    bench.evidence(made.OTHER_HOST).ledger.append(made.drill(bench.clock.now(), 1, entry=0))
    catch_up_records(database, bench.evidence().ledger)
    assert entries(database) == [0, 1], "a policy that lets it write for everything believes it"
    records, gone, unreadable = _rebuild_records(
        database, bench.evidence(policy=limited("hr")).ledger, SilentProgress()
    )
    assert (records, gone) == (1, 1)
    assert entries(database) == [0]
    assert [item.key for item in unreadable] == ["entry 1"]
    assert "may not write for erp" in unreadable[0].problem


def test_a_record_that_nobody_can_believe_does_not_keep_the_next_ones_out(database: Database, bench: Bench) -> None:
    bench.store.create(entry_key(1), b"{}")
    bench.evidence().ledger.append(made.probe(bench.clock.now(), 2))
    assert catch_up_records(database, bench.evidence().ledger) == 2
    assert entries(database) == [0, 2]


def entries(database: Database) -> list[int]:
    with database.session() as session:
        return list(session.scalars(select(Record.entry).order_by(Record.entry)))
