"""``drservice account`` and ``drservice web`` as processes, on the embedded catalogue."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from drservice import processes
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, TempEstate, wait_for
from tests.doubles.website import PASSWORD


@pytest.fixture
def estate(template_cache: Path) -> Iterator[TempEstate]:
    maker = ClusterMaker(cache=template_cache)
    made = TempEstate.over(maker.make())
    made.initialise()
    yield made
    made.close()
    maker.close()


def argv(estate: TempEstate, *words: str) -> list[str]:
    return [*PROGRAM, "--config", str(estate.config), *words]


def call(estate: TempEstate, *words: str, typed: str = "", status: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        argv(estate, *words, "--json"),
        input=typed.encode(),
        capture_output=True,
        env=processes.clean_environment({"HOME": str(estate.root)}),
        timeout=120,
        check=False,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_an_account_is_added_listed_used_and_disabled_while_the_web_runs(estate: TempEstate) -> None:
    server = subprocess.Popen(
        argv(estate, "web", "--listen", "127.0.0.1:0", "--json"),
        stdout=subprocess.PIPE,
        env=processes.clean_environment({"HOME": str(estate.root)}),
    )
    try:
        assert server.stdout is not None
        base = json.loads(server.stdout.readline())["url"].rstrip("/")
        added = call(estate, "account", "add", "anna", "--role", "viewer", "--service", "erp", typed=f"{PASSWORD}\n")
        assert added["roles"] == ["viewer"]
        assert [item["account"] for item in call(estate, "account", "list")["accounts"]] == ["anna"]
        headers = {"Origin": base}
        form = {"name": "anna", "password": PASSWORD}
        signed_in = httpx.post(f"{base}/sign-in", data=form, headers=headers)
        assert signed_in.status_code == 303
        cookie = {"Cookie": signed_in.headers["set-cookie"].partition(";")[0]}
        assert httpx.get(f"{base}/api/v1/me", headers=cookie).json() == {
            "account": "anna",
            "roles": ["viewer"],
            "services": ["erp"],
        }
        assert httpx.get(f"{base}/services/erp", headers=cookie).status_code == 200
        scoped = ("anna", "--name", "pipeline", "--role", "viewer")
        token = call(estate, "account", "token", "add", *scoped, "--days", "7")
        bearer = {"Authorization": f"Bearer {token['secret']}"}
        assert httpx.get(f"{base}/api/v1/me", headers=bearer).json()["services"] == ["erp"]
        listed = call(estate, "account", "token", "list", "anna")["tokens"]
        assert [(item["token"], item["name"], item["revoked_at"]) for item in listed] == [
            (token["token"], "pipeline", None)
        ]
        assert token["secret"] not in json.dumps(listed)
        beyond = call(estate, "account", "token", "add", *scoped, "--role", "operator", status=2)
        assert "at most what its account" in beyond["error"]["hint"]
        call(estate, "account", "token", "revoke", token["token"])
        assert httpx.get(f"{base}/api/v1/me", headers=bearer).status_code == 401
        assert call(estate, "account", "token", "revoke", token["token"], status=2)["error"]["code"] == "DR962"
        call(estate, "account", "disable", "anna")
        assert httpx.get(f"{base}/api/v1/me", headers=cookie).status_code == 401
        call(estate, "account", "enable", "anna")
        call(estate, "account", "password", "anna", typed="another good password\n")
        assert httpx.post(f"{base}/sign-in", data=form, headers=headers).status_code == 401
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stdout is not None
        server.stdout.close()


def test_a_changed_configuration_is_served_and_a_broken_one_is_told_and_changes_nothing(
    estate: TempEstate, tmp_path: Path
) -> None:
    log = tmp_path / "web.log"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            argv(estate, "web", "--listen", "127.0.0.1:0", "--json"),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=processes.clean_environment({"HOME": str(estate.root)}),
        )
    try:
        assert server.stdout is not None
        base = json.loads(server.stdout.readline())["url"].rstrip("/")
        call(estate, "account", "add", "anna", "--role", "viewer", typed=f"{PASSWORD}\n")
        signed_in = httpx.post(f"{base}/sign-in", data={"name": "anna", "password": PASSWORD}, headers={"Origin": base})
        cookie = {"Cookie": signed_in.headers["set-cookie"].partition(";")[0]}

        def services() -> list[str]:
            items = httpx.get(f"{base}/api/v1/services", headers=cookie).json()["items"]
            return [item["name"] for item in items]

        def state() -> str:
            return str(httpx.get(f"{base}/readyz").json()["configuration"])

        assert (services(), state()) == (["erp"], "in force")
        before = estate.config.read_text()
        changed = json.loads(before)
        changed["services"]["crm"] = changed["services"]["erp"]
        rewrite(estate, json.dumps(changed))
        wait_for(lambda: services() == ["crm", "erp"], "the added service", 30)
        rewrite(estate, "services: [nonsense")
        wait_for(lambda: state() == "refused", "the refusal", 30)
        assert services() == ["crm", "erp"]
        assert b"the configuration is refused" in log.read_bytes()
        moved = json.loads(before) | {"state_dir": "/elsewhere"}
        rewrite(estate, json.dumps(moved))
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: b"state_dir has changed" in log.read_bytes(), "the refusal to move", 30)
        assert (services(), state()) == (["crm", "erp"], "refused")
        rewrite(estate, before)
        wait_for(lambda: services() == ["erp"], "the first file again", 30)
        assert state() == "in force"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stdout is not None
        server.stdout.close()


def rewrite(estate: TempEstate, text: str) -> None:
    """Replace the configuration as a deployment does: at once."""
    beside = estate.config.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o644)
    beside.rename(estate.config)


def test_what_makes_no_account_is_refused_with_a_reason(estate: TempEstate) -> None:
    short = call(estate, "account", "add", "anna", "--role", "viewer", typed="short\n", status=2)
    assert "at least 12" in short["error"]["message"]
    assert call(estate, "account", "add", "<b>", "--role", "viewer", status=2)["error"]["code"] == "DR962"
    unknown = call(estate, "account", "add", "anna", "--role", "viewer", "--service", "nope", status=2)
    assert unknown["error"]["code"] == "DR103"
    assert call(estate, "account", "add", "anna", "--role", "root", status=2)["error"]["code"] == "DR100"
    assert call(estate, "account", "disable", "nobody", status=2)["error"]["code"] == "DR962"
    assert call(estate, "web", "--listen", "nonsense", status=2)["error"]["code"] == "DR100"
