"""Drills that are under way on this host, so that one whose process died does not vanish from the record.

A file per drill in ``state_dir/drills``, locked by the process that runs it. A file without its lock is a drill whose
process is gone: the next drill removes its environment and puts it on record as aborted. The file is there before the
obligation is: whatever the ledger says of a drill, its seed is known here.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from drservice.errors import LedgerError
from drservice.model.ids import EnvironmentId
from drservice.processes import create_private, make_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A drill whose obligation is about to be put on record, or is, and whose outcome is not."""

    obligation: str
    known_size: int
    """The ledger had at least this many entries: neither obligation nor outcome stands at one of them."""
    service: str
    plan: str
    plan_sha256: str
    requested: str
    kind: str
    seed: str | None
    mutation: str | None
    rto_ms: int | None
    rpo_ms: int | None


def _folder(state_dir: Path) -> Path:
    return state_dir / "drills"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A drill whose process is gone."""

    drill: UnderWay
    environments: tuple[EnvironmentId, ...]
    """What it had made; whether anything is left of it nobody knows yet."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The file of one drill under way."""

    _descriptor: int

    def note(self, environment: EnvironmentId) -> None:
        """Add an environment that the drill has made and that must not outlive it.

        Raises:
            LedgerError: this host's disk does not take it.
        """
        self._write({"environment": environment})

    def begin(self, drill: UnderWay) -> None:
        """Write what is known before the obligation is put on record."""
        self._write(asdict(drill))

    def _write(self, line: dict[str, object]) -> None:
        try:
            os.write(self._descriptor, json.dumps(line).encode("utf-8") + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(f"cannot note the drill under way: {error.strerror}") from error


@contextmanager
def under_way(state_dir: Path, drill: UnderWay) -> Iterator[Journal]:
    """Keep a drill in the journal while the block runs; if the block does not end well, it stays there as an orphan.

    Raises:
        LedgerError: this host's disk does not take it.
    """
    path = _folder(state_dir) / f"{drill.obligation}.json"
    fresh = path.with_suffix(".new")
    try:
        make_folder(path.parent)
        descriptor = create_private(fresh)
    except OSError as error:
        raise LedgerError(f"cannot keep the drill in {path}: {error.strerror}") from error
    try:
        # Locked and whole before it has the name that others look for: nobody takes it for an orphan.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        journal = Journal(descriptor)
        journal.begin(drill)
        _rename(fresh, path)
        yield journal
        path.unlink()
    finally:
        os.close(descriptor)


def _rename(fresh: Path, path: Path) -> None:
    try:
        fresh.rename(path)
    except OSError as error:
        raise LedgerError(f"cannot keep the drill in {path}: {error.strerror}") from error


@contextmanager
def orphans(state_dir: Path) -> Iterator[list[Orphan]]:
    """Yield the drills whose process is gone, oldest first; they leave the journal when the block ends well."""
    held: list[tuple[int, Path]] = []
    found: list[Orphan] = []
    try:
        for path in sorted(_folder(state_dir).glob("*.json")):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                if not _take(descriptor):
                    os.close(descriptor)
                    continue
                held.append((descriptor, path))
                orphan = _read(path)
                if orphan is not None:
                    found.append(orphan)
        yield found
        for _, path in held:
            path.unlink(missing_ok=True)
    finally:
        for descriptor, _ in held:
            os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Return whether an opened file is an orphan of ours now: its drill does not run, and nobody else took it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0  # whoever had it before has put it on record and removed it


def _read(path: Path) -> Orphan | None:
    """Read a file of the journal; one whose first line was cut off holds nothing: its obligation was not on record yet.

    A last line that was cut off is an environment in which nothing was started: the reaper knows it by its maker.

    Raises:
        LedgerError: it is whole and cannot be understood: another version of drservice may have written it.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if not lines:
        return None
    try:
        first, *rest = (json.loads(line) for line in lines)
        return Orphan(
            drill=UnderWay(**first), environments=tuple(EnvironmentId(str(line["environment"])) for line in rest)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(
            f"the note of a drill in {path} cannot be understood: {error}",
            hint="It is of a drill that did not end, perhaps of another version of drservice. See what became of it"
            " (`drservice environment list`, `drservice evidence list`), then remove the file.",
        ) from error
