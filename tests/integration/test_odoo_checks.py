"""Odoo's checks asked of real PostgreSQL with tables in Odoo's shapes; each is seen failing on rows that break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from drservice.checks.interface import Check, RecoveredDatabase, RecoveredDocuments, RecoveredService
from drservice.checks.suite import CheckTimes, SuiteOutcome, plan_suite, run_suite
from drservice.clock import SystemClock
from drservice.components.odoo import gathering
from drservice.components.odoo.gathering import gather_odoo
from drservice.components.odoo.invariants import INVARIANTS
from drservice.components.postgres.asking import Asking, asking
from drservice.components.postgres.baseline import Gathered, measure_baseline
from drservice.components.postgres.server import find_programs
from drservice.environments.interface import Environment
from drservice.model.checks import Baseline, CheckResult, CheckState, Severity
from drservice.model.estate import FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn, Timeline
from drservice.operations.production import read_references
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.odoobusiness import create_business

DB, DOCS = ComponentName("db"), ComponentName("documents")
OF_ODOO = frozenset(
    f"documents/odoo-{name}"
    for name in ("modules", "code", *(invariant.name for invariant in INVARIANTS), "broken-in-production")
)
ASKED = {*OF_ODOO, "documents/documents-not-covered"}
PASSED, FAILED, UNVERIFIED = CheckState.PASSED, CheckState.FAILED, CheckState.UNVERIFIED


class OwnSocket:
    """Stands for an environment whose socket nobody replaced."""

    def require_own_socket(self) -> None:
        """Return: it is its own."""


@dataclass(kw_only=True)
class Erp:
    """One database, asked first as production and then as the recovered copy."""

    cluster: Cluster
    database: str
    folder: Path
    baseline: Baseline | None = None
    addons: tuple[Path, ...] = ()

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.cluster.sql(statement, database=self.database)

    def measure(self, user: str = "postgres") -> Baseline:
        clock = SystemClock()
        self.baseline = measure_baseline(
            self.cluster.dsn("postgres", user),
            (),
            clock,
            databases=(self.database,),
            gather=lambda source, database: gather_odoo(source, database, clock=clock),
            seconds=20,
        )
        return self.baseline

    @property
    def service(self) -> Service:
        files = FilesSettings(
            name=DOCS,
            kind=FilesKind.ODOO_FILESTORE,
            path=self.folder,
            database=self.database,
            follows=DB,
            addons=self.addons,
        )
        return Service(
            name=ServiceName("erp"), components={DB: PostgresSettings(name=DB, dsn=""), DOCS: files}, checks=()
        )

    def plan(self, times: CheckTimes | None = None) -> list[Check]:
        return [check for check in plan_suite(self.service, times=times) if check.name in ASKED]

    def run(self, *names: str, times: CheckTimes | None = None) -> SuiteOutcome:
        self.cluster.sql("select pg_logical_emit_message(true, 'test', 'flushed')")
        here = Lsn.parse(str(self.cluster.value("select pg_current_wal_lsn()::text")))
        database = RecoveredDatabase(
            component=DB, environment=cast("Environment", OwnSocket()), dsn=self.cluster.dsn(),
            programs=find_programs(int(self.cluster.bin.parts[-2])), reached=here,
            expected_timeline=Timeline(1), stop_lsn=here, data_checksums=True, database=self.database,
        )  # fmt: skip
        documents = RecoveredDocuments(
            component=DOCS, kind=FilesKind.ODOO_FILESTORE, root=self.folder, expected=0, missing=(), corrupt=(),
            extra=0, missing_in_production=(), database=self.database, follows=DB,
        )  # fmt: skip
        recovered = RecoveredService(
            service=self.service, databases={DB: database}, documents={DOCS: documents},
            baselines={DB: self.baseline} if self.baseline else {},
        )  # fmt: skip
        plan = [check for check in self.plan(times) if check.name in (names or OF_ODOO)]
        assert not names or len(plan) == len(names), "a test names a check that is not planned"
        return run_suite(recovered, plan, clock=SystemClock())

    def ask(self, name: str) -> CheckResult:
        (result,) = self.run(f"documents/odoo-{name}").results
        return result


@pytest.fixture(scope="module")
def cluster(template_cache: Path) -> Iterator[Cluster]:
    maker = ClusterMaker(cache=template_cache)
    made = maker.make()
    made.start()
    for version in (15, 17, 19):
        made.sql(f"create database odoo{version}")
        with made.connect(f"odoo{version}") as connection:
            create_business(connection, version=version)
    yield made
    maker.close()


@pytest.fixture
def make(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[int], Erp]]:
    """Makes a healthy database of one version, of a test's own."""
    made: list[str] = []

    def create(version: int = 19) -> Erp:
        name = f"erp{len(made)}"
        cluster.sql(f"create database {name} template odoo{version}")
        made.append(name)
        return Erp(cluster=cluster, database=name, folder=tmp_path)

    yield create
    for name in made:
        cluster.sql(f"drop database {name} with (force)")


@pytest.fixture
def erp(make: Callable[[int], Erp]) -> Erp:
    return make(19)


BREAKING = {
    "modules-settled": "update ir_module_module set state = 'to upgrade' where name = 'sale'",
    "balanced": "update account_move_line set debit = debit + 0.01 where id = 7",
    "items-agree": "update account_move_line set parent_state = 'draft' where move_id = 9",
    "unique-numbers": "update account_move set name = 'INV/2026/00003' where id = 4",
    "stock": "update stock_quant set quantity = 14 where product_id = 1 and location_id = 2",
    "production-finished": "delete from stock_move where production_id = 1",
    "unique-productions": "update mrp_production set name = 'WH/MO/00001'",
    "transfers-closed": "update stock_move set state = 'assigned' where picking_id = 1",
    "sale-totals": "delete from sale_order_line where order_id = 1 and price_subtotal = 20",
    "purchase-totals": "update purchase_order set amount_untaxed = 13",
    "attached-orders": "update ir_attachment set res_id = 77 where res_model = 'mrp.production'",
    "content-known": "update ir_attachment set db_datas = null where name = 'drawing'",
}


def test_every_invariant_has_rows_that_break_it() -> None:
    assert set(BREAKING) == {invariant.name for invariant in INVARIANTS}


@pytest.mark.parametrize("version", [15, 17, 19])
def test_a_healthy_business_passes_every_check_of_odoo(make: Callable[[int], Erp], version: int) -> None:
    healthy = make(version)
    baseline = healthy.measure()
    assert baseline.problems == {}
    outcome = healthy.run()
    assert {item.name: item.detail for item in outcome.results if item.state is not PASSED} == {}
    assert outcome.not_applicable == {"documents/odoo-code": "no folders with Odoo's modules are configured (addons)"}
    assert len(outcome.results) == len(INVARIANTS) + 2


def test_rows_that_break_an_invariant_fail_its_check_and_no_other(erp: Erp) -> None:
    erp.measure()
    for invariant in INVARIANTS:
        assert erp.ask(invariant.name).state is PASSED, "whatever else is broken already"
        erp.sql(BREAKING[invariant.name])
        broken = erp.ask(invariant.name)
        assert broken.state is FAILED, invariant.name
        assert broken.severity is (Severity.CRITICAL if invariant.critical else Severity.WARNING)
        assert f"{broken.value} {invariant.broken}, 0 in production; new: " in broken.detail
    assert {item.name for item in erp.run().results if item.state is FAILED} == {
        f"documents/odoo-{invariant.name}" for invariant in INVARIANTS
    }


@pytest.mark.parametrize("version", [15, 17])
def test_stock_is_compared_in_the_units_of_older_versions_too(make: Callable[[int], Erp], version: int) -> None:
    older = make(version)
    older.measure()
    column = "qty_done" if version == 15 else "quantity_product_uom"
    older.sql(f"update stock_move_line set {column} = {column} * 2 where product_uom_id = 2")
    assert "product 1 in location 2: 15 there, 35" in older.ask("stock").detail


def test_what_production_broke_already_is_a_warning_of_its_own_and_fails_nothing_else(erp: Erp) -> None:
    erp.sql(BREAKING["unique-numbers"], BREAKING["stock"])
    erp.measure()
    result = erp.ask("unique-numbers")
    assert (result.state, result.value) == (PASSED, "1")
    assert "as in production" in result.detail
    told = erp.ask("broken-in-production")
    assert (told.state, told.severity, told.value) == (FAILED, Severity.WARNING, "2")
    assert "1 numbers are used by more than one posted entry" in told.detail
    assert "products lie in internal locations" in told.detail


def test_one_offender_in_place_of_another_is_not_taken_for_productions(erp: Erp) -> None:
    erp.sql(BREAKING["balanced"])
    erp.measure()
    erp.sql(
        "update account_move_line set debit = 70 where id = 7", "update account_move_line set debit = 1 where id = 8"
    )
    result = erp.ask("balanced")
    assert result.state is FAILED
    assert "1 in production; new: 'entry 8 is off by -79'" in result.detail


def test_without_a_baseline_what_is_broken_is_unverified_and_what_is_whole_passes(erp: Erp) -> None:
    erp.sql(BREAKING["balanced"])
    result = erp.ask("balanced")
    assert result.state is UNVERIFIED
    assert "there is no recovery point with a baseline" in result.detail
    assert erp.ask("unique-numbers").state is PASSED
    assert erp.ask("modules").state is UNVERIFIED
    assert erp.ask("broken-in-production").state is UNVERIFIED


def test_a_copy_that_ends_before_its_baseline_is_not_compared_with_it(erp: Erp) -> None:
    erp.sql(BREAKING["balanced"])
    baseline = erp.measure()
    erp.baseline = replace(baseline, lsn=baseline.lsn + (1 << 30))
    result = erp.ask("balanced")
    assert result.state is UNVERIFIED
    assert "the copy ends before it" in result.detail


# --- shapes -------------------------------------------------------------------------------------------------


def test_what_a_database_does_not_have_is_told_and_never_passed(erp: Erp) -> None:
    erp.sql("drop table mrp_production", "alter table stock_quant drop quantity")
    erp.measure()
    outcome = erp.run()
    told = {name: reason for name, reason in outcome.not_applicable.items() if name != "documents/odoo-code"}
    assert told == {
        "documents/odoo-production-finished": "there is no table public.mrp_production",
        "documents/odoo-unique-productions": "there is no table public.mrp_production",
        "documents/odoo-attached-orders": "there is no table public.mrp_production",
        "documents/odoo-stock": "public.stock_quant has no column quantity",
    }
    assert all(item.state is PASSED for item in outcome.results)


def test_a_database_that_is_not_odoos_is_asked_nothing_of_odoo(erp: Erp) -> None:
    erp.sql("drop table ir_module_module")
    baseline = erp.measure()
    assert not [key for key in (*baseline.values, *baseline.problems) if key.startswith("odoo:")]
    outcome = erp.run()
    assert outcome.results == ()
    assert set(outcome.not_applicable.values()) == {
        f"database {erp.database!r} has no table of Odoo's modules",
        "no folders with Odoo's modules are configured (addons)",
    }


@pytest.mark.parametrize("kind", ["view", "materialized view", "foreign schema"])
def test_what_only_bears_a_tables_name_is_not_taken_for_it(erp: Erp, kind: str) -> None:
    erp.measure()
    erp.sql(BREAKING["balanced"], "alter table account_move_line rename to hidden")
    if kind == "foreign schema":
        erp.sql(
            "create schema trap",
            "create table trap.account_move_line as select * from hidden where id <> 7",
            f"alter database {erp.database} set search_path = trap, public",
        )
    else:
        erp.sql(f"create {kind} account_move_line as select * from hidden where move_id <> 7")
    outcome = erp.run("documents/odoo-balanced")
    assert outcome.results == ()
    assert outcome.not_applicable == {"documents/odoo-balanced": "there is no table public.account_move_line"}


def test_functions_and_operators_of_the_database_answer_nothing(erp: Erp) -> None:
    erp.measure()
    erp.sql(
        BREAKING["balanced"],
        "create schema trap",
        "create function trap.abs(numeric) returns numeric language sql as 'select 0::numeric'",
        "create function trap.never(numeric, numeric) returns bool language sql as 'select false'",
        "create operator trap.> (leftarg = numeric, rightarg = numeric, function = trap.never)",
        f"alter database {erp.database} set search_path = trap, pg_catalog, public",
    )
    assert erp.cluster.sql("select abs(-1::numeric), 2::numeric > 1::numeric", database=erp.database) == [(0, False)]
    assert erp.ask("balanced").state is FAILED


def test_a_column_of_another_type_is_unverified_and_stops_no_other(erp: Erp) -> None:
    erp.measure()
    erp.sql("alter table account_move_line alter debit type text")
    outcome = erp.run("documents/odoo-balanced", "documents/odoo-sale-totals")
    assert [item.state for item in outcome.results] == [UNVERIFIED, PASSED]


def test_a_question_that_takes_too_long_is_unverified(erp: Erp) -> None:
    erp.measure()
    with erp.cluster.connect(erp.database) as blocker:
        blocker.execute("begin")
        blocker.execute("lock table account_move_line")
        outcome = erp.run("documents/odoo-balanced", times=CheckTimes(business_seconds=1))
    assert outcome.results[0].state is UNVERIFIED
    assert "timeout" in outcome.results[0].detail


# --- documents elsewhere ------------------------------------------------------------------------------------


def test_attachments_in_a_cloud_are_counted_as_not_covered_at_the_backup_and_in_the_copy(erp: Erp) -> None:
    erp.sql(
        "insert into ir_attachment (type, url) select 'cloud_storage', 'https://x/' || i from generate_series(1, 3) i"
    )
    with asking(erp.cluster.dsn(erp.database), seconds=5, application_name="test") as source:
        assert read_references(source).elsewhere == 3
    (result,) = erp.run("documents/documents-not-covered").results
    assert (result.state, result.severity, result.value) == (FAILED, Severity.WARNING, "3")


# --- modules ------------------------------------------------------------------------------------------------


def test_a_module_of_another_version_fails_unless_its_row_was_written_again_since(erp: Erp) -> None:
    baseline = erp.measure()
    erp.sql("update ir_module_module set latest_version = '19.0.9.9' where name = 'sale'")
    result = erp.ask("modules")
    assert result.state is PASSED
    assert (
        "1 were changed since: 'sale is installed 19.0.9.9, in production it was installed 19.0.1.0'" in result.detail
    )
    erp.baseline = replace(
        baseline, snapshot_xmin=int(erp.cluster.value("select pg_snapshot_xmax(pg_current_snapshot())::text"))
    )
    assert erp.ask("modules").state is FAILED


def test_a_module_that_is_gone_fails_and_one_that_was_removed_later_does_not(erp: Erp) -> None:
    erp.measure()
    erp.sql("update ir_module_module set state = 'uninstalled', latest_version = null where name = 'mrp'")
    assert erp.ask("modules").state is PASSED
    erp.sql("delete from ir_module_module where name = 'mrp'")
    result = erp.ask("modules")
    assert result.state is FAILED
    assert "1 of 8 modules differ: 'mrp is not there'" in result.detail


def write_code(folder: Path, name: str, manifest: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__manifest__.py").write_text(manifest)


def test_the_code_on_this_host_is_compared_with_the_versions_of_the_database(erp: Erp, tmp_path: Path) -> None:
    modules = ("base", "mail", "account", "stock", "mrp", "sale", "purchase", "payment_demo")
    for name in modules:
        write_code(tmp_path / "core", name, "{'name': 'x', 'version': '1.0'}")
    write_code(tmp_path / "own", "sale", "{'version': '19.0.1.0'}")
    erp.addons = (tmp_path / "own", tmp_path / "core")
    assert erp.ask("code").state is PASSED
    (tmp_path / "core" / "mrp" / "__manifest__.py").write_text("{'version': '1.1'}")
    (tmp_path / "core" / "stock" / "__manifest__.py").write_text("__import__('os').system('touch ' + __file__)")
    (tmp_path / "core" / "mail" / "__manifest__.py").unlink()
    erp.sql(
        "insert into ir_module_module (name, state, latest_version) values ('../core/base', 'installed', '19.0.1.0')"
    )
    result = erp.ask("code")
    assert (result.state, result.severity, result.value) == (FAILED, Severity.WARNING, "4")
    assert "2 have no code here ('../core/base', 'mail')" in result.detail
    assert "mrp is 19.0.1.1, in the database 19.0.1.0" in result.detail
    assert "stock: its manifest cannot be read" in result.detail
    erp.sql("alter table ir_module_module add imported bool", "update ir_module_module set imported = name like '%a%'")
    assert "'stock: its manifest cannot be read" in erp.ask("code").detail


# --- production ---------------------------------------------------------------------------------------------


def test_production_is_asked_for_counts_by_state_and_newest_times(erp: Erp) -> None:
    erp.sql("update mrp_production set write_date = '2026-11-27 05:06:07.5' where id = 1")
    erp.sql("update mrp_production set write_date = '2026-01-01', create_date = '2025-02-03 04:05:06' where id = 2")
    erp.sql("update mrp_production set create_date = '2025-01-01' where id = 1")
    values = erp.measure().values
    assert values[f"odoo:{erp.database}:count-mrp_production"] == (
        '{"created":"2025-02-03T04:05:06Z","rows":{"confirmed":1,"done":1},"written":"2026-11-27T05:06:07Z"}'
    )
    assert values[f"odoo:{erp.database}:journal-numbers"] == '[["INV/2026/@1","INV/2026/ of journal 1","30"]]'
    assert values[f"odoo:{erp.database}:no-gap-numbers"] == '[["ir_sequence:2","Cheques (2)","11"]]'


def test_what_the_role_may_not_read_in_production_is_a_problem_and_leaves_out_nothing_else(erp: Erp) -> None:
    erp.cluster.sql("drop role if exists watcher")
    erp.cluster.sql("create role watcher login")
    try:
        erp.sql("grant select on ir_module_module, account_move to watcher")
        baseline = erp.measure(user="watcher")
        assert "lacks a privilege" in baseline.problems[f"odoo:{erp.database}:balanced"]
        assert f"odoo:{erp.database}:modules" in baseline.values
        erp.sql(BREAKING["balanced"])
        result = erp.ask("balanced")
        assert result.state is UNVERIFIED
        assert "lacks a privilege" in result.detail
    finally:
        erp.sql("drop owned by watcher")
        erp.cluster.sql("drop role watcher")


def test_a_table_that_is_too_large_is_left_out_and_told(erp: Erp) -> None:
    erp.sql("update pg_class set reltuples = 3e7 where oid = 'stock_move_line'::regclass")
    baseline = erp.measure()
    left_out = {
        key.rpartition(":")[2] for key, text in baseline.problems.items() if "left out: stock_move_line" in text
    }
    assert left_out == {"stock", "count-stock_move_line"}
    told = erp.ask("broken-in-production")
    assert (told.state, told.severity) == (UNVERIFIED, Severity.WARNING)
    assert "not known of stock: left out" in told.detail


def test_a_question_that_production_is_slow_to_answer_is_given_up_and_the_others_are_asked(
    erp: Erp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "_QUESTION_SECONDS", 0.3)
    with erp.cluster.connect(erp.database) as blocker:
        blocker.execute("begin")
        blocker.execute("lock table stock_quant")
        baseline = erp.measure()
    slow = {key.rpartition(":")[2] for key, text in baseline.problems.items() if "statement timeout" in text}
    assert slow == {"count-stock_quant", "stock"}
    assert len(baseline.problems) == 2


def test_production_is_asked_no_longer_than_a_minute_in_all(erp: Erp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_BUDGET_SECONDS", 0.0)
    baseline = erp.measure()
    assert not [key for key in baseline.values if key.startswith("odoo:")]
    assert set(baseline.problems.values()) == {"left out: production was asked for 0 s already"}
    assert erp.ask("balanced").state is PASSED
    assert erp.ask("modules").state is UNVERIFIED


def test_the_search_path_of_production_is_as_it_was_when_its_own_questions_are_asked(erp: Erp) -> None:
    """The dsn's own database may be Odoo's: what is asked after Odoo's questions has the settings it had before."""
    seen: list[str] = []
    clock = SystemClock()

    def gather(source: Asking, database: str) -> Gathered:
        found = gather_odoo(source, database, clock=clock)
        seen.extend(
            str(value)
            for value in source.answer("select current_setting('search_path'), current_setting('statement_timeout')")
        )
        return found

    measure_baseline(erp.cluster.dsn(erp.database), (), clock, databases=(erp.database,), gather=gather, seconds=20)
    assert seen == ['"$user", public', "20s"]
