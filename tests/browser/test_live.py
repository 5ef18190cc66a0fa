"""Pages that change by themselves: without a reload, after a cut, and to the end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect

from drservice.catalogue.runs import Claim, RunRequest, Runs
from drservice.model.runs import RunKind, RunState
from tests.browser.scene import Scene
from tests.browser.visitors import Visitors

pytestmark = pytest.mark.browser

_MARK = "window.notReloaded = true"
_MARKED = "window.notReloaded === true"


@pytest.fixture
def claim(scene: Scene) -> Iterator[Claim]:
    """A run that a host of others works on: what it tells is told by the test."""
    runs = Runs(scene.database)
    request = RunRequest(service="crm", kind=RunKind.DOCUMENTS, requested_by="schedule", host="suzhou1")
    run = runs.request(request)
    assert run is not None
    claimed = runs.claim(run, host="suzhou1", lease=timedelta(minutes=30))
    assert claimed is not None
    yield claimed
    runs.finish(claimed, RunState.CANCELLED)  # unless the test has


def watched(visitors: Visitors, claim: Claim) -> Page:
    page = visitors.page("olga", f"/runs/{claim.run}")
    page.evaluate(_MARK)
    expect(page.locator("#live .badge").first).to_contain_text("running")
    return page


def test_a_run_is_followed_to_its_end_without_a_reload(scene: Scene, visitors: Visitors, claim: Claim) -> None:
    runs, page = Runs(scene.database), watched(visitors, claim)
    assert runs.event(claim, "step", {"name": "read the folders", "total": 400, "unit": "items"})
    expect(page.locator(".steps li[aria-current=step]")).to_contain_text("read the folders")
    assert runs.progress(claim, {"step": "read the folders", "done": 100, "total": 400, "unit": "items", "rate": 50})
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "25")
    expect(page.locator("#live")).to_contain_text("50 items/s")
    expect(page.get_by_role("button", name="Cancel this run")).to_be_visible()
    assert runs.event(claim, "step", {"name": "upload"})
    assert runs.finish(
        claim, RunState.FAILED, error={"code": "DR999", "message": "the disk is full", "hint": "Buy one."}
    )
    expect(page.get_by_role("alert")).to_contain_text("DR999: the disk is full")
    expect(page.locator(".steps li").nth(1)).to_contain_text("failed here")
    expect(page.get_by_role("button", name="Cancel this run")).to_be_hidden()
    expect(page.locator("#live time").first).not_to_contain_text("UTC")  # what came later is in the viewer's zone, too
    assert page.evaluate(_MARKED)


def test_a_page_goes_on_after_its_connection_was_cut(scene: Scene, visitors: Visitors, claim: Claim) -> None:
    visitors.cuts = True
    runs, page = Runs(scene.database), watched(visitors, claim)
    page.context.set_offline(True)
    assert runs.event(claim, "step", {"name": "told while nobody heard"})
    expect(page.locator(".steps")).to_have_count(0)
    page.context.set_offline(False)
    expect(page.locator(".steps")).to_contain_text("told while nobody heard", timeout=20_000)
    assert runs.event(claim, "step", {"name": "told afterwards"})
    expect(page.locator(".steps")).to_contain_text("told afterwards")
    assert page.evaluate(_MARKED)


def test_a_run_that_is_cancelled_in_the_browser_says_who_asked(visitors: Visitors, claim: Claim) -> None:
    page = watched(visitors, claim)
    page.get_by_role("button", name="Cancel this run").click()
    expect(page.locator("#live")).to_contain_text("olga asked it to end")
    expect(page.get_by_role("button", name="Cancel this run")).to_have_count(0)


def test_the_overview_is_filtered_in_place(visitors: Visitors) -> None:
    page = visitors.page("vera", "/overview")
    page.evaluate(_MARK)
    page.get_by_label("Name holds").fill("toledo")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#table tbody tr")).to_have_count(2)
    page.get_by_label("Condition", exact=True).select_option("unprotected")
    expect(page.locator("#table")).to_contain_text("None of 7 services is like that")
    assert page.evaluate(_MARKED)
