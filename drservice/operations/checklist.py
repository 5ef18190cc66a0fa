"""Named yes/no questions and their answers, as ``check`` collects them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from drservice.errors import DrError


class CheckState(Enum):
    """How a question was answered."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One question and its answer."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


@dataclass(slots=True)
class Checklist:
    """Collects answers; an error inside a question fails it and no other."""

    results: list[CheckResult] = field(default_factory=list)

    def ok(self, name: str, detail: str) -> None:
        """Answer yes."""
        self.results.append(CheckResult(name=name, state=CheckState.OK, detail=detail))

    def warn(self, name: str, detail: str, remedy: str) -> None:
        """Answer yes, with a weakness that people should know."""
        self.results.append(CheckResult(name=name, state=CheckState.WARNING, detail=detail, remedy=remedy))

    def fail(self, name: str, detail: str, remedy: str) -> None:
        """Answer no."""
        self.results.append(CheckResult(name=name, state=CheckState.FAILED, detail=detail, remedy=remedy))

    @contextmanager
    def asking(self, name: str) -> Iterator[None]:
        """Fail the question ``name`` if the block raises."""
        try:
            yield
        except DrError as error:
            self.fail(name, error.message, error.hint)
        except OSError as error:
            self.fail(name, str(error), "Check the path and the rights of this user.")
