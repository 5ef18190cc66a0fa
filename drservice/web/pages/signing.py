"""Signing in and out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from drservice.errors import NotSignedInError, TooManyRequestsError
from drservice.web.auth.identity import SESSION_COOKIE, is_account_name
from drservice.web.auth.permissions import Permission
from drservice.web.frontdoor import client_address
from drservice.web.guard import form_of
from drservice.web.pages.rendering import page
from drservice.web.routes import Route
from drservice.web.site import Here, Who

_START = "/"
Form = Annotated[dict[str, str], Depends(form_of)]


def sign_in(request: Request, following: Annotated[str, Query(alias="next", max_length=500)] = _START) -> HTMLResponse:
    """Show where one signs in."""
    return page(request, "sign-in.html", {"next": local(following), "problem": None, "name": ""})


def try_to_sign_in(request: Request, site: Here, form: Form) -> Response:
    """Begin a session, or say no in the same words whatever was wrong."""
    name, following = form.get("name", "")[:64], local(form.get("next", _START))
    if is_account_name(name):
        request.state.account = name
    wait = site.sign_ins.take(client_address(request))
    if wait > 0:
        raise TooManyRequestsError("too many tries to sign in from this address")
    try:
        issued = site.identity.sign_in(name, form.get("password", ""), lifetime=site.estate.web.session)
    except NotSignedInError as error:
        context = {"next": following, "problem": error, "name": name}
        return page(request, "sign-in.html", context, status=HTTPStatus.UNAUTHORIZED)
    answer = RedirectResponse(following, HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        SESSION_COOKIE,
        issued.secret,
        max_age=int(site.estate.web.session.total_seconds()),
        secure=True,
        httponly=True,
        samesite="lax",
        path="/",
    )
    return answer


def sign_out(site: Here, principal: Who) -> Response:
    """End the session here and everywhere."""
    site.identity.accounts.revoke(principal.token)
    answer = RedirectResponse("/sign-in", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(SESSION_COOKIE, secure=True, httponly=True, samesite="lax", path="/")
    return answer


def start(principal: Who) -> Response:
    """Lead to the first page that somebody may see."""
    return RedirectResponse("/overview" if principal.may(Permission.SEE) else "/evidence", HTTPStatus.SEE_OTHER)


def local(target: str) -> str:
    """Return a path of this site, whatever was asked for: nobody is led elsewhere after signing in."""
    ok = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable() and "\\" not in target
    return target if ok else _START


SIGNING_PAGES = (
    Route(name="page.start", method="GET", path="/", endpoint=start, kind=HTMLResponse),
    Route(name="page.sign-in", method="GET", path="/sign-in", endpoint=sign_in, kind=HTMLResponse),
    Route(name="page.sign-in.try", method="POST", path="/sign-in", endpoint=try_to_sign_in, kind=HTMLResponse),
    Route(name="page.sign-out", method="POST", path="/sign-out", endpoint=sign_out, kind=HTMLResponse),
)
