"""A scrape over HTTP: with a token of a viewer, in Prometheus' format, and only of what the token sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from drservice.catalogue.database import Database
from drservice.web.metrics import CONTENT_TYPE
from tests.doubles.website import Website


@pytest.fixture
def website(database: Database, tmp_path: Path) -> Website:
    made = Website.over(database, state_dir=tmp_path)
    made.fill()
    return made


def test_prometheus_scrapes_with_the_token_of_a_viewer(website: Website) -> None:
    answer = website.client(website.token("viewer")).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == CONTENT_TYPE
    found = {family.name: family.samples for family in text_string_to_metric_families(answer.text)}
    assert found["drservice_catalogue_up"][0].value == 1.0
    assert {sample.labels["service"] for sample in found["drservice_service_condition"]} == set(
        website.site.estate.services
    )
    assert found["drservice_backup_timestamp_seconds"]


def test_nobody_and_an_auditor_get_no_metrics(website: Website) -> None:
    assert website.client().get("/metrics").status_code == 401
    assert website.client(website.token("auditor")).get("/metrics").status_code == 403


def test_a_limited_token_scrapes_its_services_only(website: Website) -> None:
    answer = website.client(website.token("viewer", services=("reporting",))).get("/metrics")
    assert answer.status_code == 200
    assert 'service="reporting"' in answer.text
    assert 'service="erp"' not in answer.text
    assert "drservice_host_seen" not in answer.text
