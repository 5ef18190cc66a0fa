"""A drill always ends on record, whoever dies in it, and leaves no process, mount, namespace or folder behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drservice.checks.suite import CheckTimes
from drservice.environments.interface import EnvironmentDescription, EnvironmentState
from drservice.environments.limits import LimitKind, Limits
from drservice.environments.sandbox import list_sandboxes
from drservice.errors import ExitStatus, ReplayError, StoreUnreachableError
from drservice.model.checks import CheckState
from drservice.model.evidence import EvidenceKind, seed_commitment
from drservice.operations import drill as drill_module
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.results import drill_exit_status
from tests.contract.env_census import Census, take_census
from tests.contract.env_fixtures import eventually
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM
from tests.doubles.plant import Plant
from tests.faults.doomeddrill import Doom, run_doomed_drill
from tests.faults.plantbench import (
    Bench,
    Watcher,
    config_with,
    environments_dir,
    kill_inside,
    ledger_size,
    make_plant,
    opened,
    predicates,
    require_bundle,
)
from tests.faults.triggers import TriggerStore


@pytest.fixture(scope="module")
def plant(maker: ClusterMaker) -> Iterator[Plant]:
    """A plant with a recovery point and work behind it; nothing in production changes any more."""
    made = make_plant(maker)
    try:
        yield made
    finally:
        made.estate.close()


@pytest.fixture
def before(plant: Plant) -> Census:
    return take_census(environments_dir(plant))


def environments(plant: Plant) -> list[EnvironmentDescription]:
    return list_sandboxes(environments_dir(plant))


def drills_of(plant: Plant, begin: int) -> dict[int, dict[str, Any]]:
    return predicates(plant.estate.config, EvidenceKind.DRILL, begin)


def obligations_of(plant: Plant, begin: int) -> dict[int, dict[str, Any]]:
    return predicates(plant.estate.config, EvidenceKind.OBLIGATION, begin)


def require_nothing_left(plant: Plant, before: Census, ids: set[str]) -> None:
    assert ids, "no environment was seen: the test has looked at nothing"
    eventually(lambda: not take_census(environments_dir(plant), ids).more_than(before), seconds=5)
    assert list((plant.estate.state / "drills").iterdir()) == [], "no drill is under way"


def require_failed_on_record(plant: Plant, result: DrillResult) -> dict[str, Any]:
    """The invariant of a drill that went wrong: failed, destroyed, and its record says both."""
    assert not result.verdict.passed
    assert result.destroyed
    assert result.record is not None
    record = drills_of(plant, result.record.number)[result.record.number]
    assert (record["outcome"], record["destroyed"], record["kept"]) == ("failed", True, False)
    assert record["obligation_entry"] == result.obligation_entry
    assert record["reasons"], "a failed drill says why"
    return record


def test_a_drill_whose_environment_stays_does_not_pass(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of production that nobody asked to keep is an open door, whatever the checks said."""
    monkeypatch.setattr(drill_module, "is_left", lambda *_: True)
    with opened(plant.estate.config) as bench:
        result = bench.drill()
    assert not result.verdict.passed
    assert any("was not destroyed" in reason for reason in result.verdict.reasons)
    assert drill_exit_status(result) is ExitStatus.FAILED, "no mere breach of a promise"
    assert result.record is not None
    assert drills_of(plant, result.record.number)[result.record.number]["outcome"] == "failed"


def test_a_drill_without_production_counts_what_it_cannot_ask_as_lost(plant: Plant) -> None:
    plant.cluster.stop()
    try:
        with opened(plant.estate.config) as bench:
            result = bench.drill()
    finally:
        plant.cluster.start()
    assert result.restored is not None, "a recovery needs no production"
    assert result.measured.rpo_ms, "what lies behind the archive cannot be known"
    assert any("production had committed" in text for text in result.verdict.not_tested)


# --- killed ---------------------------------------------------------------------------------------------------

STAGES = (
    Doom(record=1, when="before"),
    Doom(record=1, when="after"),
    Doom(step="isolation self-test"),
    Doom(step="fetch and place"),
    Doom(step="prove the target"),
    Doom(step="check"),
    Doom(step="destroy"),
    Doom(step="put the outcome on record"),
    Doom(record=2, when="after"),
)
"""Every drill but the first and the last appends the abortion of the one before as its first record."""
SOME_STAGES = tuple(STAGES[number] for number in (0, 1, 3, 5, 8))


@pytest.mark.parametrize(
    "stages", [pytest.param(SOME_STAGES, id="some"), pytest.param(STAGES, id="all", marks=pytest.mark.long)]
)
def test_a_drill_killed_at_any_stage_is_put_on_record_by_the_next_and_leaves_nothing(
    plant: Plant, before: Census, tmp_path: Path, stages: tuple[Doom, ...]
) -> None:
    begin = ledger_size(plant.estate.config)
    ids: set[str] = set()
    for number, doom in enumerate(stages):
        # A drill appends the abortion of the one before, its obligation, its outcome; the first leaves none to abort.
        late = 1 if doom.record and number > 1 else 0
        planned = Doom(step=doom.step, record=doom.record + late, when=doom.when)
        assert run_doomed_drill(plant.estate.config, planned, plan="random") == -9, f"it never came to {doom}"
        left = [about.id for about in environments(plant)]
        assert len(left) <= 1, f"{doom}: the drill has not removed what the one before it had left"
        assert not ids & set(left)
        ids.update(left)
    done = plant.json("drill", "erp", "--plan", "random")
    assert done["verdict"] == "passed"
    obligations, drills = obligations_of(plant, begin), drills_of(plant, begin)
    # Killed before its first record it promised nothing; killed behind its outcome it is no abortion.
    assert len(obligations) == len(stages)
    outcomes = [drill["outcome"] for drill in drills.values()]
    assert outcomes == ["aborted"] * (len(stages) - 2) + ["passed", "passed"]
    assert [drill["obligation_entry"] for drill in drills.values()] == list(obligations), "one outcome each, in order"
    for drill in drills.values():
        promised = obligations[drill["obligation_entry"]]
        assert promised["obligation"] == drill["obligation"]
        assert promised["target"]["seed_commitment"] == seed_commitment(bytes.fromhex(drill["seed"]))
    assert all(drill["checks"] == [] and drill["snapshots"] == [] for drill in list(drills.values())[:-2])
    require_nothing_left(plant, before, ids)
    verified = require_bundle(plant, tmp_path / "bundle.zip")
    assert verified["open_obligations"] == []


# --- two at once ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_drills_at_once_end_both_and_do_not_disturb_each_other(plant: Plant, before: Census) -> None:
    begin = ledger_size(plant.estate.config)
    argv = [*PROGRAM, "--config", str(plant.estate.config), "drill", "erp", "--plan", "random", "--json"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ids: set[str] = set()
    try:
        while any(drill.poll() is None for drill in both):
            ids.update(about.id for about in environments(plant))
    finally:  # they share the plant with the other tests: whatever happens here, they end first
        ended = [(drill, *drill.communicate(timeout=120)) for drill in both]
    for drill, told, problems in ended:
        assert drill.returncode == 0, problems.decode()
        assert b'"verdict": "passed"' in told
    drills, obligations = drills_of(plant, begin), obligations_of(plant, begin)
    assert [drill["outcome"] for drill in drills.values()] == ["passed", "passed"]
    assert max(obligations) < min(drills), "they ran at the same time"
    assert {drill["obligation_entry"] for drill in drills.values()} == set(obligations)
    assert len({drill["seed"] for drill in drills.values()}) == 2
    require_nothing_left(plant, before, ids)


# --- something dies, hangs or is full -------------------------------------------------------------------------


class Noting(Watcher):
    """A progress that remembers which environments there were."""

    def watch(self, plant: Plant) -> set[str]:
        ids: set[str] = set()
        then = self.on_step

        def note(name: str) -> None:
            ids.update(about.id for about in environments(plant))
            then(name)

        self.on_step = note
        return ids


def test_an_environment_that_dies_in_the_middle_of_the_checks_fails_the_drill(plant: Plant, before: Census) -> None:
    killed: list[str] = []

    def kill(step: str) -> None:
        if step == "check" and not killed:
            killed.append(step)
            kill_inside(environments_dir(plant), "keeper")

    watcher = Noting(on_advance=kill)
    ids = watcher.watch(plant)
    with opened(plant.estate.config, watcher=watcher) as bench:
        result = bench.drill()
    assert killed, "the keeper was never killed"
    states = [check.state for check in result.results]
    assert states[0] is CheckState.PASSED, "it lived when the first question was asked"
    assert CheckState.UNVERIFIED in states
    planned = set(result.prepared.criteria.checks)
    asked = {check.name for check in result.results}
    nothing_to_ask = {  # a folder without a snapshot's times; no folders of modules, and no Odoo but this one
        "configuration/files-content",
        "documents/odoo-code",
        "documents/neutralized-scripts",
        "documents/neutralized-other-databases",
        "documents/neutralized-http-actions",
    }
    assert planned - asked == nothing_to_ask, "each planned check that applies has a result"
    require_failed_on_record(plant, result)
    require_nothing_left(plant, before, ids)


def test_a_server_that_crashes_in_the_replay_fails_the_drill_with_the_reason(plant: Plant, before: Census) -> None:
    watcher = Noting()
    ids = watcher.watch(plant)
    trigger: list[TriggerStore] = []

    def crashing(inner: Any) -> TriggerStore:
        # The server asks for the next history file when it begins to recover, and waits for the answer.
        trigger.append(
            TriggerStore(
                inner,
                lambda _: kill_inside(environments_dir(plant), "server"),
                operations=["list"],
                part=".history",
            )
        )
        return trigger[0]

    with opened(plant.estate.config, watcher=watcher, store=crashing) as bench:
        result = bench.drill()
    assert trigger[0].fired == 1
    assert isinstance(result.error, ReplayError)
    record = require_failed_on_record(plant, result)
    assert record["error"]["code"] == "DR312"
    assert record["reasons"][0].startswith("DR312")
    assert {check["state"] for check in record["checks"]} == {"unverified"}
    assert watcher.steps[-1] == "put the outcome on record"
    require_nothing_left(plant, before, ids)


def test_a_check_that_hangs_is_unverified_and_the_drill_ends(plant: Plant, before: Census, tmp_path: Path) -> None:
    hanging = {"name": "hangs", "component": "database", "sql": "select 0 from pg_sleep(600)", "expect": "= 0"}
    after = {"name": "after", "component": "database", "sql": "select 0", "expect": "= 0"}
    watcher = Noting()
    ids = watcher.watch(plant)
    config = config_with(plant, tmp_path / "hanging.yaml", checks=[hanging, after])
    with opened(config, watcher=watcher) as bench:
        result = bench.drill(times=CheckTimes(business_seconds=1.5))
    checks = {check.name: check for check in result.results}
    assert checks["business:hangs"].state is CheckState.UNVERIFIED
    assert 1 < checks["business:hangs"].seconds < 20
    assert checks["business:after"].state is CheckState.PASSED, "it stops no other check"
    record = require_failed_on_record(plant, result)
    assert any("business:hangs" in reason for reason in record["reasons"])
    require_nothing_left(plant, before, ids)


def test_an_environment_without_space_fails_the_drill_and_names_the_limit(plant: Plant, before: Census) -> None:
    def wait(step: str) -> None:
        if step == "check":  # a small drill could be over before anybody looks at its disk
            eventually(lambda: not any(about.state is EnvironmentState.RUNNING for about in environments(plant)))

    watcher = Noting(on_step=wait)
    ids = watcher.watch(plant)
    with opened(plant.estate.config, watcher=watcher) as bench:
        result = bench.drill(limits=Limits(disk_bytes=8 << 20))
    record = require_failed_on_record(plant, result)
    assert "DR603" in record["reasons"][0], record["reasons"]
    assert "was ended: " in record["reasons"][0]
    assert LimitKind.DISK.value in record["reasons"][0]
    passed = [check.name for check in result.results if check.state is CheckState.PASSED]
    assert not any(name.startswith(("database/", "business:")) for name in passed), passed
    require_nothing_left(plant, before, ids)


@pytest.mark.long
def test_an_outcome_that_cannot_be_sealed_is_not_an_abortion_as_well(plant: Plant) -> None:
    """What was kept on purpose stays, although its drill did not end well."""
    begin = ledger_size(plant.estate.config)

    def unplug(name: str) -> None:
        if name == "put the outcome on record":
            plant.root.joinpath("anchors").rename(plant.root / "away")

    with opened(plant.estate.config, watcher=Watcher(on_step=unplug)) as bench:
        kept = failing_seal(bench)
    plant.root.joinpath("away").rename(plant.root / "anchors")
    assert [about.id for about in environments(plant)] == [kept]
    assert plant.json("drill", "erp", "--plan", "latest")["verdict"] == "passed"
    assert [drill["outcome"] for drill in drills_of(plant, begin).values()] == ["passed", "passed"]
    assert [about.id for about in environments(plant)] == [kept]
    plant.json("environment", "destroy", kept)


def failing_seal(bench: Bench) -> str:
    """Run a drill whose outcome is on record and whose last checkpoint cannot be anchored; return what it kept."""
    result = bench.drill(keep=True)
    assert isinstance(result.unproven, StoreUnreachableError)
    assert drill_exit_status(result) is ExitStatus.FAILED, "what is not sealed is no success yet"
    (about,) = list_sandboxes(bench.context.environments_dir)
    return str(about.id)
