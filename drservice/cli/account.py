"""``drservice account``: who may use pages and API. Local accounts live in the catalogue, passwords only as hashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from drservice.catalogue.accounts import Accounts
from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import AccountError
from drservice.model.estate import Estate
from drservice.web.auth.identity import is_account_name
from drservice.web.auth.passwords import Passwords
from drservice.web.auth.permissions import Role
from drservice.wiring.control_plane import open_control_plane

_ROLE = click.Choice([role.value for role in Role])


@click.command(help="Add an account. The password is asked for, or read from stdin (one line).")
@click.argument("name")
@click.option("--role", "roles", type=_ROLE, multiple=True, required=True, help="may be given several times")
@click.option("--service", "services", multiple=True, help="limit to this service; may be given several times")
@click.pass_obj
def add(invocation: Invocation, name: str, roles: tuple[str, ...], services: tuple[str, ...]) -> None:
    """Add an account."""
    estate = invocation.load().estate
    if not is_account_name(name):
        raise AccountError(
            f"{name!r} is no name for an account", hint="Small letters, digits and . _ @ - between them, at most 64."
        )
    for service in services:
        estate.service(service)
    password_hash = Passwords().hash(_password())
    with open_accounts(estate) as accounts:
        if not accounts.add(name, password_hash, roles=list(dict.fromkeys(roles)), services=services):
            raise AccountError(f"there is an account {name} already")
    document = {"account": name, "roles": list(roles), "services": list(services)}
    invocation.output.result("account-add", document, [f"added {name}: {', '.join(roles)}", "next: drservice web"])


@click.command(name="list", help="List the accounts.")
@click.pass_obj
def list_accounts(invocation: Invocation) -> None:
    """List accounts."""
    with open_accounts(invocation.load().estate) as accounts:
        found = accounts.list()
    document = {
        "accounts": [
            {
                "account": item.name,
                "roles": list(item.roles),
                "services": list(item.services),
                "disabled": item.disabled,
                "locked_until": to_iso(item.locked_until) if item.locked_until else None,
                "created_at": to_iso(item.created_at),
            }
            for item in found
        ]
    }
    rows = [
        (i.name, ", ".join(i.roles), ", ".join(i.services) or "all", "disabled" if i.disabled else "enabled")
        for i in found
    ]
    lines = format_table(("ACCOUNT", "ROLES", "SERVICES", "STATE"), rows) if rows else ["none"]
    invocation.output.result("account-list", document, lines)


@click.command(help="Disable an account; its sessions and tokens end for good.")
@click.argument("name")
@click.pass_obj
def disable(invocation: Invocation, name: str) -> None:
    """Disable an account."""
    _set(invocation, name, disabled=True)


@click.command(help="Enable a disabled or locked account.")
@click.argument("name")
@click.pass_obj
def enable(invocation: Invocation, name: str) -> None:
    """Enable an account."""
    _set(invocation, name, disabled=False)


@click.command(help="Give an account a new password (asked for, or one line of stdin); its sessions end.")
@click.argument("name")
@click.pass_obj
def password(invocation: Invocation, name: str) -> None:
    """Replace a password."""
    estate = invocation.load().estate
    password_hash = Passwords().hash(_password())
    with open_accounts(estate) as accounts:
        if not accounts.set_password(name, password_hash):
            raise AccountError(f"there is no account {name}")
    invocation.output.result("account-password", {"account": name}, [f"{name} has a new password"])


def _set(invocation: Invocation, name: str, *, disabled: bool) -> None:
    word = "disabled" if disabled else "enabled"
    with open_accounts(invocation.load().estate) as accounts:
        if not accounts.set_disabled(name, disabled=disabled):
            raise AccountError(f"there is no account {name}")
    invocation.output.result("account-change", {"account": name, "disabled": disabled}, [f"{word} {name}"])


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


@contextmanager
def open_accounts(estate: Estate) -> Iterator[Accounts]:
    """Open the accounts in the catalogue."""
    with open_control_plane(estate, pool_size=1) as database:
        yield Accounts(database)
