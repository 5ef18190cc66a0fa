"""The program's entry point; it imports nothing but the frame of the command line."""

from __future__ import annotations

import sys

from drservice.cli.main import run


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
