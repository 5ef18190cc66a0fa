"""Where the parts of a clone are: an ordinary clone, a bare one, a linked worktree, a submodule.

Nothing of git runs here: files are read with the owner's rights, and what is not as it must be is told in clear words.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from drservice.errors import GitCloneError

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
    content = inside.read_bytes() if facts.st_size <= _LARGEST_POINTER else b""
    pointer = _POINTER.fullmatch(content)
    if pointer is None:
        raise GitCloneError(f"{path} is no git clone: .git is neither a folder nor names one")
    return (path / os.fsdecode(pointer[1])).resolve()


def _common_folder(own: Path) -> Path:
    pointer = own / "commondir"
    if not pointer.exists():
        return own
    if pointer.stat().st_size > _LARGEST_POINTER:
        raise GitCloneError(f"{pointer} is no path")
    return (own / os.fsdecode(pointer.read_bytes().rstrip(b"\n"))).resolve()
