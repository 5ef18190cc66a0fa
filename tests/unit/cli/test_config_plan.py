"""What ``config plan`` prints is a contract: the document and the lines are compared with golden files.

After a wanted change of the lines (the document only grows), write them anew:
``python tests/unit/cli/test_config_plan.py``.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from drservice.cli.configplan import Shown, present_changes, present_preview
from drservice.cli.output import Output, Span
from drservice.model.ids import PointId, ServiceName, SnapshotId
from drservice.operations.expiring import Expiring
from drservice.settings.changes import compare
from drservice.settings.loading import load

GOLDEN = Path(__file__).parents[2] / "golden" / "config-plan"
NOW = datetime(2026, 3, 27, 12, tzinfo=UTC)  # two days before clocks in Berlin go forward


def shown(name: str) -> Shown:
    before, after = (load(GOLDEN / f"{which}.yaml") for which in ("before", "after"))
    if name == "preview":
        return present_preview(before.estate, now=NOW)
    return present_changes(compare(before, after, now=NOW), before=before.estate.source, after=after.estate, now=NOW)


def printed(name: str, *, json_document: bool) -> str:
    stdout = io.StringIO()
    output = Output(stdout=stdout, stderr=io.StringIO(), json_document=json_document, quiet=False, colour=False)
    found = shown(name)
    output.result("config-plan", found.document, found.lines)
    text = stdout.getvalue().replace(str(GOLDEN), "/golden")
    return json.dumps(json.loads(text), indent=1) + "\n" if json_document else text


@pytest.mark.parametrize("name", ["preview", "changes"])
def test_the_document_is_the_golden_one(name: str) -> None:
    assert printed(name, json_document=True) == (GOLDEN / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["preview", "changes"])
def test_the_lines_are_the_golden_ones(name: str) -> None:
    assert printed(name, json_document=False) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_a_preview_weakens_nothing_and_these_changes_do() -> None:
    assert not shown("preview").weakens
    assert shown("changes").weakens


def test_what_the_repository_would_let_go_is_told_only_if_it_was_asked() -> None:
    before, after = (load(GOLDEN / f"{which}.yaml") for which in ("before", "after"))
    changes = compare(before, after, now=NOW)
    expiring = Expiring(
        service=ServiceName("erp"),
        points=(PointId("01P"),),
        snapshots=(SnapshotId("01S"), SnapshotId("01T")),
        kept_snapshots=3,
    )
    found = present_changes(changes, before=before.estate.source, after=after.estate, now=NOW, expiring=[expiring])
    assert found.document["expires"] == [
        {"service": "erp", "points": ["01P"], "snapshots": ["01S", "01T"], "kept_snapshots": 3}
    ]
    told = [line[0].text for line in found.lines if isinstance(line, tuple) and isinstance(line[0], Span)]
    assert "  erp: 1 recovery points and 2 snapshots that are kept now would expire; 3 snapshots would stay" in told
    assert shown("changes").document["expires"] is None


def test_nothing_that_changes_is_said_so() -> None:
    before = load(GOLDEN / "before.yaml")
    found = present_changes(compare(before, before, now=NOW), before=before.estate.source, after=before.estate, now=NOW)
    assert "Nothing changes." in found.lines
    assert not found.weakens


def test_a_name_in_a_file_cannot_move_the_cursor() -> None:
    with TemporaryDirectory() as folder:
        hostile = Path(folder) / "hostile.yaml"
        text = (GOLDEN / "before.yaml").read_text(encoding="utf-8")
        hostile.write_text(text.replace("owner: plant-it@example.com", 'owner: "\\e[2Jplant"'), encoding="utf-8")
        before, after = load(GOLDEN / "before.yaml"), load(hostile)
        found = present_changes(
            compare(before, after, now=NOW), before=before.estate.source, after=after.estate, now=NOW
        )
    stdout = io.StringIO()
    output = Output(stdout=stdout, stderr=io.StringIO(), json_document=False, quiet=False, colour=False)
    output.result("config-plan", found.document, found.lines)
    assert "\x1b" not in stdout.getvalue()
    assert "\\x1b[2Jplant" in stdout.getvalue()


if __name__ == "__main__":
    for written in ("preview", "changes"):
        (GOLDEN / f"{written}.json").write_text(printed(written, json_document=True), encoding="utf-8")
        (GOLDEN / f"{written}.txt").write_text(printed(written, json_document=False), encoding="utf-8")
