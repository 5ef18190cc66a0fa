"""The catalogue's schema: migrated up and down, as the tables say, and refused when it is another one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from drservice.catalogue.database import Database, migrate, migration_config, open_catalogue
from drservice.catalogue.tables import Base
from drservice.errors import CatalogueSchemaError, CatalogueUnreachableError
from tests.doubles.catalogue import CatalogueServer


def differences(database: Database) -> list[object]:
    with database.connection() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": Base.metadata}
        )
        found = compare_metadata(context, Base.metadata)
    return [
        difference
        for difference in found
        if not (
            isinstance(difference, tuple) and difference[0] == "remove_table" and difference[1] == "alembic_version"
        )
    ]


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(database: Database) -> None:
    assert differences(database) == []


def test_a_column_that_no_migration_makes_would_be_seen(database: Database) -> None:
    with database.connection() as connection:
        connection.execute(text("ALTER TABLE run DROP COLUMN caught_up_by"))
    assert [difference[0] for difference in differences(database) if isinstance(difference, tuple)] == ["add_column"]


def test_a_catalogue_goes_up_to_head_down_to_nothing_and_up_again(catalogues: CatalogueServer) -> None:
    url = catalogues.empty()
    migrate(url)
    migrate(url)
    database = open_catalogue(url)
    config = migration_config()
    with database.connection() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.connection() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
        assert connection.execute(text("SELECT count(*) FROM pg_proc WHERE proname = 'drservice_now'")).scalar() == 0
    migrate(url)
    assert differences(database) == []
    database.close()


def test_two_processes_may_bring_the_schema_up_at_once(catalogues: CatalogueServer) -> None:
    url = catalogues.empty()
    program = "import sys; from drservice.catalogue.database import migrate; sys.stdin.read(1); migrate(sys.argv[1])"
    started = [
        subprocess.Popen([sys.executable, "-c", program, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda process: process.communicate(b"!", timeout=60)[1], started))
    assert [process.returncode for process in started] == [0, 0, 0], ends
    open_catalogue(url).close()


def test_threads_may_bring_two_catalogues_up_at_once(catalogues: CatalogueServer) -> None:
    urls = [catalogues.empty() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, urls))
    for url in urls:
        open_catalogue(url).close()


def test_a_database_without_schema_is_refused(catalogues: CatalogueServer) -> None:
    with pytest.raises(CatalogueSchemaError, match="no schema yet"):
        open_catalogue(catalogues.empty())


def test_a_schema_of_a_newer_program_is_refused_and_left_alone(catalogues: CatalogueServer) -> None:
    url = catalogues.empty()
    migrate(url)
    database = Database(url)
    with database.connection() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogueSchemaError, match="9999, which this program does not know"):
        open_catalogue(url)
    with pytest.raises(CatalogueSchemaError, match="9999"):
        migrate(url)
    with database.connection() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    database.close()


def test_a_server_that_is_gone_is_unreachable_and_its_password_is_not_told(catalogues: CatalogueServer) -> None:
    url = f"postgresql://postgres:geheim@/x?host={catalogues.cluster.root}/nowhere"
    with pytest.raises(CatalogueUnreachableError) as raised:
        open_catalogue(url)
    assert raised.value.exit_status == 8
    assert "geheim" not in raised.value.message
    with pytest.raises(CatalogueUnreachableError), Database(url).listening("x"):
        pytest.fail("nobody is there to listen to")


def test_a_connection_that_the_server_ended_is_replaced(catalogues: CatalogueServer, database: Database) -> None:
    with database.session() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    assert catalogues.cluster.value("SELECT pg_terminate_backend(%s, 10000)", [pid])
    with database.session() as session:
        assert session.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid


def test_a_connection_that_breaks_within_a_session_is_unreachable(database: Database) -> None:
    with pytest.raises(CatalogueUnreachableError), database.session() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_a_catalogue_that_was_away_is_used_again_by_who_had_it_open(
    catalogues: CatalogueServer, database: Database
) -> None:
    with database.session() as session:
        session.execute(text("SELECT 1"))
    listening = database.listening("x")
    with pytest.raises(CatalogueUnreachableError), listening as heard:  # noqa: PT012 - the server goes in between
        catalogues.cluster.stop()
        heard.wait(10)
    with pytest.raises(CatalogueUnreachableError), database.session() as session:
        session.execute(text("SELECT 1"))
    catalogues.cluster.start()
    with database.session() as session:
        assert session.execute(text("SELECT 1")).scalar_one() == 1
    with database.listening("x") as heard:
        catalogues.cluster.sql("SELECT pg_notify('x', 'elsewhere')")  # another database of the server
        assert heard.wait(0.2) == []
