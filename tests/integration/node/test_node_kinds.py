"""Each kind of run, done by a node: the same documents as the command line, errors included."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.environments.sandbox import open_sandbox
from drservice.model.runs import RunKind, RunState
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.estate import SERVICE
from tests.doubles.nodes import NodeBench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBench]:
    """A node over a service with documents that has one backup."""
    base = tmp_path_factory.getbasetemp()
    maker = ClusterMaker(cache=base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base)
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
    made.configure(components_added={"documents": filestore(store)})
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


def test_a_drill_passes_and_its_verdict_is_the_result(bench: NodeBench) -> None:
    # What a schedule calls a drill that no configuration spells out is a name, not a plan to look up.
    run = bench.wait_state(bench.request(RunKind.DRILL, plan="erp-latest"), RunState.SUCCEEDED)
    assert run.result is not None
    assert (run.result["verdict"], run.result["service"]) == ("passed", SERVICE)
    assert run.result["record"] is not None
    assert run.result["destroyed"] is True
    assert bench.estate.environments() == []


def test_an_isolated_restore_leaves_its_environment_running_and_says_how_to_reach_it(bench: NodeBench) -> None:
    run = bench.wait_state(bench.request(RunKind.RESTORE, parameters={"to": "latest"}), RunState.SUCCEEDED)
    assert run.result is not None
    environment = run.result["environment"]
    assert environment["dsn"]
    sandbox = open_sandbox(Path(environment["path"]))
    try:
        assert sandbox.running()
    finally:
        sandbox.destroy()


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


def test_a_kind_that_this_version_does_not_do_is_refused(bench: NodeBench) -> None:
    run = bench.wait_state(bench.request(RunKind.RETENTION), RunState.FAILED)
    assert run.error is not None
    assert run.error["code"] == "DR943"
