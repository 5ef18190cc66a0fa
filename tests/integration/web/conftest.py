"""A real catalogue and the whole application over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import Website


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogueServer]:
    """One server per test file."""
    base = tmp_path_factory.getbasetemp()
    server = CatalogueServer(cache=base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base)
    yield server
    server.close()


@pytest.fixture
def website(catalogues: CatalogueServer, tmp_path: Path) -> Website:
    """The application over an empty catalogue of the test's own."""
    return Website.over(catalogues.database(), state_dir=tmp_path)
