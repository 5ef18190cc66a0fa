"""A repository folder of our own with copies of a clone's refs, HEAD and index, over the clone's own objects.

Git works in it as in the clone, and the clone's configuration does not exist: no filter, monitor, hook, helper or
transport that it names can run, and nothing in the clone is changed, not even its index.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from drservice import processes
from drservice.components.git.locating import Located, read_plain, require_plain_files
from drservice.components.git.program import Git, parts, program
from drservice.components.prepared import remove_left_behind
from drservice.errors import GitCloneError
from drservice.processes import Account, files_as

PREFIX = "drservice-git-"
_LARGEST_FILE = 1 << 30
_LARGEST_CONFIGURATION = 4 << 20
_LARGEST_REF = 4096
_REFS = 1_000_000
_REF_STEPS = 200
"""How many, and how deep: what names its refs folder may be a link to anywhere."""
_KNOWN_EXTENSIONS = {"objectformat", "worktreeconfig", "noop", "preciousobjects", "partialclone", "relativeworktrees"}
_SINGLE_FILES = ("packed-refs", "shallow")
_OWN_FILES = ("HEAD", "index")
_SHARED_INDEX = re.compile(r"sharedindex\.[0-9a-f]+")


@contextmanager
def shadow(
    located: Located, *, name: str, account: Account | None
) -> Iterator[tuple[Git, Mapping[str, Sequence[str]]]]:
    """Make the folder, and return git over it with the clone's configuration as plain text.

    It lies in the system's folder for such things, because the clone's owner has to reach it; what a crash left there
    goes with the next one.

    Raises:
        GitCloneError: the clone cannot be read, or uses what this version of git may not know.
    """
    above = Path(tempfile.gettempdir())
    remove_left_behind(above, f"{PREFIX}{name}-")
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=above))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if account is not None:
            os.fchown(held, account.uid, account.gid)
        with files_as(account):
            settings = read_settings(located, account)
            require_plain_files(located)
            try:
                _fill(folder, located, settings)
            except OSError as error:
                raise GitCloneError(f"{located.path} cannot be read: {error.filename}: {error.strerror}") from error
        yield (
            Git(
                name=str(located.path),
                folder=folder,
                work_tree=located.work_tree,
                objects=located.common / "objects",
                account=account,
            ),
            settings,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def read_settings(located: Located, account: Account | None) -> dict[str, list[str]]:
    """Return a clone's own configuration as text: names in lower case but for their middle part, values in order.

    Git reads the one file and nothing it includes; reading runs nothing.
    """
    path = located.common / "config"
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise GitCloneError(f"{path} is no ordinary file")
        content = read_plain(path, most=_LARGEST_CONFIGURATION)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GitCloneError(f"{path} cannot be read: {error.strerror}") from error
    finished = processes.run(
        [program(), "config", "--file", "-", "--no-includes", "--null", "--list"],
        account=account,
        environment=processes.clean_environment({"HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}),
        stdin=content,
        timeout_seconds=60,
    )
    if finished.status != 0:
        raise GitCloneError(f"{path} cannot be understood: {finished.last_line()[:200]}")
    found: dict[str, list[str]] = {}
    for item in parts(finished.stdout):
        key, _, value = item.decode("utf-8", "surrogateescape").partition("\n")
        found.setdefault(key, []).append(value)
    return found


def object_format(settings: Mapping[str, Sequence[str]]) -> str:
    """Return which hash names the objects of a clone."""
    return settings.get("extensions.objectformat", ["sha1"])[-1]


def _fill(folder: Path, located: Located, settings: Mapping[str, Sequence[str]]) -> None:
    extensions = {
        key.partition(".")[2]: values[-1] for key, values in settings.items() if key.startswith("extensions.")
    }
    unknown = sorted(set(extensions) - _KNOWN_EXTENSIONS)
    if unknown or object_format(settings) not in {"sha1", "sha256"}:
        named = ", ".join(unknown) or f"objectformat {object_format(settings)!r}"
        raise GitCloneError(f"{located.path} uses what this version does not know ({named}): it is not captured")
    if "partialclone" in extensions or any(key.endswith(".promisor") for key in settings):
        raise GitCloneError(
            f"{located.path} is a partial clone: objects are missing in it, and nothing is fetched for a backup",
            hint="Make it whole: git fetch --refetch --no-filter, or clone it anew without --filter.",
        )
    newer = object_format(settings) == "sha256"
    bare = str(located.work_tree is None).lower()
    text = f"[core]\n\trepositoryformatversion = {int(newer)}\n\tbare = {bare}\n"
    (folder / "config").write_text(text + ("[extensions]\n\tobjectformat = sha256\n" if newer else ""))
    (folder / "objects").mkdir()
    (folder / "refs").mkdir()
    (folder / "info").mkdir()
    for name in _SINGLE_FILES:
        _copy(located.common / name, folder / name)
    for name in _OWN_FILES:
        _copy(located.own / name, folder / name)
    for item in located.own.iterdir():
        if _SHARED_INDEX.fullmatch(item.name):
            _copy(item, folder / item.name)
    for name in ("exclude", "attributes"):
        _copy(located.common / "info" / name, folder / "info" / name)
    _copy_refs(located.common / "refs", folder / "refs")


def _copy_refs(source: Path, target: Path) -> None:
    waiting, count = [(source, target, 0)], 0
    while waiting:
        folder, made, depth = waiting.pop()
        for item in sorted(folder.iterdir()):
            count += 1
            if count > _REFS or depth > _REF_STEPS:
                raise GitCloneError(f"{source} holds more than {_REFS} refs, or folders deeper than {_REF_STEPS}")
            if item.name.endswith(".lock"):
                continue
            if item.is_dir() and not item.is_symlink():
                (made / item.name).mkdir()
                waiting.append((item, made / item.name, depth + 1))
            else:
                _copy(item, made / item.name, most=_LARGEST_REF)


def _copy(source: Path, target: Path, *, most: int = _LARGEST_FILE) -> None:
    """Copy a plain file; a ref that is a link (as git once made them) becomes one that names its target."""
    try:
        facts = source.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(facts.st_mode):
        named = os.fspath(source.readlink())
        if named.startswith("refs/"):
            target.write_text(f"ref: {named}\n")
        return
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        return
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)
    # Git compares a file with the index once more if it was changed at the time the index was written or later.
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
