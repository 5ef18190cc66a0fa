"""Taking clones into a private folder: a bundle of all refs, a diff of what is staged, and every file that differs.

The files are taken as they are, byte for byte, and not as a diff against the index: a diff goes through the clone's
filters and line ends on its way there and back, and files do not. The bundle counts when `git bundle verify` took it
and it names every ref that was recorded.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.components.git.locating import Located, locate, read_plain
from drservice.components.git.program import Git, parts
from drservice.components.git.record import (
    BUNDLE,
    FILES,
    LINE_ENDS,
    RECORD,
    STAGED,
    CloneRecord,
    Submodule,
    decode_clone,
    encode_clone,
    is_inside,
    without_credentials,
)
from drservice.components.git.shadow import object_format, shadow
from drservice.components.prepared import PreparedFolder
from drservice.errors import FormatError, GitCloneError
from drservice.processes import Account, files_as
from drservice.repository.descent import open_below

_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_PIECE_BYTES = 1 << 20
_LARGEST_LOG = 16 << 20
_NO_DIFF_PROGRAMS = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
_NAMED = 5
_LARGEST_MODULES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedClones:
    """What was taken, and what could not be, with the reason."""

    records: tuple[CloneRecord, ...]
    unreadable: tuple[tuple[bytes, str], ...]


def prepare_clones(clones: Sequence[Path], folder: PreparedFolder, *, name: str) -> PreparedClones:
    """Take clones into a private folder; one that cannot be taken whole costs only itself.

    Raises:
        ProgramMissingError: git is not installed.
        OSError: the private folder cannot be written.
    """
    records: list[CloneRecord] = []
    unreadable: list[tuple[bytes, str]] = []
    for path, inside in zip(clones, folder_names(clones), strict=True):
        try:
            with _owner_of(path) as account:
                records.append(_prepare(path, inside, folder, name=name, account=account))
        except GitCloneError as error:
            folder.remove(os.fsencode(inside))
            unreadable.append((os.fsencode(path), error.message))
    return PreparedClones(records=tuple(records), unreadable=tuple(unreadable))


def folder_names(clones: Sequence[Path]) -> list[str]:
    """Return a folder name for each clone: its own, with a number where two have the same."""
    names: list[str] = []
    for path in clones:
        plain = _SAFE_NAME.sub("-", path.name).strip(".-") or "clone"
        name, count = plain, 1
        while name in names:
            count += 1
            name = f"{plain}-{count}"
        names.append(name)
    return names


@contextmanager
def _owner_of(path: Path) -> Iterator[Account | None]:
    """Take on the rights of a clone's owner, as root; ``None`` where the present user's will do."""
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise GitCloneError(f"{path} cannot be looked at: {error.strerror}") from error
    if os.geteuid() != 0 or owner == 0:
        yield None
        return
    try:
        yield processes.account_of(path)
    except KeyError:
        raise GitCloneError(f"{path} belongs to user {owner}, whom this host does not know") from None


def _prepare(path: Path, inside: str, folder: PreparedFolder, *, name: str, account: Account | None) -> CloneRecord:
    with files_as(account):
        located = locate(path)
    base = os.fsencode(inside)
    with shadow(located, name=name, account=account) as (git, settings):
        refs, symbolic = _refs(git)
        head, branch = _head(git)
        folder.make_folder(base)
        if refs or head is not None:
            _bundle(git, folder, base, refs)
        tree = _WorkingTree() if located.work_tree is None else _working_tree(git, head)
        with files_as(account):
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            gone = [item for item in tree.changed if not _take_file(root, item, folder, base, account)]
        finally:
            os.close(root)
        if tree.staged:
            folder.write(base + b"/" + STAGED.encode(), tree.staged)
        with files_as(account):
            notes = [*tree.notes, *_notes(located)]
        record = CloneRecord(
            path=str(path),
            folder=inside,
            bare=located.work_tree is None,
            object_format=object_format(settings),
            head=head,
            branch=branch,
            refs=refs,
            symbolic=symbolic,
            remotes=_remotes(settings),
            branches=_branches(settings),
            line_ends={
                key: values[-1].lower()
                for key, allowed in LINE_ENDS.items()
                if (values := settings.get(key)) and values[-1].lower() in allowed
            },
            shallow=_shallow(git, account),
            submodules=tree.submodules,
            staged=bool(tree.staged),
            changed=tuple(os.fsdecode(item) for item in tree.changed if item not in gone),
            deleted=tuple(os.fsdecode(item) for item in (*tree.deleted, *(one for one in gone if one in tree.known))),
            notes=tuple(notes),
        )
    content = encode_clone(record)
    try:  # what no restore takes is told now
        decode_clone(content, str(path))
    except FormatError as error:
        raise GitCloneError(f"{path} has names that no restore could make again") from error
    folder.write(base + b"/" + RECORD.encode(), content)
    return record


def _refs(git: Git) -> tuple[dict[str, str], dict[str, str]]:
    output = git.run("for-each-ref", "--format=%(objectname) %(refname) %(symref)")
    refs: dict[str, str] = {}
    symbolic: dict[str, str] = {}
    for line in _lines(output):
        identifier, name, target = line.split(" ")
        refs[name] = identifier
        if target:
            symbolic[name] = target
    return refs, symbolic


def _lines(output: bytes) -> list[str]:
    return [line for line in output.decode("utf-8", "surrogateescape").split("\n") if line]


def _head(git: Git) -> tuple[str | None, str | None]:
    """Return the commit and the ref that HEAD names; each may be absent."""
    branch = commit = None
    with suppress(GitCloneError):  # detached
        branch = git.run("symbolic-ref", "--quiet", "HEAD").decode("utf-8", "surrogateescape").strip()
    with suppress(GitCloneError):  # no commit yet
        commit = git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}").decode("ascii").strip()
    if branch is None and commit is None:
        raise GitCloneError(f"{git.name}: HEAD names neither a branch nor a commit that is there")
    return commit, branch


def _bundle(git: Git, folder: PreparedFolder, base: bytes, refs: Mapping[str, str]) -> None:
    path = base + b"/" + BUNDLE.encode()
    descriptor = folder.create(path)
    try:
        if git.account is not None:  # git opens it by its descriptor's name, for which it has to be its own
            os.fchown(descriptor, git.account.uid, -1)
        git.write(descriptor, "bundle", "create", "--quiet", "-", "--all")
        git.read(descriptor, "bundle", "verify", "--quiet", "/dev/stdin")
        listed = git.read(descriptor, "bundle", "list-heads", "/dev/stdin")
        os.fchown(descriptor, os.geteuid(), -1)
    finally:
        os.close(descriptor)
    held = {name: identifier for identifier, _, name in (line.partition(" ") for line in _lines(listed))}
    missing = [name for name, identifier in refs.items() if held.get(name) != identifier]
    if missing:
        raise GitCloneError(f"{git.name}: the bundle lacks {len(missing)} refs, such as {missing[0][:100]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkingTree:
    """How a working tree and its index differ from HEAD."""

    staged: bytes = b""
    known: frozenset[bytes] = frozenset()
    """Of ``changed``, those that the index has."""
    changed: tuple[bytes, ...] = ()
    deleted: tuple[bytes, ...] = ()
    submodules: tuple[Submodule, ...] = ()
    notes: tuple[str, ...] = ()


def _working_tree(git: Git, head: str | None) -> _WorkingTree:
    base = head if head is not None else git.run("hash-object", "-t", "tree", "/dev/null").decode("ascii").strip()
    with suppress(GitCloneError):  # it ends with 1 where something has to be merged; what differs is listed below
        git.run("update-index", "-q", "--really-refresh", "--ignore-submodules")
    modules, unmerged = _index(git)
    staged = (
        b"" if unmerged else git.run("diff-index", "--cached", "--binary", "--full-index", *_NO_DIFF_PROGRAMS, base)
    )
    changed, deleted = _differing(git)
    others = parts(git.run("ls-files", "-z", "--others", *_ignored_by()))
    nested = [item for item in others if item.endswith(b"/")]
    left_out = (*modules, *(item.rstrip(b"/") for item in nested))
    outside = [item for item in (*changed, *deleted, *others) if not is_inside(os.fsdecode(item.rstrip(b"/")))]
    if outside:  # every name is going to be part of a path, here and at the restore
        raise GitCloneError(f"{git.name}: the index names what is outside the working tree: {_some(outside)}")
    known = frozenset(item for item in changed if item not in left_out)
    notes = _tree_notes(git, modules, nested, unmerged)
    return _WorkingTree(
        staged=staged,
        known=known,
        changed=tuple(sorted({*known, *(item for item in others if not item.endswith(b"/"))})),
        deleted=tuple(item for item in deleted if item not in modules),
        submodules=tuple(
            Submodule(path=os.fsdecode(path), recorded=commit, url=url) for path, (commit, url) in modules.items()
        ),
        notes=notes,
    )


def _ignored_by() -> tuple[str, ...]:
    """What git leaves out here: the working tree's own .gitignore files and the clone's info/exclude."""
    return ("--exclude-standard",)


def _index(git: Git) -> tuple[dict[bytes, tuple[str, str | None]], tuple[bytes, ...]]:
    """Return submodules with their commits and addresses, and what has to be merged."""
    modules: dict[bytes, tuple[str, str | None]] = {}
    unmerged: list[bytes] = []
    for item in parts(git.run("ls-files", "-z", "--stage")):
        facts, _, path = item.partition(b"\t")
        mode, identifier, stage = facts.split(b" ")
        if stage != b"0":
            unmerged.append(path)
        elif mode == b"160000":
            modules[path] = (identifier.decode("ascii"), None)
    if modules:
        addresses = _module_addresses(git)
        modules = {path: (commit, addresses.get(path)) for path, (commit, _) in modules.items()}
    return modules, tuple(dict.fromkeys(unmerged))


def _module_addresses(git: Git) -> dict[bytes, str]:
    with suppress(GitCloneError):  # no .gitmodules in the index, or one that git cannot read: no addresses
        if int(git.run("cat-file", "-s", ":.gitmodules")) > _LARGEST_MODULES:
            return {}
        content = git.run("cat-file", "blob", ":.gitmodules")
        listed = git.run("config", "--file", "-", "--no-includes", "--null", "--list", stdin=content)
        paths: dict[bytes, bytes] = {}
        urls: dict[bytes, str] = {}
        for item in parts(listed):
            key, _, value = item.partition(b"\n")
            if key.startswith(b"submodule.") and key.endswith(b".path"):
                paths[key.removesuffix(b".path")] = value
            elif key.startswith(b"submodule.") and key.endswith(b".url"):
                urls[key.removesuffix(b".url")] = without_credentials(value.decode("utf-8", "replace"))
        return {path: urls[name] for name, path in paths.items() if name in urls}
    return {}


def _differing(git: Git) -> tuple[list[bytes], list[bytes]]:
    """Return which files of the index are different in the working tree, and which are not there."""
    words = parts(git.run("diff-files", "-z", "--name-status", "--no-renames", *_NO_DIFF_PROGRAMS))
    states: dict[bytes, set[bytes]] = {}
    for status, path in zip(words[::2], words[1::2], strict=True):
        states.setdefault(path, set()).add(status[:1])
    deleted = [path for path, found in states.items() if found == {b"D"}]
    return [path for path in states if path not in deleted], deleted


def _tree_notes(
    git: Git, modules: Mapping[bytes, object], nested: Sequence[bytes], unmerged: Sequence[bytes]
) -> tuple[str, ...]:
    notes: list[str] = []
    if modules:
        notes.append(f"{len(modules)} submodules are recorded by their commits only: {_some([*modules])}")
    if nested:
        notes.append(f"{len(nested)} clones inside that git does not track are not in it: {_some(nested)}")
    if unmerged:
        notes.append(f"{len(unmerged)} files were to be merged; a restore has their content, not the merge")
    paths = git.run("ls-files", "-z", "--cached")
    checked = parts(git.run("check-attr", "-z", "--stdin", "filter", stdin=paths)) if paths else []
    pointers = [path for path, value in zip(checked[::3], checked[2::3], strict=True) if value == b"lfs"]
    if pointers:
        notes.append(
            f"{len(pointers)} files are kept by Git LFS; the bundle has their pointers, and not the content: fetch it"
            " from the LFS server after a restore"
        )
    skipped = [item for item in parts(git.run("ls-files", "-z", "-t", "--cached")) if item.startswith(b"S ")]
    if skipped:
        notes.append(f"{len(skipped)} files are outside the sparse checkout; a restore writes them too")
    return tuple(notes)


def _notes(located: Located) -> Iterator[str]:
    stash = located.common / "logs" / "refs" / "stash"
    with suppress(OSError, GitCloneError):
        entries = read_plain(stash, most=_LARGEST_LOG).count(b"\n")
        if entries > 1:
            yield f"of {entries} stashes only the newest is a ref; the others are not in it"
    with suppress(OSError):
        others = [item.name for item in (located.common / "worktrees").iterdir()]
        if others and located.own == located.common:
            yield f"{len(others)} linked worktrees are not in it: name their folders in `clones`"
    for name, what in (("MERGE_HEAD", "a merge"), ("CHERRY_PICK_HEAD", "a cherry-pick"), ("rebase-merge", "a rebase")):
        if os.path.lexists(located.own / name):
            yield f"it was in the middle of {what}, which a restore does not go on with"


def _some(names: Sequence[bytes]) -> str:
    shown = ", ".join(ascii(os.fsdecode(name))[1:-1][:100] for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _remotes(settings: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for key, values in settings.items():
        section, _, rest = key.partition(".")
        name, _, item = rest.rpartition(".")
        if section == "remote" and name and item == "url":
            found.setdefault(name, {})["url"] = [without_credentials(value) for value in values]
        elif section == "remote" and name and item == "fetch":
            found.setdefault(name, {})["fetch"] = list(values)
    return {name: remote for name, remote in found.items() if "url" in remote}


def _branches(settings: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, values in settings.items():
        section, _, rest = key.partition(".")
        name, _, item = rest.rpartition(".")
        if section == "branch" and name and item in {"remote", "merge"}:
            value = without_credentials(values[-1]) if item == "remote" else values[-1]
            found.setdefault(name, {})[item] = value
    return found


def _shallow(git: Git, account: Account | None) -> tuple[str, ...]:
    with files_as(account):
        try:
            return tuple(sorted((git.folder / "shallow").read_text("ascii").split()))
        except FileNotFoundError:
            return ()


def _take_file(root: int, path: bytes, folder: PreparedFolder, base: bytes, account: Account | None) -> bool:
    """Copy a file or link of the working tree; ``False`` if it is gone by now, or no file and no link.

    Raises:
        GitCloneError: it cannot be read.
    """
    above, _, name = path.rpartition(b"/")
    target = b"/".join((base, FILES.encode(), path))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    link = b""
    try:
        with files_as(account), open_below(root, above) as opened:
            facts = os.lstat(name, dir_fd=opened)
            if stat.S_ISLNK(facts.st_mode):
                link = os.readlink(name, dir_fd=opened)
            elif not stat.S_ISREG(facts.st_mode):
                return False
            descriptor = -1 if link else os.open(name, flags, dir_fd=opened)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise GitCloneError(f"{os.fsdecode(path)!a} cannot be read: {error.strerror}") from error
    folder.make_folder(target.rpartition(b"/")[0])
    if link:
        folder.link(target, link)
        return True
    with os.fdopen(descriptor, "rb") as reading:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o777
        with os.fdopen(folder.create(target, mode | 0o600), "wb") as writing:
            while piece := reading.read(_PIECE_BYTES):
                writing.write(piece)
    return True
