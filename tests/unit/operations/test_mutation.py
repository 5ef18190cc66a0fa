"""Spoiling a recovered copy, where the account of the recovered server may have planted links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice.checks.interface import RecoveredDocuments, RecoveredService
from drservice.errors import ConfigurationError, UsageError
from drservice.model.estate import FilesKind, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.mutation import Mutation, Spoilt, spoil

DOCUMENTS = ComponentName("documents")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "placed"
    (path / "cd").mkdir(parents=True)
    (path / "cd" / "document").write_bytes(b"the right content")
    (path / "cd" / "document").chmod(0o444)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside, with a file that nobody may touch."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "precious").write_bytes(b"precious")
    (path / "precious").chmod(0o640)
    return path


def encrypt(root: Path) -> Spoilt | None:
    documents = RecoveredDocuments(
        component=DOCUMENTS, kind=FilesKind.ODOO_FILESTORE, root=root, expected=1, missing=(), corrupt=(), extra=0,
        missing_in_production=(), database="erp", follows=None,
    )  # fmt: skip
    service = Service(name=ServiceName("erp"), components={})
    recovered = RecoveredService(service=service, databases={}, documents={DOCUMENTS: documents})
    return spoil(recovered, Mutation.DOCUMENT_ENCRYPTED)


def test_one_document_has_other_content_of_the_same_length(root: Path) -> None:
    spoilt = encrypt(root)
    assert spoilt is not None
    assert spoilt.what == "document cd/document was overwritten"
    content = (root / "cd" / "document").read_bytes()
    assert len(content) == len(b"the right content")
    assert content != b"the right content"
    assert (root / "cd" / "document").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("kind", ["folder", "file", "hard link"])
def test_what_a_link_leads_to_is_not_touched(root: Path, victim: Path, kind: str) -> None:
    """Each link comes first in the order of names."""
    if kind == "folder":
        (root / "ab").symlink_to(victim)
    elif kind == "file":
        (root / "cd" / "a").symlink_to(victim / "precious")
    else:
        os.link(victim / "precious", root / "cd" / "a")
    before = (victim / "precious").stat()
    encrypt(root)
    after = (victim / "precious").stat()
    assert (victim / "precious").read_bytes() == b"precious"
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have been led there by another user")
def test_documents_behind_a_planted_link_are_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigurationError):
        encrypt(tmp_path / "link")
    assert (root / "cd" / "document").read_bytes() == b"the right content"


def test_without_a_document_there_is_nothing_to_spoil(tmp_path: Path) -> None:
    (tmp_path / "placed" / "ab").mkdir(parents=True)
    (tmp_path / "placed" / "ab" / "empty").touch()
    with pytest.raises(UsageError):
        encrypt(tmp_path / "placed")
