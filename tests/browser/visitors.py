"""People at a browser: each has a context of its own, and everything that a good page never does is noted.

    page = visitors.page("vera", "/overview", theme="dark", size=PHONE)    # signed in, once per person
    page = visitors.page(None, "/sign-in", scripts=False)
    visitors.leave()                                                       # closes all, and fails if anything was noted

Noted are: errors on the console (violations of the content security policy among them), exceptions, dialogs, requests
to anything but the site, and answers of 400 and above that the test did not expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from tests.browser.scene import PASSWORD

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
Size = tuple[int, int]
WIDE: Size = (1280, 900)
LAPTOP: Size = (1024, 700)
TABLET: Size = (768, 1024)
PHONE: Size = (390, 844)
Theme = Literal["light", "dark"]
ZONE = "Europe/Berlin"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's browser; nothing is downloaded."""
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET), timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Visitors:
    """Whoever looks at the pages of one test."""

    browser: Browser
    url: str
    noted: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    """Statuses that the test provokes."""
    cuts: bool = False
    """Whether the test cuts connections."""
    _sessions: dict[str, Any] = field(default_factory=dict)
    _contexts: list[BrowserContext] = field(default_factory=list)

    def page(
        self,
        person: str | None,
        path: str | None = None,
        *,
        theme: Theme = "light",
        size: Size = WIDE,
        scripts: bool = True,
    ) -> Page:
        """Open a window for somebody (``None``: for nobody who is signed in) and show a page."""
        context = self.context(person, theme=theme, size=size, scripts=scripts)
        page = context.new_page()
        self.watch(page)
        if path is not None:
            self.go(page, path)
        return page

    def context(
        self, person: str | None, *, theme: Theme = "light", size: Size = WIDE, scripts: bool = True
    ) -> BrowserContext:
        """Return a browser profile, signed in."""
        context = self.browser.new_context(
            base_url=self.url,
            color_scheme=theme,
            viewport={"width": size[0], "height": size[1]},
            has_touch=size == PHONE,
            device_scale_factor=2 if size == PHONE else 1,
            java_script_enabled=scripts,
            locale="en-GB",
            timezone_id=ZONE,
            reduced_motion="reduce",
            storage_state=self._session(person) if person is not None else None,
        )
        context.set_default_timeout(20_000)
        self._contexts.append(context)
        return context

    def go(self, page: Page, path: str) -> Response:
        """Show a page of the site."""
        answer = page.goto(path)
        assert answer is not None, path
        return answer

    def watch(self, page: Page) -> None:
        """Note what goes wrong in a page."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.noted.append(f"exception: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)
        page.on("response", self._response)

    def leave(self) -> None:
        """Close every window; fail if something was noted."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        noted, self.noted = self.noted, []
        self.expected.clear()
        self.cuts = False
        assert not noted, "\n".join(noted)

    def sign_in(self, page: Page, person: str) -> None:
        """Fill in and send the form that is shown."""
        page.get_by_label("Name").fill(person)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/sign-in" not in url)

    def _session(self, person: str) -> Any:
        if person not in self._sessions:
            context = self.browser.new_context(base_url=self.url)
            page = context.new_page()
            page.goto("/sign-in")
            self.sign_in(page, person)
            self._sessions[person] = context.storage_state()
            context.close()
        return self._sessions[person]

    def _console(self, message: ConsoleMessage) -> None:
        provoked = any(f"status of {status}" in message.text for status in self.expected)
        provoked = provoked or (self.cuts and "net::ERR_" in message.text)
        if message.type in {"error", "warning"} and not provoked:
            self.noted.append(f"console: {message.text} ({message.location})")

    def _dialog(self, dialog: Dialog) -> None:
        self.noted.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self.noted.append(f"request to elsewhere: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.noted.append(f"{response.status} for {response.url}")


def violations(page: Page) -> list[str]:
    """Return what axe-core (as the package of its Playwright binding carries it) finds wrong, by rule and place."""
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{item['id']} ({item['impact']}): {item['help']}: {node['target']} {node.get('failureSummary', '')}"
        for item in found["violations"]
        for node in item["nodes"]
    ]


def sideways(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wider


def overlaps(page: Page) -> list[str]:
    """Return which texts and controls lie over each other or beyond their card: lines of text may touch, no more."""
    found: list[str] = page.evaluate(_OVERLAPS)
    return found


_OVERLAPS = """() => {
  const boxes = [], found = [];
  const add = (node, rects, words) => {
    for (const r of rects) {
      if (r.width > 1 && r.height > 1 && r.right > 0 && r.bottom > 0) boxes.push([node, r, words.trim().slice(0, 40)]);
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility() || parent.closest("svg, option, select, button")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    add(parent, range.getClientRects(), node.data);
    const card = parent.closest(".card")?.getBoundingClientRect();
    if (card && range.getBoundingClientRect().right > card.right) found.push(`${node.data.trim()} | beyond its card`);
  }
  for (const control of document.querySelectorAll("button, input:not([type=hidden]), select, progress, svg.band")) {
    if (control.checkVisibility()) add(control, [control.getBoundingClientRect()], control.outerHTML);
  }
  boxes.forEach(([one, a, words], index) => {
    for (const [other, b, rest] of boxes.slice(index + 1)) {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 2 && height > 5 && one !== other) found.push(`${words} | ${rest}`);
    }
  });
  return found;
}"""
