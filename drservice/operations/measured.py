"""What restores on this host have shown: rates for an estimate, and when recovery was last proved.

A small file per component in ``state_dir``; losing it costs an estimate. (The ledger, which proves it to others, is
another matter.)
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from drservice.processes import inherit_owner, make_folder
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

    def estimate(self, *, source_bytes: int, segments: int) -> float:
        """Return the seconds a restore of this size would take at the measured rates."""
        fetch = self.fetch_seconds * source_bytes / max(1, self.restored_bytes)
        replay = self.replay_seconds * segments / max(1, self.wal_segments)
        return fetch + replay + self.other_seconds


def _path(state_dir: Path, scope: Scope) -> Path:
    return state_dir / "measured" / f"{scope.service}-{scope.component}.json"


def remember(state_dir: Path, scope: Scope, measured: Measured) -> None:
    """Keep the outcome of a proven restore."""
    path = _path(state_dir, scope)
    make_folder(path.parent)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(measured)), encoding="utf-8")
    inherit_owner(temporary)
    temporary.replace(path)


def recall(state_dir: Path, scope: Scope) -> Measured | None:
    """Return the last proven restore on this host, ``None`` if there was none (or the file is unreadable)."""
    try:
        content = json.loads(_path(state_dir, scope).read_text(encoding="utf-8"))
        return Measured(**content)
    except (FileNotFoundError, ValueError, TypeError):
        return None
