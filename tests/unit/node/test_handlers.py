"""What runs do."""

from __future__ import annotations

from drservice.model.runs import RunKind
from drservice.node.handlers import HANDLERS


def test_every_kind_of_run_is_done() -> None:
    assert set(HANDLERS) == set(RunKind)
