"""Scripts of modules and our own statements on real databases in Odoo's shapes: hostile, old and lying ones.

Here a test cluster stands for the server inside; that it really is the one inside is a test of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import psycopg
import pytest

from drservice.checks.interface import Check, RecoveredDatabase, RecoveredDocuments, RecoveredService
from drservice.checks.suite import plan_suite, run_suite
from drservice.clock import SystemClock
from drservice.components.odoo.modules import ModuleRecord, ModuleScript
from drservice.components.odoo.neutralize import Applied, apply_all
from drservice.components.odoo.schema import read_schema
from drservice.components.postgres.asking import asking
from drservice.components.postgres.connection import connect
from drservice.components.postgres.server import find_programs
from drservice.environments.interface import Environment
from drservice.environments.marks import is_marked, is_marked_directory
from drservice.errors import IsolationError, NeutralizeError, PostgresUnreachableError
from drservice.model.checks import CheckState
from drservice.model.estate import FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.neutralized import Neutralized
from drservice.model.wal import Lsn, Timeline
from drservice.operations import neutralizing
from drservice.operations.neutralizing import Copy, neutralize_environment, usable_scripts
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.odooshape import SCRIPTS, create_odoo

DB, DOCS, INSIDE = ComponentName("db"), ComponentName("documents"), "01JZZZZZZZZZZZZZZZZZZZZZZZ"
BASE = ModuleScript(module="base", sql=SCRIPTS["base"])


@dataclass(frozen=True, kw_only=True)
class Place:
    """Stands for an environment at whose socket a server answers that need not live there."""

    path: Path
    dsn: str
    id: str = INSIDE

    def require_own_socket(self) -> None:
        """Return: what is there is a socket."""

    def describe(self) -> Place:
        return self


@dataclass(kw_only=True)
class Erp:
    """One database of Odoo's."""

    cluster: Cluster
    database: str

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return self.cluster.sql(statement, database=self.database)

    def end_sessions(self) -> None:
        """End what a cut connection left at work in the server: it holds locks that other tests would wait for."""
        self.cluster.sql(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            f" where datname = '{self.database}' and pid <> pg_backend_pid()"
        )

    def apply(self, *scripts: str | ModuleScript, seconds: float = 20.0) -> Applied:
        """Neutralize it as the owner of its tables."""
        given = [item if isinstance(item, ModuleScript) else ModuleScript(module="evil", sql=item) for item in scripts]
        dsn = self.cluster.dsn(self.database, "odoo")
        with asking(dsn, seconds=20, application_name="test") as source:
            schema = read_schema(source)
        with connect(dsn) as session:
            return apply_all(session, schema, given, mark=f"{INSIDE} 2026-11-27", seconds=seconds)

    def states(self, done: Neutralized | None = None) -> dict[str, tuple[str, str]]:
        """Ask the checks of a neutralized copy; by the name behind ``neutralized-``."""
        place = cast("Environment", Place(path=Path("/nowhere"), dsn=self.cluster.dsn(self.database)))
        done = done or Neutralized(component=DOCS, database=self.database, is_odoo=True)
        files = FilesSettings(
            name=DOCS, kind=FilesKind.ODOO_FILESTORE, path=Path("/nowhere"), database=self.database, follows=DB
        )
        service = Service(name=ServiceName("erp"), components={DB: PostgresSettings(name=DB, dsn=""), DOCS: files})
        recovered = RecoveredService(
            service=service,
            databases={
                DB: RecoveredDatabase(
                    component=DB, environment=place, dsn=place.dsn, programs=find_programs(15), reached=Lsn(1),
                    expected_timeline=Timeline(1), stop_lsn=Lsn(1), data_checksums=False, database=self.database,
                )
            },
            documents={
                DOCS: RecoveredDocuments(
                    component=DOCS, kind=FilesKind.ODOO_FILESTORE, root=Path("/nowhere"), expected=0, missing=(),
                    corrupt=(), extra=0, missing_in_production=(), database=self.database, follows=DB,
                )
            },
            neutralized={DOCS: done},
        )  # fmt: skip
        plan: list[Check] = [item for item in plan_suite(service, neutralized=True) if "/neutralized" in item.name]
        outcome = run_suite(recovered, plan, clock=SystemClock())
        found = {item.name: (item.state.value, item.detail) for item in outcome.results}
        found |= {name: ("not applicable", reason) for name, reason in outcome.not_applicable.items()}
        return {name.removeprefix("documents/neutralized").removeprefix("-"): item for name, item in found.items()}


@pytest.fixture(scope="module")
def cluster(template_cache: Path) -> Iterator[Cluster]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make()
    cluster.start()
    cluster.sql("create role odoo login")
    for version in (15, 19):
        cluster.sql(f"create database v{version} owner odoo")
        with psycopg.connect(cluster.dsn(f"v{version}", "odoo"), autocommit=True) as connection:
            connection.execute("create schema if not exists other")
            create_odoo(connection, version=version)
    yield cluster
    maker.close()


@pytest.fixture
def erp(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Erp]:
    """A database of its own for one test, of version 19 unless it asks for another."""
    name, version = "copy", getattr(request, "param", 19)
    cluster.sql(f"create database {name} template v{version} owner odoo")
    yield Erp(cluster=cluster, database=name)
    cluster.sql(f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def kept(cluster: Cluster) -> Erp:
    """A database of version 19 that no test changes; sessions that were cut may linger in it."""
    cluster.sql("create database kept template v19 owner odoo")
    return Erp(cluster=cluster, database="kept")


def counts(applied: Applied) -> Mapping[str, int]:
    return {name: rows for name, rows in applied.changes if rows}


# --- what is done ----------------------------------------------------------------------------------------------


def test_without_any_script_our_own_statements_leave_nothing_that_reaches_out(erp: Erp) -> None:
    before = {name: state for name, (state, _) in erp.states().items()}
    assert {name for name, state in before.items() if state == "failed"} == {
        "", "no-active-cron", "only-dummy-mail-server", "no-payment-provider", "no-fetchmail", "no-outgoing", "no-keys",
    }, "each question is seen failing on a copy that was not neutralized"  # fmt: skip
    applied = erp.apply()
    assert applied.scripts == ()
    assert {state for state, _ in erp.states().values()} == {"passed"}
    assert counts(applied)["a mail server that leads nowhere"] == 1


@pytest.mark.parametrize("erp", [15], indirect=True)
def test_a_version_without_any_script_is_neutralized_and_what_it_lacks_is_passed_over_by_name(erp: Erp) -> None:
    applied = erp.apply()
    assert counts(applied)["payment providers off"] == 1, "under its older name"
    assert ("webhooks emptied", "public.ir_act_server has no column webhook_url") in applied.passed_over
    assert ("snailmail_letter cancelled", "there is no table public.snailmail_letter") in applied.passed_over
    assert {state for state, _ in erp.states().values()} == {"passed"}


def test_scripts_of_modules_leave_less_to_do_and_nothing_is_done_twice(erp: Erp) -> None:
    applied = erp.apply(BASE, ModuleScript(module="mail", sql=SCRIPTS["mail"]))
    assert applied.scripts == ("base", "mail")
    assert not {"scheduled actions off", "mail servers off", "incoming mail servers off"} & counts(applied).keys()
    assert counts(erp.apply(BASE)) == {}, "a second time finds nothing left"
    assert erp.sql("select count(*) from ir_config_parameter where key = 'database.uuid'") == [(1,)]


def test_a_dropped_column_of_mail_servers_is_no_pass(erp: Erp) -> None:
    erp.sql("alter table ir_mail_server drop smtp_host")  # as some add-ons do
    erp.apply()
    state, detail = erp.states()["only-dummy-mail-server"]
    assert (state, "has no column smtp_host" in detail) == ("unverified", True)
    with pytest.raises(NeutralizeError, match=r"module base failed.*smtp_host"):
        erp.apply(BASE)


def test_what_does_not_hold_afterwards_is_found_whoever_undid_it(erp: Erp) -> None:
    erp.apply(
        "create function undo() returns trigger language plpgsql as 'begin return null; end';"
        "create trigger undo before update on ir_cron for each row execute function undo();"
    )
    state, detail = erp.states()["no-active-cron"]
    assert (state, detail) == ("failed", "1 scheduled actions are active beside the vacuum: '2'")


# --- hostile scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("update nowhere set a = 1;", 'module evil failed: .*relation "nowhere" does not exist'),
        ("delete from mail_mail; select 1/0; select 2;", "division by zero"),
        ("rollback;", "module evil ended the transaction"),
        ("copy mail_mail from stdin;", "copies to or from the client"),
        ("copy mail_mail to stdout;", "copies to or from the client"),
        ("copy mail_mail to program 'true';", "must be superuser"),
        ("alter system set fsync = off;", "module evil failed"),
        ("set role postgres;", "permission denied"),
    ],
)
def test_a_script_that_fails_is_named_and_nothing_is_changed(kept: Erp, script: str, told: str) -> None:
    with pytest.raises(NeutralizeError, match=told):
        kept.apply(BASE, script)
    assert not kept.sql("select 1 from ir_config_parameter where key = 'drservice.neutralized'")
    assert kept.sql("select count(*) from ir_cron where active") == [(2,)], "what base did is undone"
    assert kept.sql("select count(*) from mail_mail") == [(3,)]


@pytest.mark.parametrize("script", ["commit;", "delete from mail_mail; commit; begin;", "do $$begin commit; end$$;"])
def test_a_script_that_ends_the_transaction_is_named_and_nothing_passes_for_neutralized(kept: Erp, script: str) -> None:
    kept.cluster.sql("create database ended template v19")
    try:
        ended = Erp(cluster=kept.cluster, database="ended")
        with pytest.raises(NeutralizeError, match=r"module evil (ended the transaction|failed: invalid transaction)"):
            ended.apply(script)
        assert not ended.sql("select 1 from ir_config_parameter where key = 'drservice.neutralized'")
    finally:
        kept.cluster.sql("drop database ended with (force)")


def test_a_result_of_any_size_passes_by_and_a_text_with_percent_signs_is_taken_as_it_stands(erp: Erp) -> None:
    erp.apply("select i, repeat('x', 200) from generate_series(1, 200000) i; select '100%', '%s', '%(a)s';")
    assert erp.states()[""][0] == "passed"


def test_a_script_that_does_not_end_is_cut(kept: Erp) -> None:
    with pytest.raises(NeutralizeError, match="module evil failed: the statements were not through in time"):
        kept.apply("set statement_timeout = 0; select pg_sleep(60);", seconds=0.5)
    kept.end_sessions()
    assert not kept.sql("select 1 from ir_config_parameter where key = 'drservice.neutralized'")


def test_what_a_script_sets_does_not_lead_our_statements_astray(erp: Erp) -> None:
    erp.apply(
        "create table other.ir_cron as select * from ir_cron; set search_path = other, public;"
        " create temp table mail_mail as select * from public.mail_mail;"
    )
    assert {state for state, _ in erp.states().values()} == {"passed"}


def test_a_deferred_check_that_fails_at_the_end_is_an_error_and_changes_nothing(kept: Erp) -> None:
    script = (
        "create function no() returns trigger language plpgsql as $$begin raise exception 'not today'; end$$;"
        "create constraint trigger no after update on ir_cron deferrable initially deferred"
        " for each row execute function no(); update ir_cron set active = active;"
    )
    with pytest.raises(NeutralizeError, match="cannot be committed: not today"):
        kept.apply(script)
    assert kept.sql("select count(*) from ir_cron where active") == [(2,)]


def test_a_policy_that_hides_rows_from_their_owner_is_an_error(kept: Erp) -> None:
    script = (
        "alter table ir_cron enable row level security, force row level security;"
        " create policy none on ir_cron using (false);"
    )
    with pytest.raises(NeutralizeError, match="row-level security"):
        kept.apply(script)
    assert kept.sql("select count(*) from ir_cron where active") == [(2,)]


@pytest.mark.parametrize("table", ["mail_mail", "ir_config_parameter"])
def test_a_trigger_that_waits_for_ever_is_cut(kept: Erp, table: str) -> None:
    script = (
        "create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(60); return new; end';"
        f"create trigger wait before update on {table} for each row execute function wait();"
    )
    began = time.monotonic()
    with pytest.raises((NeutralizeError, PostgresUnreachableError)):
        kept.apply(script, seconds=0.5)
    kept.end_sessions()
    assert time.monotonic() - began < 20
    assert not kept.sql("select 1 from ir_config_parameter where key = 'drservice.neutralized'")


def stand_in(erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """Let the test cluster stand for the server inside; the proof that it is that one has a test of its own."""
    place = cast("Environment", Place(path=tmp_path / INSIDE, dsn=erp.cluster.dsn(erp.database)))
    (tmp_path / INSIDE).mkdir()
    system = SystemId(str(erp.cluster.value("select system_identifier::text from pg_control_system()")))
    monkeypatch.setattr(neutralizing, "_require_inside", Mock())
    return Copy(environment=place, system_id=system, clock=SystemClock())


def test_a_database_that_hides_its_tables_from_whoever_connects_is_neutralized_all_the_same(
    erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its search path puts views of its own before the catalogue, in which nothing of Odoo's is to be seen."""
    copy = stand_in(erp, tmp_path, monkeypatch)
    erp.sql(
        "create schema evil; grant usage on schema evil to public;"
        " create view evil.pg_class as select * from pg_catalog.pg_class where relname !~ '^(ir|mail|res)_';"
        " grant select on evil.pg_class to public;"
        f" alter database {erp.database} set search_path = evil, pg_catalog, public"
    )
    assert neutralize_environment(copy, erp.database, None, component=DOCS).is_odoo
    assert erp.sql("select count(*) from public.ir_cron where active") == [(1,)]


def test_an_operator_of_the_database_that_waits_for_ever_is_not_used(
    erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = stand_in(erp, tmp_path, monkeypatch)
    erp.sql(
        "create schema evil; grant usage on schema evil to public;"
        " create function evil.wait(name, name) returns boolean language plpgsql"
        " as $$begin perform pg_catalog.pg_sleep(30); return false; end$$;"
        " create operator evil.= (leftarg = name, rightarg = name, function = evil.wait);"
        f" alter database {erp.database} set search_path = evil, pg_catalog, public"
    )
    began = time.monotonic()
    assert neutralize_environment(copy, erp.database, None, component=DOCS).is_odoo
    assert time.monotonic() - began < 15


def test_where_it_was_asked_for_and_there_is_nothing_of_odoo_the_restore_fails(
    erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = stand_in(erp, tmp_path, monkeypatch)
    erp.sql("drop table ir_module_module")
    done = neutralize_environment(copy, erp.database, None, component=DOCS)
    assert not done.is_odoo
    with pytest.raises(NeutralizeError, match="no tables of Odoo's"):
        neutralizing.require_odoo(done)


@pytest.mark.parametrize(
    ("table", "told"),
    [("ir_cron", "scheduled actions are active"), ("ir_config_parameter", "does not bear the mark")],
)
def test_what_a_trigger_of_the_database_undoes_is_no_neutralized_copy(
    erp: Erp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, told: str
) -> None:
    """No statement fails, and each says that it changed rows or had none to change."""
    copy = stand_in(erp, tmp_path, monkeypatch)
    (tmp_path / "copy").mkdir()
    erp.sql(
        "create function undo() returns trigger language plpgsql as 'begin return null; end';"
        f"create trigger undo before insert or update on {table} for each row execute function undo();"
    )
    with pytest.raises(NeutralizeError, match=told):
        neutralize_environment(copy, erp.database, None, component=DOCS, directory=tmp_path / "copy")
    assert is_marked(tmp_path / INSIDE)
    assert is_marked_directory(tmp_path / "copy"), "marked before anything was changed"
    erp.sql(f"drop trigger undo on {table}")
    assert neutralize_environment(copy, erp.database, None, component=DOCS).is_odoo


def test_a_script_that_was_not_taken_at_the_backup_keeps_its_copy_from_being_neutralized() -> None:
    versions = (("base", "19.0.1.3"), ("mail", "19.0.1.0"), ("sale", "19.0.1.2"))
    record = ModuleRecord(
        versions=versions, scripts=(BASE, ModuleScript(module="mail", sql="select 1;")), refused=(("sale", "no UTF-8"),)
    )
    with pytest.raises(NeutralizeError, match=r"sale \(no UTF-8\)"):
        usable_scripts(record, {"base", "sale"}, "erp")
    assert usable_scripts(record, {"base", "queue_job"}, "erp") == ((BASE,), ("queue_job",)), "of what the copy has"


# --- never in production ---------------------------------------------------------------------------------------


def test_a_server_that_does_not_live_in_the_environment_is_not_touched(kept: Erp, tmp_path: Path) -> None:
    place = cast("Environment", Place(path=tmp_path / INSIDE, dsn=kept.cluster.dsn(kept.database)))
    system = SystemId(str(kept.cluster.value("select system_identifier::text from pg_control_system()")))
    copy = Copy(environment=place, system_id=system, clock=SystemClock())
    with pytest.raises(IsolationError, match="does not live in"):
        neutralize_environment(copy, kept.database, ModuleRecord(versions=()), component=DOCS)
    assert kept.sql("select count(*) from ir_cron where active") == [(2,)]
    assert not (tmp_path / INSIDE).exists(), "nothing was marked"


# --- what is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "state", "told"),
    [
        ({"without_code": ("queue_job",)}, "scripts", CheckState.FAILED, "1 installed modules have no code"),
        ({"unknown": "no snapshot has any"}, "scripts", CheckState.UNVERIFIED, "no snapshot has any"),
        ({"other_databases": ("second",)}, "other-databases", CheckState.FAILED, "'second'"),
        ({"http_actions": ("1: MES",)}, "http-actions", CheckState.PASSED, "only the environment holds it: '1: MES'"),
    ],
)
def test_what_was_not_done_is_told_by_a_check(
    kept: Erp, changes: dict[str, Any], name: str, state: CheckState, told: str
) -> None:
    found = kept.states(Neutralized(component=DOCS, database=kept.database, is_odoo=True, **changes))
    assert found[name][0] == state.value
    assert told in found[name][1]


def test_a_copy_that_says_nothing_of_itself_or_of_another_environment_is_no_pass(erp: Erp) -> None:
    erp.apply()
    erp.sql("update ir_config_parameter set value = 'another one' where key = 'drservice.neutralized'")
    assert erp.states()[""] == (
        "failed",
        "drservice.neutralized names no neutralization of this environment: 'another one'",
    )
    erp.sql("update ir_config_parameter set value = 'false' where key = 'database.is_neutralized'")
    assert erp.states()[""] == ("failed", "database.is_neutralized is 'false'")
    erp.sql("drop table ir_module_module")
    assert {state for state, _ in erp.states().values()} == {"not applicable", "passed"}
