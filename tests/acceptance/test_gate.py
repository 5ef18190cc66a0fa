"""The gate and restore points on a real cluster: closed with reasons, open after a proof, and the way back."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ruamel.yaml import YAML

from drservice import processes
from drservice.clock import SystemClock
from drservice.operations.checklist import CheckState
from drservice.operations.gate import GateContext, GateResult, ask_gate
from drservice.operations.progress import SilentProgress
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import TempEstate, as_user

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "gate-in-ci.md"


class Ahead(SystemClock):
    """The machine's clock some time ahead."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> Any:
        return super().now() + self._ahead


def configure(estate: TempEstate, **service: Any) -> None:
    """Give the service of the configuration other values."""
    document = json.loads(estate.config.read_text())
    document["services"]["erp"].update(service)
    estate.config.write_text(json.dumps(document))


@pytest.fixture
def bare(template_cache: Path) -> Iterator[TempEstate]:
    """A service with a table, whose WAL is archived, and nothing else."""
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    estate = TempEstate.over(cluster)
    try:
        estate.json("init", account=as_user("postgres"))
        estate.archive_with_the_program()
        cluster.start()
        cluster.sql("create table orders (id int primary key)")
        cluster.sql("insert into orders values (1)")
        configure(estate, objectives={"rpo": "10m"})
        yield estate
    finally:
        estate.close()
        maker.close()


@pytest.fixture
def proved(bare: TempEstate) -> TempEstate:
    """The service with a recovery point, and a drill that passed."""
    bare.json("backup", "erp")
    bare.json("drill", "erp")
    return bare


def states(document: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in document["checks"]}


def test_the_gate_opens_once_there_is_a_proof_and_the_way_back_is_what_was_there(bare: TempEstate) -> None:
    nothing = bare.json("gate", "erp", status=4)
    assert nothing["schema"] == "drservice/gate/v1"
    assert states(nothing) == {
        "last backup": "failed",
        "verified point": "failed",
        "WAL lag": "failed",
        "findings": "ok",
    }
    assert len(nothing["reasons"]) == 3
    assert bare.json("restore-point", "erp", "early", status=1)["error"]["code"] == "DR860"
    bare.json("backup", "erp")
    unproved = bare.json("gate", "erp", "--restore-point", "release-1", status=4)
    assert states(unproved)["verified point"] == "failed"
    assert (len(unproved["reasons"]), unproved["restore_points"]) == (1, [])
    bare.json("drill", "erp")
    answer = bare.json("gate", "erp", "--restore-point", "release-1")
    assert answer["open"] is True
    assert set(states(answer).values()) == {"ok"}, "a closed gate had left no point of this name"
    (left,) = answer["restore_points"]
    assert (left["component"], left["name"]) == ("database", "release-1")
    bare.cluster.sql("insert into orders values (666)")
    bare.cluster.switch_wal()
    back = bare.json("restore", "erp", "--name", "release-1", "--start")
    with psycopg.connect(back["environment"]["dsn"]) as connection:
        assert connection.execute("select id from orders").fetchall() == [(1,)]


def test_a_name_is_used_once_and_has_to_be_one(proved: TempEstate) -> None:
    left = proved.json("restore-point", "erp", "before-month-close")
    assert left["schema"] == "drservice/restore-point/v1"
    again = proved.json("restore-point", "erp", "before-month-close", status=2)["error"]
    assert (again["code"], "already" in again["message"]) == ("DR861", True)
    for name in ("", "-x", "a b", "a/b", "x" * 64, "..", "name\n", "ünïcode", "a..b"):
        refused = proved.run("restore-point", "erp", "--json", "--", name)
        assert (refused.status, json.loads(refused.stdout)["error"]["code"]) == (2, "DR861"), name
        assert proved.run("gate", "erp", "--restore-point", name).status == 2, name
    taken = proved.json("gate", "erp", "--restore-point", "before-month-close", status=4)
    assert states(taken)["restore point"] == "failed"


def test_a_name_whose_wal_does_not_arrive_fails_and_is_used_up(proved: TempEstate) -> None:
    proved.archive_wait_seconds = 2
    proved.write_configuration(proved.config)
    proved.cluster.sql("alter system set archive_command = 'false'")
    proved.cluster.sql("select pg_reload_conf()")
    lost = proved.json("restore-point", "erp", "lost", status=1)["error"]
    assert (lost["code"], "lost" in lost["message"]) == ("DR214", True)
    assert proved.json("restore-point", "erp", "lost", status=2)["error"]["code"] == "DR861"


def test_work_that_is_not_archived_closes_the_gate_and_so_does_a_server_that_cannot_be_asked(
    proved: TempEstate,
) -> None:
    configure(proved, objectives={"rpo": "1ms"})
    proved.cluster.sql("insert into orders select generate_series(1000, 2000)")
    behind = proved.json("gate", "erp", "--restore-point", "never", status=4)
    assert states(behind)["WAL lag"] == "failed"
    assert not list(proved.repository.glob("s/erp/database/names/*/*")), "a closed gate leaves no point"
    configure(proved, objectives={})
    assert states(proved.json("gate", "erp"))["WAL lag"] == "warning"
    proved.cluster.stop()
    assert states(proved.json("gate", "erp", status=4))["WAL lag"] == "failed"


def test_a_critical_finding_closes_the_gate(proved: TempEstate) -> None:
    check = {"name": "balance", "component": "database", "sql": "select 1", "expect": "= 0", "severity": "critical"}
    configure(proved, checks=[check])
    proved.json("drill", "erp", status=1)
    closed = proved.json("gate", "erp", status=4)
    assert (states(closed)["findings"], states(closed)["verified point"]) == ("failed", "failed")
    assert any("balance" in reason for reason in closed["reasons"])


def asked(estate: TempEstate, ahead: timedelta) -> GateResult:
    """Ask the gate as it will answer later."""
    loaded = estate.estate()
    with open_data_plane(loaded, clock=Ahead(ahead)) as plane, open_evidence(plane) as evidence:
        context = GateContext(
            estate=loaded,
            repository=plane.repository,
            evidence=evidence,
            state_dir=loaded.state_dir,
            clock=plane.clock,
            progress=SilentProgress(),
        )
        return ask_gate(context, loaded.service("erp"))


def failed(result: GateResult) -> set[str]:
    return {check.name for check in result.checks if check.state is CheckState.FAILED}


def test_what_is_overdue_by_its_schedule_closes_the_gate(proved: TempEstate) -> None:
    yesterday = (datetime.now(UTC).isoweekday() - 1) % 7  # its next slot is five days away at least, whatever today is
    configure(proved, objectives={}, schedule={"backup": "0 1 * * *", "drill": f"0 6 * * {yesterday}"})
    assert failed(asked(proved, timedelta(0))) == set()
    assert failed(asked(proved, timedelta(days=2, hours=6))) == {"last backup"}
    assert failed(asked(proved, timedelta(days=15))) == {"last backup", "verified point"}
    configure(proved, schedule={})
    assert failed(asked(proved, timedelta(days=34))) == set()
    assert failed(asked(proved, timedelta(days=36))) == {"verified point"}
    assert failed(asked(proved, timedelta(days=-3))) == {"last backup", "verified point"}, "a clock is wrong"


def scripts() -> dict[str, list[str]]:
    """Return the commands of each job in the how-to."""
    (block,) = re.findall(r"```yaml\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    pipeline = YAML(typ="safe").load(block)
    return {job: pipeline[job]["script"] for job in pipeline if job != "stages"}


def in_pipeline(estate: TempEstate, folder: Path, command: str) -> processes.Finished:
    """Run one line of a job as a pipeline does."""
    program = folder / "drservice"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m drservice "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = processes.clean_environment(
        {
            "HOME": str(folder),
            "PATH": f"{folder}:/usr/bin:/bin",
            "DRSERVICE_CONFIG": str(estate.config),
            "CI_COMMIT_SHORT_SHA": "3f2a1b0c",
        }
    )
    return processes.run(
        ["sh", "-e", "-c", command], cwd=folder, environment=environment, timeout_seconds=120.0, account=None
    )


def test_the_pipeline_of_the_how_to_runs_as_it_stands(proved: TempEstate, tmp_path: Path) -> None:
    jobs = scripts()
    assert list(jobs) == ["gate", "deploy", "look-at-the-state-before"]
    deploy = tmp_path / "deploy"
    deploy.write_text("#!/bin/sh\n: > deployed\n")
    deploy.chmod(0o755)
    for job, commands in jobs.items():
        for command in commands:
            done = in_pipeline(proved, tmp_path, command)
            assert done.status == 0, f"{job}: {done.stderr.decode()}"
        if job == "deploy":
            proved.cluster.sql("insert into orders values (666)")
            proved.cluster.switch_wal()
    assert (tmp_path / "deployed").exists()
    (environment,) = proved.json("environment", "list")["environments"]
    assert environment["state"] == "running"
    told = re.findall(r"```sh\n(.*?)\n```", HOW_TO.read_text(), re.DOTALL)
    assert len(told) == 2
    for command in told:
        assert in_pipeline(proved, tmp_path, command).status == 0, command
