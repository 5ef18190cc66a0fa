"""What restores on this host have shown: rates for an estimate, and when recovery was last proved.

A small file per component in ``state_dir``; losing it costs an estimate. (The ledger, which proves it to others, is
another matter.)
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from drservice import telemetry
from drservice.processes import create_private, make_folder
from drservice.repository.records import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The last proven restore of a component."""

    restored_at: str
    snapshot: str
    target: str
    restored_bytes: int
    fetch_seconds: float
    wal_segments: int
    replay_seconds: float
    other_seconds: float
    proved: bool = True
    """Whether recovery was proved: not by a drill, which has a verdict of its own, nor with anything missing."""

    def estimate(self, *, source_bytes: int, segments: int) -> float:
        """Return the seconds a restore of this size would take at the measured rates."""
        fetch = self.fetch_seconds * source_bytes / max(1, self.restored_bytes)
        replay = self.replay_seconds * segments / max(1, self.wal_segments)
        return fetch + replay + self.other_seconds


def _path(state_dir: Path, scope: Scope) -> Path:
    return state_dir / "measured" / f"{scope.service}-{scope.component}.json"


def remember(state_dir: Path, scope: Scope, measured: Measured) -> None:
    """Keep the outcome of a proven restore; a disk that does not take it costs the next estimate, never the restore."""
    path = _path(state_dir, scope)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        make_folder(path.parent)
        try:
            with os.fdopen(create_private(temporary), "w", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(measured)))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        telemetry.warning("measured restore not kept", path=str(path), problem=str(error))


def recall(state_dir: Path, scope: Scope) -> Measured | None:
    """Return the last proven restore on this host, ``None`` if there was none (or the file is unreadable)."""
    try:
        content = json.loads(_path(state_dir, scope).read_text(encoding="utf-8"))
        return Measured(**content)
    except (FileNotFoundError, ValueError, TypeError):
        return None
