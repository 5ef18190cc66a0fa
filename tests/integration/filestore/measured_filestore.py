"""A process that captures a filestore twice, restores it, and prints its peak memory after each step, in MiB.

python measured_filestore.py BASE          # BASE/source is captured into BASE/repository and restored to BASE/out
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site
from tests.integration.repository.measured_writer import peak_mib


def main(base: Path) -> None:
    """Capture, capture again, restore."""
    filestore = Filestore(site=Site.create(base, folder=base / "repository"))
    filestore.capture()
    peaks = [peak_mib(os.getpid())]
    record, _ = filestore.capture()
    peaks.append(peak_mib(os.getpid()))
    names = (path.relative_to(filestore.folder) for path in filestore.folder.rglob("*") if path.is_file())
    placed = filestore.place([record.id], base / "out", {str(name) for name in names})
    assert placed.placed == placed.expected
    peaks.append(peak_mib(os.getpid()))
    sys.stdout.write(" ".join(f"{peak:.0f}" for peak in peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
