"""docs/roles.md is the table of permissions, written out: which role may use which route.

DRSERVICE_WRITE_DOCS=1 python -m pytest tests/unit/web/test_web_matrix.py     # writes it anew
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice.web.api.openapi import served_schema
from drservice.web.app import ROUTES as SERVED
from drservice.web.auth.permissions import GRANTS, ROUTES, Permission, Role, may

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "roles.md"
_WORDS = """# Roles and routes

Written from the table of permissions (`drservice/web/auth/permissions.py`) by
`DRSERVICE_WRITE_DOCS=1 python -m pytest tests/unit/web/test_web_matrix.py`; a test fails when it is not. Another test
asks every route as every role, in and out of its services. A route that is in neither table stops the start.

Cancelling a run takes the permission of its kind as well; a bundle takes an account that is not limited to services; a
token cannot make a token. [Access](access.md) says what stands around this table.
"""


def matrix() -> str:
    """Return the page."""
    methods = {route.name: (route.method, route.path) for route in (*SERVED, served_schema())}
    methods["static"] = ("GET", "/static/...")
    roles = " | ".join(role.value for role in Role)
    lines = [
        _WORDS,
        f"| route | permission | {roles} | logged |",
        f"|---|---|{'---|' * len(Role)}---|",
    ]
    for name, rule in ROUTES.items():
        method, path = methods[name]
        allowed = " | ".join("yes" if may([role], rule.permission) else "-" for role in Role)
        who = "nobody has to be signed in" if rule.permission is Permission.PUBLIC else rule.permission.value
        lines.append(f"| `{method} {path}` | {who} | {allowed} | {'yes' if rule.logged else '-'} |")
    return "\n".join(lines) + "\n"


def test_the_page_about_roles_is_the_table_of_permissions() -> None:
    text = matrix()
    if os.environ.get("DRSERVICE_WRITE_DOCS"):
        DOCUMENT.write_text(text, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == text, "run this test with DRSERVICE_WRITE_DOCS=1"


def test_a_role_more_in_the_table_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = matrix()
    monkeypatch.setitem(GRANTS, Permission.RESTORE, frozenset({Role.RESTORER, Role.VIEWER}))
    assert matrix() != before
