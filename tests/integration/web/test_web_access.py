"""Who may do what: the whole table of permissions walked over HTTP, and what thieves, guessers and other sites get."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from drservice.catalogue.accounts import FREE_FAILURES
from drservice.catalogue.runs import RunRequest
from drservice.catalogue.tables import Access, Account, Answer
from drservice.errors import UnguardedRouteError
from drservice.model.runs import RunKind
from drservice.web.app import ROUTES as ALL
from drservice.web.app import make_app
from drservice.web.auth.permissions import GRANTS, ROUTES, Permission, Role, require_complete
from drservice.web.routes import Route
from drservice.web.site import Rates
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import PASSWORD, URL, Website, csrf, set_clock, tell_environment, ulid

GUARDED = [route for route in ALL if ROUTES[route.name].permission is not Permission.PUBLIC]
# They open the repository, which these tests do not have (test_web_evidence has one).
SLOW = {"api.evidence.bundle", "api.evidence.verify", "page.evidence.verify", "api.gate.ask"}


@dataclass(kw_only=True)
class Walk:
    """One application that every combination is asked of, with a run and an environment of each of two services."""

    website: Website
    runs: dict[str, str]
    environments: dict[str, str]

    def ask(self, route: Route, service: str, client: httpx.Client) -> httpx.Response:
        path = route.path.format(
            service=service,
            run=self.runs[service],
            environment=self.environments[service],
            token=ulid(datetime.now(UTC)),
            entry=1,
        )
        headers = {"Idempotency-Key": f"k{abs(hash((route.name, service)))}", "Accept": "application/json"}
        body: dict[str, Any] = {}
        if route.method == "POST" and route.path.startswith("/api/"):
            body["json"] = {"name": "x", "roles": ["viewer"]} if route.path.endswith("tokens") else {}
        elif route.method == "POST":
            body["data"] = {"key": "form"}
        return client.request(route.method, path, headers=headers, **body)


@pytest.fixture(scope="module")
def walk(catalogues: CatalogueServer, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    website = Website.over(catalogues.database(), state_dir=tmp_path_factory.mktemp("walk"))
    runs, environments = {}, {}
    for number, service in enumerate(("erp", "reporting")):
        environments[service] = tell_environment(website.site.database, service, host=f"db{number}")
        run = website.site.queue.enqueue(RunRequest(service=service, kind=RunKind.VERIFY, requested_by="somebody"))
        assert run is not None
        website.site.runs.cancel(run, "somebody")
        runs[service] = run
    return Walk(website=website, runs=runs, environments=environments)


@pytest.mark.parametrize("role", [None, *Role], ids=lambda role: role.value if role else "nobody")
def test_every_route_lets_exactly_the_roles_of_the_table_in(walk: Walk, role: Role | None) -> None:
    client = walk.website.client(walk.website.token(role.value) if role else None)
    wrong = []
    for route in sorted(GUARDED, key=lambda route: route.name == "page.sign-out"):  # after which the token is gone
        allowed = role is not None and role in GRANTS[ROUTES[route.name].permission]
        if allowed and route.name in SLOW:
            continue
        status = walk.ask(route, "erp", client).status_code
        expected = {401} if role is None else set(range(200, 600)) - {401, 403} if allowed else {403}
        if route.name in {"api.runs.cancel", "page.run.cancel"} and role is Role.RESTORER:
            expected = {403}  # it is no restore
        if route.name == "api.tokens.create" and role is not None:
            expected = {403}  # a token makes no token
        if status not in expected:
            wrong.append(f"{role.value if role else 'nobody'} {route.name}: {status}")
    assert wrong == []


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_no_role_reaches_a_service_out_of_its_scope(walk: Walk, role: Role) -> None:
    client = walk.website.client(walk.website.token(role.value, services=("erp",)))
    wrong = []
    for route in GUARDED:
        if "{service}" not in route.path and "{run}" not in route.path:
            continue
        allowed = role in GRANTS[ROUTES[route.name].permission]
        if allowed and route.name in SLOW:
            assert walk.ask(route, "reporting", client).status_code == 404
            continue
        own, foreign = (walk.ask(route, service, client) for service in ("erp", "reporting"))
        if foreign.status_code != (404 if allowed else 403):
            wrong.append(f"{route.name} foreign: {foreign.status_code}")
        if allowed and own.status_code == 404:
            wrong.append(f"{route.name} own: 404")
    assert wrong == []


def test_lists_hold_only_what_is_in_scope(walk: Walk) -> None:
    client = walk.website.client(walk.website.token("viewer", services=("erp",)))
    assert [item["name"] for item in client.get("/api/v1/services").json()["items"]] == ["erp"]
    assert {item["service"] for item in client.get("/api/v1/runs").json()["items"]} == {"erp"}
    assert client.get("/api/v1/runs", params={"service": "reporting"}).json()["items"] == []
    assert {item["service"] for item in client.get("/api/v1/schedules").json()["items"]} == {"erp"}
    assert "reporting" not in client.get("/overview").text
    assert "reporting" not in client.get("/runs").text


def test_a_route_without_a_permission_is_not_served(website: Website) -> None:
    def secret() -> dict[str, str]:
        return {}

    added = Route(name="api.secret", method="GET", path="/api/v1/secret", endpoint=secret)
    with pytest.raises(UnguardedRouteError, match=r"api\.secret"):
        make_app(website.site, routes=(*ALL, added))
    with pytest.raises(UnguardedRouteError, match="which nothing serves"):
        make_app(website.site, routes=ALL[1:])
    with pytest.raises(UnguardedRouteError, match="two routes"):
        require_complete([*ROUTES, "api.me"])


def test_no_route_offers_a_restore_in_place_or_less_retention() -> None:
    offered = " ".join(f"{route.method} {route.path}" for route in ALL if route.method != "GET")
    assert not re.search(r"retention|prune|in-place|inplace|delete|keys", offered)


def test_a_token_is_refused_after_it_was_revoked_expired_or_its_account_disabled(website: Website) -> None:
    accounts = website.site.identity.accounts
    revoked, disabled, expired = website.token("viewer"), website.token("viewer"), website.token("viewer")
    assert website.client(revoked).get("/api/v1/me").status_code == 200
    owner = website.client(revoked).get("/api/v1/me").json()["account"]
    identifier = accounts.tokens(account=owner)[0].id
    assert accounts.revoke(identifier)
    assert website.client(revoked).get("/api/v1/me").status_code == 401
    assert accounts.set_disabled(website.client(disabled).get("/api/v1/me").json()["account"], disabled=True)
    assert website.client(disabled).get("/api/v1/me").status_code == 401
    set_clock(website.site.database, timedelta(hours=2))
    assert website.client(expired).get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer drs_x",
        "Bearer drs_" + "A" * 43,
        "bearer " + "x" * 5000,
        "Bearer \xff",
    ],
)
def test_what_is_no_token_is_refused(website: Website, header: str) -> None:
    answer = website.client().get("/api/v1/me", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json()["code"] == "DR950"
    assert "www-authenticate" in answer.headers


def test_a_session_ends_when_it_is_idle_signed_out_or_the_password_is_new(website: Website) -> None:
    out = website.browser("one", "viewer")
    cookie = out.cookies["__Host-drservice"]
    assert out.post("/sign-out", data={"csrf": csrf(out)}).status_code == 303
    assert website.client().get("/api/v1/me", headers={"Cookie": f"__Host-drservice={cookie}"}).status_code == 401
    renewed = website.browser("two", "viewer")
    assert website.site.identity.accounts.set_password("two", website.site.passwords.hash("another good password"))
    assert renewed.get("/api/v1/me").status_code == 401
    idle = website.browser("three", "viewer")
    assert idle.get("/api/v1/me").status_code == 200
    set_clock(website.site.database, timedelta(minutes=61))
    assert idle.get("/api/v1/me").status_code == 401


def test_the_session_cookie_is_kept_from_scripts_plain_http_and_other_sites(website: Website) -> None:
    website.account("viewer", "viewer")
    answer = website.client().post("/sign-in", data={"name": "viewer", "password": PASSWORD}, headers={"Origin": URL})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-drservice=")
    assert {"httponly", "secure", "samesite=lax", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}


def test_wrong_passwords_lock_an_account_longer_each_time_and_the_right_one_says_no_more_than_a_wrong_one(
    website: Website,
) -> None:
    website.account("viewer", "viewer")
    client = website.client()

    def attempt(password: str, name: str = "viewer") -> httpx.Response:
        return client.post("/sign-in", data={"name": name, "password": password}, headers={"Origin": URL})

    for _ in range(FREE_FAILURES):
        assert attempt("wrong password").status_code == 401
    locked, unknown = attempt(PASSWORD), attempt(PASSWORD, "nobody")
    assert locked.status_code == unknown.status_code == 401
    shown = r'<p class="alert.*?</p>'
    said = [re.search(shown, answer.text, re.DOTALL) for answer in (locked, unknown)]
    assert said[0] is not None
    assert said[1] is not None
    assert said[0].group() == said[1].group()
    accounts = website.site.identity.accounts
    locks = []
    for hour in range(1, 5):
        set_clock(website.site.database, timedelta(hours=hour))
        assert attempt("wrong password").status_code == 401
        until = accounts.list()[0].locked_until
        assert until is not None
        locks.append((until - website.site.reading.now()).total_seconds())
    assert locks == sorted(locks)
    assert locks[-1] > 10
    set_clock(website.site.database, timedelta(hours=6))
    assert attempt(PASSWORD).status_code == 303
    assert accounts.list()[0].failures == 0


def test_guesses_that_come_at_once_are_charged_before_they_are_judged(website: Website) -> None:
    website.account("viewer", "viewer")
    with ThreadPoolExecutor(20) as pool:
        judged = list(pool.map(lambda _: website.site.identity.accounts.begin_attempt("viewer"), range(20)))
    assert sum(attempt is not None for attempt in judged) == FREE_FAILURES


def test_wrong_passwords_and_revocations_count_in_every_web_process(
    catalogues: CatalogueServer, tmp_path: Path
) -> None:
    database = catalogues.database()
    processes = [Website.over(database, state_dir=tmp_path) for _ in range(3)]
    processes[0].account("viewer", "viewer")

    def attempt(website: Website, password: str) -> int:
        form = {"name": "viewer", "password": password}
        return website.client().post("/sign-in", data=form, headers={"Origin": URL}).status_code

    for number in range(FREE_FAILURES):
        assert attempt(processes[number % 2], "wrong password") == 401
    assert attempt(processes[2], PASSWORD) == 401  # it is the right one, and the account is locked
    stolen = processes[0].token("viewer")
    assert [website.client(stolen).get("/api/v1/me").status_code for website in processes] == [200, 200, 200]
    assert processes[1].site.identity.accounts.revoke(processes[1].site.identity.accounts.tokens()[0].id)
    assert [website.client(stolen).get("/api/v1/me").status_code for website in processes] == [401, 401, 401]


def test_guessing_from_one_address_is_slowed_down(catalogues: CatalogueServer, tmp_path: Path) -> None:
    website = Website.over(catalogues.database(), state_dir=tmp_path, rates=Rates(sign_in_burst=3))
    client = website.client()
    statuses = [
        client.post("/sign-in", data={"name": f"n{i}", "password": "x"}, headers={"Origin": URL}).status_code
        for i in range(5)
    ]
    assert statuses == [401, 401, 401, 429, 429]


def test_too_many_requests_are_refused_per_address_and_per_account(catalogues: CatalogueServer, tmp_path: Path) -> None:
    rates = Rates(address_burst=4, address_per_second=0.001, account_burst=2, account_per_second=0.001)
    website = Website.over(catalogues.database(), state_dir=tmp_path, rates=rates)
    token = website.token("viewer")
    statuses = [website.client(token).get("/api/v1/me").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    client = website.client(address="192.0.2.2")
    statuses = [client.get("/healthz").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 200, 429]
    refused = client.get("/healthz")
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["code"] == "DR953"


@pytest.mark.parametrize(
    ("origin", "site", "word"),
    [
        (URL, None, "none"),
        (URL, None, "wrong"),
        ("https://evil.example", None, "right"),
        (None, None, "right"),
        ("null", None, "right"),
        (URL, "cross-site", "right"),
        (URL, "same-site", "right"),
    ],
)
@pytest.mark.parametrize("fragment", [False, True], ids=["form", "htmx"])
def test_a_change_that_another_site_asks_for_is_refused(
    website: Website, origin: str | None, site: str | None, word: str, *, fragment: bool
) -> None:
    browser = website.browser("operator")
    del browser.headers["Origin"]
    given = {"right": csrf(browser), "wrong": "0" * 64, "none": ""}[word]
    headers = {"HX-Request": "true", "X-CSRF-Token": given} if fragment else {}
    if origin is not None:
        headers["Origin"] = origin
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    answer = browser.post("/services/erp/backup", data={"csrf": given, "key": "k"}, headers=headers)
    assert answer.status_code == 403
    assert website.site.runs.list() == []


def test_signing_in_from_another_site_is_refused(website: Website) -> None:
    website.account("viewer", "viewer")
    form = {"name": "viewer", "password": PASSWORD}
    assert website.client().post("/sign-in", data=form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert website.client().post("/sign-in", data=form).status_code == 403


def test_a_token_is_worth_no_more_than_who_made_it_now_and_later(website: Website) -> None:
    browser = website.browser("boss", "operator", "viewer", services=("erp",))
    headers = {"X-CSRF-Token": csrf(browser), "Idempotency-Key": "t1"}
    beyond = browser.post("/api/v1/tokens", json={"name": "x", "roles": ["admin"]}, headers=headers)
    assert beyond.status_code == 403
    foreign = {"name": "x", "roles": ["viewer"], "services": ["reporting"]}
    assert browser.post("/api/v1/tokens", json=foreign, headers=headers).status_code == 404
    made = browser.post("/api/v1/tokens", json={"name": "ci", "roles": ["operator"]}, headers=headers)
    assert made.status_code == 201
    secret = made.json()["secret"]
    started = website.client(secret).post("/api/v1/services/erp/backups", json={}, headers={"Idempotency-Key": "t2"})
    assert started.status_code == 202
    assert website.client(secret).get("/api/v1/services/reporting").status_code == 404
    again = browser.post("/api/v1/tokens", json={"name": "ci", "roles": ["operator"]}, headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["secret"]) == (201, made.json()["id"], None)
    with website.site.database.session() as session:
        assert secret not in " ".join(session.scalars(select(Answer.body)))
        account = session.get(Account, "boss")
        assert account is not None
        account.roles = ["viewer"]
    assert website.client(secret).get("/api/v1/me").status_code == 403


def test_requests_leave_rows_in_the_access_log_without_secrets_and_paths(website: Website) -> None:
    token = website.token("viewer")
    client = website.client(token)
    client.get("/api/v1/services/erp", params={"password": "hunter2"})
    client.get("/api/v1/services/reporting/../../../etc/passwd")
    website.client().get("/api/v1/me")
    website.client().get("/healthz")
    with website.site.database.session() as session:
        rows = session.scalars(select(Access).order_by(Access.id)).all()
    assert [(row.route, row.service, row.status, row.account is not None) for row in rows] == [
        ("api.services.get", "erp", 200, True),
        ("none", None, 404, False),
        ("api.me", None, 401, False),
    ]
    assert all("hunter2" not in str(vars(row)) and token not in str(vars(row)) for row in rows)
