"""The README's table and chart of the race, as made from its result."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("race_report", ROOT / "benchmarks/report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


report = load()


def result() -> dict[str, Any]:
    def samples(*seconds: float, stored: int, memory: int) -> list[dict[str, float]]:
        more = {"stored_bytes": stored, "largest_process_bytes": memory}
        return [{"seconds": value, **more} for value in seconds]

    runs = {
        "full": {
            "drservice": samples(2.0, 3.0, stored=330_000_000, memory=120_000_000),
            "pgbackrest": samples(4.0, 6.0, stored=320_000_000, memory=20_000_000),
        },
        "push": {
            "drservice": [{"seconds": 4.0, "segments_per_second": 50.0}],
            "pgbackrest": [{"seconds": 10.0, "segments_per_second": 20.0}],
        },
    }
    medians = {
        "full": {
            "drservice": {
                "median_seconds": 2.5,
                "median_stored_bytes": 330_000_000,
                "median_largest_process_bytes": 120_000_000,
            },
            "pgbackrest": {
                "median_seconds": 5.0,
                "median_stored_bytes": 320_000_000,
                "median_largest_process_bytes": 20_000_000,
            },
        },
        "push": {
            "drservice": {"median_seconds": 4.0, "median_segments_per_second": 50.0},
            "pgbackrest": {"median_seconds": 10.0, "median_segments_per_second": 20.0},
        },
    }
    return {
        "measured_at": "2026-11-26T23:40:00+00:00",
        "quiet": True,
        "machine": {"cores": 2, "processor": "a processor <of some kind>"},
        "versions": {"drservice": "drservice 0.1.0", "pgbackrest": "pgBackRest 2.55.1", "postgres": "15.18 (Debian)"},
        "rounds": 2,
        "source_bytes": 2_200_000_000,
        "stores": {"directory": {row: {"programs": programs} for row, programs in medians.items()}},
        "samples": {"directory": runs},
    }


def test_a_row_tells_both_medians_their_range_the_share_and_what_was_stored() -> None:
    full = next(line for line in report.table(result()).splitlines() if line.startswith("| first backup"))
    assert full == (
        "| first backup | folder | 2.50 s (2.00-3.00) | 5.00 s (4.00-6.00) | **0.50** | 330 / 320 MB | 120 / 20 MB |"
    )


def test_requests_are_a_column_where_a_bucket_was_raced_and_are_empty_for_a_folder() -> None:
    told = result()
    told["stores"]["s3"] = told["stores"]["directory"]
    told["samples"]["s3"] = told["samples"]["directory"]
    told = json.loads(json.dumps(told))
    for name, requests in (("drservice", 92), ("pgbackrest", 54)):
        told["stores"]["s3"]["full"]["programs"][name]["median_requests"] = requests
    head, line, folder, *_ = report.table(told).splitlines()
    bucket = next(row for row in report.table(told).splitlines() if row.startswith("| first backup | S3"))
    assert head.endswith("| memory of a process | requests |")
    assert line.count("---") == head.count(" | ") + 1
    assert folder.endswith("| 120 / 20 MB |  |")
    assert bucket.endswith("| 120 / 20 MB | 92 / 54 |")
    assert "requests" not in report.table(result())


def test_a_program_that_takes_part_in_few_rows_is_told_of_below_the_table() -> None:
    told = result()
    told["versions"]["barman-cloud"] = "barman-cloud 3.13.3"
    told["stores"]["s3"] = {
        "full": {"programs": {"barman-cloud": {"median_seconds": 12.34, "median_stored_bytes": 2_100_000_000}}},
        "restore": {"programs": {"barman-cloud": {"median_placed_seconds": 9.5, "median_answering_seconds": 11}}},
    }
    assert (
        "barman-cloud 3.13.3, neither compressed nor encrypted: first backup (S3) 12.3 s, 2100 MB;"
        " restore, files in place (S3) 9.50 s; restore, server answers (S3) 11.0 s."
    ) in report.table(told).splitlines()
    assert "barman" not in report.table(result())


def load_peers() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("racepeers")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_request_in_the_log_of_the_bucket_is_counted_once(tmp_path: Path) -> None:
    log = tmp_path / "rclone.log"
    said = (
        "CREATE OBJECT: race x/y", "GET OBJECT Bucket: race Object: x/y", "HEAD OBJECT race x/y", "HEAD BUCKET race",
        "LIST BUCKET", 'bucketname: race prefix: prefix:"x/" page: {Marker: HasMarker:false MaxKeys:1000}',
        "Listed 1 keys from 1 directories (truncated=false)", "initiate multipart upload race x/y",
        "put multipart upload race x/y 1", "complete multipart upload race x/y 1", "DELETE: race x/y",
    )  # fmt: skip
    log.write_text("".join(f"2026/11/27 02:38:01 DEBUG : serve s3: {line}\n" for line in said))
    nowhere = tmp_path / "nowhere"
    bucket = load_peers().Bucket(name="race", address="", key="", secret="", certificate=nowhere, root=nowhere, log=log)
    assert bucket.requests() == {"put": 4, "get": 1, "head": 2, "list": 1, "delete": 1}


def test_rows_that_were_not_raced_are_left_out_and_a_busy_machine_is_not_kept_quiet() -> None:
    busy = {**result(), "quiet": False}
    assert "restore" not in report.table(busy)
    assert "these numbers mean little" in report.table(busy)
    assert "these numbers mean little" not in report.table(result())


def test_the_chart_draws_rates_as_time_so_that_less_is_better_everywhere() -> None:
    root = ET.fromstring(report.chart(result()))  # it would not parse with an unescaped <
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "0.50" in shown
    assert "0.40" in shown, "20 segments a second against 50"
    assert "50.0 against 20.0 segments/s" in shown


def test_ten_times_the_size_is_a_sentence_with_the_memory() -> None:
    large = {**result(), "rounds": 1, "source_bytes": 20_400_000_000}
    assert report.large_text(large).startswith(
        "At 20 GB in a folder, 2026-11-26, one round: first backup 2.50 s against 5.00 (**0.50**), memory 120 / 20 MB"
    )


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.readme_with(text, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="no place for the table"):
        report.readme_with("before\nafter\n", "new")


@pytest.mark.skipif(not report.RESULT.exists(), reason="the race was not run on a quiet machine yet")
def test_the_readme_and_the_chart_are_what_the_committed_result_makes_of_them() -> None:
    committed = json.loads(report.RESULT.read_text())
    assert committed["quiet"], "a result of a busy machine is none"
    readme = report.README.read_text()
    large = json.loads(report.LARGE.read_text())
    assert large["quiet"], "as above"
    assert report.readme_with(readme, report.table(committed, large)) == readme, "run benchmarks/report.py"
    assert report.CHART.read_text() == report.chart(committed), "run benchmarks/report.py"
