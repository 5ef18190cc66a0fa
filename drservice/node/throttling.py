"""Less of the machine for a run: it gives way to whatever else wants the processor or the disks.

The lowest ordinary priorities and never the idle class: a run that is throttled because a promise would break has to
end some time. What the run starts inherits both.
"""

from __future__ import annotations

import os
from dataclasses import replace

from drservice import processes, telemetry
from drservice.errors import ProgramMissingError
from drservice.model.estate import Estate, Service

NICENESS = 15
IO_CLASS, IO_LEVEL = 2, 7
"""Best effort, behind everybody else."""


def throttle() -> None:
    """Lower the priorities of this thread, and so of every thread and process that it starts from now on."""
    os.nice(max(0, NICENESS - os.nice(0)))
    argv = ["ionice", "-c", str(IO_CLASS), "-n", str(IO_LEVEL), "-p", str(os.getpid())]
    try:
        finished = processes.run(argv)
    except ProgramMissingError as error:
        problem = error.message
    else:
        problem = finished.last_line() if finished.status != 0 else ""
    if problem:
        # Linux derives the priority of a process that has none for its disks from its niceness.
        telemetry.warning("the run's priority at the disks follows its niceness alone", problem=problem)


def slowed(estate: Estate) -> Estate:
    """Return the estate as a throttled run works with it: all in its own process, which keeps to the rate."""
    return replace(
        estate,
        services={name: _with_one_worker(item) for name, item in estate.services.items()},
        repository=replace(estate.repository, bytes_per_second=estate.node.throttled_rate),
    )


def _with_one_worker(service: Service) -> Service:
    return replace(service, components={name: replace(item, workers=1) for name, item in service.components.items()})
