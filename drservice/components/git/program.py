"""Running git over repositories that somebody else made.

A repository's own configuration names programs: filters, hooks, a file system monitor, text converters, credential
helpers, transports. None of it is ever read. Every command works on a repository folder of our own (``shadow``), or one
that we make (``rebuilding``); of the clone it is given data only: objects, refs, the index, the working tree. What is
said here again (no system or user configuration, no hooks, no protocols) is a second belt.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.errors import GitCloneError
from drservice.processes import Account

_SECONDS = 4 * 3600.0
_SHOWN = 300
FENCE = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "core.excludesFile=/dev/null",
    "-c", "core.pager=cat",
    "-c", "protocol.allow=never",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
)  # fmt: skip
_VARIABLES = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_LITERAL_PATHSPECS": "1",
    "HOME": "/nonexistent",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """One repository folder of our own, and whose rights git has there."""

    name: str
    """How messages call the clone."""
    folder: Path
    work_tree: Path | None
    objects: Path | None = None
    """The clone's objects; ``None`` = those in ``folder``."""
    account: Account | None = None

    def run(self, *words: str | Path, stdin: bytes | None = None) -> bytes:
        """Run a command and return what it wrote.

        Raises:
            GitCloneError: it failed, with what it said.
            ProgramMissingError: git is not installed.
        """
        finished = processes.run(
            [program(), *FENCE, *words],
            account=self.account,
            environment=self._environment(),
            cwd=self._place(),
            stdin=stdin,
            timeout_seconds=_SECONDS,
        )
        if finished.status != 0:
            raise self._failed(words, finished.status, finished.stderr)
        return finished.stdout

    def write(self, descriptor: int, *words: str | Path) -> None:
        """Run a command whose output goes into an open file.

        Raises:
            GitCloneError, ProgramMissingError: as :meth:`run`.
        """
        with os.fdopen(os.dup(descriptor), "wb") as file:
            process = processes.start(
                [program(), *FENCE, *words],
                account=self.account,
                environment=self._environment(),
                cwd=self._place(),
                stdout=file,
                stderr=subprocess.PIPE,
            )
        _, said = self._ended(process, words)
        if process.returncode != 0:
            raise self._failed(words, process.returncode, said)

    def read(self, descriptor: int, *words: str | Path) -> bytes:
        """Run a command whose input is an open file, from its beginning; return what it wrote.

        Raises:
            GitCloneError, ProgramMissingError: as :meth:`run`.
        """
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            process = processes.start(
                [program(), *FENCE, *words],
                account=self.account,
                environment=self._environment(),
                cwd=self._place(),
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        output, said = self._ended(process, words)
        if process.returncode != 0:
            raise self._failed(words, process.returncode, said)
        return output

    def _ended(self, process: subprocess.Popen[bytes], words: Sequence[str | Path]) -> tuple[bytes, bytes]:
        try:
            return process.communicate(timeout=_SECONDS)
        except BaseException as error:
            processes.kill_group(process)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise GitCloneError(f"{self.name}: git {words[0]} did not end within {_SECONDS:.0f} s") from None
            raise

    def _environment(self) -> dict[str, str]:
        variables = {**_VARIABLES, "GIT_DIR": str(self.folder), "GIT_INDEX_FILE": str(self.folder / "index")}
        if self.work_tree is not None:
            variables["GIT_WORK_TREE"] = str(self.work_tree)
        if self.objects is not None:
            variables["GIT_OBJECT_DIRECTORY"] = str(self.objects)
        return processes.clean_environment(variables)

    def _place(self) -> Path:
        return self.work_tree if self.work_tree is not None else self.folder

    def _failed(self, words: Sequence[str | Path], status: int, said: bytes) -> GitCloneError:
        text = " ".join(said.decode("utf-8", "replace").split())[-_SHOWN:]
        return GitCloneError(f"{self.name}: git {words[0]} ended with {status}: {text or 'it said nothing'}")


def program() -> Path:
    """Return where git is.

    Raises:
        ProgramMissingError: it is not installed.
    """
    return processes.find_program("git", package="git")


def parts(output: bytes) -> list[bytes]:
    """Return what a command wrote with ``-z``."""
    return [item for item in output.split(b"\0") if item]
