"""The README's tables of crashes and of the stream are the ones that their results make."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_tables_of_the_results_that_are_committed() -> None:
    report = load("report")
    crash = load("crashreport")
    part = crash.table(json.loads(crash.RESULT.read_text()))
    part += f"\n\n{crash.stream_table(json.loads(crash.STREAM.read_text()))}"
    readme = crash.README.read_text()
    assert report.readme_with(readme, part, crash.MARKERS) == readme, "run benchmarks/crashreport.py"


def test_what_was_lost_is_told_with_its_age_and_nothing_is_said_of_the_age_of_nothing() -> None:
    load("report")
    crash = load("crashreport")
    row = {
        "title": "stream", "repetitions": 2, "promised": 1200, "commits_per_second": 300.0, "lost": 7,
        "lost_seconds_p50": 0.2, "lost_seconds_most": 0.41, "restore_seconds": 4.0,
    }  # fmt: skip
    told = crash.table({"rows": [row, {**row, "title": "sync", "lost": 0}], "made_at": "2026-11-27T00", "seed": 3})
    assert "| stream | 2 | 1,200 (300/s) | 7 | p50 0.20 s, most 0.41 s | 4.0 s |" in told
    assert "| sync | 2 | 1,200 (300/s) | 0 | none | 4.0 s |" in told
