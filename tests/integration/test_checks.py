"""Every check asked of a real PostgreSQL in the sandbox, and seen failing once."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest

from drservice.checks.interface import (
    Check,
    RecoveredDatabase,
    RecoveredDocuments,
    RecoveredService,
)
from drservice.checks.suite import CheckTimes, SuiteOutcome, plan_suite, run_suite, without_answer
from drservice.clock import SystemClock
from drservice.components.postgres.baseline import measure_baseline, settle
from drservice.components.postgres.server import find_programs
from drservice.environments.sandbox import Sandbox
from drservice.model.checks import Baseline, CheckResult, CheckState, Expectation, Severity
from drservice.model.estate import BusinessCheck, FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn, Timeline
from tests.contract.env_fixtures import POSTGRES_BIN, eventually, make_sandbox, postgres_argv, ready

DB, DOCS = ComponentName("db"), ComponentName("documents")
PASSED, FAILED, UNVERIFIED = CheckState.PASSED, CheckState.FAILED, CheckState.UNVERIFIED

SCHEMA = """
create table account_move_line (id serial primary key, parent_state text, debit numeric, note text);
create table stock_move (id serial primary key, state text, product_qty numeric);
create table ir_attachment (id serial primary key, name text, store_fname text, checksum varchar(40), file_size int,
                            db_datas bytea);
insert into account_move_line (parent_state, debit) select 'posted', i from generate_series(1, 1000) i;
insert into account_move_line (parent_state, debit) select 'draft', i from generate_series(1, 10) i;
insert into stock_move (state, product_qty) select 'done', i from generate_series(1, 100) i;
create index account_move_line_debit on account_move_line (debit);
"""
CONTENTS = [f"document {number}".encode() for number in range(20)]


def name_of(content: bytes) -> str:
    digest = hashlib.sha1(content).hexdigest()
    return f"{digest[:2]}/{digest}"


def business(name: str, sql: str, expect: str, severity: Severity = Severity.CRITICAL) -> BusinessCheck:
    return BusinessCheck(
        name=name,
        component=DB,
        database="plant",
        sql=sql,
        expect=Expectation.parse(expect),
        severity=severity,
        owner="me",
    )


@dataclass(kw_only=True)
class Plant:
    """A database in the sandbox, asked first as production and then as the recovered copy."""

    sandbox: Sandbox
    root: Path
    checks: tuple[BusinessCheck, ...] = ()
    baseline: Baseline | None = None
    checksums: bool = True
    changes: Mapping[str, object] = field(default_factory=dict)
    missing_in_production: tuple[str, ...] = ()

    def start(self, *settings: str) -> None:
        self.sandbox.start(postgres_argv("autovacuum=off", *settings))
        eventually(lambda: ready(self.sandbox))

    def connect(self, database: str = "plant") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.sandbox.dsn, dbname=database, autocommit=True)

    def sql(self, *statements: str, database: str = "plant") -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        with self.connect(database) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def measure(self, *checks: BusinessCheck) -> Baseline:
        self.checks = checks
        self.baseline = measure_baseline(self.sandbox.dsn, checks, SystemClock(), databases=("plant",), seconds=20)
        return self.baseline

    @property
    def service(self) -> Service:
        return Service(
            name=ServiceName("erp"),
            components={
                DB: PostgresSettings(name=DB, dsn=""),
                DOCS: FilesSettings(
                    name=DOCS, kind=FilesKind.ODOO_FILESTORE, path=self.root, database="plant", follows=DB
                ),
            },
            checks=self.checks,
        )

    def recovered(self) -> RecoveredService:
        # A commit flushes everything before it, as replay has done with everything before the end of a recovery.
        self.sql("select pg_logical_emit_message(true, 'test', 'flushed')")
        here = Lsn.parse(str(self.sql("select pg_current_wal_lsn()::text")[0][0]))
        database = RecoveredDatabase(
            component=DB, environment=self.sandbox, dsn=self.sandbox.dsn, programs=find_programs(15), reached=here,
            expected_timeline=Timeline(1), stop_lsn=here, data_checksums=self.checksums, database="plant",
        )  # fmt: skip
        documents = RecoveredDocuments(
            component=DOCS, kind=FilesKind.ODOO_FILESTORE, root=self.root, expected=len(CONTENTS), missing=(),
            corrupt=(), extra=0, missing_in_production=self.missing_in_production, database="plant", follows=DB,
        )  # fmt: skip
        return RecoveredService(
            service=self.service,
            databases={DB: replace(database, **self.changes)},  # type: ignore[arg-type]  # fields by name, as the test says
            documents={DOCS: documents},
            baselines={DB: self.baseline} if self.baseline else {},
        )

    def run(self, *names: str, plan: Sequence[Check] | None = None) -> SuiteOutcome:
        chosen = plan if plan is not None else plan_suite(self.service, times=CheckTimes(programs_seconds=120))
        if names:
            chosen = [check for check in chosen if check.name in names]
            assert len(chosen) == len(names), "a test names a check that is not planned"
        return run_suite(self.recovered(), chosen, clock=SystemClock())

    def ask(self, name: str) -> CheckResult:
        (result,) = self.run(name).results
        return result


def make_plant(tmp_path: Path) -> Plant:
    sandbox = make_sandbox(tmp_path / "environments")
    done = sandbox.execute(
        [
            f"{POSTGRES_BIN}/initdb", "-D", "/env/data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync", "--data-checksums",
        ],
        timeout_seconds=60,
    )  # fmt: skip
    assert done.status == 0, done
    plant = Plant(sandbox=sandbox, root=tmp_path / "filestore")
    plant.start()
    plant.sql("create database plant", database="postgres")
    plant.sql(SCHEMA)
    for content in CONTENTS:
        path = plant.root / name_of(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        plant.sql(
            "insert into ir_attachment (name, store_fname, checksum, file_size) values"
            f" ('d', '{name_of(content)}', '{name_of(content)[3:]}', {len(content)})"
        )
    return plant


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = make_plant(tmp_path)
    yield made
    made.sandbox.destroy()


def test_a_sound_copy_passes_every_check_and_the_amcheck_extension_is_gone_again(plant: Plant) -> None:
    plant.measure(
        business("balanced", "select count(*) from account_move_line where debit < 0", "= 0"),
        business(
            "posted",
            "select count(*), sum(debit) from account_move_line where parent_state = 'posted' and {settled}",
            "unchanged",
        ),
        business("roughly", "select count(*) from account_move_line", "within 1% of baseline"),
    )
    outcome = plant.run()
    assert {result.name: result.state for result in outcome.results if result.state is not PASSED} == {}
    assert "database 'plant' has no table of Odoo's modules" in outcome.not_applicable.values()
    assert [name for name in outcome.not_applicable if "/odoo-" not in name] == []
    assert [result.name for result in outcome.results] == [
        check.name for check in plan_suite(plant.service) if "/odoo-" not in check.name
    ]
    assert not plant.sandbox.running()  # pg_checksums needs it stopped
    plant.start()
    assert plant.sql("select count(*) from pg_extension where extname = 'amcheck'") == [(0,)]
    assert plant.sql("select count(*) from pg_namespace where nspname like 'drservice%'") == [(0,)]


def test_a_position_behind_the_plan_fails(plant: Plant) -> None:
    here = plant.recovered().databases[DB].reached
    plant.changes = {"reached": here + (1 << 20)}
    assert plant.ask("db/target-reached").state is FAILED
    plant.changes = {"stop_lsn": here + (1 << 20)}
    assert plant.ask("db/target-reached").state is FAILED


def test_a_server_still_in_recovery_fails(plant: Plant) -> None:
    plant.sandbox.stop()
    plant.sandbox.execute(["touch", "/env/data/standby.signal"], timeout_seconds=5)
    plant.start("restore_command=/bin/false")
    plant.sandbox.require_own_socket()
    reached = Lsn.parse(str(plant.sql("select pg_last_wal_replay_lsn()::text")[0][0]))
    database = RecoveredDatabase(
        component=DB, environment=plant.sandbox, dsn=plant.sandbox.dsn, programs=find_programs(15), reached=reached,
        expected_timeline=Timeline(1), stop_lsn=reached, data_checksums=True, database=None,
    )  # fmt: skip
    plan = [check for check in plan_suite(plant.service) if check.name == "db/target-reached"]
    outcome = run_suite(RecoveredService(service=plant.service, databases={DB: database}), plan, clock=SystemClock())
    assert outcome.results[0].state is FAILED
    assert "recovery" in outcome.results[0].detail


def test_another_timeline_fails(plant: Plant) -> None:
    plant.changes = {"expected_timeline": Timeline(2)}
    result = plant.ask("db/timeline")
    assert result.state is FAILED
    assert result.detail == "timeline 1, expected 2"


def test_an_unusable_index_is_a_warning(plant: Plant) -> None:
    plant.sql("update pg_index set indisvalid = false where indexrelid = 'account_move_line_debit'::regclass")
    result = plant.ask("db/invalid-indexes")
    assert (result.state, result.severity) == (FAILED, Severity.WARNING)
    assert "plant: account_move_line_debit" in result.detail


def test_an_extension_without_its_files_fails(plant: Plant) -> None:
    plant.sql("create extension pg_trgm")
    assert plant.ask("db/extensions").state is PASSED
    plant.sql("update pg_extension set extversion = '99' where extname = 'pg_trgm'")
    assert "pg_trgm 99 has no control file" in plant.ask("db/extensions").detail
    plant.sql(
        "update pg_extension set extversion = '1.6' where extname = 'pg_trgm'",
        "update pg_proc set probin = '$libdir/nowhere' where proname = 'set_limit'",
    )
    result = plant.ask("db/extensions")
    assert result.state is FAILED
    assert "$libdir/nowhere does not load" in result.detail


def test_a_sequence_behind_its_column_is_a_warning(plant: Plant) -> None:
    plant.sql("create table edge (id int generated always as identity)", "insert into edge default values")
    assert plant.ask("db/sequences").state is PASSED
    plant.sql("select setval('stock_move_id_seq', 7)")
    result = plant.ask("db/sequences")
    assert (result.state, result.severity) == (FAILED, Severity.WARNING)
    assert "stock_move_id_seq goes on with 8, stock_move has 100" in result.detail


# --- watermarks ---------------------------------------------------------------------------------------------


def test_a_row_deleted_from_the_copy_fails_the_watermark(plant: Plant) -> None:
    plant.measure()
    assert plant.ask("db/watermarks").state is PASSED
    plant.sql("delete from account_move_line where id = 500")
    result = plant.ask("db/watermarks")
    assert result.state is FAILED
    assert "posted-journal-items: 999 | " in result.detail


def test_a_row_written_again_is_explained_only_where_a_later_position_was_reached(plant: Plant) -> None:
    baseline = plant.measure()
    plant.sql("update account_move_line set note = 'reconciled' where id = 500")
    result = plant.ask("db/watermarks")
    assert result.state is PASSED
    assert "the 1 rows less are among the 1 that were written again since" in result.detail
    plant.changes = {"reached": baseline.lsn}
    assert plant.ask("db/watermarks").state is FAILED


def test_a_deleted_attachment_is_a_warning_because_people_delete_them(plant: Plant) -> None:
    plant.measure()
    assert plant.ask("db/deletable-rows").state is PASSED
    plant.sql("delete from ir_attachment where id = 1")
    result = plant.ask("db/deletable-rows")
    assert (result.state, result.severity) == (FAILED, Severity.WARNING)
    assert plant.ask("db/watermarks").state is PASSED


def test_an_amount_that_was_changed_without_a_transaction_fails_the_watermark(plant: Plant) -> None:
    plant.measure()
    plant.sql("checkpoint")
    (path,) = plant.sql("select pg_relation_filepath('stock_move')")[0]
    plant.sandbox.stop()
    file = plant.sandbox.data / str(path)
    pages = file.read_bytes()
    # numeric 100 is the last tuple's; its digit 100 (0x64) becomes 101: the row keeps its xmin.
    where = pages.index(b"\x64\x00", pages.index(b"done"))
    with file.open("r+b") as stream:
        stream.seek(where)
        stream.write(b"\x65")
    plant.start("ignore_checksum_failure=on")
    result = plant.ask("db/watermarks")
    assert result.state is FAILED
    assert "done-stock-moves: 100 | 5051 | 100, in production it was 100 | 5050 | 100" in result.detail


def test_rows_written_after_the_baseline_change_no_watermark(plant: Plant) -> None:
    open_before = plant.connect()
    open_before.autocommit = False
    open_before.execute("insert into account_move_line (parent_state, debit) values ('posted', 1)")
    baseline = plant.measure()
    open_before.commit()
    open_before.close()
    plant.sql("insert into account_move_line (parent_state, debit) select 'posted', 1 from generate_series(1, 50)")
    assert baseline.values["watermark:plant:posted-journal-items"].startswith("1000 | ")
    result = plant.ask("db/watermarks")
    assert result.state is PASSED
    assert "written again" not in result.detail


def test_frozen_rows_and_numbers_of_every_epoch_are_told_apart(plant: Plant) -> None:
    def settled(xmin: int) -> dict[int, bool]:
        next_id = xmax_of(plant) % (1 << 32)
        numbers = (
            1,
            2,
            3,
            next_id - 6,
            next_id - 5,
            next_id - 1,
            next_id + 10,
            1 << 31,
            next_id + (1 << 31),
            (1 << 32) - 1,
        )
        rows = ", ".join(f"('{number}'::xid)" for number in numbers)
        question = settle(f"select xmin::text::bigint, {{settled:v}} from (values {rows}) as v (xmin)", xmin)
        return {int(str(number)) - next_id: bool(state) for number, state in plant.sql(question)}

    def expected(next_id: int) -> dict[int, bool]:
        others = (1 - next_id, 2 - next_id, 3 - next_id, -6, 10, (1 << 31) - next_id, 1 << 31, (1 << 32) - 1 - next_id)
        return {**dict.fromkeys(others, True), -5: False, -1: False}

    here = xmax_of(plant)
    assert settled(here - 5) == expected(here)
    # The same numbers 2^32 transactions later.
    plant.sandbox.stop()
    reset = plant.sandbox.execute([f"{POSTGRES_BIN}/pg_resetwal", "-D", "/env/data", "-e", "1"], timeout_seconds=30)
    assert reset.status == 0, reset
    plant.start()
    far = xmax_of(plant)
    assert far > 1 << 32
    assert settled(far - 5) == expected(far % (1 << 32))


def test_freezing_changes_no_watermark(plant: Plant) -> None:
    plant.measure()
    plant.sql("vacuum freeze", "insert into stock_move (state, product_qty) values ('done', 1)")
    assert plant.ask("db/watermarks").state is PASSED


def xmax_of(plant: Plant) -> int:
    return int(str(plant.sql("select pg_snapshot_xmax(pg_current_snapshot())::text")[0][0]))


def test_the_token_takes_the_alias_of_a_join(plant: Plant) -> None:
    sql = "select count(*) from stock_move s join account_move_line l on l.id = s.id where {settled:s} and {settled:l}"
    plant.measure(business("joined", sql, "unchanged"))
    plant.sql("insert into stock_move (id, state) values (1001, 'done')")
    assert plant.ask("business:joined").state is PASSED
    plant.sql("delete from stock_move where id = 1")
    assert plant.ask("business:joined").state is FAILED


def test_a_sequence_behind_production_fails_the_watermark(plant: Plant) -> None:
    plant.measure()
    plant.sql("select setval('account_move_line_id_seq', 900)")
    result = plant.ask("db/watermarks")
    assert result.state is FAILED
    assert "public.account_move_line_id_seq: 900, in production 1010" in result.detail


def test_a_copy_that_ends_before_the_baseline_or_has_none_is_unverified(plant: Plant) -> None:
    baseline = plant.measure(business("posted", "select count(*) from stock_move", "unchanged"))
    plant.baseline = replace(baseline, lsn=baseline.lsn + (1 << 30))
    assert {plant.ask(name).state for name in ("db/watermarks", "business:posted")} == {UNVERIFIED}
    plant.baseline = None
    assert {plant.ask(name).state for name in ("db/watermarks", "business:posted")} == {UNVERIFIED}


def test_the_baseline_position_lies_behind_a_commit_that_nobody_flushed(plant: Plant) -> None:
    plant.sandbox.stop()
    plant.start("wal_writer_delay=10000")
    with plant.connect() as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute("insert into stock_move (state, product_qty) values ('done', 1)")
        row = connection.execute(
            "select pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text"
        ).fetchone()
        assert row is not None
        inserted, flushed = (Lsn.parse(str(text)) for text in row)
        baseline = plant.measure()
    assert flushed < inserted  # else this test shows nothing
    assert baseline.values["watermark:plant:done-stock-moves"].startswith("101 | ")
    assert baseline.lsn >= inserted


def test_what_the_role_may_not_read_in_production_is_unverified_with_the_reason(plant: Plant) -> None:
    plant.sql("create role watcher login", "grant select on account_move_line to watcher")
    dsn = f"{plant.sandbox.dsn} user=watcher"
    plant.baseline = measure_baseline(dsn, (), SystemClock(), databases=("plant",))
    assert "lacks a privilege" in plant.baseline.problems["watermark:plant:done-stock-moves"]
    assert "may not read 3 sequences" in plant.baseline.problems["watermark:plant:sequences"]
    assert plant.baseline.values["watermark:plant:posted-journal-items"].startswith("1000 | ")
    result = plant.ask("db/watermarks")
    assert result.state is UNVERIFIED
    assert "done-stock-moves" in result.detail
    plant.sql("grant pg_read_all_data to watcher")
    plant.baseline = measure_baseline(dsn, (), SystemClock(), databases=("plant",))
    assert plant.baseline.problems == {}
    assert plant.ask("db/watermarks").state is PASSED


def test_rows_hidden_by_a_policy_are_a_problem_and_not_a_smaller_number(plant: Plant) -> None:
    plant.sql("create role watcher login", "grant pg_read_all_data to watcher")
    plant.sql("alter table stock_move enable row level security")
    baseline = measure_baseline(f"{plant.sandbox.dsn} user=watcher", (), SystemClock(), databases=("plant",))
    assert "row-level security" in baseline.problems["watermark:plant:done-stock-moves"]


def test_a_standby_can_be_asked_and_its_position_is_what_it_replayed(plant: Plant) -> None:
    plant.sandbox.stop()
    plant.sandbox.execute(["touch", "/env/data/standby.signal"], timeout_seconds=5)
    plant.start("restore_command=/bin/false")
    baseline = measure_baseline(plant.sandbox.dsn, (), SystemClock(), databases=("plant",))
    assert baseline.values["watermark:plant:done-stock-moves"].startswith("100 | ")
    assert str(baseline.lsn) == plant.sql("select pg_last_wal_replay_lsn()::text")[0][0]


# --- business -----------------------------------------------------------------------------------------------


def test_a_business_answer_that_is_not_expected_fails_with_both_numbers(plant: Plant) -> None:
    plant.measure(business("few", "select count(*) from stock_move;", "<= 99"))
    result = plant.ask("business:few")
    assert (result.state, result.value, result.owner) == (FAILED, "100", "me")
    assert result.detail == "100, expected <= 99"


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select count(*) from nowhere", "does not exist"),
        ("select 1 where false", "no row"),
        ("select 1 union all select 2", "more than one row"),
        ("select null", "NULL"),
        ("delete from stock_move returning 0", "syntax error"),
        ("select 0 from stock_move; delete from stock_move", "multiple commands"),
        ("select setval('stock_move_id_seq', 1) - 1", "read-only"),
        ("select 0 where {settled}", "{settled}"),
    ],
)
def test_a_question_without_a_proper_answer_is_unverified_and_changes_nothing(
    plant: Plant, sql: str, reason: str
) -> None:
    plant.checks = (business("odd", sql, "= 0"), business("next", "select count(*) from stock_move", "= 100"))
    outcome = plant.run("business:odd", "business:next")
    assert [result.state for result in outcome.results] == [UNVERIFIED, PASSED]
    assert reason in outcome.results[0].detail


def test_a_question_that_production_could_not_answer_stays_unverified_with_the_reason(plant: Plant) -> None:
    baseline = plant.measure(
        business("broken", "select count(*) from nowhere where {settled}", "unchanged"),
        business("fine", "select count(*) from stock_move where {settled}", "unchanged"),
    )
    assert "nowhere" in baseline.problems["broken"]
    results = {result.name: result for result in plant.run("business:broken", "business:fine").results}
    assert results["business:broken"].state is UNVERIFIED
    assert "nowhere" in results["business:broken"].detail
    assert results["business:fine"].state is PASSED


def test_the_same_value_is_spelled_alike_whatever_the_databases_settings(plant: Plant) -> None:
    plant.measure(business("when", "select max('2026-11-26 10:00+01'::timestamptz), max(1 / 3.0::float8)", "unchanged"))
    plant.sql("alter database plant set datestyle = 'German'", "alter database plant set extra_float_digits = -5")
    plant.sql("alter database plant set timezone = 'Asia/Tokyo'")
    assert plant.ask("business:when").state is PASSED


# --- time ---------------------------------------------------------------------------------------------------


def test_a_query_that_sleeps_is_ended_by_the_server_and_stops_no_other(plant: Plant) -> None:
    plant.checks = (business("slow", "select pg_sleep(600)", "= 0"), business("next", "select 0", "= 0"))
    plan = [check for check in plan_suite(plant.service, times=CheckTimes(business_seconds=1)) if ":" in check.name]
    began = time.monotonic()
    outcome = plant.run(plan=plan)
    assert time.monotonic() - began < 20
    assert [result.state for result in outcome.results] == [UNVERIFIED, PASSED]
    assert "statement timeout" in outcome.results[0].detail


def test_a_server_that_is_stopped_dead_hangs_nothing(plant: Plant) -> None:
    plant.checks = (business("any", "select 0", "= 0"),)
    plan = [check for check in plan_suite(plant.service, times=CheckTimes(business_seconds=1)) if ":" in check.name]
    recovered = plant.recovered()
    silent = socket.socket(socket.AF_UNIX)
    folder = plant.root.parent / "s"
    folder.mkdir()
    silent.bind(str(folder / ".s.PGSQL.5432"))
    silent.listen(8)  # takes connections and never answers
    database = replace(recovered.databases[DB], dsn=f"host={folder} port=5432 user=postgres connect_timeout=2")
    began = time.monotonic()
    outcome = run_suite(replace(recovered, databases={DB: database}), plan, clock=SystemClock())
    silent.close()
    assert time.monotonic() - began < 20
    assert outcome.results[0].state is UNVERIFIED


def test_a_server_that_ignores_its_timeouts_is_cut_off(plant: Plant) -> None:
    """A proxy stands for the hostile server: it forwards everything until the question, then swallows the answer."""
    plant.checks = (business("any", "select 'swallow' || pg_sleep(0)", "= swallow"),)
    plan = [check for check in plan_suite(plant.service, times=CheckTimes(business_seconds=1)) if ":" in check.name]
    recovered = plant.recovered()
    folder = plant.root.parent / "p"
    folder.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / ".s.PGSQL.5432"))
    listener.listen(1)

    def forward() -> None:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{socket_folder(recovered.databases[DB].dsn)}/.s.PGSQL.5432")

        def back() -> None:
            while data := server.recv(65536):
                client.sendall(data)

        threading.Thread(target=back, daemon=True).start()
        while data := client.recv(65536):
            if b"swallow" not in data:
                server.sendall(data)
        server.close()
        client.close()

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    database = replace(recovered.databases[DB], dsn=f"host={folder} port=5432 user=postgres")
    began = time.monotonic()
    outcome = run_suite(replace(recovered, databases={DB: database}), plan, clock=SystemClock())
    listener.close()
    assert 4 < time.monotonic() - began < 20
    assert outcome.results[0].state is UNVERIFIED
    assert "connection broke" in outcome.results[0].detail


def socket_folder(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["host"])


def test_a_program_that_hangs_inside_is_killed_and_unverified(plant: Plant) -> None:
    fake = plant.sandbox.data / "pg_amcheck"  # a hostile copy cannot replace the real one; a slow disk acts like this
    fake.write_text("#!/bin/sh\nsleep 600\n")
    fake.chmod(0o755)
    programs = plant.recovered().databases[DB].programs

    class Slow:
        major = programs.major

        def path(self, _: str) -> str:
            return "/env/data/pg_amcheck"

    plant.changes = {"programs": Slow()}
    plan = [
        check for check in plan_suite(plant.service, times=CheckTimes(programs_seconds=2)) if "pg_amcheck" in check.name
    ]
    began = time.monotonic()
    outcome = plant.run(plan=plan)
    assert time.monotonic() - began < 15
    assert outcome.results[0].state is UNVERIFIED
    assert plant.sql("select count(*) from pg_namespace where nspname = 'drservice_amcheck'") == [(0,)]


# --- programs -----------------------------------------------------------------------------------------------


def first_page(plant: Plant, relation: str) -> Path:
    """Stop the server with everything written, and return the file of a relation."""
    (path,) = plant.sql(f"select pg_relation_filepath('{relation}')")[0]
    plant.sandbox.stop()
    return plant.sandbox.data / str(path)


def test_a_damaged_row_fails_pg_amcheck_and_pg_checksums(plant: Plant) -> None:
    file = first_page(plant, "stock_move")
    page = bytearray(file.read_bytes())
    row = int.from_bytes(page[24:28], "little") & 0x7FFF  # where the first line pointer leads
    page[row : row + 4] = (0xFFFFFFF0).to_bytes(4, "little")  # written by a transaction that will be
    file.write_bytes(page)
    plant.start("ignore_checksum_failure=on")
    amcheck, checksums = plant.run("db/pg_amcheck", "db/pg_checksums").results
    assert amcheck.state is FAILED
    assert "stock_move" in amcheck.detail
    assert (checksums.state, checksums.value) == (FAILED, "1")


def test_damage_that_brings_the_server_down_is_never_a_pass_and_stops_no_other_check(plant: Plant) -> None:
    file = first_page(plant, "account_move_line")
    with file.open("r+b") as stream:
        stream.seek(8192 - 200)
        stream.write(b"\xff" * 64)
    plant.start("ignore_checksum_failure=on")
    amcheck, checksums = plant.run("db/pg_amcheck", "db/pg_checksums").results
    assert amcheck.state is not PASSED
    assert "pg_amcheck" in amcheck.detail
    assert (checksums.state, checksums.value) == (FAILED, "1")


def test_an_index_that_lacks_a_row_fails_pg_amcheck_while_every_checksum_is_right(plant: Plant) -> None:
    plant.sql(
        "update pg_index set indisready = false, indisvalid = false"
        " where indexrelid = 'account_move_line_debit'::regclass"
    )
    plant.sql("insert into account_move_line (parent_state, debit) values ('posted', 5)")
    plant.sql(
        "update pg_index set indisready = true, indisvalid = true"
        " where indexrelid = 'account_move_line_debit'::regclass"
    )
    amcheck, checksums = plant.run("db/pg_amcheck", "db/pg_checksums").results
    assert amcheck.state is FAILED
    assert "account_move_line_debit" in amcheck.detail
    assert checksums.state is PASSED


def test_pg_amcheck_that_cannot_be_installed_is_unverified(plant: Plant) -> None:
    plant.sql("create schema drservice_amcheck")
    assert plant.ask("db/pg_amcheck").state is UNVERIFIED


def test_a_cluster_without_checksums_is_told_as_not_applicable(plant: Plant) -> None:
    plant.checksums = False
    outcome = plant.run("db/pg_checksums")
    assert outcome.results == ()
    assert "without data checksums" in outcome.not_applicable["db/pg_checksums"]
    assert plant.sandbox.running()


def test_pg_checksums_of_a_cluster_that_has_none_against_the_snapshots_word_is_unverified(plant: Plant) -> None:
    plant.sandbox.stop()
    off = plant.sandbox.execute([f"{POSTGRES_BIN}/pg_checksums", "--disable", "-D", "/env/data"], timeout_seconds=60)
    assert off.status == 0
    plant.start()
    assert plant.ask("db/pg_checksums").state is UNVERIFIED


def test_a_kept_server_is_started_again_after_pg_checksums(plant: Plant) -> None:
    plan = [
        check for check in plan_suite(plant.service, restart=lambda _: plant.start()) if check.name == "db/pg_checksums"
    ]
    assert plant.run(plan=plan).results[0].state is PASSED
    assert plant.sandbox.running()


# --- documents ----------------------------------------------------------------------------------------------


def test_a_missing_document_fails_unless_production_had_lost_it(plant: Plant) -> None:
    lost = name_of(CONTENTS[3])
    (plant.root / lost).unlink()
    assert plant.ask("documents/documents-present").state is FAILED
    assert lost in plant.ask("documents/documents-present").detail
    plant.missing_in_production = (lost,)
    assert plant.ask("documents/documents-present").state is PASSED
    result = plant.ask("documents/documents-missing-in-production")
    assert (result.state, result.severity, result.value) == (FAILED, Severity.WARNING, "1")


def test_a_document_with_other_content_fails_whatever_the_restore_says(plant: Plant) -> None:
    path = plant.root / name_of(CONTENTS[3])
    path.write_bytes(b"x" * len(CONTENTS[3]))
    assert plant.ask("documents/documents-present").state is PASSED
    result = plant.ask("documents/documents-hash")
    assert (result.state, result.value) == (FAILED, "1")
    plant.missing_in_production = (name_of(CONTENTS[3]),)  # production had no good copy
    assert plant.ask("documents/documents-hash").state is PASSED
    plant.missing_in_production = ()
    path.write_bytes(CONTENTS[3])
    assert plant.ask("documents/documents-hash").state is PASSED
    plant.sql(f"update ir_attachment set file_size = 3 where store_fname = '{name_of(CONTENTS[3])}'")
    assert "another size" in plant.ask("documents/documents-hash").detail


def test_links_pipes_and_folders_in_the_place_of_documents_fail_and_hang_nothing(plant: Plant) -> None:
    link, pipe, folder = (plant.root / name_of(CONTENTS[number]) for number in (1, 2, 3))
    for path in (link, pipe, folder):
        path.unlink()
    outside = plant.root.parent / "outside"
    outside.write_bytes(CONTENTS[1])
    link.symlink_to(outside)
    os.mkfifo(pipe)
    folder.mkdir()
    for check in ("documents/documents-present", "documents/documents-hash"):
        result = plant.ask(check)
        assert (result.state, result.value) == (FAILED, "3"), check


def test_a_folder_of_documents_behind_a_link_fails(plant: Plant) -> None:
    document = plant.root / name_of(CONTENTS[3])
    outside = plant.root.parent / "outside"
    document.parent.rename(outside)
    document.parent.symlink_to(outside)
    beside = sum(name_of(content)[:2] == document.parent.name for content in CONTENTS)
    for check in ("documents/documents-present", "documents/documents-hash"):
        result = plant.ask(check)
        assert (result.state, result.value) == (FAILED, str(beside)), check


def test_hostile_names_are_never_used_as_paths(plant: Plant) -> None:
    secret = plant.root.parent / "secret"
    secret.write_bytes(b"secret")
    for name in (
        "../secret",
        "/etc/passwd",
        "ab/../../secret",
        "s3://bucket/key",
        "ab/" + "g" * 40,
        "x\ny",
        "ab/" + "c" * 40,
    ):
        plant.sql(f"insert into ir_attachment (store_fname) values ('{name}')")
    plant.sql("insert into ir_attachment (db_datas) values ('inside')")
    assert plant.ask("documents/documents-present").state is PASSED
    result = plant.ask("documents/documents-not-covered")
    assert (result.state, result.severity, result.value) == (FAILED, Severity.WARNING, "7")
    assert "1 attachments are inside the database" in result.detail


def test_documents_of_a_database_without_attachments_are_unverified(plant: Plant) -> None:
    plant.sql("drop table ir_attachment")
    assert plant.ask("documents/documents-present").state is UNVERIFIED
    assert plant.ask("documents/documents-hash").state is UNVERIFIED


# --- the suite ----------------------------------------------------------------------------------------------


def test_a_dead_server_leaves_every_check_of_it_unverified(plant: Plant) -> None:
    plant.checks = (business("any", "select 0", "= 0"),)
    recovered = plant.recovered()
    plant.sandbox.stop()
    plan = [check for check in plan_suite(plant.service) if check.name.startswith(("db/", "business"))]
    outcome = run_suite(recovered, plan, clock=SystemClock())
    states = {result.name: result.state for result in outcome.results}
    assert states.pop("db/pg_checksums") is PASSED  # it needs no server
    assert set(states.values()) == {UNVERIFIED}


def test_a_socket_that_is_not_the_servers_is_not_connected_to(plant: Plant) -> None:
    recovered = plant.recovered()
    sock = Path(socket_folder(plant.sandbox.dsn)) / ".s.PGSQL.5432"
    sock.rename(sock.with_name("moved"))
    sock.symlink_to("moved")
    plan = [check for check in plan_suite(plant.service) if check.name == "db/timeline"]
    outcome = run_suite(recovered, plan, clock=SystemClock())
    assert outcome.results[0].state is UNVERIFIED
    assert "DR601" in outcome.results[0].detail


def test_what_was_not_recovered_is_unverified(plant: Plant) -> None:
    plan = plan_suite(plant.service)
    outcome = run_suite(RecoveredService(service=plant.service, databases={}), plan, clock=SystemClock())
    assert {result.state for result in outcome.results} == {UNVERIFIED}
    assert set(outcome.not_applicable) == {"documents/odoo-code"}, "no folders of modules are configured"
    assert len(outcome.results) == len(plan) - len(outcome.not_applicable)
    assert {result.state for result in without_answer(plan, "nothing came back").results} == {UNVERIFIED}
