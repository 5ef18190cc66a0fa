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
PHONE: Size = (390, 844)
Theme = Literal["light", "dark"]
ZONE = "Europe/Berlin"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's browser; nothing is downloaded."""
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
        context.set_default_timeout(10_000)
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
        assert not noted, "\n".join(noted)

    def forget(self, person: str) -> None:
        """Let somebody sign in anew the next time."""
        self._sessions.pop(person, None)

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


def axe_source() -> str:
    """Return axe-core, as the package of its Playwright binding carries it."""
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page, by rule and place."""
    page.evaluate(axe_source())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{item['id']} ({item['impact']}): {item['help']}: {node['target']} {node.get('failureSummary', '')}"
        for item in found["violations"]
        for node in item["nodes"]
    ]
