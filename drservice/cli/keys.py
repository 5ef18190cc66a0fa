"""``drservice keys``: who can read the backups, and proof that they can."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import ExitStatus, NoIdentityError, UsageError
from drservice.model.evidence import KeyRole
from drservice.operations.enroll import enroll_key
from drservice.operations.keys import Rewrapped, check_identities, list_keys, rewrap_keys
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
    if not estate.repository.identities:
        raise NoIdentityError("no identity is configured here, so nothing can be proved")
    with open_data_plane(estate) as plane:
        checks = [item for chosen in estate.selected(service) for item in check_identities(plane.repository, chosen)]
    document = {
        "checks": [
            {
                "service": item.service,
                "identity": item.identity,
                "recipient": item.recipient,
                "key": item.key_id,
                "state": "ok" if item.opened else "failed",
                "detail": item.detail,
                "exposed": item.exposed,
            }
            for item in checks
        ]
    }
    lines = [
        f"{'ok    ' if i.opened else 'FAILED'} {i.service}: {i.recipient or 'an identity'} {i.detail} ({i.identity})"
        for i in checks
    ]
    exposed = sorted({item.identity for item in checks if item.exposed})
    lines += [f"warning: everybody on this machine may read {name}: chmod o-r it" for name in exposed]
    invocation.output.result("keys-check", document, lines)
    return ExitStatus.OK if checks and all(item.opened for item in checks) else ExitStatus.INTEGRITY


@click.command(help="Wrap existing data keys for the recipients that are configured now and cannot open them yet.")
@click.argument("service", required=False)
@click.option("--dry-run", is_flag=True, help="open the keys and say what would be wrapped; write nothing")
@click.pass_obj
def rewrap(invocation: Invocation, service: str | None, *, dry_run: bool) -> ExitStatus:
    """Wrap keys again."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, invocation.progress() as progress:
        done = [
            rewrap_keys(plane.repository, chosen, clock=plane.clock, progress=progress, dry_run=dry_run)
            for chosen in estate.selected(service)
        ]
    document = {
        "dry_run": dry_run,
        "recipients": list(estate.repository.recipients),
        "services": [
            {
                "service": item.service,
                "keys": item.keys,
                "wrapped": list(item.wrapped),
                "unopened": [{"key": key, "reason": reason} for key, reason in item.unopened],
                "named": item.keys - len(item.wrapped) - len(item.unopened),
                "false": [{"object": lie.object_key, "host": lie.host, "reason": lie.reason} for lie in item.false],
                "wal_with_own_key": {
                    "count": item.wal.count,
                    "oldest": to_iso(item.wal.oldest) if item.wal.oldest else None,
                    "newest": to_iso(item.wal.newest) if item.wal.newest else None,
                },
                "points_with_own_key": item.points,
            }
            for item in done
        ],
    }
    lines = [line for item in done for line in _rewrapped_lines(item, dry_run=dry_run)]
    lines.append("A recipient that was taken out of the settings keeps what it could open: this revokes nothing.")
    invocation.output.result("keys-rewrap", document, [*lines, "next: drservice keys list"])
    return ExitStatus.PARTIAL if any(item.unopened or item.false for item in done) else ExitStatus.OK


def _rewrapped_lines(item: Rewrapped, *, dry_run: bool) -> Iterator[str]:
    verb = "would be wrapped" if dry_run else "wrapped"
    named = item.keys - len(item.wrapped) - len(item.unopened)
    yield (
        f"{item.service}: {item.keys} data keys; {len(item.wrapped)} {verb}, {named} name every recipient already"
        " (tried with the identities of this host; the others: drservice keys check where they are)"
    )
    yield from (f"  NOT OPENED: {key}: {reason}" for key, reason in item.unopened)
    yield from (f"  FALSE: {lie.object_key}, signed by {lie.host}: {lie.reason}" for lie in item.false)
    if item.wal.count:
        assert item.wal.oldest is not None
        assert item.wal.newest is not None
        yield (
            f"  {item.wal.count} WAL files carry a key of their own, which only the recipients of their day open"
            f" (received {to_iso(item.wal.oldest)} to {to_iso(item.wal.newest)}):"
            " keep an identity of that day as long as they are kept, no snapshot of theirs is restored without"
        )
    if item.points:
        yield f"  {item.points} recovery points do, too; no restore needs what is sealed in them"


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
