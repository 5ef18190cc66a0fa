"""What an attacker, a stranger or a forgotten window can do in a browser: nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from drservice.catalogue.runs import RunRequest, Runs
from drservice.model.runs import RunKind, RunState
from tests.browser.scene import Scene
from tests.browser.visitors import Visitors

pytestmark = pytest.mark.browser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202egpj\"' onfocus=alert(3) autofocus x='"
POST = """async ([path, fields, headers]) => {
  const body = new URLSearchParams(fields);
  return (await fetch(path, {method: "POST", body, headers, redirect: "manual"})).status;
}"""


def csrf(page: Page) -> str:
    return page.locator("form.who input[name=csrf]").get_attribute("value") or ""


def runs_of(scene: Scene, service: str = "erp") -> list[str]:
    return [run.id for run in Runs(scene.database).list(service=service, limit=200)]


def test_markup_in_what_hosts_and_people_say_is_shown_and_never_done(scene: Scene, visitors: Visitors) -> None:
    runs = Runs(scene.database)
    request = RunRequest(
        service="crm",
        kind=RunKind.DRILL,
        requested_by=HOSTILE,
        host="suzhou1",
        plan=HOSTILE,
        parameters={"to": HOSTILE},
    )
    run = runs.request(request)
    assert run is not None
    claim = runs.claim(run, host="suzhou1", lease=timedelta(minutes=30))
    assert claim is not None
    page = visitors.page("otto", f"/runs/{run}")
    assert runs.event(claim, "step", {"name": HOSTILE})  # comes as a fragment
    expect(page.locator(".steps")).to_contain_text("<script>alert(1)</script>")
    assert runs.event(claim, "note", {"text": HOSTILE, HOSTILE: HOSTILE})
    environment = {"id": HOSTILE, "dsn": HOSTILE}
    error = {"code": "DR000", "message": HOSTILE, "hint": HOSTILE}
    assert runs.finish(claim, RunState.FAILED, result={"environment": environment, HOSTILE: HOSTILE}, error=error)
    expect(page.get_by_role("alert")).to_contain_text("<img src=x onerror=alert(2)>")
    for path in (f"/runs/{run}", "/runs", "/services/crm"):
        visitors.go(page, path)
        body = page.locator("body").inner_text()
        assert "<script>alert(1)</script>" in body, path
        assert "\x1b" not in body, path
        assert "\u202e" not in body, path
        assert page.locator("main script, main img, [onfocus], [onerror]").count() == 0, path


def test_markup_in_an_address_is_not_done_either(visitors: Visitors) -> None:
    visitors.expected |= {404, 422}
    page = visitors.page("vera")
    for path in ("/services/%3Cscript%3Ealert(1)%3C/script%3E", "/runs?service=%22%3E%3Cimg src=x onerror=alert(1)%3E",
                 "/overview?name=%22%3E%3Csvg onload=alert(1)%3E", "/services/erp?to=%3Cscript%3E"):  # fmt: skip
        visitors.go(page, path)
        assert page.locator("main script, main img, main svg[onload]").count() == 0, path
    outside = visitors.page(None, "/sign-in?next=javascript:alert(1)")
    visitors.sign_in(outside, "vera")
    assert outside.url.endswith("/overview")


def test_a_viewer_sees_no_button_and_a_forged_press_is_refused(scene: Scene, visitors: Visitors) -> None:
    visitors.expected.add(403)
    page = visitors.page("vera", "/services/erp")
    assert set(page.locator("main").get_by_role("button").all_inner_texts()) <= {"Preview", "Copy"}
    expect(page.locator("#start")).to_contain_text("takes the role operator")
    expect(page.locator("#preview")).to_contain_text("takes the role restorer")
    assert scene.reported is not None
    before = runs_of(scene)
    own = {"csrf": csrf(page), "key": "forged", "to": "latest"}
    for path in ("backup", "drill", "restore"):
        assert page.evaluate(POST, [f"/services/erp/{path}", own, {}]) == 403, path
    assert page.evaluate(POST, [f"/runs/{scene.reported.running}/cancel", own, {}]) == 403
    visitors.go(page, f"/runs/{scene.reported.running}")
    expect(page.get_by_role("button", name="Cancel this run")).to_have_count(0)
    assert visitors.go(page, "/evidence").status == 403
    assert runs_of(scene) == before


def test_a_change_without_the_sessions_own_word_is_refused_as_form_and_as_fragment(
    scene: Scene, visitors: Visitors
) -> None:
    visitors.expected.add(403)
    page = visitors.page("olga", "/services/erp")
    before = runs_of(scene)
    stolen = csrf(visitors.page("otto", "/overview"))
    for headers in ({}, {"HX-Request": "true"}):
        for fields in ({"key": "k"}, {"key": "k", "csrf": "0" * 64}, {"key": "k", "csrf": stolen}):
            assert page.evaluate(POST, ["/services/erp/backup", fields, headers]) == 403
    assert runs_of(scene) == before


def test_a_page_of_another_site_starts_nothing(scene: Scene, visitors: Visitors) -> None:
    context = visitors.context("olga")
    target = f"{scene.url}/services/erp/backup"
    trap = f"<form method=post action='{target}'><input name=key></form><script>document.forms[0].submit()</script>"
    context.route("http://elsewhere.test/**", lambda route: route.fulfill(body=trap, content_type="text/html"))
    before = runs_of(scene)
    page = context.new_page()
    with page.expect_response(target) as refused:
        page.goto("http://elsewhere.test/", wait_until="commit")
    assert refused.value.status in {303, 401, 403}
    assert runs_of(scene) == before


def test_a_session_that_has_ended_leads_to_the_door_and_back(scene: Scene, visitors: Visitors) -> None:
    visitors.expected.add(401)
    page = visitors.page(None, "/services/erp")
    visitors.sign_in(page, "rita")
    with scene.database.connection() as connection:
        ended = connection.execute(
            text("UPDATE token SET expires_at = drservice_now() - interval '1 second' WHERE account = 'rita'")
        )
        assert ended.rowcount >= 1
    page.get_by_role("button", name="Preview").click()  # a fragment: it must not show the door inside of the page
    page.wait_for_url("**/sign-in*")
    visitors.go(page, "/runs")
    assert page.url.endswith("/sign-in?next=/runs")
    visitors.sign_in(page, "rita")
    assert page.url.endswith("/runs")
    assert not page.evaluate("document.cookie")  # scripts do not see the session
