"""Real catalogues with a queue for this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.catalogue.database import Database
from drservice.jobs.queue import Queue
from tests.doubles.catalogue import CatalogueServer


@pytest.fixture(scope="module")
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    """One server per test file."""
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


@pytest.fixture
def database(catalogues: CatalogueServer) -> Database:
    """A catalogue of the test's own with an empty queue."""
    database = catalogues.database()
    Queue(database).install()
    return database
