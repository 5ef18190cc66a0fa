"""Drills that are under way on this host, so that one whose process died does not vanish from the record.

A file per drill in ``state_dir/drills``, locked by the process that runs it. A file without its lock is a drill whose
process is gone: the next drill puts it on record as aborted.
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
from drservice.processes import make_folder, open_private


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A drill whose obligation is on record and whose outcome is not."""

    obligation: str
    obligation_entry: int
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


@contextmanager
def under_way(state_dir: Path, drill: UnderWay) -> Iterator[None]:
    """Keep a drill in the journal while the block runs; it is taken out at the end, whatever happened in the block.

    Raises:
        LedgerError: this host's disk does not take it.
    """
    path = _folder(state_dir) / f"{drill.obligation}.json"
    try:
        make_folder(path.parent)
        descriptor = open_private(path)
    except OSError as error:
        raise LedgerError(f"cannot keep the drill in {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(asdict(drill)).encode("utf-8"))
        os.fsync(descriptor)
        yield
        path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def orphans(state_dir: Path) -> Iterator[list[UnderWay]]:
    """Yield the drills whose process is gone, oldest first; they leave the journal when the block ends well."""
    held: list[tuple[int, Path]] = []
    found: list[UnderWay] = []
    try:
        for path in sorted(_folder(state_dir).glob("*.json")):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue  # it runs
                held.append((descriptor, path))
                drill = _read(path)
                if drill is not None:
                    found.append(drill)
        yield found
        for _, path in held:
            path.unlink(missing_ok=True)
    finally:
        for descriptor, _ in held:
            os.close(descriptor)


def _read(path: Path) -> UnderWay | None:
    """Read a file of the journal; one that was cut off holds nothing: its obligation stays open in the ledger."""
    try:
        return UnderWay(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
