"""From a request's cookie or Authorization header to a principal: who asks, with which roles, for which services.

A secret is 256 random bits; the catalogue keeps its SHA-256, which needs no salt and no slow hash because there is
nothing to guess. Sessions are the same thing in a cookie that scripts cannot read, and only they can be abused by
another site: a request with a session that changes something has to come from our origin *and* carry a word derived
from the session's secret, which another site cannot know.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlsplit

from drservice.catalogue.accounts import Accounts, TokenInfo, TokenRequest
from drservice.errors import AbsentError, CrossSiteError, ForbiddenError, NotSignedInError
from drservice.web.auth.passwords import Passwords
from drservice.web.auth.permissions import Permission, Role, may

SESSION_COOKIE = "__Host-drservice"
"""The prefix makes browsers insist on Secure, no Domain and Path=/ (RFC 6265bis)."""
SESSION_LIFETIME = timedelta(hours=12)
_TOKEN = re.compile(r"drs_[A-Za-z0-9_-]{43}\Z")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks."""

    account: str
    token: str
    """Id of the token or session."""
    roles: frozenset[Role]
    services: frozenset[str]
    """Empty = all."""
    csrf: str | None
    """The word that changes need; ``None`` for API tokens, which no browser sends by itself."""

    def may(self, permission: Permission) -> bool:
        """Tell whether the roles have a permission."""
        return may(self.roles, permission)

    def require(self, permission: Permission) -> None:
        """Refuse without a permission.

        Raises:
            ForbiddenError: none of the roles has it.
        """
        if not self.may(permission):
            roles = ", ".join(sorted(role.value for role in self.roles)) or "no role"
            raise ForbiddenError(f"{self.account} ({roles}) has no permission to {permission.value}")

    def sees(self, service: str | None) -> bool:
        """Tell whether a service is in scope; what belongs to no service is for those who have all."""
        return not self.services or service in self.services

    def require_service(self, service: str) -> None:
        """Refuse a service out of scope, with the words for one that does not exist.

        Raises:
            AbsentError: it is out of scope.
        """
        if not self.sees(service):
            raise AbsentError(f"there is no service {service}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new token with its secret, which is shown once."""

    token: TokenInfo
    secret: str


class Identity:
    """Recognises principals, signs people in, and makes tokens."""

    def __init__(self, accounts: Accounts, passwords: Passwords) -> None:
        self.accounts = accounts
        self._passwords = passwords

    def principal(self, *, authorization: str | None, cookie: str | None) -> Principal:
        """Return who asks. A header is believed before a cookie, and a wrong one is not saved by a right cookie.

        Raises:
            NotSignedInError: nothing was sent, or nothing that is good now.
        """
        if authorization is not None:
            scheme, _, given = authorization.partition(" ")
            secret = given.strip()
            if scheme.lower() != "bearer" or not _TOKEN.match(secret):
                raise NotSignedInError("the Authorization header holds no token of this service")
            return self._found(secret, kind="api")
        if cookie is None:
            raise NotSignedInError("nobody is signed in")
        return self._found(cookie, kind="session")

    def sign_in(self, name: str, password: str, *, lifetime: timedelta = SESSION_LIFETIME) -> Issued:
        """Begin a session.

        Raises:
            NotSignedInError: always in the same words and after the same work, whatever was wrong.
        """
        attempt = self.accounts.begin_attempt(name) if is_account_name(name) else None
        if not self._passwords.matches(attempt.password_hash if attempt else None, password) or attempt is None:
            raise NotSignedInError(
                "name or password is wrong, or the account is locked for now",
                hint="After a few wrong passwords in a row an account has to wait, longer each time, up to 15 minutes.",
            )
        self.accounts.end_attempt(name)
        account = attempt.account
        secret = secrets.token_urlsafe(32)
        token = self.accounts.issue(
            TokenRequest(
                kind="session",
                name="browser",
                account=account.name,
                roles=account.roles,
                services=account.services,
                lifetime=lifetime,
                secret_sha256=_hashed(secret),
            )
        )
        if token is None:
            raise NotSignedInError("the account was disabled just now")
        return Issued(token=token, secret=secret)

    def still(self, principals: Collection[Principal]) -> Mapping[str, Principal]:
        """Return those of many principals who are somebody now, by token, as they are now: one question for all."""
        good = self.accounts.still_good({principal.token for principal in principals})
        return {
            principal.token: replace(
                principal,
                roles=frozenset(Role(role) for role in good[principal.token].roles),
                services=frozenset(good[principal.token].services),
            )
            for principal in principals
            if principal.token in good
        }

    def _found(self, secret: str, *, kind: str) -> Principal:
        token = self.accounts.find(_hashed(secret))
        if token is None or token.kind != kind:
            raise NotSignedInError("the token or session is unknown, expired or revoked")
        return Principal(
            account=token.account,
            token=token.id,
            roles=frozenset(Role(role) for role in token.roles),
            services=frozenset(token.services),
            csrf=csrf_word(secret) if kind == "session" else None,
        )


def new_secret() -> tuple[str, bytes]:
    """Return a secret for an API token, and what the catalogue keeps of it."""
    secret = f"drs_{secrets.token_urlsafe(32)}"
    return secret, _hashed(secret)


def csrf_word(secret: str) -> str:
    """Return the word that changes with a session have to carry."""
    return hmac.new(secret.encode(), b"drservice csrf v1", hashlib.sha256).hexdigest()


def require_same_site(
    method: str, *, host: str | None, origin: str | None, fetch_site: str | None, public: str | None = None
) -> None:
    """Refuse a change that a browser sends for another site (or that no browser of today sends).

    Browsers send Origin with every POST, and pages cannot forge it; Sec-Fetch-Site says the same in a word. ``public``
    is our origin as people know it, where a proxy calls us by another name.

    Raises:
        CrossSiteError: it does not come from our origin.
    """
    if method in _READING:
        return
    if fetch_site is not None and fetch_site != "same-origin":
        raise CrossSiteError("the request comes from a page of another site")
    here = origin is not None and host is not None and urlsplit(origin).netloc.lower() == host.lower()
    known = origin is not None and public is not None and origin.lower() == _origin(public)
    if not here and not known:
        raise CrossSiteError("the request does not say that it comes from a page of this site")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def require_csrf(principal: Principal, method: str, given: str | None) -> None:
    """Refuse a change with a session that does not carry the session's word.

    Raises:
        CrossSiteError: it does not.
    """
    if method in _READING or principal.csrf is None:
        return
    if given is None or not hmac.compare_digest(principal.csrf.encode(), given.encode("utf-8", "replace")):
        raise CrossSiteError("the form is of another session, or of none")


def is_account_name(text: str) -> bool:
    """Tell whether a text may name an account."""
    return re.match(r"[a-z0-9](?:[a-z0-9._@-]{0,62}[a-z0-9])?\Z", text) is not None


def _hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
