"""The program's entry point; it imports nothing by itself, because every worker process loads it first (spawn)."""

from __future__ import annotations

import gc
import sys

_COLLECT_AFTER = 50_000
"""New objects until Python looks for cycles. Its own 700 means a hundred looks while modules load, for nothing: a tenth
of what it takes a command to start (measured on `backup`).
"""


def main() -> None:
    """Run the command line and leave with its exit status."""
    gc.set_threshold(_COLLECT_AFTER)
    from drservice.cli.main import run  # noqa: PLC0415 - click takes 30 ms, and workers need no command line

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
