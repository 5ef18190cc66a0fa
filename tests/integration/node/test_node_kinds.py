"""Each kind of run, done by a node: the same documents as the command line, errors included."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from drservice import processes
from drservice.clock import SystemClock
from drservice.environments import proc
from drservice.environments.interface import EnvironmentSpec
from drservice.environments.sandbox import open_sandbox, prepare_sandbox
from drservice.model.ids import ServiceName
from drservice.model.runs import RunKind, RunState
from drservice.node.environments import EnvironmentTeller
from drservice.node.throttling import NICENESS
from drservice.repository.holds import place_hold
from drservice.wiring.data_plane import open_data_plane
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.estate import SERVICE
from tests.doubles.nodes import NodeBench, command_of, is_leader
from tests.doubles.website import Website

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
AGO = timedelta(days=40)
NEVER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, template_cache: Path) -> Iterator[NodeBench]:
    """A node over a service with documents that has one backup."""
    maker = ClusterMaker(cache=template_cache)
    made = NodeBench.make(maker, tmp_path_factory.mktemp("nodes"))
    store = made.plant.root / "filestore"
    store.mkdir()
    made.plant.sql(
        "create table ir_attachment (id serial primary key, name text, store_fname text, checksum text,"
        " file_size bigint, mimetype text, db_datas bytea, create_date timestamp default now())"
    )
    for number in range(3):
        content = f"document {number}".encode()
        digest = hashlib.sha1(content).hexdigest()
        (store / digest[:2]).mkdir(exist_ok=True)
        (store / digest[:2] / digest).write_bytes(content)
        made.plant.sql(
            "insert into ir_attachment (name, store_fname, checksum, file_size) values (%s, %s, %s, %s)",
            [f"scan {number}", f"{digest[:2]}/{digest}", digest, len(content)],
        )
    hand_over(store)
    made.configure(components_added={"documents": filestore(store)}, retention={"within": "14d"})
    made.open_gate()
    made.estate.json("evidence", "begin")
    made.start()
    made.wait_state(made.request(), RunState.SUCCEEDED)
    yield made
    made.close()
    maker.close()


def filestore(path: Path) -> dict[str, str]:
    return {"kind": "odoo-filestore", "path": str(path), "database": "postgres"}


def test_a_backup_tells_the_point_and_the_snapshots_of_all_components(bench: NodeBench) -> None:
    run = bench.wait_state(bench.request(), RunState.SUCCEEDED)
    assert run.result is not None
    assert run.result["state"] == "complete"
    assert {item["component"] for item in run.result["snapshots"]} == {"database", "documents"}
    assert run.result["point"] in {point.id for point in bench.points()}


def test_a_throttled_run_has_low_priorities_in_all_its_processes_and_another_has_not(bench: NodeBench) -> None:
    ours = (os.nice(0), priority_at_disks(os.getpid()))
    assert ours[0] < NICENESS, "a test that is as nice as that shows nothing"
    bench.close_gate()
    try:
        for parameters, expected in (({"throttled": True}, {(NICENESS, "best-effort: prio 7")}), ({}, {ours})):
            run = bench.request(parameters=parameters)
            bench.wait_at_gate(run)
            assert priorities_of_run(bench) == expected
            bench.open_gate()
            bench.wait_state(run, RunState.SUCCEEDED)
            bench.close_gate()
    finally:
        bench.open_gate()


def priorities_of_run(bench: NodeBench) -> set[tuple[int, str]]:
    """Return niceness and priority at the disks of every thread in the session of the run at work."""
    (leader,) = [pid for pid in bench.nodes[0].children() if b"spawn_main" in command_of(pid) and is_leader(pid)]
    found = set()
    for status in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(status.name)) != leader:
                continue
            for thread in (status / "task").iterdir():
                number = int(thread.name)
                found.add((os.getpriority(os.PRIO_PROCESS, number), priority_at_disks(number)))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return found


def priority_at_disks(number: int) -> str:
    return processes.run(["ionice", "-p", str(number)]).stdout.decode().strip()


def test_a_drill_passes_and_its_verdict_is_the_result(bench: NodeBench) -> None:
    # What a schedule calls a drill that no configuration spells out is a name, not a plan to look up.
    run = bench.wait_state(bench.request(RunKind.DRILL, plan="erp-latest"), RunState.SUCCEEDED)
    assert run.result is not None
    assert (run.result["verdict"], run.result["service"]) == ("passed", SERVICE)
    assert run.result["record"] is not None
    assert run.result["destroyed"] is True
    assert bench.estate.environments() == []


def test_an_isolated_restore_leaves_its_environment_running_until_it_is_destroyed_over_http(
    bench: NodeBench, tmp_path: Path
) -> None:
    run = bench.wait_state(bench.request(RunKind.RESTORE, parameters={"to": "latest"}), RunState.SUCCEEDED)
    assert run.result is not None
    told = run.result["environment"]
    sandbox = open_sandbox(Path(told["path"]))
    assert sandbox.running()
    website = Website.over(bench.database, state_dir=tmp_path)
    here = f"/api/v1/services/{SERVICE}/environments"
    client = website.client(website.token("restorer"))
    bench.wait_for(lambda: listed(client, here) == [(told["id"], "running", "alpha", told["dsn"])], "the host's word")
    asked = client.delete(f"{here}/{told['id']}")
    assert asked.status_code == 202
    ended = bench.wait_state(asked.json()["run"], RunState.SUCCEEDED)
    assert ended.result == {"environment": told["id"], "destroyed": True}
    assert not Path(told["path"]).exists()
    assert proc.processes_of(Path(told["path"])) == []
    bench.wait_for(lambda: listed(client, here) == [], "the host's word")
    again = client.delete(f"{here}/{told['id']}")
    assert (again.status_code, again.json()) == (202, {"run": asked.json()["run"], "state": "succeeded"})


def test_a_run_ends_no_environment_of_another_service_and_is_content_with_one_that_is_gone(bench: NodeBench) -> None:
    foreign = prepare_sandbox(
        EnvironmentSpec(service=ServiceName("crm"), purpose="restore", expires_at=NEVER),
        environments_dir=bench.estate.state / "environments",
        clock=SystemClock(),
    )
    try:
        asked = {"environment": foreign.id}
        run = bench.wait_state(bench.request(RunKind.DESTROY, parameters=asked, host="alpha"), RunState.FAILED)
        assert run.error is not None
        assert run.error["code"] == "DR943"
        assert foreign.data.exists()
    finally:
        foreign.destroy()
    run = bench.wait_state(bench.request(RunKind.DESTROY, parameters=asked, host="alpha"), RunState.SUCCEEDED)
    assert run.result == {"environment": foreign.id, "destroyed": False}


def test_a_node_removes_an_environment_that_has_expired(bench: NodeBench) -> None:
    folder = bench.estate.state / "environments"
    expired = prepare_sandbox(
        EnvironmentSpec(service=ServiceName(SERVICE), purpose="restore", expires_at=LONG_AGO),
        environments_dir=folder,
        clock=SystemClock(),
    )
    teller = EnvironmentTeller(bench.database, host="beta", folder=lambda: folder, clock=SystemClock())
    teller.look()
    assert not expired.data.exists()


def test_a_restore_to_no_instant_fails_with_a_hint(bench: NodeBench) -> None:
    run = bench.wait_state(bench.request(RunKind.RESTORE, parameters={"to": "yesterday"}), RunState.FAILED)
    assert run.error is not None
    assert run.error["exit_status"] == 2
    assert "no instant" in run.error["message"]


def test_a_pass_over_the_documents_makes_no_recovery_point(bench: NodeBench) -> None:
    before = len(bench.points())
    run = bench.wait_state(bench.request(RunKind.DOCUMENTS), RunState.SUCCEEDED)
    assert run.result is not None
    (only,) = run.result["passes"]
    assert [item["component"] for item in only["snapshots"]] == ["documents"]
    assert len(bench.points()) == before


def test_a_retention_run_lets_go_of_what_has_expired_and_counts_it_with_reasons(bench: NodeBench) -> None:
    made_long_ago(bench)
    before = {str(record.id) for record in bench.snapshots()}
    run = bench.wait_state(bench.request(RunKind.RETENTION), RunState.SUCCEEDED)
    assert run.result is not None
    assert run.result["state"] == "applied"
    expired = run.result["snapshots"]["newest_expired"]
    gone = before - {str(record.id) for record in bench.snapshots()}
    assert {item["snapshot"] for item in expired if item["component"] == "database"} == gone != set()
    assert all("older than every period" in item["reason"] for item in expired), expired
    assert run.result["removed"]["snapshots"] == run.result["snapshots"]["expired"] == len(expired)
    assert sum(run.result["snapshots"]["kept"].values()) > 0
    assert run.result["policy"]["within"] == "14d"


def test_a_retention_run_deletes_nothing_while_a_restore_holds_it_or_something_is_unreadable(bench: NodeBench) -> None:
    old = made_long_ago(bench)
    service, component = bench.estate.parts()
    with bench.estate.plane() as plane:
        repository, now = plane.repository, plane.clock.now()
        scope = repository.scope(service.name, component.name)
        key = place_hold(
            repository.store, repository.host_key, scope, purpose="restore", now=now, until=now + timedelta(hours=1)
        )
        run = bench.wait_state(bench.request(RunKind.RETENTION), RunState.PARTIAL)
        repository.store.delete(key)
    assert run.result is not None
    assert (run.result["state"], run.result["removed"]) == ("held", None)
    assert old.exists()
    content, facts = old.read_bytes(), old.stat()
    try:
        old.write_bytes(content[:-40])
        run = bench.wait_state(bench.request(RunKind.RETENTION), RunState.FAILED)
    finally:
        old.write_bytes(content)
        os.utime(old, (facts.st_atime, facts.st_mtime))
    assert run.error is not None
    assert (run.error["code"], run.error["exit_status"]) == ("DR945", 5)
    assert old.exists()


def made_long_ago(bench: NodeBench) -> Path:
    """Make a snapshot of the cluster that the store took forty days ago, and return its object."""
    service, component = bench.estate.parts()
    before = {path for path in bench.estate.repository.rglob("*") if path.is_file()}
    with open_data_plane(bench.estate.estate(), clock=Earlier()) as plane:
        bench.estate.backup(plane)
    bench.estate.hand_over_repository()
    for path in bench.estate.repository.rglob("*"):
        if path.is_file() and path not in before and "/wal/" not in str(path):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - AGO.total_seconds()))
    (made,) = set((bench.estate.repository / f"s/{service.name}/{component.name}/snapshots").iterdir()) - before
    return made


class Earlier(SystemClock):
    """The machine's clock some weeks ago."""

    def now(self) -> datetime:
        return super().now() - AGO


def listed(client: httpx.Client, path: str) -> list[tuple[str, str, str, str]]:
    items = client.get(path).json()["items"]
    return [(item["id"], item["state"], item["host"], item["dsn"]) for item in items]
