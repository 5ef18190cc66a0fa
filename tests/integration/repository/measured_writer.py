"""A process that captures with two workers and prints the peaks of its own and of their memory, in MiB.

python measured_writer.py BASE          # BASE/source is captured into BASE/repository
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.doubles.repositories import Site


def workers_of_this_process() -> list[int]:
    """Return the pids of the worker processes that this process has started."""
    return [
        int(child)
        for task in Path(f"/proc/{os.getpid()}/task").iterdir()
        for child in (task / "children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def peak_mib(pid: int) -> float:
    """Return the highest resident memory of a process so far; 0 for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def main(base: Path) -> None:
    """Capture and measure."""
    site = Site.create(base, folder=base / "repository")
    site.workers = 2
    peaks: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for child in workers_of_this_process():
                peaks[child] = max(peaks.get(child, 0.0), peak_mib(child))

    watcher = threading.Thread(target=watch)
    watcher.start()
    site.capture()
    done.set()
    watcher.join()
    sys.stdout.write(" ".join(f"{peak:.0f}" for peak in (peak_mib(os.getpid()), *peaks.values())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
