"""``--to consistent`` on the command line: told before, restored without a missing document, drilled and verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import as_user
from tests.doubles.plant import Plant, placed

pytestmark = pytest.mark.long

DRILLS = {name: {"service": "erp", "target": name} for name in ("latest", "consistent")}


@pytest.fixture(scope="module")
def plant(template_cache: Path) -> Iterator[Plant]:
    maker = ClusterMaker(cache=template_cache)
    made = Plant.over(maker.make(wal_segment_mb=1), documents=5, drills=DRILLS)
    yield made
    made.estate.close()
    maker.close()


def test_rows_and_documents_come_back_to_one_instant_from_the_first_backup_on(plant: Plant) -> None:
    plant.json("backup", "erp", "--component", "database", account=as_user("postgres"))
    refused = plant.estate.refusal("restore", "erp", "--to", "consistent", "--dry-run", status=1)
    assert refused["code"] == "DR315"
    assert "documents of documents" in refused["message"]
    assert "drservice backup" in refused["hint"]

    backup = plant.json("backup", "erp", account=as_user("postgres"))
    [stop] = [item["stop_lsn"] for item in backup["snapshots"] if item["kind"] == "postgres"]
    early = set(plant.acknowledged)
    late = plant.upload(b"filed after the last look at the documents")
    plant.archive()

    [shared] = plant.json("info", "erp")["services"][0]["consistent"]
    assert (shared["component"], shared["lsn"], shared["timeline"]) == ("database", stop, 1)
    assert shared["behind_seconds"] > 0
    text = plant.estate.run("info", "erp").stdout.decode()
    assert f"rows and documents share: all up to {shared['at']} ({stop}, timeline 1)" in text
    assert "--to consistent restores it" in text
    assert "effective RPO now:" in text

    planned = plant.json("restore", "erp", "--to", "latest", "--dry-run")
    assert {"component": "database", **planned["consistent"]} == shared
    assert any("--to consistent" in reason for reason in planned["reasons"])
    root = plant.cluster.root
    latest = plant.json("restore", "erp", "--to", "latest", "--into", root / "latest", status=3)
    [documents] = [item for item in latest["files"] if item["component"] == "documents"]
    assert documents["missing"] == [late]
    assert any("drservice restore erp --to consistent" in note for note in documents["notes"])

    whole = plant.json("restore", "erp", "--to", "consistent", "--into", root / "whole")
    assert (whole["documents"]["expected"], whole["documents"]["missing"]) == (len(early), 0)
    assert set(placed(root / "whole" / "documents")) == early
    assert whole["target"]["reached_lsn"] == stop

    failed = plant.json("drill", "erp", "--plan", "latest", status=1)
    assert failed["documents"]["missing"] == 1
    passed = plant.json("drill", "erp", "--plan", "consistent")
    assert (passed["verdict"], passed["documents"]["missing"]) == ("passed", 0)
    assert passed["target"]["requested"] == passed["target"]["kind"] == "consistent"
    assert passed["rpo_seconds"] > failed["rpo_seconds"], "what lies behind the position is lost with it"
    bundle = root / "bundle.zip"
    plant.json("evidence", "export", "--output", bundle)
    assert plant.json("evidence", "verify", bundle)["verified"] is True
