"""A clone, or a snapshot of one, that somebody made up: nothing waits for ever, and no name leads out of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drservice.components.git.capture import prepare_clones
from drservice.components.git.rebuilding import rebuild_clones
from drservice.components.prepared import prepared_folder
from drservice.errors import CaptureError, DrError, FormatError, GitCloneError
from drservice.model.estate import GitSettings
from drservice.model.ids import ComponentName
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.healthprepared import check_clones
from tests.doubles.clones import commit, git, make, taken

Break = Callable[[Path], None]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    made = make(tmp_path / "addons")
    commit(made, "aa/file", "one")
    return made


def replaced(path: str, make_it: Break) -> Break:
    def apply(clone: Path) -> None:
        place = clone / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
        make_it(place)

    return apply


def deep(clone: Path) -> None:
    inner = os.open(clone / ".git" / "refs", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = deeper
    os.close(inner)


def remove_deep(folder: Path) -> None:
    """Python's own rmtree, and so pytest's, does not get down there."""
    while (folder / "d").exists():
        if (folder / "d" / "d").exists():
            (folder / "d" / "d").rename(folder / "next")
        (folder / "d").rmdir()
        if (folder / "next").exists():
            (folder / "next").rename(folder / "d")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (replaced(".git", os.mkfifo), "no plain file"),
        (replaced(".git", lambda path: path.symlink_to("/dev/zero")), "no plain file"),
        (replaced(".git/commondir", os.mkfifo), "no plain file"),
        (replaced(".git/objects/info/alternates", os.mkfifo), "neither a file nor a folder"),
        (replaced(".gitattributes", os.mkfifo), "neither a file nor a folder"),
        (replaced("aa/.gitignore", os.mkfifo), "neither a file nor a folder"),
        (deep, "deeper than"),
    ],
    ids=("pipe", "endless", "commondir", "alternates", "attributes", "ignored", "deep"),
)
def test_what_git_would_wait_for_without_end_costs_the_clone_and_nothing_else(
    clone: Path, tmp_path: Path, broken: Break, told: str
) -> None:
    whole = make(tmp_path / "whole")
    commit(whole, "file", "x")
    broken(clone)
    try:
        prepared, made = taken([clone, whole], tmp_path / "room")
    finally:
        remove_deep(clone / ".git" / "refs")
    assert [record.folder for record in prepared.records] == ["whole"]
    ((_, reason),) = prepared.unreadable
    assert told in reason
    assert (made / "whole" / "file").read_text() == "x"


def test_a_log_of_stashes_that_is_a_pipe_is_not_waited_for(clone: Path, tmp_path: Path) -> None:
    replaced(".git/logs/refs/stash", os.mkfifo)(clone)
    prepared, _ = taken([clone], tmp_path / "room")
    assert prepared.unreadable == ()


@pytest.mark.parametrize("name", [b"../secret", b".git/confg", b"aa/../../a"], ids=ascii)
def test_an_index_that_names_what_is_outside_the_working_tree_is_not_followed(
    clone: Path, tmp_path: Path, name: bytes
) -> None:
    (tmp_path / "secret").write_text("of another")
    (clone / ".git" / "confg").write_text("with a password")
    git(clone, "mv", "aa/file", "a" * len(name))
    index = (clone / ".git" / "index").read_bytes()[:-20].replace(b"a" * len(name), name)
    (clone / ".git" / "index").write_bytes(index + hashlib.sha1(index).digest())
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        prepared = prepare_clones([clone], folder, name="erp.code")
        ((_, reason),) = prepared.unreadable
        assert "outside the working tree" in reason
        assert list(folder.path.rglob("*")) == []


def test_no_path_leads_out_of_the_private_folder(tmp_path: Path) -> None:
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        for act in (folder.create, folder.make_folder, lambda path: folder.link(path, b"target")):
            with pytest.raises(CaptureError):
                act(b"../planted")


def rebuilt(clone: Path, room: Path, change: Callable[[dict[str, Any], Path], None]) -> Path:
    """Take a clone, let somebody change what was stored, and make it again."""
    made = room / "made"
    made.mkdir()
    with prepared_folder(room / "state", "erp.code") as folder:
        prepare_clones([clone], folder, name="erp.code")
        path = folder.path / "addons" / "clone.json"
        record = json.loads(path.read_bytes())
        change(record, path.parent)
        path.write_text(json.dumps(record))
        rebuild_clones(folder.path, made, account=None)
    return made


@pytest.mark.parametrize(
    "field", ["symbolic", "target", "branch", "refs"], ids=("symbolic", "target", "branch", "refs")
)
def test_a_recorded_name_of_a_ref_never_becomes_a_path_to_elsewhere(clone: Path, tmp_path: Path, field: str) -> None:
    """Git writes a symbolic ref wherever its name leads: `ref: refs/$(command)` in a start-up file is a program."""
    name = "refs/heads/../../../../planted"

    def change(record: dict[str, Any], _: Path) -> None:
        if field == "symbolic":
            record["symbolic"] = {name: "refs/heads/$(touch${IFS}it)"}
        elif field == "target":
            record["symbolic"] = {"refs/heads/other": name}
        elif field == "branch":
            record["branch"] = name
        else:
            record["refs"][name] = record["head"]

    with pytest.raises(FormatError):
        rebuilt(clone, tmp_path, change)
    assert not list(tmp_path.rglob("planted"))


@pytest.mark.parametrize("name", ["two\N{NO-BREAK SPACE}words", "a.b", "feature/x-1", "ünï", "a@b", "{x}", "$(id)"])
def test_every_name_that_git_takes_for_a_branch_comes_back(clone: Path, tmp_path: Path, name: str) -> None:
    git(clone, "branch", name)
    prepared, made = taken([clone], tmp_path / "room")
    assert prepared.unreadable == ()
    assert git(made / "addons", "rev-parse", f"refs/heads/{name}") == git(clone, "rev-parse", "HEAD")


def test_a_restore_reads_through_no_link_of_a_hostile_snapshot(clone: Path, tmp_path: Path) -> None:
    """The record names a file below what was stored as a link: a secret of the restoring host would come with it."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "secret").write_text("of this host")

    def change(record: dict[str, Any], folder: Path) -> None:
        (folder / "files").mkdir(exist_ok=True)
        (folder / "files" / "way").symlink_to(tmp_path / "host")
        record["changed"] = ["way/secret"]

    with pytest.raises(GitCloneError):
        rebuilt(clone, tmp_path, change)
    assert not list((tmp_path / "made").rglob("secret"))


@pytest.mark.parametrize("stored", ["refs.bundle", "staged.diff", "files/aa/file"])
def test_what_was_stored_is_a_plain_file_or_refused(clone: Path, tmp_path: Path, stored: str) -> None:
    (clone / "aa" / "file").write_text("two")
    git(clone, "add", ".")
    (clone / "aa" / "file").write_text("three")

    def change(_: dict[str, Any], folder: Path) -> None:
        (folder / stored).unlink()
        os.mkfifo(folder / stored)

    with pytest.raises(DrError):
        rebuilt(clone, tmp_path, change)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes on the rights of an owner")
def test_check_says_that_nobody_here_owns_a_clone(clone: Path) -> None:
    os.chown(clone, 54321, 54321)
    checklist = Checklist()
    check_clones(GitSettings(name=ComponentName("code"), clones=(clone,)), "erp/code", checklist)
    assert [item.state for item in checklist.results] == [CheckState.OK, CheckState.FAILED]
    assert "user 54321, whom this host does not know" in checklist.results[1].detail
