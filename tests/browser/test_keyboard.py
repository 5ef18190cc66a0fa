"""Without a mouse: the way is short, visible, and leads to a restore."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import others
from tests.browser.scene import SERVICE
from tests.browser.visitors import Visitors

pytestmark = pytest.mark.browser

_FOCUSED = """() => {
  const element = document.activeElement, box = element.getBoundingClientRect(), style = getComputedStyle(element);
  const words = element === document.body ? "" : (element.id || element.innerText || element.name || "").trim();
  const seen = box.right > 0 && box.bottom > 0 && box.top < innerHeight && box.width > 0;
  return {words, seen, top: box.top + scrollY, left: box.left, outline: style.outlineStyle, width: style.outlineWidth};
}"""


def tab(page: Page) -> dict[str, Any]:
    """Go on to the next element and return what is known of it."""
    page.keyboard.press("Tab")
    focused: dict[str, Any] = page.evaluate(_FOCUSED)
    return focused


def test_the_first_key_offers_to_skip_the_navigation(visitors: Visitors) -> None:
    page = visitors.page("vera", "/overview")
    first = tab(page)
    assert first["words"] == "Skip to the content"
    assert first["seen"]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert tab(page)["words"] == "condition"


@pytest.mark.parametrize("path", ["/overview", f"/services/{others.HISTORY}", "/evidence"])
def test_focus_is_always_seen_and_follows_the_order_of_the_page(visitors: Visitors, path: str) -> None:
    page = visitors.page("otto", path)
    tops: list[float] = []
    for _ in range(25):
        focused = tab(page)
        if not focused["words"]:
            break  # the end of the page
        assert focused["seen"], focused
        assert focused["outline"] != "none", focused
        assert float(focused["width"].removesuffix("px")) >= 2, focused
        tops.append(focused["top"])
    assert len(tops) > 10
    jumps = [(before, after) for before, after in pairwise(tops[1:]) if after < before - 60]
    assert jumps == []


def test_a_restore_is_started_by_keys_alone(visitors: Visitors) -> None:
    page = visitors.page("rosa", f"/services/{SERVICE}")
    page.get_by_role("textbox", name="Instant").focus()
    page.keyboard.press("Tab")
    reached = ""
    for _ in range(12):  # through the parts of the field
        reached = page.evaluate(_FOCUSED)["words"]
        if reached == "Preview":
            break
        page.keyboard.press("Tab")
    assert reached == "Preview"
    page.evaluate("document.querySelector('#preview dl').dataset.old = 'yes'")  # the page came with one
    page.keyboard.press("Enter")
    expect(page.locator("#preview dl:not([data-old])")).to_be_visible()
    assert tab(page)["words"] == "Restore in isolation"
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Restore of {SERVICE}")
