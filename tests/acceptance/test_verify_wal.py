"""``verify`` judges the WAL together with the snapshots: exit 5 when one can never become consistent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from drservice.errors import CaptureError, MissingObjectError, WalGapError
from tests.acceptance.conftest import World
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import TempEstate, copy_tree


def copied(world: World, name: str) -> tuple[Path, Path]:
    """Return a configuration over a copy of the repository, and the copy."""
    copy = copy_tree(world.estate.repository, world.cluster.root / name)
    return world.another_machine(f"{name}-machine", url=f"file://{copy}"), copy


def segment(copy: Path, name: str) -> Path:
    [path] = copy.glob(f"s/erp/database/wal/*/*/{name}")
    return path


def name_at(position: str) -> str:
    """Return the segment of a position on timeline 1 of the world's cluster (segments of 1 MiB)."""
    high, low = (int(part, 16) for part in position.split("/"))
    return f"00000001{high:08X}{low >> 20:08X}"


def test_a_deleted_segment_of_a_snapshot_is_found_and_names_it(world: World) -> None:
    config, copy = copied(world, "verify-own-wal")
    clean = world.estate.json("verify", config=config)
    assert (clean["components"][0]["findings"], clean["components"][0]["not_judged"]) == ([], [])
    lost = name_at(world.second["start_lsn"])
    segment(copy, lost).unlink()
    done = world.estate.json("verify", config=config, status=5)
    [finding] = [item for item in done["components"][0]["findings"] if item["snapshots"]]
    assert finding["code"] == MissingObjectError.code
    assert finding["key"].endswith(f"/00000001/{lost}")
    assert finding["snapshots"] == [world.second["snapshot"]]
    shown = world.estate.run("verify", config=config)
    assert shown.status == 5
    assert re.search(
        rf"FOUND {MissingObjectError.code} .*{lost}.*spoils {world.second['snapshot']}", shown.stdout.decode()
    )


def test_a_deleted_segment_behind_the_snapshots_is_a_gap(world: World) -> None:
    config, copy = copied(world, "verify-gap")
    segment(copy, world.middle).unlink()
    findings = world.estate.json("verify", config=config, status=5)["components"][0]["findings"]
    assert [(item["code"], item["key"].rsplit("/", 1)[-1], item["snapshots"]) for item in findings] == [
        (WalGapError.code, world.middle, [])
    ]


@pytest.fixture
def two(clusters: ClusterMaker) -> Any:
    """An estate whose configuration names the data directory of another cluster."""
    settings = {"archive_mode": "on"}
    mine = clusters.make(wal_segment_mb=1, settings=settings)
    other = clusters.make(wal_segment_mb=1, fresh=True, settings=settings)
    return mine, other


def test_the_data_directory_of_another_cluster_is_refused_before_it_is_read(two: Any) -> None:
    mine, other = two
    estate = TempEstate.over(mine)
    try:
        estate.initialise()
        estate.config.write_text(estate.config.read_text().replace(str(mine.data), str(other.data)))
        mine.start()
        refusal = estate.refusal("backup", "erp", status=CaptureError.exit_status)
        assert refusal["code"] == CaptureError.code
        assert "belongs to cluster" in refusal["message"]
        assert "data_directory" in refusal["hint"]
        assert not list(estate.repository.rglob("packs/*/*"))
    finally:
        estate.close()
