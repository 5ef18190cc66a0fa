"""Pages and lists ask the catalogue a few questions, however many services there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.webcatalogue import Size, fill, write_configuration
from drservice.repository.keys import make_identity
from drservice.settings.loading import load
from drservice.web.app import make_app
from drservice.web.site import Site
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import PATIENT, QUICK, Website

SMALL = Size(services=6, runs=60, records=60)
LARGE = Size(services=120, runs=1200, records=1200)
MOST = {
    "/overview": 13,
    "/overview/table?condition=overdue": 13,
    "/services/service-0003": 17,
    "/runs": 5,
    "/evidence": 20,
    "/api/v1/services": 12,
    "/api/v1/services/service-0003": 12,
    "/api/v1/services/service-0003/window": 5,
    "/api/v1/schedules": 4,
    "/api/v1/runs": 4,
    "/api/v1/evidence/records": 4,
    "/metrics": 37,
}


@contextmanager
def counted() -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def website_of(catalogues: CatalogueServer, folder: Path, size: Size) -> Website:
    folder.mkdir()
    database = catalogues.database()
    estate = load(write_configuration(folder, size, recipient=make_identity()[1])).estate
    fill(database, size, now=datetime.now(UTC))
    site = Site(estate=estate, database=database, passwords=QUICK, rates=PATIENT)
    site.queue.install()
    return Website(site=site, app=make_app(site))


@pytest.fixture(scope="module")
def questions(catalogues: CatalogueServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Per path how many statements it takes with few and with many services, once everything is warm."""
    found: dict[str, list[int]] = {path: [] for path in MOST}
    for size in (SMALL, LARGE):
        website = website_of(catalogues, tmp_path_factory.mktemp("speed") / "estate", size)
        client = website.client(website.token("viewer", "auditor", "operator"))
        for path in MOST:
            client.get(path)
            with counted() as statements:
                answer = client.get(path)
            assert answer.status_code == 200, answer.text
            found[path].append(len(statements))
    return {path: (few, many) for path, (few, many) in found.items()}


@pytest.mark.parametrize("path", MOST)
def test_no_page_asks_more_often_because_there_is_more(questions: dict[str, tuple[int, int]], path: str) -> None:
    few, many = questions[path]
    assert many <= few
    assert many <= MOST[path]


def test_every_service_is_judged_and_shown_page_by_page_worst_first(
    catalogues: CatalogueServer, tmp_path: Path
) -> None:
    website = website_of(catalogues, tmp_path / "estate", LARGE)
    client = website.client(website.token("viewer"))
    pages = [client.get("/overview", params={"page": number}).text for number in (1, 2, 3)]
    shown = [name for page in pages for name in LARGE.names() if f'href="/services/{name}"' in page]
    assert sorted(shown) == sorted(LARGE.names())
    assert "page 1 of 3" in pages[0]
    assert client.get("/overview", params={"page": 99}).text.count("<tr>") == pages[2].count("<tr>")
    one = client.get("/overview", params={"name": "SERVICE-0077"}).text
    assert one.count('href="/services/') == 1
    assert "1 of 120 services" in one
    words = [item["condition"] for item in client.get("/api/v1/services", params={"limit": 200}).json()["items"]]
    for word in set(words):
        table = client.get("/overview/table", params={"condition": word}).text
        assert f"<strong>{words.count(word)}</strong>" in table
    assert client.get("/overview", params={"condition": "nonsense"}).status_code == 422
