"""Bundles and the gate over HTTP, with a real repository and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.evidence.signing import make_log_key
from drservice.evidence.verification import verify_bundle
from drservice.model.evidence import ledger_origin
from drservice.operations.enroll import begin_ledger
from drservice.web.app import make_app
from drservice.web.bundles import _AT_WORK
from drservice.web.site import Site
from drservice.wiring.evidence import open_evidence
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import TempEstate
from tests.doubles.website import PATIENT, QUICK, Website, csrf


@pytest.fixture
def website(catalogues: CatalogueServer, template_cache: Path) -> Iterator[Website]:
    maker = ClusterMaker(cache=template_cache)
    estate = TempEstate.over(maker.make())
    estate.initialise()
    with estate.plane() as plane:
        make_log_key(plane.estate.state_dir, ledger_origin(plane.repository.id))
        with open_evidence(plane) as evidence:
            begin_ledger(evidence)
    site = Site(estate=estate.estate(), database=catalogues.database(), passwords=QUICK, rates=PATIENT)
    site.queue.install()
    yield Website(site=site, app=make_app(site))
    maker.close()


def test_an_auditor_downloads_a_bundle_that_verifies_offline(website: Website, tmp_path: Path) -> None:
    answer = website.client(website.token("auditor")).get("/api/v1/evidence/bundle")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(answer.content)
    assert verify_bundle(bundle).size >= 1
    part = website.client(website.token("auditor")).get("/api/v1/evidence/bundle", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"PK\x03\x04")


def test_the_verifier_of_the_bundle_speaks_on_the_page_and_in_the_api(website: Website) -> None:
    browser = website.browser("auditor")
    page = browser.post("/evidence/verify", data={"csrf": csrf(browser)})
    assert page.status_code == 200
    assert "✓ verified" in page.text
    headers = {"X-CSRF-Token": csrf(browser), "Idempotency-Key": "v1"}
    answer = browser.post("/api/v1/evidence/verifications", headers=headers).json()
    assert answer["verified"] is True
    assert any(line.startswith("step") for line in answer["lines"])


def test_a_bundle_is_refused_to_who_may_not_see_every_service_and_while_another_is_made(website: Website) -> None:
    limited = website.client(website.token("auditor", services=("erp",)))
    assert limited.get("/api/v1/evidence/bundle").status_code == 403
    with _AT_WORK:
        busy = website.client(website.token("auditor")).get("/api/v1/evidence/bundle")
    assert (busy.status_code, busy.json()["code"]) == (409, "DR110")


def test_no_bundle_is_left_behind(website: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert website.client(website.token("auditor")).get("/api/v1/evidence/bundle").status_code == 200
    refused = website.client(website.token("auditor")).get(
        "/api/v1/evidence/bundle", params={"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}
    )
    assert refused.status_code == 422
    assert list(tmp_path.glob("drservice-bundle-*")) == []


def test_the_gate_is_closed_with_reasons_and_leaves_restore_points_for_operators_only(website: Website) -> None:
    viewer = website.client(website.token("viewer"))
    answer = viewer.post("/api/v1/services/erp/gate", json={}, headers={"Idempotency-Key": "g1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["open"] is False
    assert any("recovery point" in reason for reason in answer.json()["reasons"])
    named = {"restore_point": "release-42"}
    refused = viewer.post("/api/v1/services/erp/gate", json=named, headers={"Idempotency-Key": "g2"})
    assert refused.status_code == 403
