"""Two people at work: on-call at night, and an auditor who believes nothing that she cannot check herself."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest
from playwright.sync_api import Page, expect

from drservice import processes
from tests.browser.scene import EARLIER, SERVICE, Scene
from tests.browser.visitors import ZONE, Visitors

pytestmark = pytest.mark.browser

DESTROYED_MS = 30_000
_BLOCKED = """
import importlib.abc, json, runpy, socket, sys
class OnlyCryptography(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("cryptography", "_cffi_backend", "cffi"):
            return None
        raise ModuleNotFoundError(f"an auditor does not have {name}")
sys.meta_path.insert(0, OnlyCryptography())
try:
    socket.create_connection(("192.0.2.1", 443), timeout=2)
except OSError as error:
    print("offline:", error.strerror)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that finds no library but one, and says first that it has no network."""


def test_on_call_restores_an_instant_in_isolation_connects_and_tidies_up(scene: Scene, visitors: Visitors) -> None:
    page = visitors.page(None, "/")
    visitors.sign_in(page, "rosa")
    assert page.url.endswith("/overview")
    worst = page.locator("#table tbody tr").first
    expect(worst).to_contain_text("unprotected")  # the worst first
    page.get_by_role("link", name=SERVICE, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(SERVICE)
    _pick(page, scene)
    expect(page.locator("#preview")).to_contain_text("Begins from")
    expect(page.locator("#preview")).to_contain_text("about")  # as long as it took the last time
    page.get_by_role("button", name="Restore in isolation").click()  # the second click, after Preview
    page.wait_for_url("**/runs/*")
    page.evaluate("window.notReloaded = true")
    expect(page.locator(".steps")).to_contain_text("replay WAL", timeout=60_000)
    expect(page.locator("#live .badge").first).to_contain_text("succeeded", timeout=60_000)
    assert page.evaluate("window.notReloaded === true")
    dsn = _dsn(page)
    with psycopg.connect(dsn, dbname="plant") as copy:
        assert [name for (name,) in copy.execute("select name from sale_order")] == [EARLIER]
    _destroy(page)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn, dbname="plant").close()


def _pick(page: Page, scene: Scene) -> None:
    """Choose an instant: about on the band, then to the second in the field."""
    box = page.locator("svg.band.picks").bounding_box()  # once it can be clicked
    assert box is not None
    field = page.get_by_role("textbox", name="Instant")
    with page.expect_response(re.compile("/preview")):
        page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    assert field.input_value()
    expect(page.locator("svg.band .chosen")).to_have_attribute("visibility", "visible")
    assert scene.instant is not None
    field.fill(f"{scene.instant.astimezone(ZoneInfo(ZONE)):%Y-%m-%dT%H:%M:%S}")
    with page.expect_response(re.compile("/preview")) as answer:
        page.get_by_role("button", name="Preview").click()
    assert f"{scene.instant:%Y-%m-%dT%H}%3A{scene.instant:%M}%3A{scene.instant:%S}" in answer.value.url


def _dsn(page: Page) -> str:
    """Return what the page says one connects with."""
    shown = page.locator("#live code.command", has_text="psql").inner_text()
    found = re.fullmatch(r'psql "(.*)"', shown)
    assert found is not None, shown
    return found[1]


def _destroy(page: Page) -> None:
    """Go from the run to its environment, and end it: its service's name has to be typed."""
    environment = page.locator("#live code.command", has_text="drservice environment destroy").inner_text().split()[-1]
    page.get_by_role("link", name="Destroy it here").click()
    item = page.locator("#environments li", has_text=environment)
    item.get_by_text("Destroy…").click()
    item.get_by_role("textbox").fill(SERVICE)
    item.get_by_role("button", name="Destroy this environment").click()
    page.wait_for_url("**/runs/*")
    expect(page.locator("#live .badge").first).to_contain_text("succeeded", timeout=DESTROYED_MS)
    page.get_by_role("link", name=SERVICE).click()
    expect(page.locator("#environments")).not_to_contain_text(environment)


def test_an_auditor_takes_evidence_home_and_checks_it_offline(visitors: Visitors, tmp_path: Path) -> None:
    page = visitors.page(None, "/")
    visitors.sign_in(page, "axel")
    assert page.url.endswith("/evidence")  # all she may see
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings[0] == "Exceptions"
    expect(page.locator("section", has_text="Exceptions").first).to_contain_text("nothing-stuck")
    today = datetime.now(UTC).date()
    page.get_by_label("From").fill(str(today - timedelta(days=20)))
    page.get_by_label("to", exact=True).fill(str(today))
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/evidence?from=*")
    expect(page.locator("section", has_text="Exceptions").first).to_contain_text("nothing-stuck")
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download the bundle").click()
    bundle = tmp_path / "bundle.zip"
    downloaded.value.save_as(bundle)
    home = tmp_path / "home"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(home)
    period = json.loads((home / "manifest.json").read_text())["period"]
    assert period["from"].startswith(f"{today - timedelta(days=20)}T00:00:00")
    assert period["to"].startswith(f"{today + timedelta(days=1)}T00:00:00")
    done = _verify(home / "verify.py", bundle)
    assert done.status == 0, done.stdout + done.stderr
    assert b"offline: Network is unreachable" in done.stdout
    # One byte of one record: the same verifier says no.
    forged = tmp_path / "forged.zip"
    _forge(bundle, forged)
    refused = _verify(home / "verify.py", forged)
    assert refused.status != 0
    assert b"offline: Network is unreachable" in refused.stdout


def _verify(verifier: Path, bundle: Path) -> processes.Finished:
    """Run a bundle's own verifier as somebody would who has only it, Python, and one library."""
    argv = ["unshare", "--map-root-user", "--net", sys.executable, "-I", "-c", _BLOCKED, str(verifier), str(bundle)]
    return processes.run(argv, environment=processes.clean_environment({}), timeout_seconds=60)


def _forge(bundle: Path, target: Path) -> None:
    """Copy a bundle with a byte of its first record changed."""
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(target, "w") as copy:
        chosen = next(name for name in source.namelist() if name.startswith("entries/"))
        for name in source.namelist():
            content = source.read(name)
            if name == chosen:
                content = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
            copy.writestr(name, content)
