"""Walks a runbook as people would: every command block is run for real, and people's part is played by functions.

    walk = Walk(runbook, blanks={"SERVICE": "erp"}, environment={...}, people={"choose-instant": lambda walk: ...})
    walk.play()

A step passes as it does for people: its exit status is one of those it names, its output holds what it expects. What a
step tells (``learn``) fills the blanks of later ones. Without an occasion every script of the runbook is run, and a
step with ``undo`` is done, undone, and done again; with one, just what people would do then.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from drservice import processes
from drservice.model.runbook import Runbook, RunIn, Step, StepKind, parse_runbook

FOLDER = Path(__file__).resolve().parents[2] / "runbooks"
People: TypeAlias = "Mapping[str, Callable[[Walk], object]]"
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 120.0
_COMMANDS = (StepKind.AUTO, StepKind.CHECK)


def shipped() -> list[Path]:
    """Return the files of all runbooks."""
    return sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")


def read(name: str) -> Runbook:
    """Read a shipped runbook."""
    return parse_runbook((FOLDER / f"{name}.md").read_text(encoding="utf-8"))


def command_blocks(runbook: Runbook) -> set[str]:
    """Return a name for every script that a runbook has."""
    runs = {f"{step.id}:run" for step in runbook.steps if step.run is not None}
    return runs | {f"{step.id}:undo" for step in runbook.steps if step.undo is not None}


@dataclass(kw_only=True)
class Walk:
    """One walk through a runbook."""

    runbook: Runbook
    blanks: dict[str, str]
    environment: Mapping[str, str]
    """Of every command, beside the blanks."""
    folder: Path
    """Where commands are run."""
    people: People = field(default_factory=dict)
    occasion: RunIn = RunIn.BOTH
    executed: set[str] = field(default_factory=set)
    outputs: dict[str, str] = field(default_factory=dict)

    def play(self) -> None:
        """Do every step, from top to bottom; the first one that fails ends the test with all it said."""
        unknown = set(self.people) - {step.id for step in self.runbook.steps}
        assert not unknown, f"{self.runbook.id} has no step {unknown}"
        for name in self.runbook.blanks_at_start():
            assert name in self.blanks, f"the test of {self.runbook.id} does not fill in {name}"
        everything = self.occasion is RunIn.BOTH
        for step in self.runbook.steps:
            if not everything and step.run_in not in {self.occasion, RunIn.BOTH}:
                continue
            if step.id in self.people:
                self.people[step.id](self)
            for name in step.asks:
                assert name in self.blanks, f"nobody answered {name} in step {step.id}"
            if step.kind not in _COMMANDS:
                continue
            self._do(step)
            if step.undo is not None and everything:
                self._shell(step, step.undo, "undo", (0,))
                self._do(step)

    def _do(self, step: Step) -> None:
        assert step.run is not None
        for attempt in range(step.retry + 1):
            status, output = self._once(step.run)
            missing = [text for text in map(self._filled, step.expect) if text not in output]
            if status in step.exit_statuses and not missing:
                break
            if attempt < step.retry:
                time.sleep(_PAUSE_SECONDS)
        else:
            raise AssertionError(self._failure(step, f"exit {status}, without {missing}", output))
        self.executed.add(f"{step.id}:run")
        self.outputs[step.id] = output
        for name, pattern in step.learn.items():
            found = re.search(self._filled(pattern), output, re.MULTILINE)
            if found is None:
                raise AssertionError(self._failure(step, f"the output does not tell {name}", output))
            self.blanks[name] = found[1]

    def _shell(self, step: Step, script: str, what: str, statuses: tuple[int, ...]) -> None:
        status, output = self._once(script)
        if status not in statuses:
            raise AssertionError(self._failure(step, f"{what}: exit {status}", output))
        self.executed.add(f"{step.id}:{what}")

    def _once(self, script: str) -> tuple[int, str]:
        argv = ["/bin/bash", "-eu", "-o", "pipefail", "-c", f"cd {shlex.quote(str(self.folder))}; exec 2>&1\n{script}"]
        variables = processes.clean_environment({**self.environment, **self.blanks})
        done = processes.run(argv, environment=variables, timeout_seconds=_TIMEOUT_SECONDS)
        return done.status, done.stdout.decode() + done.stderr.decode()

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{([A-Z][A-Z0-9_]*)\}", lambda blank: self.blanks[blank[1]], text)

    def _failure(self, step: Step, what: str, output: str) -> str:
        return f"{self.runbook.id}, step {step.id} ({step.title}): {what}\n{output[-4000:]}"
