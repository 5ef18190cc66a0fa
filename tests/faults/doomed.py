"""A process that kills itself with SIGKILL at a chosen point: ``python -m tests.faults.doomed SITE DOOM``.

It exits 0 if the point was never reached; the tests take that for a failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from drservice.clock import SystemClock
from drservice.operations.backup import BackupContext, run_backup
from tests.doubles.stores import When
from tests.faults.triggers import TriggerStore
from tests.faults.world import LATEST, Listener, Site, at_time

ROOT = Path(__file__).parents[2]
WITHOUT_WAITING = ("create", "read", "list", "read_versions", "server_time", "delete")
"""Every operation but ``stat``: how often a backup looks for its WAL depends on the moment."""


@dataclass(frozen=True, kw_only=True)
class Doom:
    """Where a process dies.

    Args:
        verb: ``backup``, ``push`` or ``restore``.
        operations: calls of the store that count.
        part: what their key contains.
        at: the number of the fatal call.
        when: ``before`` or ``after`` the real call.
        step: die at the beginning of this step instead of at a call.
        path: the file to push.
        target: the instant to restore to (ISO 8601), ``None`` = latest.
        delta: restore onto what is there.
    """

    verb: str
    operations: list[str] = field(default_factory=lambda: list(WITHOUT_WAITING))
    part: str = ""
    at: int = 1
    when: str = "before"
    step: str | None = None
    path: str | None = None
    target: str | None = None
    delta: bool = False


def run_doomed(site: Site, doom: Doom) -> int:
    """Run the process and return its status: -9 when it died as planned, 0 when it survived."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.doomed", site.to_json(), json.dumps(asdict(doom))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-4000:]
    return done.returncode


def die(_: str) -> None:
    """End this process without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(site: Site, doom: Doom) -> None:
    """Do what ``doom`` says until it strikes."""
    store = TriggerStore(
        site.open_store(),
        die,
        operations=doom.operations if doom.step is None else (),
        part=doom.part,
        at=doom.at,
        when=When(doom.when),
    )
    listener = Listener(on_step=lambda name: die(name) if name == doom.step else None)
    repository = site.repository(store)
    if doom.verb == "backup":
        context = BackupContext(repository=repository, state_dir=site.state_dir, clock=SystemClock(), progress=listener)
        run_backup(context, site.service, site.component)
    elif doom.verb == "push":
        assert doom.path is not None
        site.push(Path(doom.path), store)
    else:
        target = LATEST if doom.target is None else at_time(datetime.fromisoformat(doom.target))
        site.restore(target, store, progress=listener, delta=doom.delta)


if __name__ == "__main__":
    main(Site.from_json(sys.argv[1]), Doom(**json.loads(sys.argv[2])))
