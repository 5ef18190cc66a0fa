"""A zip for Odoo is written from front to end, and one that is not whole is never taken for one."""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.errors import DumpError, UsageError
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.odoozip import OdooFacts, OdooZip, filestore_of, manifest_of, read_back
from drservice.operations.outputfile import OutputFile

FACTS = OdooFacts(series="19.0", server_version="15.18", modules={"base": "19.0.1.3"})


def fill(root: Path, count: int) -> list[str]:
    names = []
    for number in range(count):
        content = f"document {number}".encode() * 100
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        path = root / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        names.append(f"{digest[:2]}/{digest}")
    return names


def test_what_is_written_is_read_back_and_holds_every_document(tmp_path: Path) -> None:
    names = fill(tmp_path / "files", 30)
    (tmp_path / "files" / "checklist").mkdir()
    (tmp_path / "files" / "checklist" / "no document").write_text("x")
    heard: list[int] = []
    with OutputFile(tmp_path / "out.zip") as output:
        with OdooZip(output) as archive:
            archive.add_manifest(manifest_of(FACTS, "plant"))
            with archive.member("dump.sql") as member:
                member.write(b"select 1;\n" * 1000)
                assert member.tail.endswith(b"select 1;\n")
            assert archive.add_documents(tmp_path / "files", heard=heard.append) == 30
        read_back(output, archive.members)
        output.publish()
    with zipfile.ZipFile(tmp_path / "out.zip") as zipped:
        assert set(zipped.namelist()) == {"manifest.json", "dump.sql", *(f"filestore/{name}" for name in names)}
        assert json.loads(zipped.read("manifest.json"))["version_info"] == [19, 0, 0, "final", 0, ""]
    assert sum(heard) == sum((tmp_path / "files" / name).stat().st_size for name in names)


def test_a_document_that_is_not_what_its_name_says_ends_the_zip(tmp_path: Path) -> None:
    (name, *_) = fill(tmp_path / "files", 3)
    (tmp_path / "files" / name).write_bytes(b"something else")
    with OutputFile(tmp_path / "out.zip") as output, pytest.raises(DumpError, match=name), OdooZip(output) as archive:
        archive.add_documents(tmp_path / "files", heard=lambda _: None)
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "fewer"])
def test_a_zip_that_is_not_whole_is_found_when_it_is_read_back(tmp_path: Path, damage: str) -> None:
    fill(tmp_path / "files", 3)
    with OutputFile(tmp_path / "out.zip") as output:
        archive = OdooZip(output)
        with suppress(KeyError), archive:
            archive.add_documents(tmp_path / "files", heard=lambda _: None)
            if damage == "cut":
                raise KeyError
        if damage == "flip":
            stream = output.reread()
            stream.seek(200)
            stream.write(b"\xff\x00\xff\x00")
        with pytest.raises(DumpError, match="zip"):
            read_back(output, archive.members + (damage == "fewer"))


def test_the_version_of_a_series_between_releases_is_as_odoo_writes_it() -> None:
    facts = OdooFacts(series="saas~18.2", server_version="16.4", modules={})
    assert json.loads(manifest_of(facts, "x"))["version_info"] == ["saas~18", 2, 0, "final", 0, ""]


def test_documents_are_those_of_the_database_that_was_asked_for() -> None:
    store = FilesSettings(
        name=ComponentName("documents"),
        kind=FilesKind.ODOO_FILESTORE,
        path=Path("/f"),
        database="plant",
        follows=ComponentName("database"),
    )
    service = Service(name=ServiceName("erp"), components={store.name: store})
    assert filestore_of(service, ComponentName("database"), "plant") is store
    for cluster, database in (("database", "other"), ("second", "plant")):
        with pytest.raises(UsageError, match="no odoo-filestore"):
            filestore_of(service, ComponentName(cluster), database)
