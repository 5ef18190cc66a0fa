"""The demo's own files: what it says about a recovered document, and what it does to a folder that keeps evidence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from drservice.cli import demosite
from drservice.cli.plantcode import EDITED, CloneState, installed_git, is_clone, read_clone, write_configuration
from drservice.cli.plantdocuments import Filestore, name_of
from drservice.errors import UsageError


def test_a_document_is_named_by_its_content_and_told_apart_from_another_one(tmp_path: Path) -> None:
    filestore = Filestore(tmp_path)
    sha1 = filestore.put(b"drawing")
    assert filestore.sha1_of(name_of(sha1)) == sha1
    (tmp_path / name_of(sha1)).write_bytes(b"drawinG")
    assert filestore.sha1_of(name_of(sha1)) not in {None, sha1}
    (tmp_path / name_of(sha1)).unlink()
    assert filestore.sha1_of(name_of(sha1)) is None


def test_a_row_cannot_make_the_demo_read_a_file_outside_of_the_filestore(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    assert Filestore(tmp_path / "filestore").sha1_of("../secret") is None


def test_without_git_the_configuration_is_a_plain_folder_with_the_same_files(tmp_path: Path) -> None:
    git = installed_git()
    assert git is not None, "the tests of git clones need it, too"
    clone, plain = tmp_path / "clone", tmp_path / "plain"
    for folder, program in ((clone, git), (plain, None)):
        folder.mkdir()
        write_configuration(folder, None, git=program)
    assert (is_clone(clone), is_clone(plain)) == (True, False)
    named = [
        {item.relative_to(root) for item in root.rglob("*") if ".git" not in item.parts} for root in (clone, plain)
    ]
    assert named[0] == named[1]
    state = read_clone(clone, None)
    assert state.commit is not None
    assert len(state.commit) == 40
    assert read_clone(plain, None) == CloneState(commit=None, edited=(clone / EDITED).read_text())


def test_a_clone_that_came_back_elsewhere_or_without_its_edits_is_told_apart(tmp_path: Path) -> None:
    write_configuration(tmp_path, None, git=installed_git())
    before = read_clone(tmp_path, None)
    (tmp_path / EDITED).write_text("[options]\n")
    assert read_clone(tmp_path, None) == CloneState(commit=before.commit, edited="[options]\n")
    (tmp_path / EDITED).unlink()
    shutil.rmtree(tmp_path / ".git")
    assert read_clone(tmp_path, None) == CloneState(commit=None, edited=None)


def site_with_evidence(tmp_path: Path) -> demosite.Site:
    site = demosite.Site(folder=tmp_path / "site", account=None)
    site.evidence.mkdir(parents=True)
    for name in (demosite.BUNDLE, "report.pdf", "verify.py"):
        (site.evidence / name).write_text(f"new {name}")
    return site


def test_keeping_evidence_replaces_that_of_the_last_run_and_nothing_else(tmp_path: Path) -> None:
    site, kept = site_with_evidence(tmp_path), tmp_path / "kept"
    kept.mkdir()
    (kept / "report.pdf").write_text("old")
    (kept / "mine").write_text("mine")
    assert demosite.keep_evidence(site, kept) == kept
    found = {item.name: item.read_text() for item in kept.iterdir()}
    assert found == {
        "bundle.zip": "new bundle.zip",
        "report.pdf": "new report.pdf",
        "verify.py": "new verify.py",
        "mine": "mine",
    }


def test_evidence_that_cannot_be_kept_is_an_error_and_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    site, kept = site_with_evidence(tmp_path), tmp_path / "kept"
    (kept / "report.pdf").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be kept"):
        demosite.keep_evidence(site, kept)
    assert {item.name for item in kept.iterdir()} == {"bundle.zip", "report.pdf"}


def test_a_place_for_evidence_may_be_missing_and_may_not_be_a_file(tmp_path: Path) -> None:
    demosite.require_place(tmp_path / "to" / "be" / "made")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no evidence can be kept"):
        demosite.require_place(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_this_user_may_not_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="no evidence can be kept"):
        demosite.require_place(tmp_path / "closed" / "below")
