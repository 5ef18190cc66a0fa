"""A drill asks git about the clones that came back, and says which did not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from drservice import processes
from drservice.checks.interface import Finding, RecoveredDocuments, RecoveredService
from drservice.checks.prepared import ask_clones
from drservice.model.checks import CheckState
from drservice.model.estate import FilesKind, GitSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from tests.doubles.clones import commit, make, taken

CODE = ComponentName("code")


class Outside:
    """Runs git here instead of inside, where the recovered folder has another name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def execute(self, argv: Sequence[str], *, timeout_seconds: float) -> processes.Finished:
        words = [word.replace("/env/files/code/files", str(self.root)) for word in argv]
        return processes.run(words, timeout_seconds=timeout_seconds)


def asked(root: Path, *clones: Path) -> Finding:
    documents = RecoveredDocuments(
        component=CODE, kind=FilesKind.GIT, root=root, expected=1, missing=(), corrupt=(), extra=0,
        missing_in_production=(), database=None, follows=None,
    )  # fmt: skip
    database = type("Database", (), {"environment": Outside(root)})()
    service = RecoveredService(
        service=Service(name=ServiceName("erp"), components={CODE: GitSettings(name=CODE, clones=clones)}),
        databases=cast("dict[ComponentName, object]", {ComponentName("database"): database}),  # type: ignore[arg-type]  # only its environment is asked for
        documents={CODE: documents},
        baselines={},
    )
    return ask_clones(CODE, service, 30)


def test_clones_that_were_not_in_the_snapshot_are_no_pass(tmp_path: Path) -> None:
    """What is not there differs in nothing."""
    addons, absent = make(tmp_path / "addons"), tmp_path / "absent"
    commit(addons, "file", "x")
    prepared, made = taken([addons, absent], tmp_path / "room")
    assert len(prepared.unreadable) == 1
    assert asked(made, addons).state is CheckState.PASSED
    found = asked(made, addons, absent)
    assert found.state is CheckState.FAILED
    assert f"{absent} is not in the snapshot" in found.detail
    (tmp_path / "empty").mkdir()
    assert asked(tmp_path / "empty", addons).state is CheckState.FAILED, "none came back at all"
