"""Real clusters for this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import Cluster, ClusterMaker


@pytest.fixture(scope="module")
def server(template_cache: Path) -> Iterator[Cluster]:
    """One running cluster per test file, for tests that only look or leave nothing behind."""
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    cluster.archive_to(cluster.root / "archive")
    cluster.start()
    yield cluster
    maker.close()
