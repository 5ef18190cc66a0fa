"""What the process of a run is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from drservice.model.runs import RunKind, RunState

Document: TypeAlias = dict[str, Any]
"""A JSON object, as the catalogue keeps it; told here again, because a run's process loads no catalogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One run, as its process needs to know it."""

    run: str
    epoch: int
    service: str
    kind: RunKind
    plan: str
    parameters: Document
    first_started_at: datetime | None
    """When it was first claimed, by this host's clock."""

    @property
    def is_throttled(self) -> bool:
        """Whether it takes less of the machine: it runs in a window in which heavy work is avoided."""
        return bool(self.parameters.get("throttled"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step begins."""

    name: str
    total: int | None
    unit: str
    """bytes | items."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """So much of the present step is done by now."""

    done: int


@dataclass(frozen=True, slots=True)
class Noted:
    """Something worth a line of its own."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    state: RunState
    result: Document | None = None
    error: Document | None = None
    is_interrupted: bool = False
    """Whether it did not end by itself: what it says about itself does not count."""


Message: TypeAlias = Step | Advanced | Noted | Outcome
