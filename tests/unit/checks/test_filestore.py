"""Plain folders; documents of a database are asked for in tests/integration/test_checks.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drservice.checks.filestore import ask_files, ask_missing_in_production
from drservice.checks.interface import Finding, RecoveredDocuments, RecoveredService
from drservice.checks.suite import plan_suite, run_suite
from drservice.clock import SystemClock
from drservice.model.checks import CheckState
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName, ServiceName

FOLDER = ComponentName("folder")
SERVICE = Service(
    name=ServiceName("erp"),
    components={FOLDER: FilesSettings(name=FOLDER, kind=FilesKind.DIRECTORY, path=Path("/x"))},
)


@pytest.fixture
def documents(tmp_path: Path) -> RecoveredDocuments:
    root = tmp_path / "placed"
    (root / "deep" / "er").mkdir(parents=True)
    for name in ("one", "deep/two", "deep/er/three"):
        (root / name).write_bytes(b"x")
    (root / "link").symlink_to("one")
    return RecoveredDocuments(
        component=FOLDER,
        kind=FilesKind.DIRECTORY,
        root=root,
        expected=3,
        missing=(),
        corrupt=(),
        extra=0,
        missing_in_production=(),
        database=None,
        follows=None,
    )


def ask(documents: RecoveredDocuments) -> Finding:
    service = RecoveredService(service=SERVICE, databases={}, documents={FOLDER: documents})
    return ask_files(FOLDER, service, 5)


def test_a_folder_with_all_its_files_passes(documents: RecoveredDocuments) -> None:
    assert ask(documents).state is CheckState.PASSED


def test_a_link_does_not_stand_for_a_file_that_is_gone(documents: RecoveredDocuments) -> None:
    (documents.root / "deep/two").unlink()
    finding = ask(documents)
    assert finding.state is CheckState.FAILED
    assert finding.detail == "2 files are there, 3 were expected"


def test_what_the_restore_itself_names_fails(documents: RecoveredDocuments) -> None:
    assert "'deep/two'" in ask(replace(documents, missing=("deep/two",))).detail
    assert ask(replace(documents, corrupt=("one",))).state is CheckState.FAILED


def test_a_folder_that_is_not_there_is_unverified(documents: RecoveredDocuments, tmp_path: Path) -> None:
    gone = replace(documents, root=tmp_path / "nowhere", expected=0)
    service = RecoveredService(service=SERVICE, databases={}, documents={FOLDER: gone})
    (result,) = run_suite(service, plan_suite(SERVICE), clock=SystemClock()).results
    assert result.state is CheckState.UNVERIFIED


def test_what_production_had_lost_is_told_apart(documents: RecoveredDocuments) -> None:
    lost = replace(documents, missing_in_production=("ab/\x1b[2J",))
    service = RecoveredService(service=SERVICE, databases={}, documents={FOLDER: lost})
    finding = ask_missing_in_production(FOLDER, service, 5)
    assert finding.state is CheckState.FAILED
    assert "\x1b" not in finding.detail


def test_what_production_had_lost_and_an_older_snapshot_gave_back_is_told_as_well(
    documents: RecoveredDocuments,
) -> None:
    lost = replace(documents, missing_in_production=("ab/gone",), recovered_from_older=("cd/back", "ef/back"))
    service = RecoveredService(service=SERVICE, databases={}, documents={FOLDER: lost})
    finding = ask_missing_in_production(FOLDER, service, 5)
    assert (finding.state, finding.value) == (CheckState.FAILED, "3")
    assert finding.detail == (
        "production had no good copy of 1 documents: 'ab/gone'; 2 documents were lost or damaged in production and"
        " recovered from an older snapshot: 'cd/back', 'ef/back'"
    )


def test_that_the_content_of_a_plain_folder_is_compared_with_nothing_is_told(documents: RecoveredDocuments) -> None:
    service = RecoveredService(service=SERVICE, databases={}, documents={FOLDER: documents})
    outcome = run_suite(service, plan_suite(SERVICE), clock=SystemClock())
    assert [result.name for result in outcome.results] == ["folder/files-present"]
    assert "nothing but the hashes of its chunks" in outcome.not_applicable["folder/files-content"]
