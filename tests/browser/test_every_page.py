"""Every page, wide and on a phone, light and dark: nothing is cut off, hidden, or hard to read."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser import others
from tests.browser.scene import Scene
from tests.browser.visitors import LAPTOP, PHONE, TABLET, WIDE, Size, Theme, Visitors, overlaps, sideways, violations

pytestmark = pytest.mark.browser

LOOKS: tuple[tuple[Size, Theme], ...] = ((WIDE, "light"), (PHONE, "dark"), (LAPTOP, "dark"), (TABLET, "light"))
PAGES: dict[str, tuple[str | None, str, int]] = {
    "sign-in": (None, "/sign-in", 200),
    "overview": ("otto", "/overview", 200),
    "service": ("otto", f"/services/{others.HISTORY}", 200),
    "service-real": ("otto", "/services/erp", 200),
    "service-stalled": ("otto", "/services/crm", 200),
    "service-unprotected": ("vera", "/services/portal", 200),
    "runs": ("otto", "/runs", 200),
    "no-runs": ("vera", "/runs?service=portal&state=failed", 200),
    "run-running": ("otto", "running", 200),
    "run-failed": ("otto", "failed", 200),
    "run-missed": ("vera", "missed", 200),
    "evidence": ("axel", "/evidence", 200),
    "absent": ("vera", "/services/nowhere", 404),
    "forbidden": ("axel", "/overview", 403),
    "invalid": ("vera", "/services/erp?to=yesterday", 422),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_readable_and_has_no_fault_that_axe_finds(scene: Scene, visitors: Visitors, name: str) -> None:
    person, path, status = PAGES[name]
    if not path.startswith("/"):
        path = f"/runs/{getattr(scene.reported, path)}"
    visitors.expected.add(status)
    page = visitors.page(person)
    assert visitors.go(page, path).status == status
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for number, (size, theme) in enumerate(LOOKS):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=theme)
        assert sideways(page) <= 0, (name, size)
        assert overlaps(page) == [], (name, size, theme)
        if number < 2:  # each width and each theme once; the slowest part
            assert violations(page) == [], (name, size, theme)


def test_status_is_told_by_a_word_and_a_sign_never_by_colour_alone(visitors: Visitors) -> None:
    page = visitors.page("otto", "/overview")
    badges = page.locator("#table tbody .badge").all_inner_texts()
    assert len(badges) >= 7
    for text in badges:
        sign, _, word = text.partition(" ")
        assert len(sign) == 1
        assert word.strip().replace(" ", "").isalpha(), text


def test_times_are_in_the_viewers_zone_with_utc_at_hand(scene: Scene, visitors: Visitors) -> None:
    assert scene.reported is not None
    page = visitors.page("vera", f"/runs/{scene.reported.failed}")
    time = page.locator("main time").first
    utc = time.get_attribute("datetime") or ""
    hour = (int(utc[11:13]) + 1) % 24  # Berlin in winter
    expect(time).to_contain_text(f"{hour:02d}:{utc[14:19]}")
    assert f"{utc[:10]} {utc[11:19]} UTC" in (time.get_attribute("title") or "")


@pytest.mark.parametrize("path", ["/overview", f"/services/{others.HISTORY}", "/runs", "running"])
def test_a_page_without_scripts_says_the_same(scene: Scene, visitors: Visitors, path: str) -> None:
    if not path.startswith("/"):
        path = f"/runs/{getattr(scene.reported, path)}"
    page = visitors.page("otto", path, scripts=False)
    bare = page.locator("main").inner_text()
    assert " UTC" in bare
    full = visitors.page("otto", path).locator("main").inner_text()
    for word in {word for word in full.split() if word.isalpha() and word.islower()} - _OF_SCRIPTS:
        assert word in bare, word
    assert sideways(page) <= 0


_OF_SCRIPTS = {"the", "band", "choose", "instant"}
"""The hint at the band, which takes a pointer and a script."""


def test_an_instant_is_previewed_without_scripts(visitors: Visitors) -> None:
    page = visitors.page("rosa", f"/services/{others.HISTORY}", scripts=False)
    at = page.locator("table.cards a", has_text="restore…").nth(2)
    at.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(others.HISTORY)
    assert page.get_by_role("textbox", name="Instant").input_value().endswith("Z")
    expect(page.locator("#preview")).to_contain_text("Begins from")
    expect(page.get_by_role("button", name="Restore in isolation")).to_be_visible()
