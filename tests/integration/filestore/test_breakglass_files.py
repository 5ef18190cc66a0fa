"""restore.py, alone, brings back what drservice captured: documents and plain folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drservice.model.documents import DocumentPart
from drservice.model.estate import FilesKind
from drservice.repository import documentsets
from drservice.repository.breakglass import restore
from drservice.repository.documentsets import cut
from tests.doubles.filestores import Filestore, name_of, tree
from tests.doubles.repositories import Site, noise
from tests.integration.filestore.test_placing_sets import put


@pytest.mark.parametrize("kind", list(FilesKind))
def test_what_was_captured_comes_back_without_drservice(tmp_path: Path, kind: FilesKind) -> None:
    filestore = Filestore(site=Site.create(tmp_path, folder=tmp_path / "repository"), kind=kind)
    documents = filestore.fill(200)
    damaged = next(iter(documents))
    (filestore.folder / damaged).write_bytes(b"damaged in production")
    if kind is FilesKind.DIRECTORY:
        (filestore.folder / "inside").symlink_to(damaged)
        (filestore.folder / "backup_label").write_text("a file like any other")
    filestore.capture()
    argv: list[str | Path] = [sys.executable, "-I", restore.__file__, "--repository", tmp_path / "repository"]
    argv += ["--identity", tmp_path / "identity", "restore", "--service", "erp", "--component", "documents"]
    done = subprocess.run([*argv, "--into", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == tree(filestore.folder)
    assert (damaged in done.stdout) is (kind is FilesKind.ODOO_FILESTORE)


def alone(filestore: Filestore, into: Path) -> tuple[int, str]:
    """Restore the documents with the script, in this process; return the exit status and which files are there."""
    folder = into.parent
    argv = ["--repository", str(folder / "repository"), "--identity", str(folder / "identity")]
    status = restore.main(
        [*argv, "restore", "--service", "erp", "--component", filestore.settings.name, "--into", str(into)]
    )
    return status, "".join(sorted(path.read_bytes().hex() for path in into.rglob("*") if path.is_file()))


def expected(*contents: bytes) -> str:
    return "".join(sorted(content.hex() for content in contents))


def test_documents_of_sets_are_added_to_the_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filestore = Filestore(site=Site.create(tmp_path, folder=tmp_path / "repository"))
    filestore.add(b"walked")
    wrong = filestore.add(b"right once")
    (filestore.folder / wrong).write_bytes(b"damaged in production")
    filestore.capture()
    put(filestore, [b"later", b"walked", b"right once"])
    assert alone(filestore, tmp_path / "out") == (0, expected(b"walked", b"later", b"right once"))
    assert "2 documents are from 1 sets" in capsys.readouterr().out
    argv = ["--repository", str(tmp_path / "repository"), "--identity", str(tmp_path / "identity")]
    assert restore.main([*argv, "verify"]) == 0
    assert restore.main([*argv, "list"]) == 0
    assert "1 sets of documents" in capsys.readouterr().out


def test_big_documents_are_put_together_and_a_lost_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documentsets, "PART_BYTES", 1000)
    monkeypatch.setattr(restore, "PART", 1000)
    filestore = Filestore(site=Site.create(tmp_path, folder=tmp_path / "repository"))
    filestore.add(b"walked")
    filestore.capture()

    def parts(content: bytes) -> list[DocumentPart]:
        name, size = name_of(content), len(content)
        ranges = [cut(name, size, offset) for offset in range(0, size, 1000)]
        return [DocumentPart(name=name, size=size, offset=r.start, data=content[r.start : r.stop]) for r in ranges]

    big, half = noise(2500, seed=1), noise(2500, seed=2)
    put(filestore, parts=[*parts(big)[1:], *parts(half)[:1]])
    put(filestore, parts=parts(big)[:1])
    bad = put(filestore, [noise(500, seed=3)])
    path = tmp_path / "repository" / bad.key
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert alone(filestore, tmp_path / "out") == (3, expected(b"walked", big))
    told = capsys.readouterr().out
    assert bad.id in told
    assert name_of(half) in told
    argv = ["--repository", str(tmp_path / "repository"), "--identity", str(tmp_path / "identity")]
    assert restore.main([*argv, "verify"]) == 1
