"""Faults behind the pages: the catalogue goes away while somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import Website


@pytest.fixture
def catalogues(template_cache: Path) -> Iterator[CatalogueServer]:
    server = CatalogueServer(cache=template_cache)
    yield server
    server.close()


def test_pages_and_api_say_that_the_catalogue_is_away_and_go_on_when_it_is_back(
    catalogues: CatalogueServer, tmp_path: Path
) -> None:
    website = Website.over(catalogues.database(), state_dir=tmp_path)
    browser, program = website.browser("viewer"), website.client(website.token("viewer"))
    assert browser.get("/overview").status_code == 200
    catalogues.cluster.stop("immediate")
    for path in ("/overview", "/services/erp", "/runs"):
        page = browser.get(path)
        assert page.status_code == 503
        assert page.headers["content-type"].startswith("text/html")
        assert "the catalogue" in page.text
        assert "does not answer" in page.text
    answer = program.get("/api/v1/services")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert "does not answer" in answer.json()["detail"]
    catalogues.cluster.start()
    assert browser.get("/overview").status_code == 200, "who was signed in still is"
    assert program.get("/api/v1/services").status_code == 200
