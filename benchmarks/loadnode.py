"""``drservice node`` for ``load.py``: everything as it is, only that the runs of most services are a moment's sleep.

    python benchmarks/loadnode.py --config FILE node --name alpha

A backup costs a second of processor, and a day of 200 services has thousands of runs. For services that are not named
in ``DRSERVICE_LOAD_REAL`` the object that stands for the process of a run is another one: it says what a process would
say, over no pipe. All that is measured (schedules, queue, claims, leases, ends, projection) is the program's own. Each
execution is noted in a journal, so that a run that was carried out twice is seen whatever the catalogue says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from drservice.errors import WorkerDiedError
from drservice.model.estate import Estate
from drservice.model.runs import RunState
from drservice.node import worker
from drservice.node.assignment import Assignment, Message, Outcome, Step
from drservice.node.process import RunProcess, Word

JOURNAL = "DRSERVICE_LOAD_JOURNAL"
REAL = "DRSERVICE_LOAD_REAL"
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 0.3


class Journal:
    """One line per begin and end of an execution; each is one write, so that lines of several nodes never mix."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, what: str, assignment: Assignment) -> None:
        """Write what happened to a run."""
        os.write(self._descriptor, f"{what} {assignment.run} {assignment.epoch} {assignment.service}\n".encode())


class StandIn:
    """Says what the process of a run says, and sleeps for as long as the run's name asks for."""

    def __init__(self, assignment: Assignment, journal: Journal) -> None:
        self._assignment = assignment
        self._journal = journal
        part = int.from_bytes(assignment.run[-4:].encode()) % 1000 / 1000
        self._until = time.monotonic() + _SHORTEST_SECONDS + part * (_LONGEST_SECONDS - _SHORTEST_SECONDS)
        self._is_stopped = False
        self._has_begun = False

    has_ended = False

    def say(self, word: Word) -> None:
        """Hear whether the run is wanted."""
        self._is_stopped |= word is Word.STOP

    def messages(self, seconds: float) -> Iterator[Message]:
        """Yield a step and, when the time has come, the outcome."""
        if not self._has_begun:
            self._has_begun = True
            self._journal.note("begin", self._assignment)
            yield Step(name="stand-in", total=None, unit="items")
        time.sleep(min(seconds, max(0.0, self._until - time.monotonic())))
        if self._is_stopped:
            yield Outcome(state=RunState.FAILED, error={"message": "stopped"}, is_interrupted=True)
        elif time.monotonic() >= self._until:
            self._journal.note("end", self._assignment)
            yield Outcome(state=RunState.SUCCEEDED, result={"stand_in": True})

    def insist(self) -> None:
        """Nothing to kill."""

    def kill(self) -> None:
        """Nothing to kill."""

    def close(self) -> WorkerDiedError:
        """Return what a process without an outcome would be told about with."""
        return WorkerDiedError("a stand-in ended without an answer")


def main() -> int:
    """Run the program with another object in the place of most processes."""
    journal = Journal(Path(os.environ[JOURNAL]))
    real = frozenset(os.environ[REAL].split(","))

    def launch(estate: Estate, assignment: Assignment, lease: timedelta, *, log_level: str) -> RunProcess | StandIn:
        if assignment.service in real:
            return RunProcess(estate, assignment, lease, log_level=log_level)
        return StandIn(assignment, journal)

    from drservice.cli.main import run  # noqa: PLC0415 - processes of runs load this file, too

    with patch.object(worker, "RunProcess", launch):
        return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
