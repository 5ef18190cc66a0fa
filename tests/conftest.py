"""What tests of every kind are given: clusters, made from templates that all processes of a run share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import ClusterMaker


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
