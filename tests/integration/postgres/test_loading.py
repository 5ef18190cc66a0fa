"""A dump is loaded by a role that may do nothing else: what it could do beyond its database, the server refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import count

import pytest

from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.loading import Loaded, load_plain
from drservice.components.postgres.plaindump import PlainDump
from drservice.errors import ImportRefusedError
from tests.doubles.cluster import Cluster
from tests.doubles.odoozips import END, HEAD

_NUMBERS = count()
_ROWS = (
    "insert into names (name, note, at, total) select 'Zoë \\. ' || i || E'\\t;\\n\\\\',"
    " decode(repeat('00ff', i), 'hex'), now(), i from generate_series(1, 300) i"
)


@pytest.fixture(scope="module")
def host(server: Cluster) -> Cluster:
    server.sql("create role odoo login")
    return server


@pytest.fixture
def database(host: Cluster) -> Iterator[str]:
    name = f"loaded{next(_NUMBERS)}"
    host.sql(f"create database {name} owner odoo template template0")
    yield name
    host.sql(f"drop database {name}")


def load(host: Cluster, database: str, dump: bytes, *, most: int = 5000) -> Loaded:
    pieces = (dump[at : at + most] for at in range(0, len(dump), most))

    def made_immutable(schema: str) -> None:
        with connect(host.dsn(database)) as superuser:
            superuser.script(f"alter function {schema}.unaccent(text) immutable".encode(), seconds=10)

    with connect(f"{host.dsn(database)} user=odoo") as session:
        assert not _is_superuser(session)
        return load_plain(session, PlainDump(pieces), made_immutable=made_immutable)


def _is_superuser(session: Session) -> bool:
    return bool(session.row("select rolsuper from pg_roles where rolname = current_user")[0])


def dumped(host: Cluster, database: str) -> bytes:
    argv = ["pg_dump", "--no-owner", "--no-privileges", f"--dbname={host.dsn(database)}"]
    lines = subprocess.run(argv, check=True, capture_output=True).stdout.splitlines()
    return b"\n".join(line for line in lines if not line.startswith((b"\\restrict", b"\\unrestrict")))


def test_what_pg_dump_writes_is_loaded_as_it_was(host: Cluster, database: str) -> None:
    origin = f"{database}_origin"
    host.sql(f"create database {origin} template template0")
    host.sql("create role bi")
    with host.connect(origin) as connection:
        for statement in (
            "create extension pg_trgm",
            "create extension unaccent",
            "alter function public.unaccent(text) immutable",
            "create table names (id serial primary key, name text, note bytea, at timestamp, total numeric(10,2))",
            "create index on names using gin (unaccent(name) gin_trgm_ops)",
            _ROWS,
            """create table "Odd;Na""me" ("a$b" text default 'x;\\', parent int references names on delete cascade)""",
            'insert into "Odd;Na""me" values (E\'\\\\.\', 1), (null, 2)',
            "create function twice(text) returns text language sql as $f$ select $1 || ';' || $1 $f$",
            "create function gone() returns void language sql begin atomic delete from names where id < 0; end",
            "create view named as select twice(name) as it from names",
            "create materialized view kept as select count(*) as c from names",
            "select lo_from_bytea(4711, 'a large object')",
            "grant select on names to bi",
            "comment on table names is 'it''s; \\! a comment'",
        ):
            connection.execute(statement.encode())
    try:
        argv = ["pg_dump", "--no-owner", f"--dbname={host.dsn(origin)}"]
        dump = subprocess.run(argv, check=True, capture_output=True).stdout
        loaded = load(host, database, dump)
        assert (loaded.rows, loaded.left_out["privileges"]) == (302, 1)
        assert dumped(host, database) == dumped(host, origin)
    finally:
        host.sql(f"drop database {origin}")
        host.sql("drop role bi")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("COPY pg_class TO PROGRAM 'id'", "superuser|permission denied"),
        ("CREATE TEMP TABLE t (a text); COPY t FROM '/etc/passwd'", "superuser|permission denied"),
        ("SELECT pg_read_file('/etc/passwd')", "permission denied"),
        ("CREATE EXTENSION file_fdw", "permission denied"),
        ("CREATE EXTENSION nobody_has_it", "not available|extension control file"),
        ("SET SESSION AUTHORIZATION postgres", "permission denied"),
        ("SET ROLE postgres", "permission denied"),
        ("CREATE ROLE more SUPERUSER", "superuser|permission denied"),
        ("ALTER SYSTEM SET archive_command = 'id'", "permission denied"),
        ("CREATE TABLESPACE t LOCATION '/tmp'", "permission denied"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'getpid'", "permission denied"),
        ("ALTER FUNCTION pg_catalog.lower(text) IMMUTABLE", "must be owner"),
        ("SELECT missing", "does not exist"),
        ("COPY pg_class TO STDOUT", "copies to or from the client"),
        ("DROP DATABASE postgres", "must be owner"),
    ],
)
def test_the_first_statement_that_is_refused_ends_it_and_is_named(
    host: Cluster, database: str, statement: str, told: str
) -> None:
    dump = f"{HEAD}create table there (a int);\n{statement};\ncreate table behind (a int);\n{END}"
    with pytest.raises(ImportRefusedError, match=told) as error:
        load(host, database, dump.encode())
    assert "line 9" in error.value.message
    assert statement.rpartition("; ")[2] in error.value.message
    with host.connect(database) as connection:
        there = {name for (name,) in connection.execute("select relname from pg_class where relkind = 'r'").fetchall()}
    assert "there" in there
    assert "behind" not in there


def test_a_statement_is_run_as_a_whole_or_not_at_all(host: Cluster, database: str) -> None:
    cut = f"{HEAD}create table t (a int);\ninsert into t values (1)\0, (2);\n{END}"
    with pytest.raises(ImportRefusedError, match="line 9: a statement has a zero byte"):
        load(host, database, cut.encode())


def test_what_a_dump_says_in_an_error_is_told_in_part_however_long_it_is(host: Cluster, database: str) -> None:
    raised = "do $$ begin raise exception 'why: %', repeat('x', 10000000); end $$;"
    with pytest.raises(ImportRefusedError, match="line 8: why: xxxx") as error:
        load(host, database, f"{HEAD}{raised}\n{END}".encode())
    assert len(error.value.message) < 3000


def test_rows_of_a_transaction_that_no_statement_ends_do_not_count_as_loaded(host: Cluster, database: str) -> None:
    dump = f"{HEAD}create table t (a int);\nbegin;\ninsert into t values (1);\n{END}"
    with pytest.raises(ImportRefusedError, match="within a transaction"):
        load(host, database, dump.encode())
    assert load(host, database, f"{HEAD}begin;\ninsert into t values (1);\ncommit;\n{END}".encode()).statements == 3


@pytest.mark.parametrize(
    ("rows", "told"), [("1\n", "missing data"), ("x\ty\n", "invalid input syntax"), ("1\t\\N\n", "not-null|null value")]
)
def test_a_row_that_is_refused_ends_it(host: Cluster, database: str, rows: str, told: str) -> None:
    dump = f"{HEAD}create table t (a int, b text not null);\nCOPY public.t (a, b) FROM stdin;\n{rows}\\.\n{END}"
    with pytest.raises(ImportRefusedError, match=told):
        load(host, database, dump.encode())


@pytest.mark.parametrize("at", ["rows", "statement", "end"])
def test_a_dump_that_is_cut_ends_in_an_error_wherever_it_is_cut(host: Cluster, database: str, at: str) -> None:
    whole = (
        f"{HEAD}create table t (a int);\nCOPY public.t (a) FROM stdin;\n1\n2\n\\.\nalter table t add primary key (a);\n"
    )
    kept = {"rows": whole.index("2\n"), "statement": whole.index(" primary"), "end": len(whole)}[at]
    with pytest.raises(ImportRefusedError, match="cut"):
        load(host, database, whole[:kept].encode())


def test_bytes_in_another_encoding_are_converted_and_wrong_ones_refused(host: Cluster, database: str) -> None:
    body = "SET client_encoding = '{}';\ncreate table t (a text);\nCOPY public.t (a) FROM stdin;\nZo\xeb\n\\.\n"
    load(host, database, (HEAD + body.format("LATIN1") + END).encode("latin-1"))
    with host.connect(database) as connection:
        assert connection.execute("select a from t").fetchall() == [("Zoë",)]
    with pytest.raises(ImportRefusedError, match="invalid byte sequence"):
        load(host, database, (HEAD + body.format("UTF8").replace("table t", "table u") + END).encode("latin-1"))


def test_the_setting_of_a_newer_pg_dump_does_not_end_it(host: Cluster, database: str) -> None:
    loaded = load(host, database, f"{HEAD}SET transaction_timeout = 0;\nselect 1;\n{END}".encode())
    assert loaded.statements + sum(loaded.left_out.values()) == 2
