"""``drservice config plan`` as a process: its sides, its statuses, its refusals. What it prints: golden files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "drservice")
FILE = """\
version: 1
repository: {url: 'file:///r'}
services:
  erp:
    components:
      database: {kind: postgres, dsn: host=db1}
    schedule: {backup: "0 1 * * *"}
"""
WEAKER = FILE.replace('    schedule: {backup: "0 1 * * *"}\n', "")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "drservice.yaml", tmp_path / "changed.yaml"
    for path, text in zip(paths, (FILE, WEAKER), strict=True):
        path.write_text(text)
        path.chmod(0o640)
    return paths


def plan(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = (*PROGRAM, "config", "plan", *map(str, words))
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_a_change_that_weakens_is_status_4_and_the_way_back_is_0(files: tuple[Path, Path], tmp_path: Path) -> None:
    current, changed = files
    weaker = plan("--json", "--config", current, "--against", changed, cwd=tmp_path)
    assert weaker.returncode == 4
    document = json.loads(weaker.stdout)
    assert document["schema"] == "drservice/config-plan/v1"
    assert (document["before"], document["after"]) == (str(current), str(changed))
    assert [item["path"] for item in document["unprotected"]] == ["services.erp.schedule.backup"]
    back = plan("--json", "--config", current, "--from", changed, cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    document = json.loads(back.stdout)
    assert (document["before"], document["after"]) == (str(changed), str(current))
    assert [(item["change"], len(item["after"]["slots"])) for item in document["schedules"]] == [("added", 5)]


def test_without_another_file_the_next_slots_are_shown(files: tuple[Path, Path], tmp_path: Path) -> None:
    shown = plan("--config", files[0], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "erp backup: `0 1 * * *` in UTC" in shown.stdout
    assert shown.stdout.count("at once") == 5
    assert "erp: nothing starts verify or drill by itself" in shown.stdout


def test_an_invalid_changed_file_is_status_2_with_its_places(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[1].write_text(FILE.replace("0 1 * * *", "0 25 * * *"))
    refused = plan("--config", files[0], "--against", files[1], cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{files[1]}:7:24: services.erp.schedule.backup: the hour field" in refused.stderr


def test_two_other_files_are_one_too_many(files: tuple[Path, Path], tmp_path: Path) -> None:
    refused = plan("--config", files[0], "--against", files[1], "--from", files[1], cwd=tmp_path)
    assert refused.returncode == 2
    assert "exclude each other" in refused.stderr


def test_without_another_file_the_repository_is_not_asked(files: tuple[Path, Path], tmp_path: Path) -> None:
    refused = plan("--config", files[0], "--stored", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--stored needs another file" in refused.stderr
