"""URLs of catalogues; no server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from drservice.catalogue.database import Database, migration_config, migrations_folder
from drservice.errors import CatalogueError


@pytest.mark.parametrize("url", ["sqlite:///x", "nonsense", "mysql://a:geheim@b/c", "postgresql://a:geheim@b:port/c"])
def test_what_is_no_postgresql_url_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(CatalogueError) as raised:
        Database(url)
    assert raised.value.exit_status == 2
    assert "geheim" not in raised.value.message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_other_libraries_get_a_url_of_libpq_and_people_one_without_password(scheme: str) -> None:
    database = Database(f"{scheme}://drs:geheim@db1/catalogue?sslmode=require")
    assert database.url == "postgresql://drs:geheim@db1/catalogue?sslmode=require"
    assert "geheim" not in str(database)
    assert "db1/catalogue" in str(database)


def test_what_the_url_says_of_a_connection_is_not_overridden() -> None:
    assert Database("postgresql://db1/c")._parameters["connect_timeout"] == "10"
    assert "connect_timeout" not in Database("postgresql://db1/c?connect_timeout=3")._parameters


def test_the_migrations_are_one_line_without_branches() -> None:
    script = ScriptDirectory.from_config(migration_config())
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1
    assert {path.name for path in Path(migrations_folder()).iterdir()} >= {"env.py", "script.py.mako", "versions"}
