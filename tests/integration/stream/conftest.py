"""Real servers for the receiver's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import Cluster, ClusterMaker


@pytest.fixture(scope="module")
def server(template_cache: Path) -> Iterator[Cluster]:
    """One running cluster per test file; segments of 1 MB, and a WAL sender that gives up soon."""
    maker = ClusterMaker(cache=template_cache)
    settings = {"wal_sender_timeout": "'1s'", "max_slot_wal_keep_size": "'64MB'", "autovacuum": "off"}
    cluster = maker.make(wal_segment_mb=1, settings=settings)
    cluster.start()
    yield cluster
    maker.close()
