"""``drservice account token``: tokens for programs, made where the catalogue is. Shown once, kept as hashes.

Whoever may run this may make accounts, too. A token that is made here is worth at most what its account is worth, as
everywhere.
"""

from __future__ import annotations

import re
from datetime import timedelta

import click

from drservice.catalogue.accounts import TokenInfo, TokenRequest
from drservice.cli.account import open_accounts
from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import AccountError
from drservice.web.auth.identity import new_secret
from drservice.web.auth.permissions import Role

_ROLE = click.Choice([role.value for role in Role])
_LABEL = re.compile(r"[ -~]{1,64}\Z")
LONGEST_DAYS = 366


@click.command(help="Make a token for a program. It is shown now and never again.")
@click.argument("account")
@click.option("--name", "label", required=True, help="what it is for, such as `release pipeline`")
@click.option("--role", "roles", type=_ROLE, multiple=True, required=True, help="may be given several times")
@click.option("--service", "services", multiple=True, help="limit to this service; may be given several times")
@click.option("--days", type=click.IntRange(1, LONGEST_DAYS), default=90, show_default=True, help="until it expires")
@click.pass_obj
def add(
    invocation: Invocation, account: str, label: str, roles: tuple[str, ...], services: tuple[str, ...], days: int
) -> None:
    """Make a token."""
    estate = invocation.load().estate
    if not _LABEL.match(label):
        raise AccountError("a token's name is 1 to 64 printable ASCII characters", hint="Say what it is for.")
    for service in services:
        estate.service(service)
    secret, sha256 = new_secret()
    with open_accounts(estate) as accounts:
        owner = next((item for item in accounts.list() if item.name == account), None)
        if owner is None:
            raise AccountError(f"there is no account {account}")
        beyond = sorted(set(roles) - set(owner.roles))
        foreign = sorted(set(services) - set(owner.services)) if owner.services else []
        if beyond or foreign:
            raise AccountError(
                f"{account} cannot have a token with {', '.join((*beyond, *foreign))}",
                hint="A token is worth at most what its account is worth.",
            )
        request = TokenRequest(
            kind="api",
            name=label,
            account=account,
            roles=tuple(dict.fromkeys(roles)),
            services=tuple(dict.fromkeys(services)) or owner.services,
            lifetime=timedelta(days=days),
            secret_sha256=sha256,
        )
        made = accounts.issue(request)
    if made is None:
        raise AccountError(f"{account} is disabled", hint=f"drservice account enable {account}")
    lines = [
        secret,
        f"token {made.id} of {account}, until {to_iso(made.expires_at)}: shown once, kept as a hash only",
        f"next: send it as `Authorization: Bearer ...`; drservice account token revoke {made.id} ends it",
    ]
    invocation.output.result("account-token-add", {**_document(made), "secret": secret}, lines)


@click.command(name="list", help="List tokens, newest first.")
@click.argument("account", required=False)
@click.pass_obj
def list_tokens(invocation: Invocation, account: str | None) -> None:
    """List tokens."""
    with open_accounts(invocation.load().estate) as accounts:
        found = accounts.tokens(account=account)
    rows = [
        (
            token.id,
            token.account,
            token.name,
            ", ".join(token.roles) or "none",
            ", ".join(token.services) or "all",
            "revoked" if token.revoked_at else f"until {to_iso(token.expires_at)}",
        )
        for token in found
    ]
    lines = format_table(("TOKEN", "ACCOUNT", "NAME", "ROLES", "SERVICES", "STATE"), rows) if rows else ["none"]
    invocation.output.result("account-token-list", {"tokens": [_document(token) for token in found]}, lines)


@click.command(help="Revoke a token: the next request with it is refused.")
@click.argument("token")
@click.pass_obj
def revoke(invocation: Invocation, token: str) -> None:
    """Revoke a token."""
    with open_accounts(invocation.load().estate) as accounts:
        if not accounts.revoke(token):
            raise AccountError(
                f"there is no token {token} that is not revoked",
                hint="`drservice account token list` shows the tokens.",
            )
    invocation.output.result("account-token-revoke", {"token": token}, [f"revoked {token}"])


def _document(token: TokenInfo) -> dict[str, object]:
    return {
        "token": token.id,
        "account": token.account,
        "name": token.name,
        "roles": list(token.roles),
        "services": list(token.services),
        "expires_at": to_iso(token.expires_at),
        "revoked_at": to_iso(token.revoked_at) if token.revoked_at else None,
        "last_used_at": to_iso(token.last_used_at) if token.last_used_at else None,
    }
