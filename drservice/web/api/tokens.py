"""API tokens: made by people for their programs, never worth more than who made them.

Who has a token cannot make another one with it: a stolen token ends when it is revoked.
"""

from __future__ import annotations

from datetime import timedelta

from fastapi import Request, Response

from drservice.catalogue.accounts import TokenInfo, TokenRequest
from drservice.catalogue.requests import Answered, Transaction
from drservice.errors import AbsentError, ForbiddenError, NotSignedInError, StaleError
from drservice.web.api.idempotency import Key, once, response_of
from drservice.web.api.services import conditional
from drservice.web.auth.identity import Principal, new_secret
from drservice.web.auth.permissions import Role
from drservice.web.routes import Route
from drservice.web.schemas import NewToken, TokenDocument, TokenList, TokenRequestDocument, Ulid
from drservice.web.site import Here, Site, Who, etag_of


def list_tokens(site: Here, principal: Who) -> TokenList:
    """List one's own tokens; an administrator sees everybody's."""
    return TokenList(
        items=[token_document(token) for token in site.identity.accounts.tokens(account=_whose(principal))]
    )


def get_token(token: Ulid, site: Here, principal: Who, request: Request) -> Response:
    """Return one token."""
    found = _token(site, principal, token)
    return conditional(request, token_etag(found), token_document(found).model_dump(mode="json"))


def create_token(site: Here, principal: Who, request: Request, body: TokenRequestDocument, key: Key = None) -> Response:
    """Make a token. The secret is in this answer only."""
    _require_within(principal, body)
    secret, sha256 = new_secret()

    def work(transaction: Transaction) -> Answered:
        made = site.identity.accounts.issue(
            TokenRequest(
                kind="api",
                name=body.name,
                account=principal.account,
                roles=tuple(body.roles),
                services=tuple(body.services) or tuple(sorted(principal.services)),
                lifetime=timedelta(days=body.days),
                secret_sha256=sha256,
            ),
            session=transaction,
        )
        if made is None:
            raise NotSignedInError("the account was disabled just now")
        # The answer is kept for who repeats the request; the secret is kept nowhere.
        document = NewToken(**token_document(made).model_dump(), secret=None)
        return Answered(status=201, body=document.model_dump_json(), headers={"Location": f"/api/v1/tokens/{made.id}"})

    answer, replayed = once(request, site, principal, key, body, work)
    if replayed:
        return response_of(answer, replayed=True)
    document = NewToken.model_validate_json(answer.body).model_copy(update={"secret": secret})
    return Response(document.model_dump_json(), answer.status, dict(answer.headers), "application/json")


def revoke_token(token: Ulid, site: Here, principal: Who, request: Request) -> Response:
    """Revoke a token: the next request with it is refused."""
    found = _token(site, principal, token)
    wanted = request.headers.get("if-match")
    if wanted not in {None, "*", token_etag(found)}:
        raise StaleError(f"token {token} has changed")
    site.identity.accounts.revoke(token, account=_whose(principal))
    return Response(status_code=204)


def token_document(token: TokenInfo) -> TokenDocument:
    """Return a token as the API tells it."""
    return TokenDocument(
        id=token.id,
        name=token.name,
        account=token.account,
        roles=list(token.roles),
        services=list(token.services),
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        last_used_at=token.last_used_at,
    )


def token_etag(token: TokenInfo) -> str:
    """Return the ETag of a token: it changes when the token is revoked or worth something else."""
    return etag_of(token.id, token.revoked_at, token.roles, token.services)


def _require_within(principal: Principal, body: TokenRequestDocument) -> None:
    if principal.csrf is None:
        raise ForbiddenError("a token cannot make another token", hint="Sign in and make it there.")
    beyond = sorted(set(body.roles) - {role.value for role in principal.roles})
    if beyond:
        raise ForbiddenError(f"{principal.account} cannot give {', '.join(beyond)}, having it not")
    foreign = [name for name in body.services if not principal.sees(name)]
    if foreign:
        raise AbsentError(f"there is no service {foreign[0]}")


def _token(site: Site, principal: Principal, token: str) -> TokenInfo:
    found = next((t for t in site.identity.accounts.tokens(account=_whose(principal)) if t.id == token), None)
    if found is None:
        raise AbsentError(f"there is no token {token}")
    return found


def _whose(principal: Principal) -> str | None:
    """Return whose tokens somebody sees: everybody's (``None``), or their own."""
    return None if Role.ADMIN in principal.roles else principal.account


TOKENS = (
    Route(name="api.tokens.list", method="GET", path="/api/v1/tokens", endpoint=list_tokens, in_schema=True),
    Route(
        name="api.tokens.create",
        method="POST",
        path="/api/v1/tokens",
        endpoint=create_token,
        status=201,
        in_schema=True,
        responses={201: {"model": NewToken}},
    ),
    Route(
        name="api.tokens.get",
        method="GET",
        path="/api/v1/tokens/{token}",
        endpoint=get_token,
        in_schema=True,
        responses={200: {"model": TokenDocument}, 304: {"description": "Not Modified"}},
    ),
    Route(
        name="api.tokens.revoke",
        method="DELETE",
        path="/api/v1/tokens/{token}",
        endpoint=revoke_token,
        status=204,
        kind=Response,
        in_schema=True,
    ),
)
