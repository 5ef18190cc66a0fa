"""Clones for tests, made with git itself, and what has to be the same in two of them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from drservice.components.git.capture import PreparedClones, prepare_clones
from drservice.components.git.rebuilding import rebuild_clones
from drservice.components.prepared import prepared_folder

_VARIABLES = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.com",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.com",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "protocol.file.allow",
    "GIT_CONFIG_VALUE_0": "always",
    "GIT_CONFIG_KEY_1": "safe.directory",
    "GIT_CONFIG_VALUE_1": "*",
}


def git(folder: Path, *words: str | Path, status: int = 0) -> str:
    done = subprocess.run(
        ["git", *map(str, words)], cwd=folder, env=_VARIABLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, f"git {words}: {done.stdout}{done.stderr}"
    return done.stdout


def commit(folder: Path, name: str, content: str | bytes, message: str = "change") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    git(folder, "add", "--", name)
    git(folder, "commit", "-q", "-m", message)


def make(path: Path, *words: str) -> Path:
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main", *words)
    return path


def seen(clone: Path) -> dict[str, object]:
    """What a clone is: HEAD, refs, index, what is not committed, and every file of the working tree."""
    return {
        "head": (clone / ".git" / "HEAD").read_text() if (clone / ".git").is_dir() else git(clone, "rev-parse", "HEAD"),
        "refs": git(clone, "for-each-ref", "--format=%(objectname) %(refname) %(symref)"),
        "index": git(clone, "ls-files", "--stage"),
        "status": git(clone, "status", "--porcelain=v1", "--untracked-files=all"),
        "files": {
            str(item.relative_to(clone)): os.readlink(item)  # noqa: PTH115 - the text itself
            if item.is_symlink()
            else (item.read_bytes(), bool(stat.S_IMODE(item.stat().st_mode) & 0o100))
            for item in sorted(clone.rglob("*"))
            if ".git" not in item.relative_to(clone).parts and (item.is_symlink() or item.is_file())
        },
    }


def taken(clones: list[Path], room: Path) -> tuple[PreparedClones, Path]:
    """Prepare clones and make them again below ``room``; return what was prepared and where they are."""
    made = room / "made"
    made.mkdir(parents=True)
    with prepared_folder(room / "state", "erp.code") as folder:
        prepared = prepare_clones(clones, folder, name="erp.code")
        rebuild_clones(folder.path, made, account=None)
    return prepared, made
