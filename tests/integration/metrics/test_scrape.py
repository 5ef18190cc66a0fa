"""A scrape over HTTP: with a token of a viewer, in Prometheus' format, and only of what the token sees."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert

from drservice.catalogue.database import Database
from drservice.catalogue.runs import RunRequest
from drservice.catalogue.streams import ToldDocuments, ToldWal, tell_documents, tell_wal
from drservice.catalogue.tables import Message, Record
from drservice.model.runs import RunKind, RunState
from drservice.web.metrics import CONTENT_TYPE
from tests.doubles.website import Website

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
MONITORING = (DEPLOY / "prometheus" / "alerts.yaml", DEPLOY / "grafana" / "dashboard.json")
EXTERNAL_LABEL = "drservice_docs"


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


def have_trouble(website: Website) -> None:
    """Put in what there is only when something waits, fails or is found."""
    runs, now = website.site.runs, website.site.reading.now()
    for kind, state in ((RunKind.DRILL, RunState.FAILED), (RunKind.VERIFY, RunState.SUCCEEDED)):
        run = runs.request(RunRequest(service="erp", kind=kind, requested_by="ops"))
        assert run is not None
        claim = runs.claim(run, host="db1", lease=timedelta(minutes=5))
        assert claim is not None
        runs.finish(claim, state)
    assert runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="ops"))
    runs.missed("erp", RunKind.VERIFY, "", now, "nobody was there")
    message = {"id": "1", "event": "1", "place": "ops", "kind": "failure", "severity": "technical", "title": "t"}
    finding = {"entry": 9000, "kind": "finding", "service": "erp", "host": "db1", "recorded_at": now, "sha256": "0"}
    with website.site.database.session() as session:
        session.execute(insert(Message), {**message, "body": "b", "attempts": 0, "created_at": now})
        session.execute(insert(Record), {**finding, "predicate": {"finding": "A", "state": "opened"}})
    stream = ToldWal(
        service="erp",
        component="database",
        state="stalled",
        is_synchronous=False,
        durable_lsn=1 << 24,
        server_lsn=1 << 25,
        seconds_at_risk=7.0,
        bytes_at_risk=1 << 24,
        safe_wal_bytes=1 << 30,
    )
    tell_wal(website.site.database, "db1", [stream])
    capture = ToldDocuments(service="erp", component="documents", state="stalled", pending=4, missing=1, corrupt=0)
    tell_documents(website.site.database, "db1", [capture])


def test_every_metric_of_alerts_and_dashboard_is_in_a_scrape(website: Website) -> None:
    have_trouble(website)
    answer = website.client(website.token("viewer")).get("/metrics")
    told = {sample.name for family in text_string_to_metric_families(answer.text) for sample in family.samples}
    texts = [path.read_text(encoding="utf-8") for path in MONITORING]
    asked_for = {name for text in texts for name in re.findall(r"\bdrservice_[a-z0-9_]+", text)} - {EXTERNAL_LABEL}
    assert len(asked_for) > 10
    assert sorted(asked_for - told) == []
