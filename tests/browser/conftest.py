"""One estate and one browser for all tests of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.scene import Scene
from tests.browser.visitors import Visitors, chromium


@pytest.fixture(scope="package")
def scene(tmp_path_factory: pytest.TempPathFactory, template_cache: Path) -> Iterator[Scene]:
    with Scene.opened(tmp_path_factory.mktemp("scene"), cache=template_cache) as made:
        made.live_through_a_day()
        yield made


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; ends with the package, because its event loop belongs to this thread while it is there."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="package")
def _visitors(scene: Scene, browser: Browser) -> Visitors:
    return Visitors(browser=browser, url=scene.url)


@pytest.fixture
def visitors(_visitors: Visitors) -> Iterator[Visitors]:
    """Opens pages; whatever went wrong in one of them fails the test."""
    yield _visitors
    _visitors.leave()
