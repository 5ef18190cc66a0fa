"""A command that stays hears that it is to end, whatever becomes of its configuration file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Never

import pytest

from drservice.cli import longrunning
from drservice.cli.longrunning import ConfigurationWatcher, Loaded
from tests.doubles.estate import wait_for


def test_a_file_that_cannot_even_be_judged_neither_ends_the_watch_nor_hides_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def judge(path: Path) -> Never:
        asked.append(path)
        raise RecursionError("a defect")

    monkeypatch.setattr(longrunning, "_CONFIGURATION_SECONDS", 0.01)
    monkeypatch.setattr(longrunning, "load_settled", judge)
    path = tmp_path / "drservice.yaml"
    path.write_text("version: 1\n")
    end, renew = threading.Event(), threading.Event()
    watcher = ConfigurationWatcher(path, Loaded.__new__(Loaded), end=end, renew=renew)
    watcher.latest.stamp = "an earlier one"
    watcher.start()
    wait_for(lambda: bool(asked), "a look at the file")
    assert not renew.wait(0.05)
    assert len(asked) == 1, "it is not judged again before it changes"
    end.set()
    assert renew.wait(5.0)
    watcher.join()
