"""Pages over a real catalogue: they show what is there, and what is in it cannot break out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from drservice.catalogue.projection import project_holes
from drservice.catalogue.runs import RunRequest
from drservice.catalogue.streams import ToldDocuments, ToldWal, tell_documents, tell_wal
from drservice.clock import to_iso
from drservice.model.continuity import Hole
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.runs import RunKind, RunState
from drservice.model.wal import Timeline
from tests.doubles.website import URL, Website, csrf

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egpj\"'><img src=x onerror=alert(2)>\x00".replace("\x00", "")


def started(website: Website, **parameters: str) -> str:
    request = RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="somebody", parameters=dict(parameters))
    run = website.site.queue.enqueue(request)
    assert run is not None
    return run


@pytest.mark.parametrize("path", ["/overview", "/overview/table", "/services/erp", "/services/reporting", "/runs"])
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
def test_pages_show_a_filled_and_an_empty_catalogue(website: Website, path: str, *, filled: bool) -> None:
    if filled:
        website.fill()
        started(website)
    answer = website.browser("viewer").get(path)
    assert answer.status_code == 200, answer.text
    assert "text/html" in answer.headers["content-type"]


def test_the_overview_puts_the_worst_first_and_keeps_backed_up_and_verified_apart(website: Website) -> None:
    website.fill()
    text = website.browser("viewer").get("/overview").text
    assert text.index("/services/reporting") < text.index("/services/erp"), "unprotected comes first"
    assert "there is no recovery point" in text
    assert "promise kept" in text
    assert "6 min 12 s" in text, "the measured recovery time"


def test_a_preview_says_what_is_reached_and_refuses_a_gap_with_its_neighbours(website: Website) -> None:
    website.fill()
    browser = website.browser("restorer")
    now = datetime.now(UTC)
    good = browser.get("/services/erp/preview", params={"to": to_iso(now - timedelta(hours=50))})
    assert "Restore in isolation" in good.text
    gap = browser.get("/services/erp/preview", params={"to": to_iso(now - timedelta(hours=98))})
    assert "cannot be reached" in gap.text
    assert "The last instant before it" in gap.text
    assert "Restore in isolation" not in gap.text
    assert browser.get("/services/erp/preview", params={"to": "yesterday"}).status_code == 422


def test_an_isolated_restore_takes_two_clicks_and_two_posts_of_one_form_are_one_run(website: Website) -> None:
    website.fill()
    browser = website.browser("restorer")
    form = {"csrf": csrf(browser), "key": "form-1", "to": "latest"}
    first = browser.post("/services/erp/restore", data=form)
    second = browser.post("/services/erp/restore", data=form)
    assert first.status_code == second.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    runs = website.site.runs.list()
    assert [(run.kind, run.parameters, run.requested_by) for run in runs] == [
        (RunKind.RESTORE, {"to": "latest"}, "restorer")
    ]


def test_a_run_shows_steps_progress_error_and_how_to_reach_its_environment(website: Website) -> None:
    runs, browser = website.site.runs, website.browser("viewer")
    run = started(website)
    claim = runs.claim(run, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    runs.event(claim, "step", {"name": "upload", "total": 100, "unit": "bytes"})
    runs.progress(claim, {"step": "upload", "done": 25, "total": 100, "unit": "bytes", "rate": 2048, "eta_seconds": 75})
    text = browser.get(f"/runs/{run}").text
    assert "upload" in text
    assert "25 %" in text
    assert "2.0 KiB/s" in text
    assert "1 min 15 s" in text
    assert f'data-events="/api/v1/runs/{run}/events"' in text
    environment = {"id": "E1", "dsn": "host=/x dbname=plant"}
    assert runs.finish(claim, RunState.SUCCEEDED, result={"environment": environment})
    text = browser.get(f"/runs/{run}/live").text
    assert "drservice environment destroy E1" in text
    assert "host=/x dbname=plant" in text


def test_markup_and_control_characters_in_what_runs_say_stay_text(website: Website) -> None:
    runs = website.site.runs
    run = started(website, note=HOSTILE)
    claim = runs.claim(run, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    runs.event(claim, "step", {"name": HOSTILE})
    runs.event(claim, "note", {"text": HOSTILE, HOSTILE: HOSTILE})
    runs.finish(
        claim,
        RunState.FAILED,
        result={"environment": {"id": HOSTILE, "dsn": HOSTILE}, HOSTILE: HOSTILE},
        error={"code": "DR000", "message": HOSTILE, "hint": HOSTILE, "exit_status": 1},
    )
    browser = website.browser("viewer")
    for path in (f"/runs/{run}", f"/runs/{run}/live", "/runs", "/services/erp"):
        text = browser.get(path).text
        assert "<script>alert" not in text, path
        assert "<img" not in text, path
        assert "\x1b" not in text, path
        assert "\u202e" not in text, path


def test_no_page_holds_inline_script_or_style(website: Website) -> None:
    website.fill()
    browser = website.browser("all", "viewer", "auditor", "operator", "restorer")
    for path in ("/overview", "/services/erp", "/runs", f"/runs/{started(website)}", "/evidence", "/sign-in"):
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert " style=" not in answer.text, path
        assert "<style" not in answer.text, path
        assert "<script>" not in answer.text, path
        assert " onclick=" not in answer.text, path
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


def test_who_is_not_signed_in_is_led_to_the_door_and_back(website: Website) -> None:
    website.account("viewer", "viewer")
    client = website.client()
    away = client.get("/services/erp")
    assert away.status_code == 303
    assert away.headers["location"] == "/sign-in?next=/services/erp"
    assert client.get("/overview/table", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/sign-in"
    form = {"name": "viewer", "password": "correct horse battery", "next": "/services/erp"}
    back = client.post("/sign-in", data=form, headers={"Origin": URL})
    assert back.headers["location"] == "/services/erp"
    elsewhere = client.post("/sign-in", data={**form, "next": "//evil.example/"}, headers={"Origin": URL})
    assert elsewhere.headers["location"] == "/"


def test_evidence_shows_exceptions_first_and_drills_that_were_never_made(website: Website) -> None:
    website.fill()
    text = website.browser("auditor").get("/evidence").text
    exceptions, records = text.index("<h2>Exceptions</h2>"), text.index("<h2>Records</h2>")
    assert exceptions < text.index("failed", exceptions) < records
    assert "never drilled" in text


def test_static_files_and_an_unknown_page(website: Website) -> None:
    client = website.client()
    assert client.get("/static/drservice.css").status_code == 200
    assert client.get("/static/../app.py").status_code == 404
    missing = client.get("/nowhere", headers={"Accept": "text/html"})
    assert missing.status_code == 404
    assert "DR958" in missing.text


def test_a_service_shows_its_receiver_and_the_holes_in_its_wal_with_what_to_do(website: Website) -> None:
    website.fill()
    browser = website.browser("viewer")
    assert "Write-ahead log" not in browser.get("/services/erp").text, "nothing streams and nothing is missing"
    told = ToldWal(
        service="erp",
        component="database",
        state="stalled",
        is_synchronous=True,
        durable_until=datetime.now(UTC),
        seconds_at_risk=0.25,
        problem=HOSTILE,
        remedy="Look at the store.",
    )
    tell_wal(website.site.database, "db1", [told])
    hole = Hole(timeline=Timeline(1), numbers=range(6, 8), segment_bytes=1 << 20, spoilt=(), cut=(), is_open=True)
    with website.site.database.session() as session:
        project_holes(session, ServiceName("erp"), ComponentName("database"), [hole])
    text = browser.get("/services/erp").text
    assert "at risk: 250 ms" in text
    assert "commits wait for the repository" in text
    assert "Look at the store." in text
    assert "<script>alert" not in text
    assert "2 WAL segments from <code>000000010000000000000006</code> on are missing" in text
    assert "drservice backup erp" in text


def test_a_service_shows_its_documents_beside_its_wal_and_the_larger_of_both_as_what_is_at_risk(
    website: Website,
) -> None:
    website.fill()
    browser = website.browser("viewer")
    text = browser.get("/services/erp").text
    assert "no host tells of a capture" in text
    assert 'database <span class="nowrap">≤ 4 s,</span> <span class="nowrap">promised 1 min' in text
    assert 'documents <span class="nowrap">≤ 1 h 3 min,</span> <span class="nowrap">promised nothing' in text
    assert '<p class="big">≤ 1 h 3 min</p>' in text, "the last pass began before that"
    assert "<dt>Documents</dt><dd>filed after" in text
    told = ToldDocuments(
        service="erp",
        component="documents",
        state="stalled",
        durable_until=datetime.now(UTC) - timedelta(minutes=9),
        seconds_at_risk=500.0,
        pending=12,
        missing=3,
        corrupt=1,
        in_database=2,
        not_covered=1,
        problem=HOSTILE,
        remedy="Let it read them.",
    )
    tell_documents(website.site.database, "db1", [told])
    text = browser.get("/services/erp").text
    assert '<p class="big">≤ 8 min 20 s</p>' in text
    assert "12 pending" in text
    assert "in production 3 missing and 1 damaged, though rows refer to them" in text
    assert "1 attachment outside filestore and database" in text
    assert "Let it read them." in text
    assert "<script>alert" not in text
    assert 'documents <span class="nowrap">≤ 8 min 20 s' in browser.get("/overview").text
    assert "<h2>Documents</h2>" not in browser.get("/services/archive").text
