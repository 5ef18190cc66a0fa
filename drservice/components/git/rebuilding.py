"""Making clones again from what was captured of them, and asking each whether it is what was recorded.

The repository folder is new and its configuration our own; what a bundle from a hostile clone holds is data that git
checks while it unpacks it. Files are written below descriptors and through no link, whatever the checkout put there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drservice import processes
from drservice.components.git.program import Git, parts, program
from drservice.components.git.record import BUNDLE, FILES, RECORD, STAGED, CloneRecord, decode_clone
from drservice.errors import GitCloneError, GitMismatchError
from drservice.processes import Account, files_as
from drservice.repository.descent import open_below

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STASH = "refs/stash"
_LARGEST_RECORD = 256 << 20


def rebuild_clones(stored: Path, made: Path, *, account: Account | None) -> tuple[CloneRecord, ...]:
    """Make every clone of a restored snapshot below ``made``, each with its record beside it as ``NAME.json``.

    Args:
        stored: the content of the snapshot.
        made: an empty folder of ``account``.
        account: whose rights git has and whose the clones are (as root); ``None`` = the present user.

    Raises:
        FormatError: a record cannot be read.
        GitCloneError: git refuses what was stored.
        GitMismatchError: a clone is not what was recorded.
    """
    records: list[CloneRecord] = []
    with files_as(account):
        folders = sorted(item for item in stored.iterdir() if item.is_dir() and not item.is_symlink())
        for folder in folders:
            record = read_record(folder / RECORD)
            if record.folder != folder.name:
                raise GitMismatchError(f"{folder.name} holds the record of {record.folder}")
            target = made / record.folder
            try:
                _rebuild(record, folder, target, account)
                _require_same(record, target, account)
                shutil.copyfile(folder / RECORD, made / f"{record.folder}.json")
            except OSError as error:
                raise GitCloneError(f"{record.folder} cannot be made: {error.filename}: {error.strerror}") from error
            records.append(record)
    return tuple(records)


def read_record(path: Path) -> CloneRecord:
    """Return the record of a clone.

    Raises:
        FormatError: it cannot be read.
        GitMismatchError: it is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_LARGEST_RECORD)
    except OSError as error:
        raise GitMismatchError(f"the record {path} cannot be read: {error.strerror}") from error
    return decode_clone(content, f"the record {path.name} of {path.parent.name}")


def _rebuild(record: CloneRecord, folder: Path, target: Path, account: Account | None) -> None:
    target.mkdir(mode=0o755)
    inside = target if record.bare else target / ".git"
    git = Git(name=record.folder, folder=inside, work_tree=None if record.bare else target, account=account)
    _init(record, target, inside, account)
    if record.shallow:
        (inside / "shallow").write_text("".join(f"{commit}\n" for commit in record.shallow))
    if record.refs or record.head is not None:
        git.run("bundle", "unbundle", _plain(folder / BUNDLE))
    _write_refs(record, git)
    _write_settings(record, git)
    if record.bare:
        return
    if record.head is not None:
        git.run("read-tree", record.head)
    if record.staged:
        git.run("apply", "--cached", "--binary", "--whitespace=nowarn", _plain(folder / STAGED))
    git.run("checkout-index", "--all", "--force", "--quiet")
    _place_files(record, folder / FILES, target)
    with suppress(GitCloneError):  # it ends with 1 where files differ from the index, as they are meant to
        git.run("update-index", "-q", "--refresh")


def _plain(path: Path) -> Path:
    """Return the path of what was stored beside a record; nothing that it leads to elsewhere is read.

    Raises:
        GitCloneError: it is no plain file.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise GitCloneError(f"{path.name} of {path.parent.name} is no plain file")
    return path


def _init(record: CloneRecord, target: Path, inside: Path, account: Account | None) -> None:
    words = ["init", "--quiet", "--template=", f"--object-format={record.object_format}"]
    finished = processes.run(
        [program(), *words, *(["--bare"] if record.bare else []), "--", target],
        account=account,
        environment=processes.clean_environment(
            {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
        ),
        timeout_seconds=60,
    )
    if finished.status != 0 or not (inside / "HEAD").exists():
        raise GitCloneError(f"{record.folder} cannot be made: {finished.last_line()[:200]}")


def _write_refs(record: CloneRecord, git: Git) -> None:
    commands = [
        f"create {name}\0{identifier}\0"
        for name, identifier in record.refs.items()
        if name not in record.symbolic and name != _STASH
    ]
    if commands:
        git.run("update-ref", "--stdin", "-z", stdin="".join(commands).encode("utf-8", "surrogateescape"))
    if _STASH in record.refs:  # git lists stashes by their reflog
        git.run("update-ref", "--create-reflog", "-m", "restored", _STASH, record.refs[_STASH])
    for name, target in record.symbolic.items():
        git.run("symbolic-ref", name, target)
    if record.branch is not None:
        git.run("symbolic-ref", "HEAD", record.branch)
    elif record.head is not None:
        git.run("update-ref", "--no-deref", "HEAD", record.head)


def _write_settings(record: CloneRecord, git: Git) -> None:
    """Write remotes, what branches follow, and how lines end: values only, none of which names a program."""
    for name, remote in record.remotes.items():
        for item in ("url", "fetch"):
            for value in remote.get(item, ()):
                git.run("config", "--add", f"remote.{name}.{item}", value)
    for name, branch in record.branches.items():
        for item, value in branch.items():
            git.run("config", f"branch.{name}.{item}", value)
    for key, value in record.line_ends.items():
        git.run("config", key, value)


def _place_files(record: CloneRecord, files: Path, target: Path) -> None:
    root = os.open(target, _FOLDER)
    try:
        for path in (*record.deleted, *record.changed):
            _remove(root, os.fsencode(path))
        if not record.changed:
            return
        stored = os.open(files, _FOLDER)
        try:
            for path in record.changed:
                _place(root, os.fsencode(path), stored)
        finally:
            os.close(stored)
    finally:
        os.close(root)


def _remove(root: int, path: bytes) -> None:
    above, _, name = path.rpartition(b"/")
    try:
        with open_below(root, above) as folder:
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            steps = above.split(b"/") if above else []
    except (FileNotFoundError, NotADirectoryError):
        return
    for count in range(len(steps), 0, -1):  # git keeps no empty folders
        try:
            os.rmdir(b"/".join(steps[:count]), dir_fd=root)
        except OSError:
            return


def _place(root: int, path: bytes, stored: int) -> None:
    """Write a file or link in place of nothing; a link on the way, there or where it was stored, is an error."""
    above, _, name = path.rpartition(b"/")
    with open_below(stored, above) as source, _made_below(root, above) as folder:
        facts = os.lstat(name, dir_fd=source)
        if stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=folder)
            return
        if not stat.S_ISREG(facts.st_mode):
            raise GitCloneError(f"what was stored as {os.fsdecode(path)!a} is neither a file nor a link")
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(opened, "rb") as reading, os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as writing:
            shutil.copyfileobj(reading, writing)
            os.fchmod(writing.fileno(), stat.S_IMODE(facts.st_mode) & 0o777)


@contextmanager
def _made_below(root: int, path: bytes) -> Iterator[int]:
    steps = path.split(b"/") if path else []
    for count in range(1, len(steps) + 1):
        with open_below(root, b"/".join(steps[: count - 1])) as above:
            try:
                os.mkdir(steps[count - 1], 0o755, dir_fd=above)
            except FileExistsError:
                continue
    with open_below(root, path) as folder:
        yield folder


def _require_same(record: CloneRecord, target: Path, account: Account | None) -> None:
    """Ask git for refs, HEAD, every object, and what is not committed; compare it with the record."""
    inside = target if record.bare else target / ".git"
    git = Git(name=record.folder, folder=inside, work_tree=None if record.bare else target, account=account)
    problems = differences(record, git)
    if not record.bare:
        changed = set(parts(git.run("diff-files", "-z", "--name-only", "--ignore-submodules=all", "--no-ext-diff")))
        changed |= set(parts(git.run("ls-files", "-z", "--others")))
        expected = {os.fsencode(path) for path in (*record.changed, *record.deleted)}
        modules = {os.fsencode(one.path) for one in record.submodules}
        if changed - modules != expected:
            problems.append(f"{len((changed - modules) ^ expected)} files are not as they were")
    if problems:
        raise GitMismatchError(f"{record.folder} is not what was recorded: {'; '.join(problems)}")


def differences(record: CloneRecord, git: Git) -> list[str]:
    """Return how a clone differs from its record: refs, HEAD, objects that are not there."""
    problems: list[str] = []
    listed = git.run("for-each-ref", "--format=%(objectname) %(refname)").decode("utf-8", "surrogateescape")
    refs = {name: commit for commit, _, name in (line.partition(" ") for line in listed.split("\n") if line)}
    wrong = {name for name in {*refs, *record.refs} if refs.get(name) != record.refs.get(name)}
    if wrong:
        problems.append(f"{len(wrong)} refs differ, such as {min(wrong)[:100]}")
    if record.head is not None:
        head = git.run("rev-parse", "--verify", "HEAD^{commit}").decode("ascii").strip()
        if head != record.head:
            problems.append(f"HEAD is at {head}, and was at {record.head}")
    if record.head is not None or refs:
        try:
            git.run("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
        except GitCloneError as error:
            problems.append(error.message)
    return problems
