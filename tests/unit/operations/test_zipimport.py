"""What an import decides without a server: the manifest, the documents, which statements are left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.components.odoo.zipreading import OdooZipFile
from drservice.components.postgres.loading import _kind_left_out
from drservice.components.postgres.plaindump import Statement
from drservice.components.postgres.server import find_programs
from drservice.errors import (
    ImportRefusedError,
    ProgramMissingError,
    ProgramVersionError,
    UnsupportedClusterError,
    UsageError,
)
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.origin import Origin
from drservice.operations.zipimport import documents_of
from drservice.operations.zipimportasking import read_manifest
from drservice.operations.zipimportcluster import choose_programs, head_versions
from drservice.operations.zipimportdocuments import compare, unpack_documents
from tests.doubles.odoozips import Member, manifest, name_of, write_zip

NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)


def test_a_manifest_of_odoo_is_understood() -> None:
    found = read_manifest(manifest(modules={"base": "19.0.1.3", "web": None}))
    assert (found.database, found.server_major, found.version) == ("plant", 15, "19.0-20261101")
    assert found.modules == {"base": "19.0.1.3", "web": ""}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        manifest(odoo_dump=None),
        manifest(odoo_dump="2"),
        manifest(pg_version=None),
        manifest(pg_version="15; drop"),
        manifest(pg_version=15),
        manifest(modules=None),
        manifest(modules=["base"]),
        manifest(modules={"base": ["19"]}),
        manifest(db_name=5),
        manifest(db_name="x" * 1000),
        manifest(db_name="\ud800"),
        manifest(modules={"\ud800": "19.0.1.3"}),
    ],
)
def test_a_manifest_of_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ImportRefusedError, match=r"manifest\.json cannot be understood"):
        read_manifest(raw)


def test_a_head_that_pg_dump_does_not_write_is_refused(tmp_path: Path) -> None:
    with OdooZipFile(write_zip(tmp_path / "a.zip", dump=b"PGDMP\x01\x0e")) as archive:
        member = archive.inventory().dump
        with pytest.raises(ImportRefusedError):
            head_versions(archive, member)
    with OdooZipFile(write_zip(tmp_path / "b.zip", dump=b"select 1;\n")) as archive:
        member = archive.inventory().dump
        with pytest.raises(ImportRefusedError, match="does not begin"):
            head_versions(archive, member)


def test_a_server_is_as_new_as_the_newest_that_is_told() -> None:
    chosen = choose_programs({"its manifest": 9, "the server it was taken from": 13})
    assert chosen.major >= 13
    with pytest.raises(UnsupportedClusterError):
        choose_programs({"its manifest": 15, "the server it was taken from": 99})


def test_a_server_that_is_older_than_the_dump_is_never_taken() -> None:
    try:
        find_programs(18, program="initdb")
    except (ProgramMissingError, ProgramVersionError):
        with pytest.raises((ProgramMissingError, ProgramVersionError), match="PostgreSQL 18"):
            choose_programs({"its manifest": 18})
    else:
        assert choose_programs({"its manifest": 18}).major == 18


def unpacked_and_compared(
    tmp_path: Path, *, documents: list[bytes], named: dict[str, bytes], rows: dict[str, int]
) -> tuple[list[str], tuple[str, ...]]:
    path = write_zip(tmp_path / "a.zip", documents=documents, named=named)
    with OdooZipFile(path) as archive:
        unpacked = unpack_documents(archive, tmp_path / "out", heard=lambda _: None)
    compared = compare(unpacked, rows)
    there = [str(item.relative_to(tmp_path / "out")) for item in (tmp_path / "out").rglob("*") if item.is_file()]
    assert compared.is_whole == (not compared.problems())
    return there, compared.problems()


def test_documents_are_compared_with_their_names_and_with_the_rows(tmp_path: Path) -> None:
    good, old = b"a document", b"an old one"
    rows = {name_of(good): len(good), name_of(old, 3): -1}
    there, problems = unpacked_and_compared(tmp_path, documents=[good], named={name_of(old, 3): old}, rows=rows)
    assert sorted(there) == sorted(rows)
    assert problems == ()
    assert (tmp_path / "out" / name_of(good)).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("named", "rows", "told"),
    [
        ({}, {name_of(b"gone"): 4}, "1 documents are not in the zip"),
        ({name_of(b"was"): b"is"}, {}, "1 documents have another content"),
        ({name_of(b"was"): b"is"}, {name_of(b"was"): 2}, "1 documents have another content"),
        ({name_of(b"four"): b"four"}, {name_of(b"four"): 5}, "1 documents have another size"),
    ],
)
def test_what_is_not_as_it_was_is_told(
    tmp_path: Path, named: dict[str, bytes], rows: dict[str, int], told: str
) -> None:
    _, problems = unpacked_and_compared(tmp_path, documents=[], named=named, rows=rows)
    assert len(problems) == 1
    assert problems[0].startswith(told)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_document_that_is_there_twice_ends_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", documents=[b"x"], extra=[Member(f"filestore/{name_of(b'x')}", b"x")])
    with OdooZipFile(path) as archive, pytest.raises(ImportRefusedError, match="twice"):
        unpack_documents(archive, tmp_path / "out", heard=lambda _: None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GRANT SELECT ON TABLE public.x TO bi", "privileges"),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "privileges"),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE a REVOKE ALL ON TABLES FROM b", "privileges"),
        ("ALTER TABLE public.x OWNER TO odoo", "owners"),
        ('ALTER FUNCTION public.f(a text) OWNER TO "Odd;Role"', "owners"),
        ("SET transaction_timeout = 0", "settings of PostgreSQL 17"),
        ("COMMENT ON EXTENSION plpgsql IS 'PL/pgSQL procedural language'", "comments on plpgsql"),
        ("ALTER TABLE ONLY public.x ADD CONSTRAINT c CHECK ((a <> ' OWNER TO odoo'::text))", None),
        ("SET statement_timeout = 0", None),
        ("GRANTED", None),
        ("COMMENT ON EXTENSION pg_trgm IS 'x'", None),
        ("ALTER TABLE public.x ALTER COLUMN y SET DEFAULT 'a OWNER TO b'", None),
    ],
)
def test_only_what_changes_no_row_and_no_structure_is_left_out(text: str, kind: str | None) -> None:
    assert _kind_left_out(Statement(text=text.encode(), line=1), 15) == kind


def test_a_newer_server_is_given_the_settings_it_knows() -> None:
    assert _kind_left_out(Statement(text=b"SET transaction_timeout = 0", line=1), 17) is None


def test_an_origin_is_read_as_it_was_written_and_counts_what_may_be_lost() -> None:
    origin = Origin(file="a.zip", sha256="0" * 64, database="plant", version="19.0", rows_until=NOW)
    assert Origin.from_json(origin.as_json()) == origin
    assert origin.loss_seconds(NOW + timedelta(hours=9)) == 9 * 3600
    assert origin.loss_seconds(NOW - timedelta(seconds=1)) == 0
    for changed in ({"kind": "tar"}, {"sha256": None}, {"rows_until": "yesterday"}):
        with pytest.raises(ValueError, match=r"origin|instant|Invalid|yesterday"):
            Origin.from_json({**origin.as_json(), **changed})


def filestore(name: str, database: str) -> FilesSettings:
    return FilesSettings(
        name=ComponentName(name),
        kind=FilesKind.ODOO_FILESTORE,
        path=Path("/nowhere"),
        database=database,
        follows=ComponentName("database"),
    )


def test_which_database_it_becomes_is_never_guessed() -> None:
    both = {item.name: item for item in (filestore("documents", "plant"), filestore("others", "test"))}
    service = Service(name=ServiceName("erp"), components=both)
    assert documents_of(service, "test").name == "others"
    for wanted in (None, "nobodys"):
        with pytest.raises(UsageError, match="no odoo-filestore component that is the one"):
            documents_of(service, wanted)
    alone = Service(name=ServiceName("erp"), components={ComponentName("documents"): both[ComponentName("documents")]})
    assert documents_of(alone, None).database == "plant"
