"""Takes the pictures of the README from the estate that the tests look at: ``make screenshots``."""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from drservice.model.runs import RunKind
from tests.browser import others
from tests.browser.scene import SERVICE, Scene
from tests.browser.visitors import Theme, Visitors, chromium

MOST_BYTES = 150_000
QUALITY = 85
WIDTH = 1280


def main(folder: Path) -> None:
    """Make the estate, look at it, and write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="drservice-screenshots-") as text:
        cache = Path(text)
        with Scene.opened(cache, cache=cache) as scene, chromium() as browser:
            scene.live_through_a_day()
            restore = scene.complete(RunKind.RESTORE).id
            visitors = Visitors(browser=browser, url=scene.url)
            take(visitors, "/overview", folder / "overview.webp", height=820)
            take(visitors, f"/services/{others.HISTORY}", folder / "service.webp", height=800, picks=True)
            take(visitors, f"/runs/{restore}", folder / "run.webp", height=760)
            take(visitors, "/evidence", folder / "evidence.webp", height=760)
            take(visitors, f"/services/{SERVICE}", folder / "service-dark.webp", height=900, theme="dark")
            visitors.leave()


def take(
    visitors: Visitors, path: str, target: Path, *, height: int, theme: Theme = "light", picks: bool = False
) -> None:
    """Write what fits into a window of one page; ``picks``: after an instant was picked on the band."""
    page = visitors.page("otto", path, theme=theme, size=(WIDTH, height))
    if picks:
        box = page.locator("svg.band").bounding_box()
        assert box is not None
        with page.expect_response(lambda answer: "/preview" in answer.url):
            page.mouse.click(box["x"] + box["width"] * 0.72, box["y"] + box["height"] / 2)
        page.locator("#preview dl").wait_for()
    session = page.context.new_cdp_session(page)
    taken = base64.b64decode(session.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})["data"])
    assert len(taken) <= MOST_BYTES, f"{target.name} would have {len(taken)} bytes"
    target.write_bytes(taken)
    print(f"{target}: {len(taken)} bytes")  # noqa: T201 - it is a script
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
