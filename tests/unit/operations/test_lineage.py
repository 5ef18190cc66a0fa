"""Which cluster is believed is written down so that no power cut leaves half of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice.operations.lineage import Lineage
from tests.doubles.repositories import SYSTEM_ID, Site


def test_the_pin_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file under its name would stop archiving until somebody looks."""
    site = Site.create(tmp_path)
    site.state_dir.mkdir(parents=True, exist_ok=True)
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def syncing(file: int) -> None:
        fsync(file)
        done.append(f"{os.fstat(file).st_size} bytes on disk")

    def naming(path: Path, target: Path) -> Path:
        done.append("named")
        return replace(path, target)

    lineage = Lineage(site.repository(), site.scope, site.state_dir)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", naming)
    lineage.pin(SYSTEM_ID)
    [pin] = site.state_dir.glob("pins/*.json")
    assert done == [f"{pin.stat().st_size} bytes on disk", "named"]
    assert lineage.pinned() == SYSTEM_ID
