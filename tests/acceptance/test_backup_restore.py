"""Backup and restore through the command line as a process: what a person sees and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.errors import ProofError
from drservice.model.recovery import Target, TargetKind
from drservice.operations import restore as restoring
from tests.acceptance.conftest import World, archived, iso, order
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import TempEstate, copy_tree, tree, wait_for

PROMISED = {
    "backup": {"schema", "service", "point", "state", "snapshots"},
    "backup.snapshots": {
        "component", "snapshot", "start_lsn", "stop_lsn", "timeline", "source_bytes", "read_bytes", "stored_bytes",
        "seconds",
    },
    "restore": {"schema", "run", "service", "target", "phases", "rto_seconds", "environment", "documents"},
    "restore.target": {"requested", "reached_time", "reached_lsn", "timeline"},
    "restore.phases": {"plan", "fetch", "place", "start", "replay", "check"},
    "restore.environment": {"id", "kind", "path", "dsn"},
    "restore.documents": {"expected", "missing", "corrupt"},
    "error": {"code", "message", "hint", "exit_status"},
}  # fmt: skip
"""The names of document and error fields: a contract. They may be joined by others, never changed."""


def orders_of(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("select id from orders order by id").fetchall()]


def into(world: World, name: str) -> Path:
    """Name a folder for a restored cluster, in a place where the server's user may make it."""
    place = world.cluster.root / "restored"
    if not place.exists():
        place.mkdir()
        hand_over(place)
    return place / name


def started_plainly(clusters: ClusterMaker, data: Path) -> Cluster:
    """Start a restored directory as a person would: ``pg_ctl start``, with archiving off."""
    restored = clusters.over(data)
    done = restored.run(
        "pg_ctl", "start", "-w", "-D", data, "-l", restored.log, "-o", f"-k {restored.sock} -c archive_mode=off"
    )
    assert done.status == 0, restored.log_text()
    return restored


@pytest.fixture
def plainly(clusters: ClusterMaker) -> Iterator[Any]:
    """Start restored directories and end them."""
    running: list[Cluster] = []

    def start(data: Path) -> Cluster:
        running.append(started_plainly(clusters, data))
        return running[-1]

    yield start
    for cluster in running:
        assert cluster.run("pg_ctl", "stop", "-w", "-m", "fast", "-D", cluster.data).status == 0


# --- what comes back --------------------------------------------------------------------------------------------


def test_backup_tells_what_it_took_in_the_promised_words(world: World) -> None:
    assert world.first["state"] == world.second["state"] == "complete"
    assert set(world.first) >= PROMISED["backup.snapshots"]
    assert world.first["timeline"] == 1
    assert 0 < world.second["read_bytes"] <= world.first["read_bytes"] <= world.first["source_bytes"]
    assert world.second["stored_bytes"] < world.first["stored_bytes"], "the second backup uploaded what was there"


def test_a_directory_from_restore_is_one_that_plain_pg_ctl_starts(world: World, plainly: Any) -> None:
    data = into(world, "plain")
    document = world.estate.json("restore", "erp", "--to", iso(world.after_102), "--into", data)
    for part, names in PROMISED.items():
        if part.startswith("restore"):
            found = document[part.partition(".")[2]] if "." in part else document
            assert set(found) >= names, part
    assert document["schema"] == "drservice/restore/v1"
    assert set(document["phases"]) == PROMISED["restore.phases"]
    assert sum(document["phases"].values()) == pytest.approx(document["rto_seconds"], abs=0.01)
    assert document["environment"] == {"id": None, "kind": "sandbox", "path": str(data), "dsn": None}
    assert world.estate.environments() == [], "nothing may be left running"
    restored = plainly(data)
    assert restored.sql("select count(*), max(id) from orders") == [(102, 102)]
    assert restored.value("show data_checksums") == "on"
    assert not (data / "recovery.signal").exists()


def test_start_leaves_a_server_that_is_listed_reachable_and_can_be_destroyed(world: World) -> None:
    document = world.estate.json("restore", "erp", "--to", iso(world.after_101), "--start")
    environment = document["environment"]
    try:
        assert orders_of(environment["dsn"]) == list(range(1, 102))
        listed = world.estate.json("environment", "list")["environments"]
        assert [(item["id"], item["state"], item["dsn"]) for item in listed] == [
            (environment["id"], "running", environment["dsn"])
        ]
    finally:
        destroyed = world.estate.json("environment", "destroy", environment["id"])
    assert destroyed["destroyed"] == [environment["id"]]
    assert world.estate.json("environment", "list")["environments"] == []
    assert not Path(environment["path"]).exists()


@pytest.mark.parametrize("kind", ["lsn", "xid", "name", "snapshot"])
def test_every_kind_of_target_stops_where_it_says(world: World, kind: str) -> None:
    target = {
        "lsn": ("--lsn", world.lsn_102),
        "xid": ("--xid", str(world.xid_101)),
        "name": ("--name", "monday"),
        "snapshot": ("--snapshot", world.first["snapshot"]),
    }[kind]
    document = world.estate.json("restore", "erp", *target, "--start")
    try:
        last = 100 if kind == "snapshot" else 101
        assert orders_of(document["environment"]["dsn"]) == list(range(1, last + 1))
    finally:
        world.estate.json("environment", "destroy", document["environment"]["id"])


def test_a_dry_run_shows_the_plan_and_writes_nothing(world: World) -> None:
    config = world.another_machine("dry")
    before = tree(world.estate.repository)
    data = into(world, "dry-run")
    words = ("restore", "erp", "--to", iso(world.after_102), "--into", data, "--dry-run")
    plan = world.estate.json(*words, config=config)
    assert plan["schema"] == "drservice/restore-plan/v1"
    assert plan["snapshot"] == world.second["snapshot"]
    assert plan["gap"] is None
    assert any("proves WAL past the target" in reason for reason in plan["reasons"])
    assert not data.exists()
    assert tree(world.estate.repository) == before
    assert not any((config.parent / "state" / "environments").glob("*"))
    person = world.estate.run(*words, config=config)
    assert person.status == 0
    assert world.second["snapshot"] in person.stdout.decode()


# --- refusals ---------------------------------------------------------------------------------------------------


def refusals(world: World) -> dict[str, tuple[tuple[str, ...], int, str, str]]:
    """Return words after ``restore erp``, exit status, code, and what the message or hint must hold."""
    reachable = "Reachable: from"
    naive = world.after_101.replace(tzinfo=None).isoformat(sep=" ")
    return {
        "before the first snapshot": (("--to", iso(world.before_first)), 1, "DR310", reachable),
        "after the end": (("--to", iso(world.after_102 + timedelta(days=1))), 1, "DR310", reachable),
        "an LSN after the end": (("--lsn", "0/FF000000"), 1, "DR310", reachable),
        "an LSN before the first snapshot": (("--lsn", "0/1000000"), 1, "DR310", reachable),
        "an unknown xid": (("--xid", "4000000"), 1, "DR310", reachable),
        "an unknown name": (("--name", "tuesday"), 1, "DR310", reachable),
        "a rolled-back xid": (("--xid", str(world.xid_rolled_back)), 2, "DR100", "was rolled back at"),
        "an unknown snapshot": (("--snapshot", "01M83PPR7TNFP4FT9ZBC3QPVA1"), 2, "DR103", "no readable snapshot"),
        "two targets": (("--to", "latest", "--name", "monday"), 2, "DR100", "exactly one target"),
        "no target": ((), 2, "DR100", "exactly one target"),
        "a naive time": (("--to", naive), 2, "DR100", "time zone"),
        "no time at all": (("--to", "yesterday"), 2, "DR100", "time zone"),
    }


CASES = (
    "before the first snapshot", "after the end", "an LSN after the end", "an LSN before the first snapshot",
    "an unknown xid", "an unknown name", "a rolled-back xid", "an unknown snapshot", "two targets", "no target",
    "a naive time", "no time at all",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_target_that_cannot_be_is_refused_before_anything_is_written(world: World, case: str) -> None:
    words, status, code, says = refusals(world)[case]
    data = into(world, "refused")
    error = world.estate.refusal("restore", "erp", *words, "--into", data, status=status)
    assert set(error) == PROMISED["error"]
    assert error["code"] == code
    assert error["exit_status"] == status
    assert says in error["message"] + error["hint"]
    assert not data.exists()
    assert world.estate.environments() == []


def test_a_gap_is_named_with_what_is_reachable(world: World) -> None:
    folder = copy_tree(world.estate.repository, world.cluster.root / "repository-with-gap")
    [removed] = folder.rglob(world.middle)
    removed.unlink()
    config = world.another_machine("gap", url=f"file://{folder}")
    data = into(world, "gap")
    for words in (("--to", "latest"), ("--to", iso(world.in_middle)), ("--lsn", world.lsn_drop)):
        error = world.estate.refusal("restore", "erp", *words, "--into", data, config=config, status=5)
        assert error["code"] == "DR213", error
        assert f"1 WAL segment(s) from {world.middle} on are missing" in error["message"], error
        assert f"Reachable: from {world.first['stopped_at']}" in error["hint"], error
        assert not data.exists()
    # Up to the gap everything is as it was, also what is found by a search through the WAL behind it.
    for words, last in ((("--to", iso(world.after_102)), 102), (("--name", "monday"), 101)):
        reached = world.estate.json("restore", "erp", *words, "--start", config=config)
        try:
            assert orders_of(reached["environment"]["dsn"]) == list(range(1, last + 1))
        finally:
            world.estate.json("environment", "destroy", reached["environment"]["id"], config=config)


def test_a_target_directory_with_something_in_it_is_left_alone(world: World) -> None:
    data = into(world, "occupied")
    data.mkdir()
    (data / "precious").write_text("do not lose")
    before = data.stat()
    error = world.estate.refusal("restore", "erp", "--to", "latest", "--into", data, status=2)
    assert error["code"] == "DR311"
    assert "precious" in error["message"]
    assert tree(data) == {"precious": b"do not lose"}
    assert (data.stat().st_mode, data.stat().st_uid) == (before.st_mode, before.st_uid)
    link = into(world, "link")
    link.symlink_to(data)
    assert world.estate.refusal("restore", "erp", "--to", "latest", "--into", link, status=2)["code"] == "DR311"


def test_restore_without_a_place_and_without_start_is_a_usage_error(world: World) -> None:
    error = world.estate.refusal("restore", "erp", "--to", "latest", status=2)
    assert error["code"] == "DR100"


# --- another cluster, other timelines ---------------------------------------------------------------------------


@pytest.fixture
def estate(clusters: ClusterMaker) -> Iterator[TempEstate]:
    """An estate of its own with a running server and one order."""
    cluster = clusters.make(wal_segment_mb=1)
    made = TempEstate.over(cluster)
    made.initialise()
    made.archive_with_the_program()
    cluster.start()
    cluster.sql("create table orders (id int primary key, note text)")
    order(cluster, 1, "commit")
    yield made
    made.close()


def test_another_cluster_is_refused_until_it_is_adopted_and_the_old_one_stays_restorable(
    estate: TempEstate, clusters: ClusterMaker
) -> None:
    old = estate.json("backup", "erp")["snapshots"][0]["snapshot"]
    estate.cluster.stop()
    other = clusters.make(wal_segment_mb=1, fresh=True)
    other.configure(archive_mode="on", archive_command="'false'")
    other.start()
    other.sql("create table orders (id int primary key, note text)")
    order(other, 50, "commit")
    estate.write_configuration(estate.config, cluster=other)
    error = estate.refusal("backup", "erp", status=5)
    assert error["code"] == "DR420"
    segment = other.switch_wal()
    ready = other.data / "pg_wal" / segment
    refused = estate.run("wal", "push", "--service", "erp", ready, "--json")
    assert (refused.status, json.loads(refused.stdout)["error"]["code"]) == (1, "DR211")
    foreign = other.value("select system_identifier::text from pg_control_system()")
    assert not list(estate.repository.rglob(f"{foreign}/*/*")), "the foreign segment was stored"

    adopted = estate.json("init", "--adopt", "erp")
    assert adopted["previous_system_id"] is not None
    quoted = estate.push_command().replace("'", "''")
    other.sql(f"alter system set archive_command = '{quoted}'")
    other.sql("select pg_reload_conf()")
    new = estate.json("backup", "erp")["snapshots"][0]["snapshot"]
    for snapshot, number in ((old, 1), (new, 50)):
        document = estate.json("restore", "erp", "--snapshot", snapshot, "--start")
        try:
            assert orders_of(document["environment"]["dsn"]) == [number]
        finally:
            estate.json("environment", "destroy", document["environment"]["id"])
    # From now on the old cluster is the foreign one.
    latest = estate.json("restore", "erp", "--to", "latest", "--start")
    try:
        assert orders_of(latest["environment"]["dsn"]) == [50]
    finally:
        estate.json("environment", "destroy", latest["environment"]["id"])


def test_a_restored_cluster_goes_on_archiving_and_both_timelines_stay_reachable(
    estate: TempEstate, clusters: ClusterMaker
) -> None:
    cluster = estate.cluster
    estate.json("backup", "erp")
    order(cluster, 2, "commit")
    before_loss = cluster.value("select clock_timestamp()")
    order(cluster, 3, "commit")
    lost_lsn = cluster.value("select pg_current_wal_insert_lsn()::text")
    order(cluster, 4, "commit")
    archived(cluster, cluster.switch_wal())
    cluster.stop()

    data = cluster.root / "second-life"
    reached = estate.json("restore", "erp", "--to", iso(before_loss), "--into", data)
    assert reached["target"]["timeline"] == 2
    second = clusters.over(data)
    second.configure(unix_socket_directories=f"'{second.sock}'")
    second.start()
    try:
        assert [row[0] for row in second.sql("select id from orders order by 1")] == [1, 2]
        order(second, 10, "commit")
        switched = second.switch_wal()
        assert switched.startswith("00000002")
        archived(second, switched)
        archived(second, "00000002.history")
    finally:
        second.stop()

    for words, orders, timeline in (
        (("--to", "latest"), [1, 2, 10], 3),
        (("--lsn", lost_lsn, "--timeline", "1"), [1, 2, 3], 3),
        (("--to", "latest", "--timeline", "1"), [1, 2, 3, 4], 3),
    ):
        document = estate.json("restore", "erp", *words, "--start")
        try:
            assert orders_of(document["environment"]["dsn"]) == orders, words
            assert document["target"]["timeline"] >= 2, (words, timeline)
        finally:
            estate.json("environment", "destroy", document["environment"]["id"])


def test_an_error_that_was_undone_does_not_come_back_while_the_new_timeline_has_no_segment_yet(
    estate: TempEstate, clusters: ClusterMaker
) -> None:
    cluster = estate.cluster
    estate.json("backup", "erp")
    order(cluster, 2, "commit")
    before_loss = cluster.value("select clock_timestamp()")
    cluster.sql("drop table orders")
    archived(cluster, cluster.switch_wal())
    cluster.stop()

    data = cluster.root / "second-life"
    estate.json("restore", "erp", "--to", iso(before_loss), "--into", data)
    second = clusters.over(data)
    second.configure(unix_socket_directories=f"'{second.sock}'")
    second.start()
    archived(second, "00000002.history")
    second.kill9()

    latest = estate.json("restore", "erp", "--to", "latest", "--start")
    try:
        assert orders_of(latest["environment"]["dsn"]) == [1, 2]
        assert any("stopped before" in line for line in latest["evidence"])
    finally:
        estate.json("environment", "destroy", latest["environment"]["id"])


def test_a_cluster_on_a_later_timeline_whose_history_was_never_archived_is_restorable(estate: TempEstate) -> None:
    cluster = estate.cluster
    cluster.stop()
    (cluster.data / "standby.signal").touch()
    cluster.configure(archive_command="'true'")
    cluster.start()
    cluster.run("pg_ctl", "promote", "-D", cluster.data, "-w")
    wait_for(lambda: not cluster.value("select pg_is_in_recovery()"), "the promotion")
    estate.archive_with_the_program()
    cluster.restart()
    estate.json("backup", "erp")
    order(cluster, 2, "commit")
    archived(cluster, cluster.switch_wal())
    latest = estate.json("restore", "erp", "--to", "latest", "--start")
    try:
        assert (orders_of(latest["environment"]["dsn"]), latest["target"]["timeline"]) == ([1, 2], 3)
    finally:
        estate.json("environment", "destroy", latest["environment"]["id"])


def test_a_copy_that_was_not_proven_does_not_start(estate: TempEstate, monkeypatch: pytest.MonkeyPatch) -> None:
    def disbelieve(*_: object, **__: object) -> None:
        raise ProofError("not what was planned")

    monkeypatch.setattr(restoring, "prove", disbelieve)
    estate.json("backup", "erp")
    into = estate.cluster.root / "unproven"
    with estate.plane() as plane, pytest.raises(ProofError):
        restoring.run_restore(estate.restore_context(plane), estate.request(Target(kind=TargetKind.LATEST), into=into))
    assert sorted(path.name for path in (into / "global").glob("pg_control*")) == ["pg_control.unproven"]


def test_a_history_file_of_a_foreign_cluster_is_refused_and_leads_nobody_astray(
    estate: TempEstate, clusters: ClusterMaker, tmp_path: Path
) -> None:
    estate.json("backup", "erp")
    stranger = clusters.make(fresh=True)
    copied = copy_tree(stranger.data / "pg_wal", tmp_path / "pg_wal")
    history = copied / "00000007.history"
    history.write_text("1\t0/3000000\tno recovery target specified\n")
    refused = estate.refusal("wal", "push", "--service", "erp", history, status=1)
    assert "beside segments of cluster" in refused["message"]
    alone = tmp_path / "alone" / "00000007.history"
    alone.parent.mkdir()
    alone.write_bytes(history.read_bytes())
    assert "no readable segment beside" in estate.refusal("wal", "push", "--service", "erp", alone, status=1)["message"]


def test_a_missing_history_is_no_end_while_its_timeline_is_archived(estate: TempEstate) -> None:
    estate.json("backup", "erp")
    target = estate.root / "RECOVERYHISTORY"
    fetch = ("wal", "fetch", "--service", "erp")
    # Nothing of timeline 2 is there: its history is proven absent. The first timeline never has one, and a server that
    # promotes from it asks for it.
    for name in ("00000002.history", "00000001.history"):
        estate.refusal(*fetch, name, target, status=44)
    [first] = list(estate.repository.glob("s/erp/database/wal/*/00000001"))
    later = first.with_name("00000002")
    later.mkdir()
    (later / "000000020000000000000009").write_bytes(b"what it is does not matter: it is there")
    refused = estate.refusal(*fetch, "00000002.history", target, status=127)
    assert "missing although" in refused["message"]
    assert not target.exists()
