"""A drill that kills itself with SIGKILL at a chosen point: ``python -m tests.faults.doomeddrill CONFIG DOOM``.

It exits 0 if the point was never reached; the tests take that for a failure.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.doubles.stores import When
from tests.faults.plantbench import Watcher, die, opened
from tests.faults.triggers import TriggerStore

ROOT = Path(__file__).parents[2]
_ENTRIES = "ledger/0"
"""In the keys of records, and not in those of checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Doom:
    """Where a drill dies: at the beginning of a step, or around the appending of its Nth record."""

    step: str | None = None
    record: int = 0
    when: str = "after"

    def __str__(self) -> str:
        return self.step or f"{self.when} record {self.record}"


def run_doomed_drill(config: Path, doom: Doom, *, plan: str) -> int:
    """Run the process and return its status: -9 when it died as planned, 0 when it survived."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.doomeddrill", str(config), plan, json.dumps(asdict(doom))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-4000:]
    return done.returncode


def main(config: Path, plan: str, doom: Doom) -> None:
    """Drill until doom strikes."""
    watcher = Watcher(on_step=lambda name: die() if name == doom.step else None)
    operations = ["create"] if doom.record else []
    with opened(
        config,
        watcher=watcher,
        store=lambda inner: TriggerStore(
            inner, die, operations=operations, part=_ENTRIES, at=doom.record, when=When(doom.when)
        ),
    ) as bench:
        bench.drill(plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Doom(**json.loads(sys.argv[3])))
