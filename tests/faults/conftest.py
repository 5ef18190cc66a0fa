"""One world per test process; each test damages a copy of its repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cluster import ClusterMaker
from tests.faults.world import Site, World, make_world


@pytest.fixture(scope="session")
def maker(template_cache: Path) -> Iterator[ClusterMaker]:
    """Makes clusters; all of them end with the session."""
    made = ClusterMaker(cache=template_cache)
    yield made
    made.close()


@pytest.fixture(scope="session")
def world(maker: ClusterMaker, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A cluster and a repository with two snapshots; the cluster goes on running and changing."""
    return make_world(maker, tmp_path_factory.mktemp("world") / "template")


@pytest.fixture
def site(world: World, tmp_path: Path) -> Site:
    """A repository of one's own to damage, with the two snapshots of the world."""
    return world.site(tmp_path / "site")
