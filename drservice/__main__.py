"""The program's entry point; it imports nothing by itself, because every worker process loads it first (spawn)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    from drservice.cli.main import run  # noqa: PLC0415 - click takes 30 ms, and workers need no command line

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
