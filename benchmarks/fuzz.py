"""Fuzzes every operation of the API as every role, from its own description, and writes what was seen.

    make fuzz                                       (200 examples of each operation for each role; writes docs/fuzz.md)
    python benchmarks/fuzz.py --examples 20

Half of the examples are what the description allows, half what it forbids. It ends with 1 if there was a 5xx, an error
that is no problem document, or a good answer to somebody who may not. Tests send less of the same with each commit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from schemathesis.generation import GenerationMode

from tests.doubles.catalogue import CatalogueServer
from tests.doubles.fuzzing import OPERATIONS, STORE, Fuzzed, fuzz
from tests.doubles.website import ROLES, Website

AS = ((), *((role,) for role in ROLES), ROLES)
"""Nobody, somebody of each role, somebody with all."""


_WORDS = """# What fuzzing the API has shown

Written by `make fuzz`: [schemathesis](https://schemathesis.readthedocs.io) makes requests from the API's description,
half of them as it allows and half as it forbids, as nobody, as somebody of each role and as somebody with all roles. A
failure is a 5xx, an error that is no problem document with a code of ours, or a good answer to somebody who may not.
What opens a repository is left out here and asked by other tests: {left_out}.
"""


def main() -> int:
    """Fuzz, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="of each operation for each role")
    parser.add_argument("--output", type=Path, help="a Markdown page")
    arguments = parser.parse_args()
    began = time.monotonic()
    found: list[Fuzzed] = []
    with tempfile.TemporaryDirectory(prefix="drservice-fuzz-") as name:
        Path(name).chmod(0o755)
        server = CatalogueServer(cache=Path(name))
        try:
            for operation in OPERATIONS:
                found.extend(_fuzz(server, Path(name), operation, arguments.examples))
                print(f"{operation}: {sum(item.cases for item in found)} cases so far", file=sys.stderr)
        finally:
            server.close()
    page = _page(found, arguments.examples, time.monotonic() - began)
    print(page)
    failures = [failure for item in found for failure in item.failures]
    for failure in failures:
        print(f"FAILED {failure}")
    if arguments.output:
        arguments.output.write_text(page, encoding="utf-8")
    return 1 if failures else 0


def _fuzz(server: CatalogueServer, folder: Path, operation: str, examples: int) -> list[Fuzzed]:
    website = Website.over(server.database(), state_dir=folder)
    website.fill()
    return [
        fuzz(website, operation, mode, roles=roles, examples=max(1, examples // 2))
        for roles in AS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]


def _page(found: list[Fuzzed], examples: int, seconds: float) -> str:
    left_out = ", ".join(f"`{name}`" for name in sorted(STORE))
    versions = f"drservice {metadata.version('drservice')}, schemathesis {metadata.version('schemathesis')}"
    cases, failures = sum(item.cases for item in found), sum(len(item.failures) for item in found)
    lines = [
        _WORDS.format(left_out=left_out),
        f"{datetime.now(UTC):%Y-%m-%d}, {versions}: {len(OPERATIONS)} operations, {len(AS)} kinds of callers, up to",
        f"{examples} examples each, {cases:,} requests, **{failures} failures**, {seconds / 60:.0f} minutes.",
        "",
        "| operation | requests | 2xx, 3xx | 401, 403 | other 4xx | 5xx | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for operation in OPERATIONS:
        own = [item for item in found if item.operation == operation]
        statuses: Counter[int] = sum((item.statuses for item in own), Counter())
        good = sum(count for status, count in statuses.items() if status < 400)
        refused = statuses[401] + statuses[403]
        bad = sum(count for status, count in statuses.items() if status >= 500)
        cells = (
            f"`{own[0].path}`", sum(item.cases for item in own), good, refused,
            sum(statuses.values()) - good - refused - bad, bad, sum(len(item.failures) for item in own),
        )  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
