"""A clone is made again exactly as it was: refs, HEAD, index, and every file that was not committed."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from drservice.components.git.capture import folder_names, prepare_clones
from drservice.components.git.rebuilding import rebuild_clones
from drservice.components.prepared import prepared_folder
from drservice.errors import GitCloneError, GitMismatchError
from tests.doubles.clones import commit, git, make, seen, taken


@pytest.fixture
def addons(tmp_path: Path) -> Path:
    """A clone with two branches, a tag, a remote, and everything that a working tree can be."""
    origin = make(tmp_path / "origin")
    commit(origin, "sale/__init__.py", "one = 1\n")
    commit(origin, "picture.bin", bytes(range(256)) * 20)
    git(origin, "branch", "stable")
    git(origin, "tag", "-a", "v1", "-m", "first")
    clone = tmp_path / "addons"
    git(tmp_path, "clone", "-q", origin, clone)
    git(clone, "checkout", "-q", "-b", "work", "--track", "origin/stable")
    commit(clone, "sale/views/form.xml", "<form/>\n")
    commit(clone, "old.txt", "to be deleted\n")
    commit(clone, "run.sh", "#!/bin/sh\n")
    commit(clone, "was a file", "x")
    return clone


def make_dirty(clone: Path) -> None:
    """Changes of every sort: staged, not staged, both on one file, deleted, modes, links, untracked, ignored."""
    (clone / "sale/__init__.py").write_text("one = 2\n")
    git(clone, "add", "sale/__init__.py")
    (clone / "sale/__init__.py").write_text("one = 3\n")
    (clone / "picture.bin").write_bytes(b"\0\1\2" * 1000)
    git(clone, "add", "picture.bin")
    (clone / "old.txt").unlink()
    (clone / "run.sh").chmod(0o755)
    (clone / "was a file").unlink()
    (clone / "was a file").mkdir()
    (clone / "was a file" / "is in a folder").write_text("y")
    (clone / "link").symlink_to("/etc/passwd")
    (clone / "new").mkdir()
    (clone / "new" / "two words\n-rf").write_text("untracked")
    (clone / os.fsdecode(b"caf\xe9")).write_text("no UTF-8")
    (clone / ".gitignore").write_text("*.pyc\n")
    (clone / "left.pyc").write_text("ignored")


def test_a_dirty_clone_comes_back_exactly_as_it_was(addons: Path, tmp_path: Path) -> None:
    make_dirty(addons)
    index = (addons / ".git" / "index").read_bytes()
    (addons / "left.pyc").rename(tmp_path / "left.pyc")
    expected = seen(addons)
    (tmp_path / "left.pyc").rename(addons / "left.pyc")
    prepared, made = taken([addons], tmp_path / "room")
    assert prepared.unreadable == ()
    assert (addons / ".git" / "index").read_bytes() == index, "production's index was not touched"
    assert seen(made / "addons") == expected
    assert git(made / "addons", "rev-parse", "--abbrev-ref", "work@{upstream}").strip() == "origin/stable"
    assert git(made / "addons", "remote", "get-url", "origin").strip() == str(tmp_path / "origin")
    record = json.loads((made / "addons.json").read_bytes())
    assert (record["branch"], record["head"]) == ("refs/heads/work", git(addons, "rev-parse", "HEAD").strip())


def test_without_drservice_git_alone_makes_a_clone_of_what_was_stored(addons: Path, tmp_path: Path) -> None:
    """The commands of docs/how-to/git.md."""
    make_dirty(addons)
    (addons / "left.pyc").unlink()
    text = (Path(__file__).parents[3] / "docs" / "how-to" / "git.md").read_text()
    commands = re.findall(r"^```\n(git clone .*?)^```", text, re.MULTILINE | re.DOTALL)
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        prepare_clones([addons], folder, name="erp.code")
        stored = tmp_path / "stored"
        shutil.copytree(folder.path / "addons", stored, symlinks=True)
    script = commands[0].replace("git checkout main", "git checkout work")
    done = subprocess.run(["bash", "-euc", script], cwd=stored, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, expected = seen(stored / "addons"), seen(addons)
    assert {key: made[key] for key in ("index", "status", "files")} == {
        key: expected[key] for key in ("index", "status", "files")
    }


def test_a_file_changed_within_the_second_of_the_index_is_not_taken_for_unchanged(tmp_path: Path) -> None:
    """Git compares whole seconds: such a file looks unchanged unless the index is as old as it is."""
    clone = make(tmp_path / "quick")
    while True:
        commit(clone, "file", f"{os.urandom(2).hex()}")
        first = (clone / "file").stat()
        (clone / "file").write_text("bbbb")  # in place, with the same size
        second = (clone / "file").stat()
        if int(first.st_ctime) == int(second.st_ctime) == int((clone / ".git" / "index").stat().st_mtime):
            break
    time.sleep(1 - time.time() % 1)
    _, made = taken([clone], tmp_path / "room")
    assert (made / "quick" / "file").read_text() == "bbbb"


def test_a_detached_head_with_a_commit_on_no_branch_comes_back(addons: Path, tmp_path: Path) -> None:
    git(addons, "checkout", "-q", "--detach")
    commit(addons, "lost", "on no branch")
    expected = seen(addons)
    _, made = taken([addons], tmp_path / "room")
    assert seen(made / "addons") == expected


def test_an_empty_clone_with_a_staged_file_comes_back(tmp_path: Path) -> None:
    clone = make(tmp_path / "empty")
    (clone / "first").write_text("staged, and there is no commit")
    git(clone, "add", "first")
    expected = seen(clone)
    prepared, made = taken([clone, make(tmp_path / "quite empty")], tmp_path / "room")
    assert [item.head for item in prepared.records] == [None, None]
    assert seen(made / "empty") == expected
    assert git(made / "quite-empty", "symbolic-ref", "HEAD").strip() == "refs/heads/main"


def test_a_shallow_clone_a_bare_one_and_a_worktree_come_back(addons: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{addons}", "shallow")
    git(tmp_path, "clone", "-q", "--bare", addons, "bare.git")
    git(addons, "worktree", "add", "-q", "-b", "side", tmp_path / "side")
    (tmp_path / "side" / "extra").write_text("untracked")
    expected = {name: seen(tmp_path / name) for name in ("shallow", "side")}
    prepared, made = taken([tmp_path / "shallow", tmp_path / "bare.git", tmp_path / "side", addons], tmp_path / "room")
    assert prepared.unreadable == ()
    assert git(made / "shallow", "rev-parse", "--is-shallow-repository").strip() == "true"
    for name, before in expected.items():
        after = seen(made / name)
        assert {key: after[key] for key in ("refs", "index", "status", "files")} == {
            key: before[key] for key in ("refs", "index", "status", "files")
        }
    assert git(made / "bare.git", "rev-parse", "refs/heads/work") == git(addons, "rev-parse", "work")
    assert "1 linked worktrees are not in it" in " ".join(prepared.records[3].notes)


def test_submodules_and_lfs_pointers_are_named(addons: Path, tmp_path: Path) -> None:
    git(addons, "submodule", "add", "-q", tmp_path / "origin", "vendor/lib")
    git(addons, "config", "-f", ".gitmodules", "submodule.vendor/lib.url", "https://bob:secret@example.com/lib.git")
    (addons / ".gitattributes").write_text("*.psd filter=lfs diff=lfs merge=lfs -text\n")
    commit(addons, "logo.psd", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    git(addons, "add", "-A")
    prepared, made = taken([addons], tmp_path / "room")
    (record,) = prepared.records
    assert [(one.path, one.url) for one in record.submodules] == [("vendor/lib", "https://example.com/lib.git")]
    assert record.submodules[0].recorded == git(addons / "vendor/lib", "rev-parse", "HEAD").strip()
    assert "1 submodules are recorded by their commits only: vendor/lib" in record.notes[0]
    assert "1 files are kept by Git LFS" in record.notes[1]
    assert (made / "addons" / "logo.psd").exists()


def test_a_merge_that_was_not_finished_a_stash_and_other_hashes_come_back_with_a_note(tmp_path: Path) -> None:
    merging = make(tmp_path / "merging")
    commit(merging, "file", "one\n")
    git(merging, "checkout", "-q", "-b", "other")
    commit(merging, "file", "two\n")
    git(merging, "checkout", "-q", "main")
    commit(merging, "file", "three\n")
    (merging / "file").write_text("stashed\n")
    git(merging, "stash")
    git(merging, "merge", "other", status=1)
    longer = make(tmp_path / "longer", "--object-format=sha256")
    commit(longer, "file", "one")
    (longer / "file").write_text("two")
    expected = seen(longer)
    prepared, made = taken([merging, longer], tmp_path / "room")
    assert prepared.unreadable == ()
    assert "a restore has their content, not the merge" in prepared.records[0].notes[0]
    assert "in the middle of a merge" in prepared.records[0].notes[1]
    assert (made / "merging" / "file").read_text() == (merging / "file").read_text()
    assert "<<<<<<<" in (made / "merging" / "file").read_text()
    git(made / "merging", "checkout", "-q", "file")
    git(made / "merging", "stash", "pop")
    assert (made / "merging" / "file").read_text() == "stashed\n"
    assert seen(made / "longer") == expected


def test_what_is_no_whole_clone_is_told_by_name_and_costs_only_itself(addons: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(addons, broken, symlinks=True)
    head = git(broken, "rev-parse", "HEAD").strip()
    (broken / ".git" / "objects" / head[:2] / head[2:]).unlink()
    partial = tmp_path / "partial"
    git(addons, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{addons}", partial)
    clones = [tmp_path / "plain", tmp_path / "absent", broken, partial, addons]
    prepared, made = taken(clones, tmp_path / "room")
    reasons = {os.fsdecode(path): reason for path, reason in prepared.unreadable}
    assert set(reasons) == {str(item) for item in clones[:4]}
    assert "is no git clone" in reasons[str(tmp_path / "plain")]
    assert "No such file" in reasons[str(tmp_path / "absent")]
    assert head in reasons[str(broken)] or "ended with" in reasons[str(broken)]
    assert "is a partial clone" in reasons[str(partial)]
    assert sorted(item.name for item in made.iterdir()) == ["addons", "addons.json"]


def test_a_clone_that_is_not_what_was_recorded_is_refused(addons: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        prepare_clones([addons], folder, name="erp.code")
        path = folder.path / "addons" / "clone.json"
        record = json.loads(path.read_bytes())
        good, record["refs"]["refs/heads/more"] = record["head"], record["head"]
        path.write_text(json.dumps(record))
        rebuild_clones(folder.path, tmp_path / "made", account=None)  # one more ref to a commit that is there
        shutil.rmtree(tmp_path / "made")
        (tmp_path / "made").mkdir()
        record["head"] = "0" * 39 + "1"
        path.write_text(json.dumps(record))
        with pytest.raises(GitCloneError):
            rebuild_clones(folder.path, tmp_path / "made", account=None)
        shutil.rmtree(tmp_path / "made")
        (tmp_path / "made").mkdir()
        record["head"], record["changed"] = good, ["run.sh"]  # a file that is not in the snapshot
        path.write_text(json.dumps(record))
        with pytest.raises(GitCloneError):
            rebuild_clones(folder.path, tmp_path / "made", account=None)
        shutil.rmtree(tmp_path / "made")
        (tmp_path / "made").mkdir()
        record["changed"], record["deleted"] = [], ["not there before either"]
        path.write_text(json.dumps(record))
        with pytest.raises(GitMismatchError, match="1 files are not as they were"):
            rebuild_clones(folder.path, tmp_path / "made", account=None)


def test_programs_that_a_hostile_clone_names_never_run(addons: Path, tmp_path: Path) -> None:
    """Every way a configuration or a file in a clone can name a program leads to one that leaves a trace."""
    traces = tmp_path / "traces"
    traces.mkdir(mode=0o777)
    traces.chmod(0o777)
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\ntouch {traces}/"$(basename "$0")-$$"\ncat\n')
    trap.chmod(0o755)
    inner = make(addons / "vendor")
    commit(inner, "file", "x")
    git(addons, "add", "vendor")  # a gitlink
    git(addons, "commit", "-q", "-m", "gitlink")
    commit(addons, "target.psd", "content\n")
    (addons / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n*.psd filter=proc\n")
    for clone in (addons, inner):
        for name in ("pre-commit", "post-checkout", "post-index-change", "reference-transaction", "fsmonitor-watchman"):
            hook = clone / ".git" / "hooks" / name
            hook.parent.mkdir(exist_ok=True)
            shutil.copy(trap, hook)
        (clone / ".git" / "config").write_text(
            (clone / ".git" / "config").read_text()
            + f"""
[core]
    fsmonitor = {trap}
    pager = {trap}
    sshCommand = {trap}
    editor = {trap}
    alternateRefsCommand = {trap}
    gitProxy = {trap}
[include]
    path = {tmp_path}/more
[filter "evil"]
    clean = {trap}
    smudge = {trap}
    required = true
[filter "proc"]
    process = {trap}
[diff "evil"]
    textconv = {trap}
    command = {trap}
[diff]
    external = {trap}
[merge "evil"]
    driver = {trap}
[credential]
    helper = {trap}
[uploadpack]
    packObjectsHook = {trap}
[gpg]
    program = {trap}
[alias]
    bundle = !{trap}
    for-each-ref = !{trap}
"""
        )
    (tmp_path / "more").write_text(f"[core]\n\thooksPath = {addons}/.git/hooks\n\tfsmonitor = {trap}\n")
    (addons / "sale/__init__.py").write_text("changed\n")
    (addons / "untracked.psd").write_text("new\n")
    subprocess.run(["git", "status"], cwd=addons, capture_output=True, check=False)
    assert list(traces.iterdir()), "the trap works: git itself falls into it"
    for item in traces.iterdir():
        item.unlink()
    prepared, made = taken([addons], tmp_path / "room")
    assert prepared.unreadable == ()
    assert list(traces.iterdir()) == []
    assert (made / "addons" / "sale/__init__.py").read_text() == "changed\n"
    config = (made / "addons" / ".git" / "config").read_text()
    assert str(trap) not in config
    assert "evil" not in config


def test_a_restore_never_writes_through_a_link_of_a_hostile_clone(addons: Path, tmp_path: Path) -> None:
    """The record names a file below what the checkout makes a link that leads outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    (addons / "way").symlink_to(outside)
    git(addons, "add", "way")
    git(addons, "commit", "-q", "-m", "a link")
    (tmp_path / "made").mkdir()
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        prepare_clones([addons], folder, name="erp.code")
        path = folder.path / "addons" / "clone.json"
        record = json.loads(path.read_bytes())
        record["changed"], record["deleted"] = ["way/planted"], ["way/victim"]
        path.write_text(json.dumps(record))
        folder.make_folder(b"addons/files/way")
        folder.write(b"addons/files/way/planted", b"evil")
        with pytest.raises(GitCloneError):
            rebuild_clones(folder.path, tmp_path / "made", account=None)
    assert [item.name for item in outside.iterdir()] == ["victim"]


def test_credentials_of_remotes_are_not_taken(addons: Path, tmp_path: Path) -> None:
    git(addons, "remote", "add", "hidden", "https://user:hunter2@example.com/x.git?token=hunter2")
    git(addons, "remote", "add", "token", "https://ghp_hunter2@example.com/y.git")
    git(addons, "remote", "add", "ssh", "ssh://git:hunter2@example.com/z.git")
    git(addons, "config", "http.extraHeader", "Authorization: hunter2")
    with prepared_folder(tmp_path / "state", "erp.code") as folder:
        (record,) = prepare_clones([addons], folder, name="erp.code").records
        everything = b"".join(item.read_bytes() for item in folder.path.rglob("*") if item.is_file())
    assert b"hunter2" not in everything
    urls = {name: list(remote["url"]) for name, remote in record.remotes.items() if name != "origin"}
    assert urls == {
        "hidden": ["https://example.com/x.git"],
        "token": ["https://example.com/y.git"],
        "ssh": ["ssh://git@example.com/z.git"],
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes on the rights of others")
def test_root_reads_a_clone_with_its_owners_rights_only(addons: Path, tmp_path: Path) -> None:
    owner = pwd.getpwnam("nobody")
    for item in (addons, *addons.rglob("*")):
        os.chown(item, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    for above in (*addons.parents,):
        if above != (top := Path(tempfile.gettempdir())) and above.is_relative_to(top):
            above.chmod(0o755)  # the owner has to reach it, however deep the tests of a worker lie
    secret = tmp_path / "secret"
    secret.write_text("only root reads this")
    secret.chmod(0o600)
    (addons / "stolen").hardlink_to(secret)
    prepared, _ = taken([addons], tmp_path / "room")
    assert [reason for _, reason in prepared.unreadable] == ["'stolen' cannot be read: Permission denied"]
    (addons / "stolen").unlink()
    prepared, made = taken([addons], tmp_path / "again")
    assert prepared.unreadable == ()
    assert (made / "addons" / "run.sh").exists()


def test_two_clones_with_one_name_get_two_folders() -> None:
    paths = [Path("/srv/a/addons"), Path("/srv/b/addons"), Path("/srv/c d"), Path("/srv/.git")]
    assert folder_names(paths) == ["addons", "addons-2", "c-d", "git"]


def test_what_a_crash_left_in_the_private_folder_is_removed_by_the_next_run(tmp_path: Path) -> None:
    with prepared_folder(tmp_path, "erp.code") as folder:
        folder.make_folder(b"left behind")
        with prepared_folder(tmp_path, "erp.code") as other:
            assert folder.path.exists(), "one that is in use is not removed"
            assert other.path != folder.path
        shutil.copytree(folder.path, folder.path.parent / "erp.code-1-dead")
    assert [item.name for item in folder.path.parent.iterdir()] == ["erp.code-1-dead"]
    with prepared_folder(tmp_path, "erp.code"):
        assert not (folder.path.parent / "erp.code-1-dead").exists()
