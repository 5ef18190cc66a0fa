"""Names of tables, arguments of ``pg_dump``, and what its words and a listing say."""

from __future__ import annotations

import pytest

from drservice.components.postgres.dumping import (
    Contents,
    DumpedTable,
    DumpFormat,
    TableName,
    begun_tables,
    dump_arguments,
    entries_of,
    missing_tables,
    parse_table,
    plain_problems,
    table_begun,
)
from drservice.errors import UsageError

ORDERS = DumpedTable(oid=16402, table=TableName(schema="public", name="orders"), bytes_on_disk=100)
LINES = DumpedTable(oid=16416, table=TableName(schema="public", name="Lines of orders"), bytes_on_disk=5)
BOTH = Contents(patterns=(ORDERS.table,), tables=(ORDERS, LINES))


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("public.orders", "public", "orders"),
        ("Sales.Orders", "Sales", "Orders"),
        ('"My Schema"."a.b"', "My Schema", "a.b"),
        ('public."say ""x"""', "public", 'say "x"'),
        ("public.ord*ers", "public", "ord*ers"),
    ],
)
def test_a_table_is_read_letter_by_letter(text: str, schema: str, name: str) -> None:
    assert parse_table(text) == TableName(schema=schema, name=name)


@pytest.mark.parametrize("text", ["orders", "a.b.c", "", ".", "a.", ".b", 'a."b', 'a."b"c', '"".b', "a..b"])
def test_what_does_not_have_two_parts_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_table(text)


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        (TableName(schema="public", name="orders"), '"public"."orders"'),
        (TableName(schema="public", name='x"; drop *'), '"public"."x""; drop *"'),
        (TableName(schema="a.b", name="c?"), '"a.b"."c?"'),
    ],
)
def test_a_pattern_quotes_everything(table: TableName, pattern: str) -> None:
    assert table.pattern == pattern
    assert parse_table(pattern) == table


def test_a_hostile_name_of_a_database_stays_one_value_of_the_connection() -> None:
    name = "x' host=evil \\"
    arguments = dump_arguments(name, DumpFormat.CUSTOM, BOTH)
    assert arguments[0] == "--dbname=dbname='x\\' host=evil \\\\'"
    assert '--table="public"."orders"' in arguments
    assert "--strict-names" in arguments
    assert "--no-owner" not in arguments, "pg_restore may leave owners out when it loads"


def test_plain_sql_is_written_without_owners_because_psql_cannot_leave_them_out() -> None:
    assert {"--no-owner", "--no-privileges"} <= set(dump_arguments("x", DumpFormat.SQL, BOTH))


LISTING = """;
; Archive created at 2026-11-26 22:12:54 UTC
;     TOC Entries: 26
;
3384; 0 0 SEQUENCE OWNED BY public orders_id_seq postgres
217; 1259 16402 TABLE public orders postgres
3374; 0 16402 TABLE DATA public orders postgres
3375; 0 16416 TABLE DATA public Lines of orders postgres
"""


def test_a_listing_is_counted_and_tables_without_rows_in_it_are_missed() -> None:
    entries, there = entries_of(LISTING)
    assert entries == 4
    assert there == {16402, 16416}
    assert missing_tables(BOTH, there) == ()
    assert missing_tables(BOTH, {16416}) == ("public.orders",)
    assert entries_of("") == (0, frozenset())


def test_what_pg_dump_says_tells_which_table_it_reads() -> None:
    assert table_begun('pg_dump: dumping contents of table "public.Lines of orders"') == "public.Lines of orders"
    assert table_begun("pg_dump: reading schemas") is None
    odd = TableName(schema="public", name='x"\ny')
    assert table_begun('pg_dump: dumping contents of table "public.x"') == odd.told == "public.x"
    assert begun_tables(BOTH, ["public.orders", "public.other"]) == {16402}
    assert BOTH.total_bytes == 105


def test_plain_dumps_of_versions_with_known_problems_are_named() -> None:
    assert {item.name for item in plain_problems(15, 13)} == {"CVE-2025-8714", "CVE-2025-8715", "CVE-2026-18408"}
    assert [item.name for item in plain_problems(15, 18)] == ["CVE-2026-18408"]
    assert plain_problems(15, 19) == ()
    assert plain_problems(13, 99)[0].name == "CVE-2026-18408", "it never got a fix"
