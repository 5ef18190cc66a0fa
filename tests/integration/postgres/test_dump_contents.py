"""What a dump has to hold, and what it says it lacks, asked of a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.dumping import Contents, only_tables, parse_table, whole_database
from tests.doubles.cluster import Cluster


@pytest.fixture(scope="module")
def session(server: Cluster) -> Iterator[Session]:
    server.sql("create database dumped")
    server.sql(
        "create table kept(i int); create table parts(i int) partition by list (i);"
        " create table parts_kept partition of parts for values in (1);"
        " create unlogged table parts_fleeting partition of parts for values in (2);"
        ' create unlogged table "Fleeting"(i int); create unlogged table other(i int)',
        database="dumped",
    )
    with connect(server.dsn(), application_name="test", database="dumped") as opened:
        yield opened


def lost_rows(contents: Contents) -> list[str]:
    return [text for text in contents.lacks if text.startswith("rows of the unlogged table ")]


def test_unlogged_tables_are_named_as_empty_in_a_dump_of_the_database(session: Session) -> None:
    contents = whole_database(session)
    assert [item.table.text for item in contents.tables] == ["public.Fleeting", "public.kept", "public.other",
                                                             "public.parts_fleeting", "public.parts_kept"]  # fmt: skip
    assert contents.lacks == (
        "rows of the unlogged table public.Fleeting",
        "rows of the unlogged table public.other",
        "rows of the unlogged table public.parts_fleeting",
    )


def test_unlogged_tables_are_named_as_empty_in_a_dump_of_tables(session: Session) -> None:
    contents = only_tables(session, [parse_table("public.kept"), parse_table("public.parts")])
    assert lost_rows(contents) == ["rows of the unlogged table public.parts_fleeting"]
    assert lost_rows(only_tables(session, [parse_table("public.kept")])) == []
