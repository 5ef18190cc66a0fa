"""What ``restore --in-place`` asks and tells beside any other restore."""

from __future__ import annotations

import shlex
import sys

import click

from drservice.cli.formatting import format_bytes
from drservice.cli.invocation import Invocation
from drservice.errors import UsageError
from drservice.operations.inplace import Prepared, end_killed_attempt, prepare_in_place
from drservice.operations.restorerequest import InPlaceOutcome, RestoreContext, RestoreRequest, RestoreResult

_SHOWN = 20


def require_confirmed(
    invocation: Invocation, context: RestoreContext, request: RestoreRequest, confirm: str | None
) -> None:
    """Have a person name the service whose production directory is written over; without one, ``--confirm`` does.

    Raises:
        UsageError: it was not named, or another name was; nothing was changed.
        BusyError: another one is at it.
        As :func:`prepare_in_place`: it may not be done at all.
    """
    name = request.service.name
    end_killed_attempt(context, request)
    prepared = prepare_in_place(context, request)
    if confirm is None:
        if not sys.stdin.isatty():
            raise UsageError(
                f"restoring over {prepared.existing.path} needs a confirmation, and nobody can be asked",
                hint=f"Look with --dry-run first; then give --confirm {name}.",
            )
        for line in preview_lines(prepared):
            invocation.output.note(line)
        confirm = str(click.prompt(f"Type the service's name to restore over {prepared.existing.path}", err=True))
    if confirm != name:
        raise UsageError(f"{confirm!r} is not the name of the service, {name}", hint="Nothing was changed.")


def preview_lines(prepared: Prepared) -> list[str]:
    """Tell what would be done to the directory."""
    lines = [f"in place: {prepared.existing.path}, on which no server runs"]
    if prepared.aside is not None:
        lines.append(f"  continues an earlier attempt, with {prepared.aside.path}")
    if prepared.refusal is not None:
        lines.append(f"  only with what is salvaged: {prepared.refusal.message}")
    for room in prepared.rooms:
        needed, free = format_bytes(room.needed_bytes), format_bytes(room.free_bytes)
        lines.append(f"  {needed} more needed at most in {room.directory}, {free} free")
    if not prepared.items:
        lines.append("  salvage: nothing, the archive has all WAL that is there")
    lines.extend(f"  salvage: {item.describe()}" for item in prepared.items[:_SHOWN])
    if len(prepared.items) > _SHOWN:
        lines.append(f"  salvage: and {len(prepared.items) - _SHOWN} more")
    return lines


def outcome_lines(result: RestoreResult, outcome: InPlaceOutcome, service: str) -> list[str]:
    """Tell what became of the directory and what to do next."""
    component = result.planned.scope.component
    lines = [f"  in place: {outcome.directory}, shut down cleanly"]
    if outcome.salvaged:
        lines.append(f"  salvaged before: {', '.join(outcome.salvaged[:_SHOWN])} ({len(outcome.salvaged)} WAL files)")
    lines.append(f"  set aside: {outcome.aside} has the configuration of before, and what else was no data")
    for name in outcome.set_aside:
        path = shlex.quote(str(outcome.aside / "pg_wal" / name))
        lines.append(f"  NOT ARCHIVED: {name}: drservice wal push --service {service}/{component} {path}")
    archiving = [name for name in result.stripped_settings if name.startswith("archive_")]
    lines.extend(f"  WARNING: {name} was taken out of postgresql.auto.conf: set it again" for name in archiving)
    lines.append(
        f"next: compare postgresql.conf and pg_hba.conf with those in {outcome.aside}, start the server, and take a"
        f" new recovery point: drservice backup {service}"
    )
    return lines
