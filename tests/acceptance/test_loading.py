"""What a command loads before it does anything: every module costs each call of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SHOW = "import sys, drservice.cli.{0}; print(*(name for name in sys.modules if name.startswith('drservice.')))"
_SELDOM = {
    "drservice.checks.suite": "drills",
    "drservice.operations.drill": "drills",
    "drservice.operations.drillrecord": "drills",
    "drservice.operations.lossreport": "services with Odoo",
    "drservice.operations.neutralizing": "--neutralize",
    "drservice.operations.inplace": "--in-place",
    "drservice.operations.preparedrestore": "clones and Redis",
    "drservice.operations.preparedbackup": "clones and Redis",
    "drservice.components.odoo.gathering": "services with Odoo",
}


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("restore", {**_SELDOM, "drservice.repository.writer": "backups"}),
        ("backup", _SELDOM),
    ],
)
def test_a_command_loads_nothing_that_only_others_need(command: str, without: dict[str, str]) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", _SHOW.format(command)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name: without[name] for name in loaded if name in without} == {}
