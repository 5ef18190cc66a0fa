"""Real catalogues for this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.catalogue.database import Database
from tests.doubles.catalogue import CatalogueServer


@pytest.fixture(scope="module")
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    """One server per test file."""
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


@pytest.fixture
def database(catalogues: CatalogueServer) -> Database:
    """A catalogue of the test's own, empty."""
    return catalogues.database()
