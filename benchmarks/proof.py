"""Times what proof must not take long for: a ready sandbox, and an auditor's verification of 10,000 records.

    python benchmarks/proof.py

A sandbox is ready when a program inside it has ended. The bundle is made of a story (as in tests) and verified by the
stand-alone verifier in a process of its own, which is timed as a whole.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drservice.evidence import verification
from drservice.evidence.bundle import build_bundle
from drservice.evidence.bundlewriting import BundleForm
from tests.contract.env_fixtures import make_sandbox
from tests.doubles.evidencebundle import SignedQuarter
from tests.doubles.evidencestory import at


def ready_seconds(folder: Path) -> float:
    """Return how long a sandbox takes until a program has run in it."""
    began = time.monotonic()
    sandbox = make_sandbox(folder)
    try:
        finished = sandbox.execute(["/bin/true"], timeout_seconds=10)
        seconds = time.monotonic() - began
    finally:
        sandbox.destroy()
    if finished.status:
        raise SystemExit(f"the program inside failed: {finished}")
    return seconds


def verification_seconds(folder: Path, records: int) -> float:
    """Make a bundle of so many records and return how long the verifier's process takes."""
    quarter = SignedQuarter()
    story = quarter.story()
    while len(story.statements) < records - 1:  # contents() adds one
        story.backup(at(89.1 + 0.3 * len(story.statements) / records), "erp")
    target = folder / "bundle.zip"
    build_bundle(quarter.contents(story), target=target, wishes=quarter.wishes(), form=BundleForm.ZIP)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, verification.__file__, str(target)], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - began
    if done.returncode or not done.stdout.rstrip().endswith("VERIFIED") or f" {records}" not in done.stdout:
        raise SystemExit(f"not verified ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drservice-bench-") as name:
        folder = Path(name)
        sandboxes = [ready_seconds(folder / f"sandbox-{number}") for number in range(arguments.rounds)]
        seconds = verification_seconds(folder, arguments.records)
    print(f"sandbox ready: {statistics.median(sandboxes):.3f} s (worst of {len(sandboxes)}: {max(sandboxes):.3f} s)")
    print(f"{arguments.records} records verified: {seconds:.1f} s")


if __name__ == "__main__":
    main()
