"""The program's entry point; it imports nothing by itself, because every worker process loads it first (spawn)."""

from __future__ import annotations

import gc
import os
import sys

_COLLECT_AFTER = 50_000
"""New objects until Python looks for cycles. Its own 700 means a hundred looks while modules load, for nothing: a tenth
of what it takes a command to start (measured on `backup`).
"""


def main() -> None:
    """Run the command line and leave with its exit status."""
    import atexit  # noqa: PLC0415 - workers have an end of their own

    gc.set_threshold(_COLLECT_AFTER)
    ended: list[int] = []
    atexit.register(_leave, ended)  # the first one: it is called when all others have been, and all threads have ended
    from drservice.cli.main import run  # noqa: PLC0415 - click takes 30 ms, and workers need no command line

    ended.append(run(sys.argv[1:]))
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    """End the process without taking its modules apart, a fifth of the time of a command that has little to do.

    Nothing is lost by it: threads have ended, whatever else wanted to hear of the end has heard, and output is written.
    Where that fails, or the program did not end by itself, Python ends it in its own way and says so.
    """
    if not ended:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(ended[0])


if __name__ == "__main__":
    main()
