"""``drservice keys``: who can read the backups, and proof that they can."""

from __future__ import annotations

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus, NoIdentityError, UsageError
from drservice.model.evidence import KeyRole
from drservice.operations.enroll import enroll_key
from drservice.operations.keys import check_identities, list_keys
from drservice.repository.envelope import fingerprint
from drservice.settings.scalars import parse_signer_key
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


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


@click.command(help="Put on record that HOST signs with PUBLIC_KEY (ed25519:...) from now on.")
@click.argument("host")
@click.argument("public_key")
@click.option("--services", help="services it may write for, separated by commas (default: all)")
@click.option(
    "--role",
    type=click.Choice([KeyRole.EXECUTOR.value, KeyRole.APPROVER.value]),
    default=KeyRole.EXECUTOR.value,
    show_default=True,
    help="whether it signs what a host did, or what a person approves",
)
@click.pass_obj
def enroll(invocation: Invocation, host: str, public_key: str, services: str | None, role: str) -> None:
    """Enroll a key."""
    estate = invocation.load().estate
    try:
        key = parse_signer_key(public_key)
    except ValueError as error:
        raise UsageError(str(error), hint="`drservice init` on the other host prints its key.") from error
    scope = [estate.service(name.strip()).name for name in services.split(",")] if services else []
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
        record = enroll_key(evidence, name=host, public_key=key, role=KeyRole(role), services=scope)
    limited = f", services: [{', '.join(scope)}]" if scope else ""
    line = f'{host}: {{key: "ed25519:{key.hex()}"{limited}}}'
    document = {"record": record.number, "host": host, "fingerprint": fingerprint(key), "services": scope, "line": line}
    lines = [
        f"record {record.number}: {host} signs with {fingerprint(key)} from now on",
        "A record makes nobody trusted. Add to repository.signers on every host that reads or writes there:",
        f"  {line}",
        "next: drservice evidence anchor",
    ]
    invocation.output.result("keys-enroll", document, lines)
