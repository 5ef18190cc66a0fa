"""Where the parts of a clone are: an ordinary clone, a bare one, a linked worktree, a submodule.

Nothing of git runs here: files are read with the owner's rights, and what is not as it must be is told in clear words.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from drservice.errors import GitCloneError

_ASKED_BY_GIT = frozenset({".gitattributes", ".gitignore"})
_POINTER = re.compile(rb"gitdir: ([^\0\n]+)\n*")
_LARGEST_POINTER = 4096 + 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A clone's folders. ``common`` holds refs and objects, ``own`` HEAD and index: one folder but for worktrees."""

    path: Path
    own: Path
    common: Path
    work_tree: Path | None
    """``None`` for a bare repository."""


def locate(path: Path) -> Located:
    """Find the parts of the clone at ``path``.

    Raises:
        GitCloneError: there is none, or it cannot be read.
    """
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise GitCloneError(f"{path} is no folder")
        own = _git_folder(path)
        common = _common_folder(own)
        for needed in (own / "HEAD", common / "objects", common / "refs"):
            if not os.path.lexists(needed):
                raise GitCloneError(f"{path} is no git clone: {needed} is not there", hint="Correct `clones`.")
    except OSError as error:
        raise GitCloneError(f"{path} cannot be looked at: {error.strerror}") from error
    return Located(path=path, own=own, common=common, work_tree=None if own == path else path)


def _git_folder(path: Path) -> Path:
    inside = path / ".git"
    try:
        facts = inside.stat()
    except FileNotFoundError:
        if (path / "HEAD").exists() and (path / "objects").is_dir():
            return path
        raise GitCloneError(f"{path} is no git clone: it has no .git", hint="Correct `clones`.") from None
    if stat.S_ISDIR(facts.st_mode):
        return inside.resolve()
    pointer = _POINTER.fullmatch(read_plain(inside, most=_LARGEST_POINTER))
    if pointer is None:
        raise GitCloneError(f"{path} is no git clone: .git is neither a folder nor names one")
    return (path / os.fsdecode(pointer[1])).resolve()


def _common_folder(own: Path) -> Path:
    pointer = own / "commondir"
    if not pointer.exists():
        return own
    return (own / os.fsdecode(read_plain(pointer, most=_LARGEST_POINTER).rstrip(b"\n"))).resolve()


def read_plain(path: Path, *, most: int) -> bytes:
    """Read a file that is one: a pipe would be waited for without end, and a device has no end.

    Raises:
        GitCloneError: it is something else, or larger.
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise GitCloneError(f"{path} is no plain file")
        content = file.read(most + 1)
    if len(content) > most:
        raise GitCloneError(f"{path} is larger than {most} bytes")
    return content


def require_plain_files(located: Located) -> None:
    """Refuse pipes and devices where git opens whatever has the name: it would wait for them without end.

    Raises:
        GitCloneError: there is one, or a folder is too deep to be looked at.
    """
    try:
        for entry in _entries(located.common / "objects"):
            if entry.is_symlink() and not Path(entry.path).exists():
                continue
            if not entry.is_file():
                raise GitCloneError(f"{entry.path} is neither a file nor a folder")
        for entry in _entries(located.work_tree) if located.work_tree is not None else ():
            plain = entry.is_file(follow_symlinks=False) or entry.is_symlink()
            if entry.name in _ASKED_BY_GIT and not plain:
                raise GitCloneError(f"{entry.path} is neither a file nor a folder")
    except OSError as error:
        raise GitCloneError(f"{error.filename} cannot be looked at: {error.strerror}") from error


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is no folder below a folder, through no link and into no other clone's own folder."""
    waiting = [os.fspath(root)]
    while waiting:
        # What vanished meanwhile, or is closed to the clone's owner, git does not open either.
        with suppress(FileNotFoundError, PermissionError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif entry.name != ".git":
                    waiting.append(entry.path)
