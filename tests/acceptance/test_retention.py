"""Retention from the command line, on a real cluster: what it says and deletes, and beside backups and restores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.model.ids import EnvironmentId
from drservice.model.recovery import Target, TargetKind
from drservice.operations.backup import BackupContext, run_backup
from drservice.operations.restore import run_restore
from drservice.wiring.data_plane import open_data_plane
from tests.acceptance.conftest import archived
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import Pusher, TempEstate, as_user
from tests.faults.world import Listener

AGES = (40, 30, 20)


class Earlier(SystemClock):
    """The machine's clock some days ago."""

    def __init__(self, days: int) -> None:
        self._behind = timedelta(days=days)

    def now(self) -> datetime:
        return super().now() - self._behind


def aged(estate: TempEstate, days: int, since: set[Path]) -> set[Path]:
    """Make what was stored since look as old to the store; return everything that is there."""
    files = {path for path in estate.repository.rglob("*") if path.is_file()}
    for path in files - since:
        before = path.stat().st_mtime - days * 86400
        os.utime(path, (before, before))
    return files


def with_retention(estate: TempEstate, **periods: str) -> None:
    document = json.loads(estate.config.read_text())
    document["services"]["erp"]["retention"] = periods
    estate.config.write_text(json.dumps(document))


@pytest.fixture
def estate(template_cache: Path) -> Iterator[TempEstate]:
    """Snapshots of forty, thirty and twenty days ago, and a recovery point of now; a row for each; WAL in between."""
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "''"})
    made = TempEstate.over(cluster)
    pushing = ExitStack()
    try:
        made.json("init", account=as_user("postgres"))
        cluster.start()
        pushing.enter_context(Pusher(made))
        cluster.sql("create table orders (id int primary key)")
        seen = {path for path in made.repository.rglob("*") if path.is_file()}
        for number, days in enumerate(AGES):
            cluster.sql("insert into orders values (%s)", (number,))
            with open_data_plane(made.estate(), clock=Earlier(days)) as plane:
                made.backup(plane)
            archived(cluster, cluster.switch_wal())
            seen = aged(made, days, seen)
        cluster.sql("insert into orders values (100)")
        made.json("backup", "erp")
        archived(cluster, cluster.switch_wal())
        with_retention(made, within="14d")
        yield made
    finally:
        pushing.close()
        made.close()
        maker.close()


def listing(estate: TempEstate) -> dict[str, int]:
    """Return everything that is stored, with its size, but for the ledger: each run is on record."""
    return {
        str(path.relative_to(estate.repository)): path.stat().st_size
        for path in estate.repository.rglob("*")
        if path.is_file() and estate.repository / "ledger" not in path.parents
    }


def restored_orders(estate: TempEstate, target: Target) -> list[int]:
    with estate.restored(target) as (_, connection):
        return [number for (number,) in connection.execute("select id from orders order by 1").fetchall()]


def test_expired_snapshots_and_wal_go_and_everything_left_is_whole(estate: TempEstate) -> None:
    before = listing(estate)
    plan = estate.json("retention", "erp", "--dry-run")
    assert listing(estate) == before
    assert plan["schema"] == "drservice/retention/v1"
    (found,) = plan["services"]
    assert [(item["kept"], item["by"]) for item in found["snapshots"]] == [(False, None)] * 3 + [(True, "within")]
    assert all(item["reason"] for item in found["snapshots"])
    assert found["wal"][0]["expired_files"] >= 4
    for words in ((), ("--confirm", "reporting"), ("--confirm", "erp", "--confirm", "reporting")):
        refused = estate.json("retention", "erp", "--apply", *words, status=2)
        assert refused["error"]["code"] == "DR100"
    assert estate.json("retention", "erp", status=2)["error"]["code"] == "DR100"
    assert listing(estate) == before
    (done,) = estate.json("retention", "erp", "--apply", "--confirm", "erp")["services"]
    assert done["state"] == "applied"
    said = estate.json("evidence", "show", str(done["record"]))["statement"]["predicate"]
    assert (said["outcome"], said["removed"]["snapshots"]) == ("applied", 3)
    assert said["removed"]["wal_files"] == done["removed"]["wal_files"]
    assert done["removed"]["wal_files"] == found["wal"][0]["expired_files"]
    gone = before.keys() - listing(estate).keys()
    assert {name.split("/")[3] for name in gone} == {"snapshots", "wal"}
    assert len(gone) == 3 + done["removed"]["wal_files"]
    assert estate.json("verify", "erp", "--all")["components"][0]["findings"] == []
    assert restored_orders(estate, Target(kind=TargetKind.LATEST)) == [0, 1, 2, 100]
    told = estate.run("restore", "erp", "--snapshot", found["snapshots"][0]["snapshot"], "--start")
    assert (told.status, b"there is no readable snapshot" in told.stderr) == (2, True)
    packs = estate.json("prune", "erp")
    assert (packs["schema"], packs["sweep"]) == ("drservice/prune/v1", "disabled")
    assert packs["unused_packs"] > 0
    assert listing(estate).keys() >= {item["key"] for part in packs["components"] for item in part["unused"]}


def test_the_snapshot_that_recovery_was_last_proved_with_survives(estate: TempEstate) -> None:
    oldest, *_ = (item["snapshot"] for item in estate.json("info", "erp")["services"][0]["snapshots"])
    into = estate.root / "proof"
    estate.json("restore", "erp", "--snapshot", oldest, "--into", into)
    (done,) = estate.json("retention", "--apply", "--confirm", "erp")["services"]
    kept = {item["snapshot"]: item["by"] for item in done["snapshots"] if item["kept"]}
    assert kept.pop(oldest) == "last verified"
    assert list(kept.values()) == ["within"]
    for path in (estate.state / "measured").iterdir():
        path.unlink()  # this host forgets; the ledger does not
    (again,) = estate.json("retention", "--dry-run")["services"]
    assert [item["by"] for item in again["snapshots"]] == ["last verified", "within"]
    assert restored_orders(estate, Target(kind=TargetKind.SNAPSHOT, snapshot=oldest)) == [0]


def test_a_restore_that_runs_is_let_come_to_its_end(estate: TempEstate) -> None:
    oldest, *_ = (item["snapshot"] for item in estate.json("info", "erp")["services"][0]["snapshots"])
    states: list[str] = []

    def meanwhile(_: EnvironmentId) -> None:
        (plan,) = estate.json("retention", "--dry-run")["services"]
        assert [item["by"] for item in plan["snapshots"]] == ["hold"] * 3 + ["within"]
        (done,) = estate.json("retention", "--apply", "--confirm", "erp", status=6)["services"]
        states.append(done["state"])

    with estate.plane() as plane:
        request = estate.request(Target(kind=TargetKind.SNAPSHOT, snapshot=oldest), into=estate.root / "into")
        result = run_restore(estate.restore_context(plane), replace(request, made=meanwhile))
    assert states == ["held"]
    assert result.planned.resolved.plan.snapshot.id == oldest
    (after,) = estate.json("retention", "--apply", "--confirm", "erp")["services"]
    assert after["state"] == "applied", "the hold went with the restore"


def test_a_backup_that_runs_meanwhile_is_whole(estate: TempEstate) -> None:
    states: list[str] = []

    def on_step(name: str) -> None:
        if name.startswith("wait for the WAL"):
            (done,) = estate.json("retention", "--apply", "--confirm", "erp")["services"]
            states.append(done["state"])

    estate.cluster.sql("insert into orders values (200)")
    service, component = estate.parts()
    with estate.plane() as plane:
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state, clock=SystemClock(), progress=Listener(on_step=on_step)
        )
        record = run_backup(context, service, component).record
    assert states == ["applied"]
    target = Target(kind=TargetKind.SNAPSHOT, snapshot=record.id)
    assert restored_orders(estate, target) == [0, 1, 2, 100, 200]
    assert estate.json("verify", "erp", "--all")["components"][0]["findings"] == []


def test_an_unreadable_snapshot_stops_the_deletion_of_what_it_may_need(estate: TempEstate) -> None:
    (spoilt, *_) = sorted((estate.repository / "s/erp/database/snapshots").iterdir())
    stored_at = spoilt.stat().st_mtime
    data = bytearray(spoilt.read_bytes())
    data[300] ^= 1
    spoilt.chmod(0o600)
    spoilt.write_bytes(data)
    os.utime(spoilt, (stored_at, stored_at))
    before = listing(estate)
    (done,) = estate.json("retention", "--apply", "--confirm", "erp", status=5)["services"]
    assert (done["state"], len(done["unreadable"])) == ("blocked", 1)
    assert listing(estate) == before


def test_a_shorter_retention_is_shown_with_what_it_would_let_go_before_it_is_in_force(estate: TempEstate) -> None:
    changed = estate.root / "changed.yaml"
    changed.write_text(estate.config.read_text())
    changed.chmod(0o644)
    with_retention(estate, within="25d")
    before = listing(estate)
    (expires,) = estate.json("config", "plan", "--against", changed, "--stored", status=4)["expires"]
    assert (expires["service"], expires["points"], len(expires["snapshots"])) == ("erp", [], 1), "of 20 days ago"
    assert expires["kept_snapshots"] == 1
    assert listing(estate) == before
