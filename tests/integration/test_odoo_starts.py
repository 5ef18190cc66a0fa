"""Odoo is started inside a real sandbox beside a real server, and visited; what plays Odoo here is a stand-in.

The real one is asked by tests/odoo.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from drservice.checks.interface import Finding, NotApplicable, RecoveredDatabase, RecoveredDocuments, RecoveredService
from drservice.checks.odoostart import ask_odoo_starts
from drservice.checks.suite import plan_suite
from drservice.clock import SystemClock
from drservice.components.postgres.server import find_programs
from drservice.environments.sandbox import Sandbox, prepare_sandbox
from drservice.errors import PostgresError, UnansweredError
from drservice.model.checks import CheckState
from drservice.model.estate import FilesKind, FilesSettings, OdooProgram, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn, Timeline
from drservice.operations.odoostart import shown_folders
from tests.contract.env_fixtures import eventually, make_spec, postgres_argv, ready
from tests.doubles.cluster import ClusterMaker, hand_over

DB, DOCS = ComponentName("db"), ComponentName("documents")
CONTENTS = (b"an order", b"a drawing", b"a delivery note", b"an invoice")
TABLES = """
create table res_users (id int primary key, login text, password text, active boolean, share boolean, totp_secret text);
create table res_groups_users_rel (gid int, uid int);
create table ir_model_data (module text, name text, model text, res_id int);
create table ir_attachment (id int primary key, type text, store_fname text, res_field text, url text, file_size int);
insert into ir_model_data values ('base', 'group_system', 'res.groups', 7);
insert into res_groups_users_rel values (7, 5);
insert into res_users values (1, 'root', null, false, false, null), (3, 'clerk', 'h', true, false, null),
    (5, 'boss', 'production hash', true, false, 'production factor'), (6, 'guest', 'h', true, true, null);
"""


def name_of(content: bytes) -> str:
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return f"{sha1[:2]}/{sha1}"


@dataclass(kw_only=True)
class Copy:
    """A recovered Odoo, as a restore leaves it."""

    sandbox: Sandbox
    code: Path
    documents: Path
    missing: tuple[str, ...] = ()
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.service = service_with(self.code)

    def ask(self, seconds: float = 60.0, **options: str) -> Finding | NotApplicable:
        settings = self.service.components[DOCS]
        assert isinstance(settings, FilesSettings)
        assert settings.odoo is not None
        changed = replace(settings, odoo=replace(settings.odoo, options=options))
        service = replace(self.service, components={**self.service.components, DOCS: changed})
        recovered = RecoveredService(
            service=service, databases={DB: self._database()}, documents={DOCS: self._documents()}
        )
        return ask_odoo_starts(DOCS, recovered, seconds)

    def _database(self) -> RecoveredDatabase:
        return RecoveredDatabase(
            component=DB,
            environment=self.sandbox,
            dsn=self.sandbox.dsn,
            programs=find_programs(15),
            reached=Lsn(0),
            expected_timeline=Timeline(1),
            stop_lsn=Lsn(0),
            data_checksums=True,
            database="plant",
        )

    def _documents(self) -> RecoveredDocuments:
        return RecoveredDocuments(
            component=DOCS,
            kind=FilesKind.ODOO_FILESTORE,
            root=self.documents,
            expected=len(CONTENTS),
            missing=self.missing,
            corrupt=(),
            extra=0,
            missing_in_production=(),
            database="plant",
            follows=DB,
        )

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.sandbox.dsn, dbname="plant", autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def service_with(code: Path) -> Service:
    database = PostgresSettings(name=DB, dsn="host=/nowhere dbname=plant")
    program = OdooProgram(program=code / "odoo", timeout=timedelta(seconds=60))
    documents = FilesSettings(
        name=DOCS, kind=FilesKind.ODOO_FILESTORE, path=Path("/x"), database="plant", follows=DB, odoo=program
    )
    return Service(name=ServiceName("erp"), components={DB: database, DOCS: documents})


@pytest.fixture(scope="module")
def copy(template_cache: Path) -> Iterator[Copy]:
    maker = ClusterMaker(cache=template_cache)
    place = maker.folder("place")
    code = place / "code"
    code.mkdir()
    shutil.copy(Path(__file__).parents[1] / "doubles" / "standin_odoo.py", code / "odoo")
    hand_over(place)
    place.chmod(0o755)
    spec = replace(make_spec(), folders=shown_folders(service_with(code)))
    sandbox = prepare_sandbox(spec, environments_dir=place / "environments", clock=SystemClock())
    try:
        cluster = maker.make()
        subprocess.run(["cp", "-a", f"{cluster.data}/.", str(sandbox.data)], check=True)
        sandbox.start(postgres_argv())
        eventually(lambda: ready(sandbox))
        documents = sandbox.folder(DOCS) / "plant"
        made = Copy(sandbox=sandbox, code=code, documents=documents)
        fill(made)
        yield made
    finally:
        sandbox.destroy()
        maker.close()


def fill(made: Copy) -> None:
    with psycopg.connect(made.sandbox.dsn, autocommit=True) as connection:
        connection.execute("create role odoo login superuser")
        connection.execute("create database plant owner odoo")
    made.sql(TABLES)
    for number, content in enumerate(CONTENTS, 10):
        path = made.documents / name_of(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made.sql(f"insert into ir_attachment values ({number}, 'binary', '{name_of(content)}', null, null, 9)")
    hand_over(made.documents)


def finding(found: Finding | NotApplicable, state: CheckState) -> str:
    assert isinstance(found, Finding), found
    assert found.state is state, found
    return found.detail


@pytest.fixture(scope="module")
def visited(copy: Copy) -> Finding | NotApplicable:
    """One visit of a sound copy."""
    return copy.ask()


def test_a_user_logs_in_and_documents_open(visited: Finding | NotApplicable) -> None:
    detail = finding(visited, CheckState.PASSED)
    assert "Odoo 19.0-standin answered" in detail
    assert "'boss' logged in, 3 documents open and have their SHA-1" in detail


@pytest.mark.usefixtures("visited")
def test_what_the_copy_knew_of_its_users_is_there_again_afterwards(copy: Copy) -> None:
    known = copy.sql("select password, totp_secret from res_users where id = 5")
    assert known == [("production hash", "production factor")]


def test_a_copy_whose_user_could_not_be_put_back_has_not_passed(copy: Copy) -> None:
    copy.sql(
        "create function stay() returns trigger language plpgsql as"
        " $$begin if new.password = 'production hash' then raise exception 'it stays'; end if; return new; end$$"
    )
    copy.sql("create trigger stay before update on res_users for each row execute function stay()")
    try:
        with pytest.raises(PostgresError, match="it stays"):
            copy.ask()
    finally:
        copy.sql("drop trigger stay on res_users; drop function stay()")
        copy.sql("update res_users set password = 'production hash', totp_secret = 'production factor' where id = 5")


@pytest.mark.usefixtures("visited")
def test_nothing_that_odoo_does_to_its_data_folder_reaches_a_document(copy: Copy) -> None:
    for content in CONTENTS:
        assert (copy.documents / name_of(content)).read_bytes() == content, "the stand-in wrote over every one it could"
    assert list(copy.documents.rglob("new")) == []
    assert not (copy.sandbox.log / "odoo").exists(), "its data folder goes with it"


def test_an_odoo_that_ends_fails_the_check_with_its_last_words(copy: Copy) -> None:
    detail = finding(copy.ask(standin="exit"), CheckState.FAILED)
    assert "Odoo did not answer: Odoo ended with status 1" in detail
    assert "1 errors, first: 2026-11-27 07:00:00,000 4 CRITICAL" in detail


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("damage", "attachment 13 has other content than its name says"),
        pytest.param("blank", "the login page does not render", marks=pytest.mark.long),
        pytest.param("stranger", "user 'boss' is not logged in", marks=pytest.mark.long),
    ],
)
def test_an_odoo_that_does_not_work_fails_the_check(copy: Copy, fault: str, told: str) -> None:
    assert told in finding(copy.ask(standin=fault), CheckState.FAILED)


@pytest.mark.long
def test_where_every_document_is_missing_none_is_said_to_open(copy: Copy) -> None:
    lost = replace(copy, missing=tuple(map(name_of, CONTENTS)))
    assert "those of 4 attachments are missing" in finding(lost.ask(), CheckState.FAILED)


def test_a_python_that_is_not_inside_says_so(copy: Copy) -> None:
    settings = copy.service.components[DOCS]
    assert isinstance(settings, FilesSettings)
    assert settings.odoo is not None
    gone = replace(settings, odoo=replace(settings.odoo, python=copy.code / "venv"))
    elsewhere = replace(copy)
    elsewhere.service = replace(copy.service, components={**copy.service.components, DOCS: gone})
    (copy.code / "venv" / "bin").mkdir(parents=True)
    (copy.code / "venv" / "bin" / "python").symlink_to("/opt/nowhere/python")
    with pytest.raises(UnansweredError, match="did not say what it saw"):
        elsewhere.ask()


def test_an_odoo_that_is_not_on_this_host_is_unverified(copy: Copy, tmp_path: Path) -> None:
    settings = copy.service.components[DOCS]
    assert isinstance(settings, FilesSettings)
    assert settings.odoo is not None
    gone = replace(settings, odoo=replace(settings.odoo, program=tmp_path / "odoo"))
    elsewhere = replace(copy)
    elsewhere.service = replace(copy.service, components={**copy.service.components, DOCS: gone})
    assert "Odoo is not on this host" in finding(elsewhere.ask(), CheckState.UNVERIFIED)


def test_only_a_service_that_says_how_plans_it() -> None:
    service = service_with(Path("/opt/odoo"))
    assert "documents/odoo-starts" in [check.name for check in plan_suite(service)]
    settings = service.components[DOCS]
    assert isinstance(settings, FilesSettings)
    without = replace(service, components={**service.components, DOCS: replace(settings, odoo=None)})
    assert "documents/odoo-starts" not in [check.name for check in plan_suite(without)]


def test_folders_that_are_not_here_do_not_stop_a_recovery(tmp_path: Path) -> None:
    assert shown_folders(service_with(tmp_path / "nowhere")) == {}
    assert shown_folders(service_with(tmp_path)) == {"documents.0": tmp_path}
