"""restore.py, alone, brings back what drservice captured: documents and plain folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drservice.model.estate import FilesKind
from drservice.repository.breakglass import restore
from tests.doubles.filestores import Filestore, tree
from tests.doubles.repositories import Site


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
