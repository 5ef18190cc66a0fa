"""Signing in and out, in a browser."""

from __future__ import annotations

import pytest

from tests.browser.scene import PASSWORD
from tests.browser.visitors import Visitors

pytestmark = pytest.mark.browser


def test_who_signs_in_is_where_they_wanted_to_go_and_signing_out_ends_it(visitors: Visitors) -> None:
    page = visitors.page(None, "/services/erp")
    assert page.url.endswith("/sign-in?next=/services/erp")
    visitors.sign_in(page, "vera")
    assert page.url.endswith("/services/erp")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    visitors.go(page, "/services/erp")
    assert "/sign-in" in page.url


def test_a_wrong_password_is_told_in_words_that_name_nobody(visitors: Visitors) -> None:
    visitors.expected.add(401)
    page = visitors.page(None, "/sign-in")
    page.get_by_label("Name").fill("vera")
    page.get_by_label("Password").fill(PASSWORD[::-1])
    page.get_by_role("button", name="Sign in").click()
    assert "name or password is wrong" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Name").input_value() == "vera"
    assert page.get_by_label("Password").input_value() == ""
