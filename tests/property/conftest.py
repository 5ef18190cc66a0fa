"""Clusters and stores for the property tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import ClusterMaker


@pytest.fixture
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterMaker]:
    """Makes clusters; all of them end with the test."""
    base = tmp_path_factory.getbasetemp()
    cache: Path = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    maker = ClusterMaker(cache=cache)
    yield maker
    maker.close()
