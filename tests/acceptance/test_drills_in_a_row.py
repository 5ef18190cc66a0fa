"""Drills in a row: each reaches an instant that follows from its seed, and the host is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drservice.clock import from_iso
from drservice.model.evidence import EvidenceKind, seed_commitment, target_from_seed
from tests.contract.env_census import take_census
from tests.contract.env_fixtures import eventually
from tests.doubles.cluster import ClusterMaker
from tests.doubles.plant import Plant
from tests.faults.plantbench import Watcher, environments_dir, ledger_size, make_plant, opened, predicates


@pytest.fixture(scope="module")
def plant(template_cache: Path) -> Iterator[Plant]:
    """A plant with a recovery point and work behind it; nothing in production changes any more."""
    maker = ClusterMaker(cache=template_cache)
    try:
        made = make_plant(maker)
        yield made
        made.estate.close()
    finally:
        maker.close()


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_drills_in_a_row_leave_no_process_mount_namespace_cgroup_or_folder(plant: Plant, rounds: int) -> None:
    config, environments = plant.estate.config, environments_dir(plant)
    begin, before = ledger_size(config), take_census(environments)
    ids: set[str] = set()
    was_seen = False

    def look(step: str) -> None:
        nonlocal was_seen
        if step == "check":
            ids.update(path.name for path in environments.iterdir())
            was_seen = was_seen or {"processes", "folders"} <= set(take_census(environments, ids).more_than(before))

    recovery_ms: list[int] = []
    for _ in range(rounds):
        with opened(config, watcher=Watcher(on_step=look)) as bench:
            result = bench.drill("random")
        assert result.verdict.passed, result.verdict.reasons
        assert result.measured.rto_ms is not None
        recovery_ms.append(result.measured.rto_ms)
    assert was_seen, "the census sees what is there"
    assert len(ids) == rounds, "each had an environment of its own"
    eventually(lambda: not take_census(environments, ids).more_than(before), seconds=5)
    require_targets_of_their_seeds(config, begin, rounds)
    ordered = sorted(recovery_ms)
    told = f"{rounds} drills, recovery in ms: {recovery_ms}; median {ordered[rounds // 2]}, most {ordered[-1]}"
    print(told)  # noqa: T201  # numbers for people who run this with -s


def require_targets_of_their_seeds(config: Path, begin: int, rounds: int) -> None:
    obligations = predicates(config, EvidenceKind.OBLIGATION, begin)
    drills = predicates(config, EvidenceKind.DRILL, begin)
    assert len(obligations) == len(drills) == rounds
    assert {drill["obligation_entry"] for drill in drills.values()} == set(obligations)
    for drill in drills.values():
        require_target_of_its_seed(obligations[drill["obligation_entry"]], drill)
    assert len({drill["seed"] for drill in drills.values()}) == rounds


def require_target_of_its_seed(obligation: dict[str, Any], drill: dict[str, Any]) -> None:
    promised, seed = obligation["target"], bytes.fromhex(drill["seed"])
    assert promised["seed_commitment"] == seed_commitment(seed)
    requested = from_iso(drill["target"]["requested"])
    assert requested == target_from_seed(seed, from_iso(promised["from"]), from_iso(promised["to"]))
    assert (drill["outcome"], drill["target_accuracy_ms"], drill["destroyed"]) == ("passed", 0, True)
