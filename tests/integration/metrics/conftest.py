"""Real catalogues for this folder's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from drservice.catalogue.database import Database
from tests.doubles.catalogue import CatalogueServer


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogueServer]:
    """One server per test file."""
    base = tmp_path_factory.getbasetemp()
    server = CatalogueServer(cache=base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base)
    yield server
    server.close()


@pytest.fixture
def database(catalogues: CatalogueServer) -> Database:
    """A catalogue of the test's own, empty."""
    return catalogues.database()
