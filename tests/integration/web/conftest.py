"""A real catalogue and the whole application over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import Website


@pytest.fixture(scope="module")
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    """One server per test file."""
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


@pytest.fixture
def website(catalogues: CatalogueServer, tmp_path: Path) -> Website:
    """The application over an empty catalogue of the test's own."""
    return Website.over(catalogues.database(), state_dir=tmp_path)
