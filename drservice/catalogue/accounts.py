"""People who may use the web and the API: local accounts, and the tokens and sessions that stand for them.

Secrets never reach this module: it is given hashes. A token is worth what its account is worth *now*: one of a disabled
account is worth nothing, and a role or service taken from the account is gone from every token of it. All times are the
database's (``drservice_now()``).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CursorResult,
    DateTime,
    Text,
    any_,
    case,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from drservice.catalogue.database import Database
from drservice.catalogue.tables import Account, Token
from drservice.model.ids import make_ulid

_NOW = func.drservice_now(type_=DateTime(timezone=True))
FREE_FAILURES = 5
"""So many wrong passwords in a row cost nothing; each further one doubles the wait, from a second on."""
LONGEST_LOCK = timedelta(minutes=15)
SESSION_IDLE = timedelta(hours=1)
_TOUCH_EVERY = timedelta(seconds=30)
"""``last_used_at`` is as exact as this: not every request is a write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountInfo:
    """A local user."""

    name: str
    roles: tuple[str, ...]
    services: tuple[str, ...]
    """Empty = all."""
    disabled: bool
    failures: int
    locked_until: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at an account's password; it is charged before it is judged."""

    account: AccountInfo
    password_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What a token is to be worth, at most."""

    kind: str
    """api | session."""
    name: str
    account: str
    roles: tuple[str, ...]
    services: tuple[str, ...]
    """Empty = all that the account has."""
    lifetime: timedelta
    secret_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """A token without its secret; roles and services are what it is worth now."""

    id: str
    kind: str
    name: str
    account: str
    roles: tuple[str, ...]
    services: tuple[str, ...]
    """Empty = all."""
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


class Accounts:
    """Accounts and tokens in a catalogue. Every method raises CatalogueUnreachableError when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, password_hash: str, *, roles: Sequence[str], services: Sequence[str] = ()) -> bool:
        """Add an account; ``False`` if there is one of that name."""
        with self._database.session() as session:
            added = session.execute(
                insert_unless_there(Account)
                .values(name=name, password_hash=password_hash, roles=list(roles), services=list(services))
                .on_conflict_do_nothing()
                .returning(Account.name)
            ).scalar_one_or_none()
            return added is not None

    def list(self) -> Sequence[AccountInfo]:
        """Return every account, by name."""
        with self._database.session() as session:
            return [_account(row) for row in session.scalars(select(Account).order_by(Account.name))]

    def set_password(self, name: str, password_hash: str) -> bool:
        """Replace a password, end every session and lock; ``False`` for an unknown account."""
        with self._database.session() as session:
            changed = _changed(
                session.execute(
                    update(Account)
                    .where(Account.name == name)
                    .values(password_hash=password_hash, failures=0, locked_until=None)
                )
            )
            session.execute(_revocation().where(Token.account == name, Token.kind == "session"))
            return changed

    def set_disabled(self, name: str, *, disabled: bool) -> bool:
        """Disable or enable an account; disabling revokes its tokens for good. ``False`` for an unknown account."""
        with self._database.session() as session:
            changed = _changed(
                session.execute(
                    update(Account).where(Account.name == name).values(disabled=disabled, failures=0, locked_until=None)
                )
            )
            if disabled:
                session.execute(_revocation().where(Token.account == name))
            return changed

    def begin_attempt(self, name: str) -> Attempt | None:
        """Charge one try at a password; ``None`` if the account is unknown, disabled or locked just now.

        The charge comes first so that many tries at once cannot all be judged before the first of them counts.
        """
        charged = Account.failures + 1
        wait = func.least(LONGEST_LOCK.total_seconds(), func.power(2.0, func.least(charged - FREE_FAILURES, 20)))
        with self._database.session() as session:
            row = session.execute(
                update(Account)
                .where(
                    Account.name == name,
                    Account.disabled.is_(False),
                    or_(Account.locked_until.is_(None), Account.locked_until <= _NOW),
                )
                .values(
                    failures=charged,
                    locked_until=case((charged >= FREE_FAILURES, _NOW + func.make_interval(0, 0, 0, 0, 0, 0, wait))),
                )
                .returning(Account)
            ).scalar_one_or_none()
            return None if row is None else Attempt(account=_account(row), password_hash=row.password_hash)

    def end_attempt(self, name: str) -> None:
        """Take back the charges of an account: the password was right."""
        with self._database.session() as session:
            session.execute(update(Account).where(Account.name == name).values(failures=0, locked_until=None))

    def issue(self, request: TokenRequest, *, session: Session | None = None) -> TokenInfo | None:
        """Put a token on file; ``None`` if its account is unknown or disabled."""
        if session is None:
            with self._database.session() as own:
                return self.issue(request, session=own)
        now = session.execute(select(_NOW)).scalar_one()
        owner = session.execute(
            select(Account)
            .where(Account.name == request.account, Account.disabled.is_(False))
            .with_for_update(read=True)
        ).scalar_one_or_none()
        if owner is None:
            return None
        token = Token(
            id=make_ulid(now, secrets.token_bytes(10)),
            secret_sha256=request.secret_sha256,
            kind=request.kind,
            name=request.name,
            account=request.account,
            roles=list(request.roles),
            services=list(request.services),
            created_at=now,
            expires_at=now + request.lifetime,
        )
        session.add(token)
        session.flush()
        return _token(token, owner)

    def find(self, secret_sha256: bytes) -> TokenInfo | None:
        """Return the token of a secret if it is good for anything now: neither expired, revoked nor left idle."""
        with self._database.session() as session:
            return next(iter(_good(session, Token.secret_sha256 == secret_sha256)), None)

    def still_good(self, tokens: Collection[str]) -> Mapping[str, TokenInfo]:
        """Return those of many tokens, by id, that are good for anything now: one question for all."""
        with self._database.session() as session:
            found = _good(session, Token.id == any_(literal(list(tokens), ARRAY(Text))))
            return {token.id: token for token in found}

    def tokens(self, *, account: str | None = None) -> Sequence[TokenInfo]:
        """Return API tokens, newest first: of one account, or all."""
        query = (
            select(Token, Account)
            .join(Account, Account.name == Token.account)
            .where(Token.kind == "api")
            .order_by(Token.id.desc())
        )
        if account is not None:
            query = query.where(Token.account == account)
        with self._database.session() as session:
            return [_token(token, owner) for token, owner in session.execute(query)]

    def revoke(self, token: str, *, account: str | None = None) -> bool:
        """Revoke a token (of ``account`` only, if given); ``False`` if there is none that is not revoked yet."""
        statement = _revocation().where(Token.id == token)
        if account is not None:
            statement = statement.where(Token.account == account)
        with self._database.session() as session:
            return _changed(session.execute(statement))


def _good(session: Session, which: ColumnElement[bool]) -> list[TokenInfo]:
    """Return the tokens that are good now, and note that they are used."""
    rows = session.execute(
        select(Token, Account, _NOW)
        .join(Account, Account.name == Token.account)
        .where(
            which,
            Token.revoked_at.is_(None),
            Token.expires_at > _NOW,
            Account.disabled.is_(False),
            or_(
                Token.kind != "session",
                func.coalesce(Token.last_used_at, Token.created_at) > _NOW - SESSION_IDLE,
            ),
        )
    ).all()
    stale = [
        token.id for token, _, now in rows if token.last_used_at is None or token.last_used_at < now - _TOUCH_EVERY
    ]
    if stale:
        session.execute(update(Token).where(Token.id.in_(stale)).values(last_used_at=_NOW))
    return [_token(token, account) for token, account, _ in rows]


def _revocation() -> Any:  # noqa: ANN401 - SQLAlchemy's Update has no public generic form
    return update(Token).where(Token.revoked_at.is_(None)).values(revoked_at=_NOW)


def _changed(result: object) -> bool:
    return cast("CursorResult[Any]", result).rowcount == 1


def _account(row: Account) -> AccountInfo:
    return AccountInfo(
        name=row.name,
        roles=tuple(row.roles),
        services=tuple(row.services),
        disabled=row.disabled,
        failures=row.failures,
        locked_until=row.locked_until,
        created_at=row.created_at,
    )


def _token(token: Token, account: Account) -> TokenInfo:
    roles = tuple(role for role in token.roles if role in account.roles)
    services = tuple(token.services or account.services)
    if token.services and account.services:
        services = tuple(name for name in token.services if name in account.services)
        if not services:
            roles = ()  # nothing is left of its scope, and an empty scope would mean everything
    return TokenInfo(
        id=token.id,
        kind=token.kind,
        name=token.name,
        account=token.account,
        roles=roles,
        services=services,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        last_used_at=token.last_used_at,
    )
