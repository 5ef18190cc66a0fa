"""The rules of access that need no server: the table, passwords, tokens, sites, limits, and what is shown of a text."""

from __future__ import annotations

import unicodedata
from datetime import timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from drservice.errors import AbsentError, AccountError, CrossSiteError, ForbiddenError, UnguardedRouteError
from drservice.web.auth.identity import (
    Principal,
    csrf_word,
    is_account_name,
    new_secret,
    require_csrf,
    require_same_site,
)
from drservice.web.auth.passwords import Passwords
from drservice.web.auth.permissions import GRANTS, ROUTES, Permission, Role, may, require_complete
from drservice.web.limits import Limiter
from drservice.web.pages.rendering import amount, duration, environment
from drservice.web.pages.signing import local
from tests.doubles.clock import ManualClock

QUICK = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


def principal(*roles: Role, services: tuple[str, ...] = (), csrf: str | None = None) -> Principal:
    return Principal(account="a", token="t", roles=frozenset(roles), services=frozenset(services), csrf=csrf)


def test_auditors_see_evidence_and_nothing_else() -> None:
    allowed = {name for name, rule in ROUTES.items() if may([Role.AUDITOR], rule.permission)}
    public = {name for name, rule in ROUTES.items() if rule.permission in {Permission.PUBLIC, Permission.SIGNED_IN}}
    assert allowed - public == {name for name, rule in ROUTES.items() if rule.permission is Permission.EVIDENCE}


def test_nobody_starts_anything_by_seeing_or_administering() -> None:
    for role in (Role.VIEWER, Role.AUDITOR, Role.APPROVER, Role.ADMIN):
        assert not any(may([role], item) for item in (Permission.OPERATE, Permission.RESTORE, Permission.CANCEL))


def test_a_permission_that_names_no_role_is_had_by_nobody() -> None:
    assert Permission.PUBLIC not in GRANTS
    assert set(GRANTS) == set(Permission) - {Permission.PUBLIC}
    assert not may([], Permission.SIGNED_IN)


def test_a_route_without_an_entry_and_an_entry_without_a_route_stop_the_start() -> None:
    require_complete(ROUTES)
    with pytest.raises(UnguardedRouteError, match="secret"):
        require_complete([*ROUTES, "secret"])
    with pytest.raises(UnguardedRouteError, match="static"):
        require_complete(name for name in ROUTES if name != "static")


def test_a_principal_without_services_sees_all_and_one_with_some_not_even_what_belongs_to_none() -> None:
    assert principal().sees("erp")
    assert principal().sees(None)
    limited = principal(services=("erp",))
    assert limited.sees("erp")
    assert not limited.sees("reporting")
    assert not limited.sees(None)
    with pytest.raises(AbsentError, match="there is no service reporting"):
        limited.require_service("reporting")
    with pytest.raises(ForbiddenError, match="no permission to restore"):
        principal(Role.VIEWER).require(Permission.RESTORE)


def test_a_password_matches_itself_in_every_spelling_and_nothing_else() -> None:
    kept = QUICK.hash("Grüße aus der Halle")
    assert kept.startswith("$argon2id$")
    assert QUICK.matches(kept, "Gru\u0308ße aus der Halle")
    assert not QUICK.matches(kept, "grüße aus der halle")
    assert not QUICK.matches(None, "nobody's password"), "an unknown account has no password at all"
    assert not QUICK.matches("no hash", "x")
    assert not QUICK.matches(kept, "x" * 2000)


@pytest.mark.parametrize("password", ["", "short", "x" * 2000])
def test_what_is_no_password_is_refused(password: str) -> None:
    with pytest.raises(AccountError):
        QUICK.hash(password)


def test_secrets_are_long_random_and_only_their_hash_is_handed_on() -> None:
    made = {new_secret()[0] for _ in range(100)}
    assert len(made) == 100
    secret, sha256 = new_secret()
    assert len(secret) == 47
    assert len(sha256) == 32
    assert secret.encode() not in sha256


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reading_needs_no_origin(method: str) -> None:
    require_same_site(method, host=None, origin=None, fetch_site="cross-site")
    require_csrf(principal(csrf="x"), method, None)


@pytest.mark.parametrize(
    ("host", "origin", "site"),
    [
        ("web:8484", None, None),
        (None, "http://web:8484", None),
        ("web:8484", "http://web:8485", None),
        ("web:8484", "http://web:8484.evil", None),
        ("web:8484", "http://evil@web:8484x", None),
        ("web:8484", "null", None),
        ("web:8484", "http://web:8484", "same-site"),
        ("web:8484", "http://web:8484", "none"),
    ],
)
def test_a_change_from_elsewhere_is_refused(host: str | None, origin: str | None, site: str | None) -> None:
    with pytest.raises(CrossSiteError):
        require_same_site("POST", host=host, origin=origin, fetch_site=site)


def test_behind_a_proxy_the_public_origin_is_ours_and_no_other_is() -> None:
    public = "https://dr.example.com/"
    require_same_site("POST", host="web:8484", origin="https://dr.example.com", fetch_site=None, public=public)
    for origin in ("http://dr.example.com", "https://dr.example.com.evil", "https://evil.dr.example.com"):
        with pytest.raises(CrossSiteError):
            require_same_site("POST", host="web:8484", origin=origin, fetch_site=None, public=public)


def test_a_change_from_here_with_the_word_of_its_session_passes() -> None:
    require_same_site("POST", host="web:8484", origin="http://WEB:8484", fetch_site="same-origin")
    word = csrf_word("secret")
    require_csrf(principal(csrf=word), "POST", word)
    require_csrf(principal(csrf=None), "POST", None)
    for given_ in (None, "", csrf_word("another"), "ä"):
        with pytest.raises(CrossSiteError):
            require_csrf(principal(csrf=word), "DELETE", given_)


@pytest.mark.parametrize("target", ["//evil", "/\\evil", "https://evil", "", "/a\nb", "javascript:x", "/x\\..\\y"])
def test_nobody_is_led_elsewhere_after_signing_in(target: str) -> None:
    assert local(target) == "/"
    assert local("/runs?kind=backup") == "/runs?kind=backup"


@pytest.mark.parametrize("name", ["", "-x", "x-", "A", "a b", "a/b", "a\n", "x" * 65, "<b>"])
def test_what_is_no_name_is_refused(name: str) -> None:
    assert not is_account_name(name)
    assert is_account_name("anna.berg@plant-a.example")


def test_a_bucket_gives_a_burst_then_its_rate_and_forgets_the_oldest() -> None:
    clock = ManualClock()
    limiter = Limiter(clock, per_second=2, burst=3)
    assert [limiter.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.take("a") == pytest.approx(0.5)
    assert limiter.take("b") == 0.0
    clock.sleep(0.5)
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 0
    for number in range(30_000):
        limiter.take(str(number))
    assert len(limiter._buckets) <= 20_000


@given(st.text())
def test_whatever_a_name_is_it_stays_text_in_a_page(text: str) -> None:
    shown = environment().from_string('<p title="{{ name }}">{{ name }}</p>').render(name=text)
    inside = shown.removeprefix('<p title="').removesuffix("</p>")
    assert inside.count("<") == 0
    assert inside.count(">") == 1
    assert inside.count('"') == 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_durations_and_amounts_are_written_for_people() -> None:
    assert [duration(value) for value in (None, 0.0, 0.25, 59.6, 372, timedelta(days=2, hours=3, minutes=4))] == [
        "unknown",
        "0 s",
        "250 ms",
        "1 min",
        "6 min 12 s",
        "2 d 3 h",
    ]
    assert [amount(value) for value in (None, 512, 2048, 12_345_678_901)] == ["unknown", "512 B", "2.0 KiB", "11.5 GiB"]


def test_the_table_in_the_documents_is_the_table_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "access.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    roles = [Role(name) for name in rows[0][1:]]
    documented = {
        Permission(row[0].partition(":")[0]): {role for role, word in zip(roles, row[1:], strict=True) if word == "yes"}
        for row in rows[2:]
    }
    assert documented == {permission: set(granted) for permission, granted in GRANTS.items()}
