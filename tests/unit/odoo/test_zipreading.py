"""A zip is believed in nothing: not in its names, not in its sizes, not in where its parts are."""

from __future__ import annotations

import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.components.odoo.zipreading import OdooZipFile, Part
from drservice.errors import ImportRefusedError
from tests.doubles.odoozips import Member, manifest, name_of, write_zip

DOCUMENTS = [f"document {number} ".encode() * 200 for number in range(5)]


def read_all(path: Path) -> dict[str, bytes]:
    with OdooZipFile(path) as archive:
        archive.inventory()
        return {member.name: b"".join(archive.read(member)) for member in archive.members()}


def refusal(path: Path) -> str:
    with pytest.raises(ImportRefusedError) as error:
        read_all(path)
    return error.value.message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_backup_of_odoo_is_read_as_it_was_written(tmp_path: Path, method: int) -> None:
    extra = [
        Member("filestore/checklist/ab/" + "ab" * 20, b""),
        Member("filestore/ab/", b"", 0o40755),
        Member("filestore/ab/.nfs0001", b"left over"),
        Member("readme\x1b[31m.txt", b"?"),
    ]
    old = {name_of(b"an old one", 3): b"an old one"}
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS, named=old, extra=extra, method=method)
    with OdooZipFile(path) as archive:
        found = archive.inventory()
        assert archive.manifest(found.manifest) == manifest()
        documents = [member for member in archive.members() if member.part is Part.DOCUMENT]
        assert {member.document for member in documents} == {name_of(content) for content in DOCUMENTS} | set(old)
        assert b"".join(archive.read(documents[0])) in DOCUMENTS
        archive.require_unchanged()
    assert (found.documents, found.documents_bytes) == (6, sum(map(len, DOCUMENTS)) + len(b"an old one"))
    assert found.foreign_count == 2
    assert all(name.isprintable() and name.isascii() for name in found.foreign), "they are shown on a terminal"


def test_a_zip_with_64_bits_for_every_size_and_place_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # so that a small zip is written as one beyond 4 GiB is
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("manifest.json", manifest()), ("dump.sql", b"select 1;\n" * 1000)):
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(content)
    assert b"PK\x06\x06" in path.read_bytes()
    assert read_all(path)["dump.sql"] == b"select 1;\n" * 1000


@pytest.mark.parametrize(
    "name",
    [
        "../etc/passwd",
        "filestore/../../x",
        "/etc/cron.d/x",
        "filestore//x",
        "filestore/ab/./x",
        "filestore\\..\\x",
        "C:/x",
        "..",
    ],
)
def test_a_name_that_leads_elsewhere_ends_the_import(tmp_path: Path, name: str) -> None:
    assert "leads elsewhere" in refusal(write_zip(tmp_path / "a.zip", extra=[Member(name, b"x")]))


@pytest.mark.parametrize("kind", [0o120777, 0o020644, 0o010644, 0o140755])
def test_a_link_or_a_device_ends_the_import(tmp_path: Path, kind: int) -> None:
    extra = [Member(f"filestore/{name_of(b'x')}", b"/etc/passwd", kind)]
    assert "is a link or a device" in refusal(write_zip(tmp_path / "a.zip", extra=extra))


def test_a_folder_where_a_document_belongs_ends_the_import(tmp_path: Path) -> None:
    extra = [Member(f"filestore/{name_of(b'x')}", b"", 0o40755)]
    assert "a folder where a file belongs" in refusal(write_zip(tmp_path / "a.zip", extra=extra))


def test_a_second_manifest_or_dump_ends_the_import(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_zip(tmp_path / "a.zip", extra=[Member("dump.sql", b"drop table x;")])
    assert "twice" in refusal(path)


@pytest.mark.parametrize("missing", ["manifest.json", "dump.sql"])
def test_what_lacks_a_part_is_no_backup_of_odoo(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in {"manifest.json", "dump.sql"} - {missing}:
            archive.writestr(name, b"{}")
    assert f"no {missing}" in refusal(path)


def edited(path: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def entry_of(content: bytearray, name: bytes) -> int:
    """Return where the entry of the directory for a name begins."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


def test_a_member_that_is_longer_than_it_says_is_cut_off_before_it_fills_a_disk(tmp_path: Path) -> None:
    bomb = bytes(16 << 20)
    path = write_zip(tmp_path / "a.zip", named={name_of(bomb): bomb})
    name = f"filestore/{name_of(bomb)}".encode()

    def tell_less(content: bytearray) -> None:
        struct.pack_into("<L", content, entry_of(content, name) + 24, 1000)
        struct.pack_into("<L", content, content.index(name) - 30 + 22, 1000)

    edited(path, tell_less)
    with OdooZipFile(path) as archive:
        member = next(item for item in archive.members() if item.part is Part.DOCUMENT)
        with pytest.raises(ImportRefusedError, match="longer than it says"):
            next(archive.read(member))  # nothing of it is handed over


def test_sizes_that_disagree_end_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS)
    edited(path, lambda content: struct.pack_into("<L", content, entry_of(content, b"dump.sql") + 24, 5))
    assert "two sizes" in refusal(path)


def test_names_that_disagree_end_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    edited(path, lambda content: content.__setitem__(content.index(b"dump.sql"), ord("D")))
    assert "two names" in refusal(path)


def test_members_that_overlap_end_the_import(tmp_path: Path) -> None:
    """One block of data under many names is how a small zip becomes petabytes."""
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS)

    def overlap(content: bytearray) -> None:
        first, second = (
            content.rindex(b"PK\x01\x02", 0, content.rindex(name_of(item).encode())) for item in DOCUMENTS[:2]
        )
        content[second + 16 : second + 28] = content[first + 16 : first + 28]
        content[second + 42 : second + 46] = content[first + 42 : first + 46]
        content[second + 46 : second + 46 + 53] = content[first + 46 : first + 46 + 53]

    assert "overlap" in refusal(edited(path, overlap))


def test_an_encrypted_member_ends_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")

    def encrypt(content: bytearray) -> None:
        content[entry_of(content, b"dump.sql") + 8] |= 1

    assert "is encrypted" in refusal(edited(path, encrypt))


def test_a_method_that_odoo_does_not_use_ends_the_import(tmp_path: Path) -> None:
    assert "packed by method 12" in refusal(write_zip(tmp_path / "a.zip", method=zipfile.ZIP_BZIP2))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.99])
def test_a_zip_that_is_cut_anywhere_is_none(tmp_path: Path, kept: float) -> None:
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "no directory at its end" in refusal(path)


def test_a_flipped_bit_in_a_document_is_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS, method=zipfile.ZIP_STORED)
    edited(path, lambda content: content.__setitem__(content.index(b"document 3") + 500, 0))
    assert "is damaged" in refusal(path)


def test_a_flipped_bit_in_what_is_packed_is_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", dump=b"select 12345;\n" * 50)
    edited(path, lambda content: content.__setitem__(content.index(b"dump.sql") + 8 + 12, 0xFF))
    assert "is damaged" in refusal(path)


def test_what_stands_before_the_zip_ends_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert "not where it says" in refusal(path)


def test_a_directory_that_tells_another_number_of_members_ends_the_import(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", documents=DOCUMENTS)

    def count(content: bytearray) -> None:
        at = content.rindex(b"PK\x05\x06")
        struct.pack_into("<2H", content, at + 8, 3, 3)

    assert "7 members where 3" in refusal(edited(path, count))


def test_a_manifest_too_long_to_be_one_is_not_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", told=bytes(9 << 20))
    with OdooZipFile(path) as archive, pytest.raises(ImportRefusedError, match="too long"):
        archive.manifest(archive.inventory().manifest)


def test_a_zip_that_somebody_still_writes_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    with OdooZipFile(path) as archive:
        with path.open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(ImportRefusedError, match="was changed"):
            archive.require_unchanged()


@pytest.mark.parametrize("what", ["absent.zip", "."])
def test_what_is_no_file_is_told(tmp_path: Path, what: str) -> None:
    with pytest.raises(ImportRefusedError, match=r"cannot open|no file"):
        OdooZipFile(tmp_path / what)


def test_memory_does_not_grow_with_the_members(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", named={f"{n:040x}"[:2] + f"/{n:040x}": b"" for n in range(2000)})
    with OdooZipFile(path) as archive:
        members = archive.members()
        next(members)
        held = sum(sys.getsizeof(value) for value in vars(archive).values() if isinstance(value, bytes))
        assert held <= 1 << 20
        assert sum(1 for _ in members) == 2001
