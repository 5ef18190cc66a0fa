"""restore.py brings documents and folders back, checked, and says what production had lost already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.doubles.formatwriter import NOW, Writer
from tests.unit.breakglass.conftest import Scene, directory

COUNTS = {"foreign": 0, "vanished": 0, "left_out": 0, "referred": 3}
Commit = Callable[..., Scene]


def name_of(content: bytes) -> str:
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return f"{digest[:2]}/{digest}"


@pytest.fixture
def commit_files(writer: Writer, tmp_path: Path) -> Commit:
    """Commit a snapshot of files of a kind."""

    def make(entries: list[dict[str, Any]], *, kind: str = "odoo-filestore", **lost: int) -> Scene:
        folders = {entry["p"].rpartition(b"/")[0] for entry in entries} - {b""}
        ordered = sorted([*map(directory, folders), *entries], key=lambda entry: entry["p"])
        documents = {"walk_began_at": NOW, "missing": 0, "corrupt": 0, "unreadable": 0, **COUNTS, **lost}
        fields: dict[str, Any] = {"kind": kind, "method": "walk", "documents": documents, "postgres": None}
        attachments = {"documents": msgpack.packb({"v": 1})}
        return Scene(writer, {}, {}, writer.snapshot(writer.tree(ordered), attachments=attachments, **fields), tmp_path)

    return make


def document(writer: Writer, content: bytes, **fields: Any) -> dict[str, Any]:
    return {**writer.file(name_of(content).encode(), content, size=1 << 22), **fields}


def test_documents_come_back_as_they_were(writer: Writer, commit_files: Commit) -> None:
    contents = [b"", b"one", bytes(30_000) + b"two"]
    scene = commit_files([document(writer, content) for content in contents])
    assert scene.restore() == 0
    assert {str(path.relative_to(scene.into)): path.read_bytes() for path in scene.into.rglob("*/*")} == {
        name_of(content): content for content in contents
    }


def test_a_document_that_is_not_its_name_is_refused(writer: Writer, commit_files: Commit) -> None:
    wrong = {**writer.file(name_of(b"right").encode(), b"wrong")}
    scene = commit_files([wrong])
    assert scene.restore() == 1
    assert (scene.into / "RESTORE-INCOMPLETE").exists()


def test_a_document_that_was_damaged_in_production_is_restored_and_told(
    writer: Writer, commit_files: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name_of(b"right")
    damaged = writer.file(name.encode(), b"wrong")
    damaged["h"] = hashlib.sha1(b"wrong", usedforsecurity=False).digest()
    scene = commit_files([damaged], corrupt=1, missing=2)
    assert scene.restore() == 0
    assert (scene.into / name).read_bytes() == b"wrong"
    out = capsys.readouterr().out
    assert f"1 documents were damaged on the server already: {name}" in out
    assert "2 documents were missing already" in out


def test_names_that_mean_something_in_a_cluster_mean_nothing_in_a_folder(writer: Writer, commit_files: Commit) -> None:
    names = [b"backup_label", b"global/pg_control", b"global/pg_control.withheld", b"tablespace_map"]
    scene = commit_files([writer.file(name, b"just " + name) for name in names], kind="directory")
    assert scene.restore() == 0
    for name in names:
        assert (scene.into / name.decode()).read_bytes() == b"just " + name


def test_the_mark_of_an_unfinished_restore_is_never_an_entry(writer: Writer, commit_files: Commit) -> None:
    scene = commit_files([writer.file(b"RESTORE-INCOMPLETE", b"x")], kind="directory")
    assert scene.restore() == 1


def test_a_folder_has_no_wal(writer: Writer, commit_files: Commit, capsys: pytest.CaptureFixture[str]) -> None:
    scene = commit_files([writer.file(b"f", b"x")], kind="directory")
    assert scene.restore_with_wal() == 1
    assert "has no WAL" in capsys.readouterr().err


def test_list_and_verify_know_documents(
    writer: Writer, commit_files: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = commit_files([document(writer, b"one")], corrupt=4)
    assert scene.run("list") == 0
    assert "odoo-filestore, 1 files; in production 0 missing, 4 corrupt, 0 unreadable" in capsys.readouterr().out
    assert scene.run("verify") == 0


@pytest.mark.parametrize(
    "changes",
    [{"kind": "unheard-of"}, {"documents": {"missing": "none"}}, {"documents": None}, {"kind": "postgres"}],
    ids=["kind", "counts", "no facts", "facts of another kind"],
)
def test_a_header_that_makes_no_sense_is_refused(writer: Writer, tmp_path: Path, changes: dict[str, Any]) -> None:
    root = writer.tree([writer.file(b"f", b"x")])
    fields: dict[str, Any] = {
        "kind": "directory",
        "postgres": None,
        "documents": {"missing": 0, "corrupt": 0, "unreadable": 0},
        **changes,
    }
    scene = Scene(writer, {}, {}, writer.snapshot(root, **fields), tmp_path)
    assert scene.restore() == 1
