r"""A dump is cut into its statements wherever its pieces end, and nothing in it is ever a command for psql."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from drservice.components.postgres.plaindump import PlainDump
from drservice.errors import ImportRefusedError
from tests.doubles.odoozips import END, HEAD

AWKWARD = r"""
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE public."odd;na""me" (a text DEFAULT 'it''s; \ here', b text DEFAULT E'a\'; \\', c text DEFAULT E'x''\';y');
CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $_$ select 'a;b' || $1 -- ; '
$_$;
CREATE FUNCTION public.g() RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 DELETE FROM public.t;
 SELECT 1;
END;
CREATE RULE r AS ON INSERT TO public.t DO ALSO (DELETE FROM public.u; SELECT 1);
/* one /* within ; */ another; */
-- a comment; with 'quotes and \! a command
COMMENT ON TABLE public.t IS 'a $tag$ ; in it';
SELECT 1 AS a$b$c;
COPY public.t (a, b) FROM stdin;
1	one\\.
\\.	\N
\.x	y
\.

COPY public."odd;na""me" FROM stdin;
\.

ALTER TABLE ONLY public.t ADD CONSTRAINT c CHECK ((a <> ';'::text));
"""


def pieces(text: str, *, most: int, seed: int = 0) -> Iterator[bytes]:
    raw, at, random_ = text.encode(), 0, random.Random(seed)
    while at < len(raw):
        length = random_.randint(1, most)
        yield raw[at : at + length]
        at += length


def read(text: str, *, most: int = 1 << 20, seed: int = 0) -> list[tuple[str, bytes | None]]:
    dump = PlainDump(pieces(text, most=most, seed=seed))
    found = [
        (statement.text.decode(), b"".join(dump.rows()) if statement.has_rows else None)
        for statement in dump.statements()
    ]
    assert dump.is_complete
    return found


def refusal(text: str) -> str:
    with pytest.raises(ImportRefusedError) as error:
        read(text)
    return error.value.message


def test_statements_end_where_the_server_ends_them() -> None:
    found = read(HEAD + AWKWARD + END)
    assert [text.partition("\n")[0][:40] for text, _ in found] == [
        "SET client_encoding = 'UTF8'",
        "SELECT pg_catalog.set_config('search_pat",
        'CREATE TABLE public."odd;na""me" (a text',
        "CREATE FUNCTION public.f() RETURNS text ",
        "CREATE FUNCTION public.g() RETURNS void",
        "CREATE RULE r AS ON INSERT TO public.t D",
        "COMMENT ON TABLE public.t IS 'a $tag$ ; ",
        "SELECT 1 AS a$b$c",
        "COPY public.t (a, b) FROM stdin",
        'COPY public."odd;na""me" FROM stdin',
        "ALTER TABLE ONLY public.t ADD CONSTRAINT",
    ]
    assert [rows for _, rows in found if rows is not None] == [b"1\tone\\\\.\n\\\\.\t\\N\n\\.x\ty\n", b""]
    assert found[4][0].endswith("END")


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64])
def test_where_the_pieces_end_makes_no_difference(most: int) -> None:
    whole = read(HEAD + AWKWARD + END)
    for seed in range(3):
        assert read(HEAD + AWKWARD + END, most=most, seed=seed) == whole


def test_the_head_tells_the_versions_with_the_first_statement() -> None:
    dump = PlainDump(iter([(HEAD + AWKWARD + END).encode()]))
    next(dump.statements())
    assert dump.versions == {"from database": 15, "by pg_dump": 15}


def test_the_lines_of_a_newer_pg_dump_that_restrict_psql_are_passed_over() -> None:
    text = HEAD + "\\restrict aB3x\n\nselect 1;\n" + END + "\\unrestrict aB3x\n\n"
    assert read(text) == [("select 1", None)]


@pytest.mark.parametrize(
    "line",
    [
        "\\! touch /tmp/pwned",
        "\\copy t from program 'id'",
        "\\i /etc/passwd",
        "\\o |sh",
        "\\connect template1",
        "\\unrestrict never",
        "\\restrict a\n\\restrict b",
        "\\restrict a\n\\unrestrict b",
        "\\restrict a b",
    ],
)
def test_a_command_for_psql_ends_the_import(line: str) -> None:
    assert "a command for psql" in refusal(f"{HEAD}select 1;\n{line}\nselect 2;\n{END}")


@pytest.mark.parametrize("text", ["select 1 \\gexec", "select 1 \\g |sh\n;", "select 1; \\! id", "select (\\! id\n);"])
def test_a_command_for_psql_within_or_behind_a_statement_ends_the_import(text: str) -> None:
    assert "command for psql" in refusal(f"{HEAD}{text}\n{END}")


def test_a_command_in_a_comment_or_a_string_is_none() -> None:
    assert len(read(HEAD + "-- \\! id\n/* \\! id */ select '\\! id', $$\\! id$$, \"\\! id\";\n" + END)) == 1


def test_every_cut_before_the_last_line_is_found() -> None:
    text = HEAD + AWKWARD + END
    end = text.index("-- PostgreSQL database dump complete") + len("-- PostgreSQL database dump complete")
    for at in range(len(HEAD), end - 1, 7):
        with pytest.raises(ImportRefusedError):
            read(text[:at])


def test_a_last_line_in_a_string_or_in_rows_ends_nothing() -> None:
    marker = "-- PostgreSQL database dump complete"
    assert "cut" in refusal(f"{HEAD}select '\n{marker}\n';\n")
    assert "cut" in refusal(f"{HEAD}COPY public.t FROM stdin;\n{marker}\n\\.\n")
    assert "within the rows" in refusal(f"{HEAD}COPY public.t FROM stdin;\n{marker}\n")


def test_nothing_follows_the_last_line() -> None:
    assert "follows the end" in refusal(f"{HEAD}{END}drop table t;\n{END}")


def test_rows_begin_on_a_line_of_their_own() -> None:
    assert "line of their own" in refusal(f"{HEAD}COPY public.t FROM stdin; select 1;\n\\.\n{END}")


def test_a_copy_that_is_none_of_a_dump_has_no_rows() -> None:
    found = read(f"{HEAD}COPY public.t FROM stdin WITH (FORMAT csv);\nCOPY t FROM PROGRAM 'id';\n{END}")
    assert [rows for _, rows in found] == [None, None], "the server refuses them as they stand"


def test_a_statement_longer_than_any_is_refused_and_rows_may_be_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drservice.components.postgres.plaindump._MOST_STATEMENT_BYTES", 1 << 16)
    rows = "x" * (1 << 18)
    text = f"{HEAD}COPY public.t FROM stdin;\n{rows}\n\\.\n{END}"
    assert read(text, most=1 << 12)[0][1] == f"{rows}\n".encode()
    with pytest.raises(ImportRefusedError, match="longer than"):
        read(f"{HEAD}select '{rows}';\n{END}", most=1 << 12)


def test_a_name_made_to_take_for_ever_does_not() -> None:
    quotes = '""' * 5000
    assert len(read(f'{HEAD}COPY public."{quotes}" x;\n{END}')) == 1


def test_a_version_of_more_digits_than_any_has_is_read_in_part_and_breaks_nothing() -> None:
    dump = PlainDump(iter([b"-- Dumped from database version " + b"9" * 5000 + b"\nselect 1;\n"]))
    assert next(dump.statements()).text == b"select 1"
    assert dump.versions == {"from database": 9999}
