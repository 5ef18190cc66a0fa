"""The healthcheck of a node's container asks the catalogue whether the node was seen."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from drservice import processes
from drservice.catalogue.database import Database
from drservice.catalogue.tables import Host
from tests.doubles.catalogue import set_clock

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "deploy" / "compose" / "node-health"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def ask(tmp_path: Path, url: str) -> processes.Finished:
    path = tmp_path / "drservice.yaml"
    path.write_text(f"version: 1\nrepository: {{url: 'file:///srv/repository'}}\ncatalogue: '{url}'\n")
    path.chmod(0o640)
    environment = processes.clean_environment({"DRSERVICE_CONFIG": str(path), "PYTHONPATH": str(ROOT)})
    return processes.run([sys.executable, SCRIPT, "node"], environment=environment, timeout_seconds=60)


@pytest.mark.parametrize(
    ("age", "status", "word"),
    [(timedelta(minutes=2), 0, ""), (timedelta(minutes=2, seconds=1), 1, "last seen"), (None, 1, "never seen")],
)
def test_a_node_is_well_while_the_catalogue_sees_it(
    database: Database, tmp_path: Path, age: timedelta | None, status: int, word: str
) -> None:
    set_clock(database, NOON)
    with database.session() as session:
        session.execute(insert(Host).values(name="other", incarnation="x", version="1", seen_at=NOON))
        if age is not None:
            session.execute(insert(Host).values(name="node", incarnation="x", version="1", seen_at=NOON - age))
    answer = ask(tmp_path, database.url)
    assert (answer.status, word in answer.stderr.decode()) == (status, True), answer.stderr


def test_a_node_is_not_well_while_the_catalogue_is_away(tmp_path: Path) -> None:
    answer = ask(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    assert answer.status == 1
    assert "does not answer" in answer.stderr.decode()
