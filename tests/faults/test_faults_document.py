"""docs/faults.md names a test for every fault, and every test of this folder and of nodes' deaths stands there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
CHAOS = FOLDER.parent / "integration" / "node" / "test_node_chaos.py"
FAULTS = FOLDER.parent / "integration" / "node" / "test_node_faults.py"
DOCUMENT = FOLDER.parents[1] / "docs" / "faults.md"


def defined(paths: Iterable[Path]) -> set[str]:
    return {
        node.name
        for path in paths
        if path != Path(__file__)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_document_and_the_tests_name_each_other() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert named - defined(FOLDER.parent.rglob("test_*.py")) == set(), "the document names tests that do not exist"
    assert defined(FOLDER.glob("test_faults_*.py")) - named == set(), "these tests are missing in docs/faults.md"
    assert defined([CHAOS, FAULTS]) - named == set(), "so are these"
