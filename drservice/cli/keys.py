"""``drservice keys``: who can read the backups, and proof that they can."""

from __future__ import annotations

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus, NoIdentityError
from drservice.operations.keys import check_identities, list_keys
from drservice.wiring.data_plane import open_data_plane


@click.command(name="list", help="List data keys and who can open them.")
@click.argument("service", required=False)
@click.pass_obj
def list_all(invocation: Invocation, service: str | None) -> None:
    """List keys."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane:
        found = [key for chosen in estate.selected(service) for key in list_keys(plane.repository, chosen.name)]
    document = {
        "keys": [
            {
                "service": key.service,
                "key": key.key_id,
                "created_at": key.created_at,
                "host": key.host,
                "recipients": list(key.recipients),
            }
            for key in found
        ],
        "recipients": list(estate.repository.recipients),
    }
    rows = [(key.service, key.key_id, key.created_at[:19] + "Z", key.host, ", ".join(key.recipients)) for key in found]
    lines = format_table(("SERVICE", "DATA KEY", "CREATED", "HOST", "OPENED BY"), rows) if rows else ["no data key yet"]
    invocation.output.result("keys-list", document, [*lines, "next: drservice keys check"])


@click.command(help="Prove that each configured identity opens the newest data key.")
@click.argument("service", required=False)
@click.pass_obj
def check(invocation: Invocation, service: str | None) -> ExitStatus:
    """Check keys."""
    estate = invocation.load().estate
    references = estate.repository.identities
    if not references:
        raise NoIdentityError("no identity is configured here, so nothing can be proved")
    with open_data_plane(estate) as plane:
        checks = [
            item
            for chosen in estate.selected(service)
            for item in check_identities(plane.repository, references, chosen.name)
        ]
    document = {
        "checks": [
            {
                "service": item.service,
                "recipient": item.recipient,
                "key": item.key_id,
                "state": "ok" if item.opened else "failed",
                "detail": item.detail,
            }
            for item in checks
        ]
    }
    lines = [f"{'ok    ' if i.opened else 'FAILED'} {i.service}: {i.recipient} {i.detail}" for i in checks]
    invocation.output.result("keys-check", document, lines)
    return ExitStatus.OK if checks and all(item.opened for item in checks) else ExitStatus.INTEGRITY
