"""What tests of every kind are given: clusters, made from templates that all processes of a run share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import TempEstate
from tests.doubles.warm import warm_program

_COLLECT_AFTER = 50_000
"""As the program does; with Python's own 700 full collections took up to 4 % of a run."""
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 8 << 30
"""Clusters of a test process take tens of megabytes, a few hundred at most; nobody else is to be short of memory."""


def pytest_configure() -> None:
    """Make clusters in memory where there is plenty: a run makes and removes hundreds, of a thousand files each.

    ext4 gives a new file no inode that was freed in the last minutes and looks at one after the other to know it. That
    took a sixth of the processor time of a run. Repositories, restores and everything else stay on the disk.
    """
    TempEstate.program = warm_program
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return
    may_run = not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC  # some clusters have a script beside them
    if may_run and min(shutil.disk_usage(_MEMORY).free, _available_bytes()) >= _MEMORY_BYTES:
        ClusterMaker.place = _MEMORY


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file whose tests take minutes: at the end the other process would have nothing to do."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


def pytest_collection_finish() -> None:
    """Spare the collector what lives as long as the run: half a million objects of pytest's and of all modules.

    A full collection looked at each of them, with the interpreter's lock in its hand. It took 0.6 s, and up to 1 s late
    in a run: as long as the ``wal_sender_timeout`` of the receivers that are tested in this process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture(scope="session")
def template_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture
def clusters(template_cache: Path) -> Iterator[ClusterMaker]:
    """Makes clusters; all of them end with the test."""
    maker = ClusterMaker(cache=template_cache)
    yield maker
    maker.close()
