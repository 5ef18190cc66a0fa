"""What the keeper of an environment does when a limit is broken, in which order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drservice.environments import keeper
from drservice.environments.limits import BrokenLimit, LimitKind


class Endless:
    """A program that lives until it is killed."""

    pid = 1
    status: int | None = None

    def poll(self) -> int | None:
        return self.status


class Broken:
    """A watch that sees a broken limit at once."""

    def look(self) -> BrokenLimit:
        return BrokenLimit(limit=LimitKind.DISK, detail="2 MB of 1 MB")


def test_a_broken_limit_is_on_disk_before_anything_is_killed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees the server end may ask why at once."""
    (tmp_path / "keeper").mkdir()
    program, told = Endless(), []

    def kill(root: Path, _: object) -> None:
        told.append(json.loads((root / "keeper" / keeper.BROKEN).read_text()))
        program.status = -9

    monkeypatch.setattr(keeper, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "_kill_everything", kill)
    found = keeper._watch_until_its_end(tmp_path, Broken(), program, None)  # type: ignore[arg-type] # doubles
    assert found == Broken().look()
    assert told[0] == {"limit": LimitKind.DISK.value, "detail": "2 MB of 1 MB"}
