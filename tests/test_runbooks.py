"""Every command block of every runbook is run for real, in order, on a plant that has what the runbook is for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drservice.cli.table import COMMANDS, GROUPS
from drservice.model.runbook import Runbook, parse_runbook
from tests.doubles.cluster import ClusterMaker
from tests.doubles.plant import DATABASE, Plant
from tests.doubles.runbooks import Walk, command_blocks, read, shipped

IDS = [path.stem for path in shipped()]
SERVICE = "erp"


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterMaker]:
    base = tmp_path_factory.getbasetemp()
    made = ClusterMaker(cache=base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base)
    yield made
    made.close()


@pytest.fixture
def plants(maker: ClusterMaker) -> Iterator[Callable[[], Plant]]:
    """Makes plants of a test's own."""
    made: list[Plant] = []

    def make() -> Plant:
        made.append(Plant.over(maker.make(wal_segment_mb=1)))
        return made[-1]

    yield make
    for plant in made:
        plant.estate.close()
        plant.cluster.stop()


def walk(name: str, plant: Plant, blanks: dict[str, str], **how: object) -> Walk:
    """Return a walk through a shipped runbook on this plant, in an empty folder of its own."""
    folder = plant.cluster.root / name
    folder.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), str(plant.cluster.bin), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(folder), "DRSERVICE_CONFIG": str(plant.estate.config)}
    runbook = read(name)
    filled = {"SERVICE": SERVICE, "DATABASE": DATABASE, "PRODUCTION": plant.cluster.dsn(DATABASE), "WORK": str(folder)}
    wanted = {key: value for key, value in filled.items() if key in runbook.blanks}
    return Walk(runbook=runbook, blanks={**wanted, **blanks}, environment=environment, folder=folder, **how)  # type: ignore[arg-type]  # people, and nothing else


def finish(played: Walk) -> None:
    """Play, and see that no command block was left out."""
    played.play()
    assert played.executed == command_blocks(played.runbook)


# --- what every runbook is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_a_runbook_has_the_name_of_its_file_and_is_on_the_index(name: str) -> None:
    assert read(name).id == name
    index = (shipped()[0].parent / "README.md").read_text(encoding="utf-8")
    assert f"]({name}.md)" in index


def test_every_runbook_has_a_test_that_runs_it() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    played = set(re.findall(r'walk\(\s*"([a-z-]+)"', source))
    assert played == set(IDS)


def named_commands(text: str) -> set[str]:
    """Return every command of the program that a text names, as far as the table knows its group."""
    found = re.findall(r"\bdrservice(?: --[a-z-]+(?: [^ -]\S*)?)* ([a-z]+)(?: ([a-z]+))?", text)
    return {f"{first} {second}" if first in GROUPS else first for first, second in found}


@pytest.mark.parametrize("name", [*IDS, "README"])
def test_every_command_that_a_runbook_names_exists(name: str) -> None:
    text = (shipped()[0].parent / f"{name}.md").read_text(encoding="utf-8")
    scripts = text if name == "README" else "\n".join(
        part for step in read(name).steps for part in step.texts()
    )
    assert named_commands(scripts) <= {entry.name for entry in COMMANDS}
    prose = "\n".join(re.findall(r"`(drservice [^`]*)`", text))
    assert named_commands(prose) <= {entry.name for entry in COMMANDS}


# --- the runbooks ---------------------------------------------------------------------------------------------


def test_point_in_time_restore(plants: Callable[[], Plant]) -> None:
    plant = plants()
    plant.json("backup", SERVICE)
    before = plant.sql("select * from account_move_line order by id")
    moves = plant.sql("select * from stock_move order by id")
    lost = plant.acknowledged[7]
    content = (plant.filestore / lost).read_bytes()
    plant.archive()
    instant = plant.now()
    plant.sql("select pg_sleep(0.05)")
    plant.sql("delete from account_move_line where id between 100 and 180")
    plant.sql("update account_move_line set note = 'worked on since' where id = 1")
    plant.sql("drop table stock_move")
    (plant.filestore / lost).unlink()

    played = walk(
        "point-in-time-restore",
        plant,
        {
            "TABLE": "account_move_line",
            "KEY": "id",
            "DROPPED_TABLE": "stock_move",
            "PRODUCTION_DOCUMENTS": str(plant.filestore),
            "DOCUMENTS_ACCOUNT": (plant.filestore / lost).parent.owner(),
        },
        people={"choose-instant": lambda walk: walk.blanks.update(TARGET=instant.isoformat().replace("+00:00", "Z"))},
    )
    finish(played)

    assert " 81\n" in played.outputs["compare"]
    assert "1 documents put back" in played.outputs["put-documents-back"]
    after = plant.sql("select * from account_move_line order by id")
    assert [row[:4] for row in after] == [row[:4] for row in before]
    assert after[0][4] == "worked on since", "work that was done since the mistake stays"
    assert plant.sql("select * from stock_move order by id") == moves
    plant.sql("insert into stock_move (state, product_qty) values ('done', 1)")
    assert (plant.filestore / lost).read_bytes() == content
    assert (plant.filestore / lost).owner() == (plant.filestore / lost).parent.owner()
    assert plant.estate.environments() == []
    assert plant.sql("select count(*) from pg_namespace where nspname = 'recovered'") == [(0,)]
